"""Many processes: one resize for each node, then ordinary loading of what it made.

The first process of a node that asks writes the result as an ordinary checkpoint folder, and every
process loads that folder with transformers, whose business slicing (FSDP2, tensor parallel, ZeRO-3)
then is.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as zero

from ..compat import undivided
from ..console import progress
from ..errors import RankError
from .rendezvous import Meeting, Outcome, meet

Made = TypeVar("Made")
Loaded = TypeVar("Loaded")

SPLITTING = ("distributed_config", "tp_plan", "tp_size", "device_mesh")  # keywords that split a model over ranks
WAITING = 25.0  # rough seconds
OFFLOADING = ("max_memory", "offload_folder")


def is_split(target: Mapping[str, Any]) -> bool:
    """Whether loading with these keywords splits the model, so that every rank takes part in it."""
    return bool(zero.is_deepspeed_zero3_enabled()) or any(target.get(name) is not None for name in SPLITTING)


def is_shared(model_class: type[PreTrainedModel], target: Mapping[str, Any]) -> bool:
    """Whether a resize is to go through `once_per_node`: with several processes, or ZeRO-3.

    Starts torch.distributed where transformers itself would in a moment: for ZeRO-3, and for
    `distributed_config` under a launcher. A model that may be offloaded to disk is not shared: it
    goes on reading its files for as long as it lives.

    Args:
        target: the keywords with which the result is to be loaded.

    Raises:
        RankError: inside `deepspeed.zero.Init`, which takes every weight away as soon as it is made.
    """
    _refuse_zero_init()
    offloads = isinstance(target.get("device_map"), str) or any(target.get(name) is not None for name in OFFLOADING)
    if not dist.is_available() or (offloads and not is_split(target)):
        return False
    if not dist.is_initialized():
        _start(model_class, target)
    return dist.is_initialized() and (dist.get_world_size() > 1 or bool(zero.is_deepspeed_zero3_enabled()))


def _start(model_class: type[PreTrainedModel], target: Mapping[str, Any]) -> None:
    if zero.is_deepspeed_zero3_enabled():
        import deepspeed  # type: ignore[import-not-found]

        deepspeed.init_distributed()
    elif target.get("distributed_config") is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        model_class.prepare_distribute_model(target["distributed_config"], device_map=target.get("device_map"))


def _refuse_zero_init() -> None:
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if getattr(partition, "zero_init_context", 0):
        raise RankError(
            "a model cannot be resized inside deepspeed.zero.Init: its weights would be empty. Leave the context "
            "out; transformers splits the result itself while an HfDeepSpeedConfig (or TrainingArguments) is alive."
        )


def once_per_node(
    call: Sequence[str],
    make: Callable[[Path], Made],
    load: Callable[[Path, Made], Loaded],
    *,
    source: str = "",
    together: bool = False,
) -> Loaded:
    """`load(folder, made)` in every process, where `made = make(folder)` ran in one process of each node.

    What `make` draws at random is the same on all nodes, and later draws of a process are what they
    would be if it had made everything itself.

    Example (in every process, after torch.distributed has been initialised):
        >>> once_per_node(["gpt2", "6x384"], write, lambda folder, _: read(folder))  # doctest: +SKIP

    Args:
        call: what is to be made, in words that are equal where the same is asked for.
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
    meeting = meet(call, source, together)
    outcome, number = None, meeting.number()
    try:
        if number == 1:
            outcome = _make(meeting, make)
        else:
            with progress.part("waiting for the process that resizes for this node", WAITING):
                outcome = meeting.outcome()
            if not outcome.folder.exists():  # who made it has ended, before this process asked
                outcome = _make(meeting, make)
        if together:
            meeting.wait_for_all()
    except BaseException as error:
        meeting.tell(error)
        torch.set_rng_state(own)
        if outcome is not None:  # together: what is not whole on every node is loaded on none
            shutil.rmtree(outcome.folder, ignore_errors=True)
        raise
    torch.set_rng_state(outcome.draws if torch.equal(own, meeting.draws) else own)
    try:
        return load(outcome.folder / "model", outcome.made)
    finally:
        if meeting.is_last_to_load(number):
            # Weights that are mapped from the files stay readable. Where the system keeps mapped files (NFS, Windows),
            # this removes what it can, and the process that made the folder tries again when it ends.
            shutil.rmtree(outcome.folder, ignore_errors=True)


def _make(meeting: Meeting, make: Callable[[Path], Any]) -> Outcome:
    """Make it for this node, and tell the node's other processes how that went."""
    holder = None
    try:
        holder = Path(tempfile.mkdtemp(prefix="transformers-bot-"))
        # As atexit would, and also in the forked children of multiprocessing, which leave without it.
        Finalize(None, _leave, (meeting, holder), exitpriority=0)
        torch.set_rng_state(meeting.draws)
        with undivided():
            made = make(holder / "model")
        outcome = Outcome(holder, made, torch.get_rng_state())
        meeting.publish(outcome)
    except BaseException as error:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)
        meeting.publish_error(error)
        raise
    return outcome


def _leave(meeting: Meeting, holder: Path) -> None:
    """Remove the folder that this process has made, after those that read it: a script may end right after its call."""
    if holder.exists():
        with contextlib.suppress(Exception):  # the store may have ended before
            meeting.wait_for_readers()
        shutil.rmtree(holder, ignore_errors=True)
