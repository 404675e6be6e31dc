"""One process of each node does the work; the others take its result, or its error.

All of it goes through the key-value store that torch.distributed runs on. accelerate has a ready way for the plain
case, `PartialState().local_main_process_first()`, and torch has barriers; this module stays for what they cannot do
(read and tried in accelerate 1.3 and 1.15):

- Making a `PartialState` starts a process group, sets the process's device and, under MPI launchers, its environment
  variables and number of threads. A call that loads a model must not.
- A barrier needs every rank. A call that only some ranks make (rank 0 alone, or each inside the caller's own
  `main_process_first()`) would wait forever or meet another barrier. A store keeps nobody waiting, needs no device,
  and no time limit of a collective runs out while one process computes.
- Where the first process raises or is killed, those at a barrier wait on. Here its error is raised in all of them.
- Its files have to last until the last reader of its node is done, and random heads have to be equal on all nodes.
"""

import contextlib
import hashlib
import itertools
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate.utils import get_int_from_env

from ..compat import default_store, undivided
from ..console import progress
from ..errors import RankError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Result = TypeVar("Result")
Loaded = TypeVar("Loaded")

WAITING = 25.0  # rough seconds, for the progress bar
PATIENCE = 1800.0  # seconds that other nodes may need longer than this one; gloo's collectives wait as long
# How launchers tell the number of processes on a node: torchrun and accelerate, DeepSpeed, Open MPI, Intel MPI.
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_calls: dict[str, Iterator[int]] = {}  # kind of call -> numbers of those that this process makes


def once_per_node(
    call: Sequence[str],
    make: Callable[[Path], Result],
    load: Callable[[Path, Result], Loaded],
    *,
    source: str = "",
    together: bool = False,
) -> Loaded:
    """`load(folder, result)` in every process, where `result = make(folder)` ran in one process of each node.

    What `make` draws at random is the same on all nodes, and later draws of a process are what they
    would be if it had made everything itself.

    Example (in every process, after torch.distributed has been initialised):
        >>> once_per_node(["gpt2", "6x384"], write, lambda folder, _: read(folder))  # doctest: +SKIP

    Args:
        call: what is to be made, in strings that are equal where the same is asked for.
        make: writes `folder`, which does not exist yet; what it returns can be pickled.
        load: reads `folder`. It is removed once every process of the node has loaded it, or, if some
            never ask, when the process that made it ends and none is reading; one that asks later makes its own.
        source: a folder; where its files change, it is another call.
        together: every rank takes part, and none loads before all nodes' folders are whole.

    Raises:
        RankError: the ranks ask for different things (`together`), or one that others need has ended.
        What `make` raised, in every process that asks for it.
    """
    own = torch.get_rng_state()
    rendezvous = join(call, source, together)
    outcome, arrival = None, rendezvous.arrive()
    try:
        if arrival == 1:
            outcome = _make(rendezvous, make)
        else:
            with progress.part("waiting for the process that resizes for this node", WAITING):
                outcome = rendezvous.outcome()
            if not outcome.folder.exists():  # the process that made it ended before this one asked
                outcome = _make(rendezvous, make)
        if together:
            rendezvous.wait_for_all()
    except BaseException as error:
        rendezvous.fail(error)
        torch.set_rng_state(own)
        if outcome is not None:  # together: what is not whole on every node is loaded on none
            shutil.rmtree(outcome.folder, ignore_errors=True)
        raise
    torch.set_rng_state(outcome.generator if torch.equal(own, rendezvous.generator) else own)
    try:
        return load(outcome.folder / "model", outcome.result)
    finally:
        if rendezvous.is_last_to_load(arrival):
            # Weights that are mapped from the files stay readable. Where the system keeps mapped files (NFS, Windows),
            # this removes what it can, and the process that made the folder tries again when it ends.
            shutil.rmtree(outcome.folder, ignore_errors=True)


@dataclass(frozen=True)
class Outcome:
    """What one process made for its node.

    Attributes:
        folder: the temporary folder that holds it.
        result: what `make` returned.
        generator: the state of the random generator afterwards.
        error: what was raised instead.
    """

    folder: Path
    result: Any
    generator: torch.Tensor
    error: BaseException | None = None


@dataclass(frozen=True)
class Rendezvous:
    """One call, as its processes see it; made by `join`.

    Attributes:
        key: begins the names that all processes of the call share.
        node: begins those that the node's processes share.
        together: whether every rank takes part.
        generator: the state of the first process's random generator on arrival.
    """

    store: "Store"
    key: str
    node: str
    together: bool
    generator: torch.Tensor

    def arrive(self) -> int:
        """The number of this process, from 1, among the callers of its node; number 1 does the work for the others."""
        arrival = self.store.add(f"{self.node}/asked", 1)
        _put(self.store, f"{self.node}/pid/{arrival}", os.getpid())
        return arrival

    def publish(self, outcome: Outcome) -> None:
        """Give the node's other processes what this one made."""
        _put(self.store, f"{self.node}/outcome", outcome)

    def publish_error(self, error: BaseException) -> None:
        self.publish(Outcome(Path(), None, self.generator, _portable(error)))

    def outcome(self) -> Outcome:
        """What another process makes for this node; raises its error.

        Raises:
            RankError: that process has ended without a result or an error.
        """
        maker: int = _get(self.store, f"{self.node}/pid/1")
        key = f"{self.node}/outcome"
        for _ in _pauses():
            alive = psutil.pid_exists(maker)  # asked first: it may end right after it has published
            if self.store.check([key]):
                break
            if not alive:
                raise RankError(f"process {maker}, which resized for all processes of this node, has ended.")
            self._raise_failure()
        outcome: Outcome = _get(self.store, key)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def wait_for_all(self) -> None:
        """Return when every rank has what its node made; raises the error of any of them.

        Raises:
            RankError: some have not come within `PATIENCE`.
        """
        self.store.add(f"{self.key}/ready", 1)
        world, until = dist.get_world_size(), time.monotonic() + PATIENCE
        for _ in _pauses():
            ready = self.store.add(f"{self.key}/ready", 0)
            if ready >= world:
                return
            self._raise_failure()
            if time.monotonic() > until:
                raise RankError(
                    f"{ready} of {world} ranks came within {PATIENCE:.0f} s to load a model that is split over all of "
                    "them. Make the call on every rank."
                )

    def fail(self, error: BaseException) -> None:
        """Make all other ranks that wait for this one raise this error."""
        if self.together:
            _first(self.store, f"{self.key}/error", _portable(error))

    def _raise_failure(self) -> None:
        if self.together and self.store.check([f"{self.key}/error"]):
            raise _get(self.store, f"{self.key}/error")

    def is_last_to_load(self, arrival: int) -> bool:
        """Note that the process of this arrival has loaded; whether all of its node have."""
        self.store.set(f"{self.node}/loaded/{arrival}", "")
        # Without a launcher's number, all ranks are counted: then the folder is kept until its process ends.
        local: int = get_int_from_env(LOCAL_SIZES, dist.get_world_size())
        return self.store.add(f"{self.node}/loaded", 1) == local

    def wait_for_readers(self) -> None:
        """Return when no living process of this node that has asked is still to load."""
        until = time.monotonic() + PATIENCE
        for _ in _pauses():
            arrivals = range(1, self.store.add(f"{self.node}/asked", 0) + 1)
            if not any(self._is_loading(arrival) for arrival in arrivals) or time.monotonic() > until:
                return

    def _is_loading(self, arrival: int) -> bool:
        if self.store.check([f"{self.node}/loaded/{arrival}"]):
            return False
        pid = f"{self.node}/pid/{arrival}"
        return not self.store.check([pid]) or psutil.pid_exists(_get(self.store, pid))


def join(call: Sequence[str], source: str, together: bool) -> Rendezvous:
    """Join the other processes of a call; see `once_per_node` for the arguments.

    Raises:
        RankError: another rank came with another `call` (`together`).
    """
    store = default_store()
    digest = _digest(call)
    # All ranks make every call of this kind, so these are numbered; other calls are identified by their arguments.
    kind = "together" if together else _digest([digest, *_state_of(source)])
    key = f"transformers_bot/{kind}/{next(_calls.setdefault(kind, itertools.count()))}"
    first, rank, generator = _first(store, key, (digest, dist.get_rank(), torch.get_rng_state()))
    rendezvous = Rendezvous(store, key, f"{key}/{_node()}", together, generator)
    if first != digest:
        error = RankError(
            f"rank {dist.get_rank()} asks for another model than rank {rank}, but a model that is split over "
            "ranks is loaded by all of them together. Make the same call on every rank."
        )
        rendezvous.fail(error)
        raise error
    return rendezvous


def _make(rendezvous: Rendezvous, make: Callable[[Path], Any]) -> Outcome:
    """Do the work for this node, and publish the result or the error to its other processes."""
    holder = None
    try:
        holder = Path(tempfile.mkdtemp(prefix="transformers-bot-"))
        # As atexit would, and also in the forked children of multiprocessing, which leave without it.
        Finalize(None, _leave, (rendezvous, holder), exitpriority=0)
        torch.set_rng_state(rendezvous.generator)
        with undivided():
            result = make(holder / "model")
        outcome = Outcome(holder, result, torch.get_rng_state())
        rendezvous.publish(outcome)
    except BaseException as error:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)
        rendezvous.publish_error(error)
        raise
    return outcome


def _leave(rendezvous: Rendezvous, holder: Path) -> None:
    """Remove the folder that this process has made, after those that read it: a script may end right after its call."""
    if holder.exists():
        with contextlib.suppress(Exception):  # the store may have ended before
            rendezvous.wait_for_readers()
        shutil.rmtree(holder, ignore_errors=True)


def _pauses() -> Iterator[None]:
    pause = 0.005
    while True:
        yield
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)


def _first(store: "Store", key: str, value: Any) -> Any:
    """The value of the process that comes first."""
    if store.add(f"{key}/first", 1) == 1:
        _put(store, key, value)
    return _get(store, key)


def _put(store: "Store", key: str, value: Any) -> None:
    store.set(key, pickle.dumps(value))  # type: ignore[arg-type]  # declared for text, takes bytes


def _get(store: "Store", key: str) -> Any:
    """The value of a key, once it is there. Only processes of this job write to the store."""
    return pickle.loads(store.get(key))


def _portable(error: BaseException) -> BaseException:
    """The error as other processes can raise it: same kind and message where it survives pickling."""
    rank = dist.get_rank()
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):  # pickling an unknown class can raise anything
            copy: Exception = pickle.loads(pickle.dumps(error))
            if type(copy) is type(error) and str(copy) == str(error):
                copy.add_note(f"(raised by rank {rank}, which resized for this node)")
                return copy
    return RankError(f"rank {rank}, which resized for this node, ended with {type(error).__name__}: {error}")


def _node() -> str:
    """A key that is equal in processes that share a temporary folder and see each other's process numbers."""
    status = os.stat(tempfile.gettempdir())
    space = "/proc/self/ns/pid"  # Linux: containers with one host name may have process numbers of their own
    numbers = os.readlink(space) if os.path.exists(space) else ""
    return _digest([socket.gethostname(), f"{status.st_dev} {status.st_ino}", numbers])


def _state_of(source: str) -> list[str]:
    """Names, sizes and times of the files in a folder; nothing for a hub id."""
    if not os.path.isdir(source):
        return []
    files = sorted((entry.name, entry.stat()) for entry in os.scandir(source) if entry.is_file())
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files]


def _digest(strings: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(strings).encode()).hexdigest()[:32]
