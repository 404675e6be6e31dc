"""The index of a sharded checkpoint, and whether the shards' headers agree with it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ...errors import BadCheckpoint, UnsafeCheckpoint
from .headers import StoredTensor
from .jsons import read_json
from .paths import count, is_plain, listed, shown, shown_path

Headers = Mapping[str, Mapping[str, StoredTensor]]  # shard -> its tensors


def read_index(path: Path, suffix: str) -> dict[str, str]:
    """Tensor -> shard, both as the index names them.

    Args:
        suffix: what the name of every shard must end with.

    Raises:
        UnsafeCheckpoint: a shard that is no plain name inside the folder, or of another format.
        BadCheckpoint: no index, or one that transformers cannot follow.
    """
    fields = read_json(path)
    where = fields.get("weight_map")
    if not isinstance(where, dict):
        raise BadCheckpoint(f"{shown_path(path)} has no 'weight_map' from tensors to files. Download it again.")
    if not where:
        raise BadCheckpoint(f"{shown_path(path)} lists no tensors. Download it again.")
    if not isinstance(fields.get("metadata"), dict):
        raise BadCheckpoint(
            f"{shown_path(path)} has no 'metadata' object, which transformers reads. "
            'Add "metadata": {} to it, or download it again.'
        )
    wrong = [name for name, shard in where.items() if not isinstance(shard, str)]
    if wrong:
        raise BadCheckpoint(
            f"{shown_path(path)} gives tensor {shown(wrong[0])} the file {shown(where[wrong[0]])}, which is no name. "
            "Download it again."
        )
    for shard in dict.fromkeys(where.values()):
        if not is_plain(shard):
            raise UnsafeCheckpoint(
                f"{shown_path(path)}: the index names a file outside of the model folder: {shown(shard)}. "
                "Nothing of it was opened; get the checkpoint from a source you trust."
            )
        if not shard.endswith(suffix):
            raise UnsafeCheckpoint(
                f"{shown_path(path)} names {shown(shard)}, which is no {suffix} file: another format could run code. "
                "Get the checkpoint from a source you trust."
            )
    return where


def missing_shards(path: Path, shards: list[str], absent: list[str]) -> BadCheckpoint:
    """The error for shards that the index names and the folder does not hold."""
    verb = "is" if len(absent) == 1 else "are"
    return BadCheckpoint(
        f"{len(absent)} of {count(len(shards), 'shard')} {verb} missing: {listed(absent)} "
        f"(named by {shown_path(path)}). Download the missing files."
    )


def check_agreement(path: Path, index: Mapping[str, str], headers: Headers) -> None:
    """The index must name exactly the tensors of each shard, each in one shard.

    Raises:
        BadCheckpoint: with the names.
    """
    held = Counter(name for tensors in headers.values() for name in tensors)
    twice = [name for name, count in held.items() if count > 1]
    if twice:
        shards = [shard for shard, tensors in headers.items() if twice[0] in tensors]
        raise BadCheckpoint(
            f"more than one shard of {shown_path(path)} holds {count(len(twice), 'tensor')}: {listed(twice)} (the "
            f"first is in {listed(shards)}). Which one counts is undefined; save the model again."
        )
    lacking = [name for name, shard in index.items() if name not in headers[shard]]
    if lacking:
        raise BadCheckpoint(
            f"{shown_path(path)} lists {count(len(lacking), 'tensor')} that the shards lack: {listed(lacking)} (the "
            f"first should be in {shown(index[lacking[0]])}). Download index and shards again, from one revision."
        )
    omitted = [name for name in held if name not in index]
    if omitted:
        raise BadCheckpoint(
            f"{shown_path(path)} omits {count(len(omitted), 'tensor')} that its shards hold: {listed(omitted)}. "
            "Download index and shards again, from one revision."
        )
