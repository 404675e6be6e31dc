"""How the processes of one job tell each other who makes a model, what came of it, and who still loads it.

All of it goes through the key-value store that torch.distributed runs on. Unlike collectives, a store
does not need everybody: a call that only some ranks make (inside `main_process_first()`, on rank 0
alone) keeps nobody waiting. Nor does it need a device, and no collective's time limit runs out while
one process computes.
"""

import contextlib
import hashlib
import itertools
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..errors import RankError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = 1800.0  # seconds that other nodes may need longer than this one; gloo's collectives wait as long
# How launchers tell the number of processes on a node: torchrun and accelerate, DeepSpeed, Open MPI, Intel MPI.
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_turns: dict[str, Iterator[int]] = {}


@dataclass(frozen=True)
class Outcome:
    """What one process made for its node.

    Attributes:
        folder: where it is.
        made: what else it has to say.
        draws: the state of the random generator afterwards.
        error: why there is nothing.
    """

    folder: Path
    made: Any
    draws: torch.Tensor
    error: BaseException | None = None


@dataclass(frozen=True)
class Meeting:
    """One call, as its processes see it; made by `meet`.

    Attributes:
        key: begins the names that all processes of the call share.
        node: begins those that the node's processes share.
        together: whether every rank takes part.
        draws: the state of the random generator that the first process came with.
    """

    store: "Store"
    key: str
    node: str
    together: bool
    draws: torch.Tensor

    def number(self) -> int:
        """The place of this process, from 1, among those of its node that ask; the first makes it for the others."""
        number = self.store.add(f"{self.node}/asked", 1)
        _put(self.store, f"{self.node}/pid/{number}", os.getpid())
        return number

    def publish(self, outcome: Outcome) -> None:
        """Give the node's other processes what this one made."""
        _put(self.store, f"{self.node}/outcome", outcome)

    def publish_error(self, error: BaseException) -> None:
        self.publish(Outcome(Path(), None, self.draws, _portable(error)))

    def outcome(self) -> Outcome:
        """What another process makes for this node; raises its error.

        Raises:
            RankError: that process has ended without a word.
        """
        maker: int = _get(self.store, f"{self.node}/pid/1")
        done = f"{self.node}/outcome"
        for _ in _pauses():
            alive = _is_alive(maker)  # asked first: it may end right after it has published
            if self.store.check([done]):
                break
            if not alive:
                raise RankError(f"process {maker}, which resized for all processes of this node, has ended.")
            self._raise_others()
        outcome: Outcome = _get(self.store, done)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def wait_for_all(self) -> None:
        """Return when every rank has what its node made; raises what any of them tells.

        Raises:
            RankError: some have not come within `PATIENCE`.
        """
        self.store.add(f"{self.key}/ready", 1)
        world, until = dist.get_world_size(), time.monotonic() + PATIENCE
        for _ in _pauses():
            ready = self.store.add(f"{self.key}/ready", 0)
            if ready >= world:
                return
            self._raise_others()
            if time.monotonic() > until:
                raise RankError(
                    f"{ready} of {world} ranks came within {PATIENCE:.0f} s to load a model that is split over all of "
                    "them. Make the call on every rank."
                )

    def tell(self, error: BaseException) -> None:
        """Tell all other ranks, where they wait for this one."""
        if self.together:
            _first(self.store, f"{self.key}/error", _portable(error))

    def _raise_others(self) -> None:
        if self.together and self.store.check([f"{self.key}/error"]):
            raise _get(self.store, f"{self.key}/error")

    def is_last_to_load(self, number: int) -> bool:
        """Count the process of this number as one that has loaded; whether all of its node have."""
        local = next((int(os.environ[name]) for name in LOCAL_SIZES if name in os.environ), dist.get_world_size())
        self.store.set(f"{self.node}/loaded/{number}", "")
        return self.store.add(f"{self.node}/loaded", 1) == local

    def wait_for_readers(self) -> None:
        """Return when no living process of this node that has asked is still to load."""
        until = time.monotonic() + PATIENCE
        for _ in _pauses():
            asked = range(1, self.store.add(f"{self.node}/asked", 0) + 1)
            if not any(self._is_loading(number) for number in asked) or time.monotonic() > until:
                return

    def _is_loading(self, number: int) -> bool:
        if self.store.check([f"{self.node}/loaded/{number}"]):
            return False
        pid = f"{self.node}/pid/{number}"
        return not self.store.check([pid]) or _is_alive(_get(self.store, pid))


def meet(call: Sequence[str], source: str, together: bool) -> Meeting:
    """Come to a call; see `ranks.once_per_node` for the arguments.

    Raises:
        RankError: another rank came with another `call` (`together`).
    """
    store = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    asked = _digest(call)
    # All ranks come to every call of this kind, so these are counted; others are known by what they ask for.
    kind = "together" if together else _digest([asked, *_state_of(source)])
    key = f"transformers_bot/{kind}/{next(_turns.setdefault(kind, itertools.count()))}"
    first, rank, draws = _first(store, key, (asked, dist.get_rank(), torch.get_rng_state()))
    meeting = Meeting(store, key, f"{key}/{_node()}", together, draws)
    if first != asked:
        error = RankError(
            f"rank {dist.get_rank()} asks for another model than rank {rank}, but a model that is split over "
            "ranks is loaded by all of them together. Make the same call on every rank."
        )
        meeting.tell(error)
        raise error
    return meeting


def _pauses() -> Iterator[None]:
    pause = 0.005
    while True:
        yield
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)


def _first(store: "Store", key: str, thing: Any) -> Any:
    """What whichever process comes first puts there."""
    if store.add(f"{key}/first", 1) == 1:
        _put(store, key, thing)
    return _get(store, key)


def _put(store: "Store", key: str, thing: Any) -> None:
    store.set(key, pickle.dumps(thing))  # type: ignore[arg-type]  # declared for text, takes bytes


def _get(store: "Store", key: str) -> Any:
    """Waits for it. Only this job's own processes write here, as for torch.distributed's object collectives."""
    return pickle.loads(store.get(key))


def _portable(error: BaseException) -> BaseException:
    """The error as other processes can raise it: same kind and message where it survives pickling."""
    rank = dist.get_rank()
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):  # whatever a class of unknown make does when it is pickled
            copy: Exception = pickle.loads(pickle.dumps(error))
            if type(copy) is type(error) and str(copy) == str(error):
                copy.add_note(f"(raised by rank {rank}, which resized for this node)")
                return copy
    return RankError(f"rank {rank}, which resized for this node, ended with {type(error).__name__}: {error}")


def _node() -> str:
    """Equal in processes that share a temporary folder and see each other's process numbers."""
    where = os.stat(tempfile.gettempdir())
    space = "/proc/self/ns/pid"  # Linux: containers with one host name may have process numbers of their own
    numbers = os.readlink(space) if os.path.exists(space) else ""
    return _digest([socket.gethostname(), f"{where.st_dev} {where.st_ino}", numbers])


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where os.kill asks nothing, and ends the process instead
        return True
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _state_of(source: str) -> list[str]:
    """Names, sizes and times of the files in a folder; nothing for a hub id."""
    if not os.path.isdir(source):
        return []
    files = sorted((entry.name, entry.stat()) for entry in os.scandir(source))
    return [f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in files]


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
