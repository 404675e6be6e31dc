"""Resizes a checkpoint from folder to folder, tensor by tensor, without a model in memory."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from torch import Tensor
from transformers import PreTrainedModel

from ..auto import stated
from ..compat import told_of_memory, undivided
from ..console import progress
from ..console.progress import logger
from ..errors import BadCheckpoint, BadKeyword, BadOption, SaveError
from ..hub import card, push
from ..hub.card import read_metadata, split_card, update_card
from ..io import companions, sentences
from ..io.atomic_folder import check_place, whole_folder
from ..io.config_files import without_places
from ..io.fingerprints import Hashing, fingerprints, why_foreign
from ..io.safetensors_writer import Shard, lay_out, total_bytes
from ..learned.fit_options import Fit, fit_of, fitted
from ..learned.fitting import fitted_report
from ..report.measure import Watch, make_report
from ..report.report import Report
from ..request.names import HUB, TARGET
from ..request.request import (
    Request,
    check_numbers,
    class_for_task,
    picked,
    read_call,
)
from ..request.source_class import with_class
from ..run.execute import provenance
from ..run.opening import Resize, check_request, open_resize
from ..run.sentence_widths import Carried, carry_modules
from ..run.writing import (
    ROOM,
    Stored,
    layout_of,
    memory_bound,
    merged_bytes,
    save_configs,
    skeleton_of,
    write_tensors,
    write_weights,
)

if TYPE_CHECKING:
    from ..request.signatures import Batches, DType, FolderKeywords, Keep, Nonfinite, Options, Target

CARD = "README.md"


@progress.bar("resizing")
@undivided()
def resize_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: "Target" = None,
    *,
    bot_config: "Options" = None,
    method: str = "bot",
    calibration: "Batches" = None,
    nonfinite: "Nonfinite" = "error",
    allow_pickle: bool = False,
    strict: bool = True,
    record_path: bool = False,
    vocab_keep: "Keep" = None,
    ignore_mismatched_sizes: bool = False,
    dtype: "DType" = None,
    torch_dtype: "DType" = None,
    task: str | None = None,
    max_shard_size: int | str = "50GB",
    overwrite: bool | Literal["foreign"] = False,
    tokenizer: bool = True,
    modules: bool = True,
    fit: "Mapping[str, Any] | None" = None,
    **kwargs: "Unpack[FolderKeywords]",
) -> Report:
    """Write `source` at another size to the folder `out`, tensor by tensor, and return the report.

    The weights are, byte for byte, those of `BoTModel...from_pretrained(source, config).save_pretrained(out)`, but
    neither model is ever in memory: the source stays on disk, and each target tensor is written as soon as it is
    computed. Beside the weights, `out` gets the configs, tokenizer and processor files, the report
    (`transfer_report.json`) and a model card (`README.md`).

    The folder is written whole or not at all: an existing `out` stays as it is until the new one is complete, also if
    the run is killed. The same inputs give the same bytes; new heads are drawn from `BoTConfig.seed`.

    Example:
        >>> report = resize_checkpoint("gpt2", "my-gpt2", n_layer=6, n_embd=384, n_head=6)  # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("my-gpt2")                                 # doctest: +SKIP

    Args:
        source: hub id or folder.
        out: the folder to write.
        config: the target, as in `BoTModel.from_pretrained`; overrides may be keywords.
        task: another head than the source's own: one of `transformers_bot.tasks.TASKS`.
        max_shard_size: of a weight file, as in `save_pretrained`.
        overwrite: True replaces an existing `out` as a whole if a resize wrote it and it is unchanged since. "foreign"
            replaces any saved model, also a trained one: that model is lost. A folder that holds anything but a saved
            model is never replaced.
        tokenizer: copy tokenizer and processor files, and check the vocabulary.
        modules: copy the modules of a sentence-transformers folder, at the new width; with False, the result is a
            plain model.
        fit: data for the methods "ligo" and "mango", which learn their maps: a dict of `fit`'s arguments, such as
            {"batches": "corpus.txt", "steps": 100}. Batches may be files or folders of texts or images, as
            `read_batches` takes them (then also "batch_size" and "tokens"). The model is in memory during the fit.
        bot_config, method, calibration, nonfinite, allow_pickle, strict, record_path, vocab_keep,
            ignore_mismatched_sizes, dtype, torch_dtype: as in `BoTModel.from_pretrained`.
        kwargs: fields of the config and hub keywords, as there. Keywords for a model in memory (`device_map`,
            `quantization_config`, ...) are refused.

    Memory: beside the mapped pages of the source, which the system can evict, at most `memory_bound` bytes with the
    method "bot", for any number of layers; with `calibration` also one float64 covariance for every fitted matrix.
    "lemon" and "importance" need more. Experts that files hold one by one are merged while transformers loads the
    source, and are in memory, too.

    Raises:
        SaveError: `out` exists, is being written by another process, or does not fit on the disk.
        TooLittleMemory: the memory does not even suffice for the largest tensor.
        What `BoTModel.from_pretrained` raises.
    """
    own_keywords = stated(
        bot_config=bot_config,
        method=method,
        calibration=calibration,
        nonfinite=nonfinite,
        allow_pickle=allow_pickle,
        strict=strict,
        record_path=record_path,
        vocab_keep=vocab_keep,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        dtype=dtype,
        torch_dtype=torch_dtype,
    )
    if not isinstance(out, (str, os.PathLike)):
        raise BadOption(f"out must be the path of a folder, got {type(out).__name__}.")
    _check_flags({"tokenizer": tokenizer, "modules": modules})
    check_numbers({"task": task, "max_shard_size": max_shard_size, "overwrite": overwrite})
    replacing = _replacing(overwrite)
    with progress.part("reading the configs", progress.READING_SECONDS):
        request = _request(source, config, task, {**kwargs, **own_keywords})
        learning = fit_of(fit, request.keywords.method)
        lay_out((), max_shard_size)  # raises for an invalid size
        request = with_class(request) if task is None else request  # may look at weights: after all other checks
    place = _free_place(out, replacing, request)  # checked before weights are fetched
    before = _card_before(place / CARD)
    resize = open_resize(request)
    output = _output_of(resize, learning, max_shard_size, _places(resize, kwargs), tokenizer, modules)
    writing = whole_folder(out, **replacing, needs=output.needs, keep=resize.checkpoint.files)
    bound = memory_bound(resize.plan) + merged_bytes(resize)
    with writing as folder, Hashing(resize.checkpoint.hashes) as hashing:
        with told_of_memory(f"Writing {os.fspath(out)!r}", bound):
            watch, grown, learned = output.write(folder)
        with progress.part("hashing the source's files", progress.finishing_seconds(resize.plan) / 4):
            hashes = hashing.result()
        record = {**provenance(resize), **learned, "files": hashes, "seed_of_new_heads": request.options.seed}
        warnings = output.carry(folder, record)
        output.skeleton.config.transformers_bot = record
        report = make_report(resize.plan, watch, record)
        report = fitted_report(report, record, grown) if learned else report
        report = replace(report, warnings=without_places((*report.warnings, *warnings), request.name, folder))
        resize.checkpoint.check_unchanged()  # the record must name the files that were read
        report = _write_side_files(folder, output, report, before)
    for sentence in report.warnings:
        logger.warning(sentence)
    return report


@dataclass(frozen=True)
class _Output:
    """What a folder will hold.

    Attributes:
        resize: source, plan and target.
        skeleton: the target without the memory of its weights.
        stored, shards: target tensor -> its names in the files, and the files.
        files: tokenizer and processor files of the source.
        carried: modules of sentence-transformers.
        learning, batches: what the result is fitted to.
    """

    resize: Resize
    skeleton: PreTrainedModel
    stored: Stored
    shards: tuple[Shard, ...]
    files: Mapping[str, Path]
    carried: Carried | None
    learning: Fit | None
    batches: Iterable[Mapping[str, Any]] | None

    @property
    def needs(self) -> int:
        """Bytes on the disk."""
        beside = sum(file.stat().st_size for file in self.files.values()) + (self.carried.size if self.carried else 0)
        return total_bytes(self.shards) + ROOM + beside

    def write(self, folder: Path) -> tuple[Watch, Mapping[str, Tensor], dict[str, Any]]:
        """Write the weights; return the measurements and, of a fit, its tensors and facts for the record."""
        if not self.learning:
            return write_weights(folder, self.resize, self.skeleton, self.stored, self.shards), {}, {}
        seed = self.resize.request.options.seed
        watch, grown, learned = fitted(self.resize, seed, self.learning, self.batches)
        write_tensors(folder, self.skeleton, grown, self.stored, self.shards)
        return watch, grown, learned

    def carry(self, folder: Path, record: dict[str, Any]) -> list[str]:
        """Write the source's other files, name its modules in the record, and return warnings."""
        resize, kept = self.resize, self.resize.request.kept
        numbers = kept.numbers if kept else None
        warnings = companions.carry(self.files, folder, resize.config, resize.plan.positions, numbers)
        if not self.carried:
            return warnings
        self.carried.write(folder)
        record["modules"] = sorted(self.carried.files)
        return [*warnings, *self.carried.warnings]


def _output_of(
    resize: Resize,
    learning: Fit | None,
    max_shard_size: int | str,
    places: dict[str, Any],
    tokenizer: bool,
    modules: bool,
) -> _Output:
    """What will be written, found before anything is.

    Args:
        places: hub keywords of the source.
    """
    request = resize.request
    with progress.part("building the model", progress.finishing_seconds(resize.plan) / 2):
        skeleton = skeleton_of(resize, request.options.seed)
    _check_generation(request.name, skeleton)
    stored, shards = layout_of(resize, skeleton, max_shard_size)
    files = companions.find(request.name, places) if tokenizer else {}
    carried = modules_of(resize, places) if modules else None
    batches = learning.batches_for(resize, places) if learning else None
    return _Output(resize, skeleton, stored, shards, files, carried, learning, batches)


def _places(resize: Resize, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Hub keywords of the source, at the commit from which its weights came."""
    pinned = {"revision": resize.checkpoint.revision} if resize.checkpoint.revision else {}
    return {**picked(keywords, HUB), **pinned}


def modules_of(resize: Resize, places: dict[str, Any]) -> Carried | None:
    """The modules of a sentence-transformers source at the target's width; None if it has none.

    Args:
        places: hub keywords of the source.
    """
    list_of_modules = sentences.find(resize.request.name, places, resize.request.keywords.allow_pickle)
    return carry_modules(list_of_modules, resize) if list_of_modules else None


def _card_before(path: Path) -> str:
    """The text of the card that will be replaced; raises if the new card could not be merged into it."""
    if not path.is_file():
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SaveError(f"{path} cannot be read ({error.strerror}), so its text could not be kept. Move it.") from None
    except UnicodeDecodeError as error:
        raise SaveError(f"{path} is not UTF-8 ({error}), so its text could not be kept. Mend or move it.") from None
    body, header, _ = split_card(text.removeprefix("\ufeff"))
    read_metadata(header, body[0])
    return text


def _check_generation(name: str, skeleton: PreTrainedModel) -> None:
    """Refuse generation settings that transformers loads but would not save at the end."""
    if not skeleton.can_generate():
        return
    try:
        skeleton.generation_config.validate(strict=True)
    except ValueError as error:
        raise BadCheckpoint(
            f"the generation_config.json of {name} contradicts itself, and transformers does not save such settings: "
            f"{' '.join(str(error).split())} Correct that file, or pass generation_config=."
        ) from None


def _request(source: Any, config: Any, task: str | None, kwargs: dict[str, Any]) -> Request:
    """The checked request of a call. The source's config is read first, so that a missing source is reported first."""
    memory_keywords = sorted(set(kwargs) & ({*TARGET, "output_loading_info"} - {"generation_config"}))
    if memory_keywords:
        raise BadKeyword(
            f"{memory_keywords[0]}= is for a model in memory; resize_checkpoint writes files. Leave it out."
        )
    call = read_call("resize_checkpoint", source, {**kwargs, "config": config}, class_for_task(task))
    if not call.keywords.names_target:
        raise BadOption("no target is given: pass config=, or fields of the config to change.")
    return Request.of(call)


def _check_flags(flags: Mapping[str, Any]) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise BadOption(f"{name} must be True or False, got {value!r}.")


def _replacing(overwrite: bool | str) -> dict[str, Any]:
    """The keywords of `whole_folder` on an existing folder."""
    if overwrite not in (True, False, "foreign"):
        raise BadOption(f"overwrite must be True, False or 'foreign', got {overwrite!r}.")
    return {"overwrite": bool(overwrite), "foreign": None if overwrite == "foreign" else why_foreign}


def _free_place(out: str | os.PathLike[str], replacing: dict[str, Any], request: Request) -> Path:
    """The folder to write. If it is taken, report other mistakes first: a free folder would not mend them."""
    try:
        return check_place(out, **replacing)
    except SaveError:
        check_request(request)
        if os.path.isdir(request.name):
            request.files()
        raise


def _write_side_files(folder: Path, output: _Output, report: Report, card_before: str) -> Report:
    """Write the configs as `save_pretrained` does, the report, and the card with the text that people wrote before."""
    skeleton, request = output.skeleton, output.resize.request
    skeleton.config.dtype = str(output.resize.dtype).removeprefix("torch.")
    skeleton.config.architectures = [type(skeleton).__name__]
    save_configs(folder, skeleton)
    report = replace(report, written=fingerprints(folder))
    report.save(folder)
    source_card = push.source_card(request.name, request.keywords.hub)
    library_class = output.carried.kind if output.carried else None
    text = card.model_card(skeleton.config, report, source_card=source_card, library_class=library_class)
    text = update_card(card_before, text) if card_before else text
    (folder / CARD).write_text(text, encoding="utf-8")
    return report
