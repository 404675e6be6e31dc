"""Pushes a resized model to the Hub with its card, report and provenance."""

import contextlib
import copy
import json
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..compat import has_peft_adapter
from ..console.progress import logger
from ..errors import BadOption, SaveError
from ..io.companions import say_left_behind
from ..io.reading.hashing import sha256
from ..report.report import Report
from ..version import __version__
from .beside import CONNECTION, card_of_source, report_of, source_card, source_licence
from .card import model_card
from .card_merge import update_card
from .origin import Place, is_local, provenance_of, public, recorded_path

__all__ = ["attach", "push_to_hub", "source_card", "source_licence"]

Result = TypeVar("Result")

SCRATCH = "transformers-bot-push-"  # then the process, then random letters
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
# Busy or broken for the moment; 412: somebody else has committed since the card was read.
PASSING = (408, 412, 429, 500, 502, 503, 504)
# What a plain `from_pretrained` would load: left from an earlier push, it could be taken for the new weights.
WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: str | list[str] | None = None,
) -> CommitInfo:
    """Upload a resized model with its model card and transfer report, in one commit.

    The keywords are those of `PreTrainedModel.push_to_hub`. A model that the factories returned does
    the same with `model.push_to_hub(repo_id)`; for one that was saved and loaded again:

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("my-gpt2")            # doctest: +SKIP
        >>> transformers_bot.push_to_hub(model, "me/gpt2-small").commit_url      # doctest: +SKIP
        'https://huggingface.co/me/gpt2-small/commit/...'

    The repository is made if it does not exist. An existing card keeps what people wrote (see
    `card_merge.update_card`). Weight files of an earlier push that the new ones do not replace are
    removed in the same commit, because loading could prefer them. A server that is busy or a
    connection that breaks is tried again; nothing is committed twice, because every try starts from
    the state that it has read.

    Raises:
        BadOption: a model without provenance, or with an adapter that is not merged.
        SaveError: an existing card whose metadata cannot be read.
        HfHubHTTPError: the Hub's own answer, unchanged, when it refuses or goes on failing.
    """
    if isinstance(model, (str, os.PathLike)):
        raise BadOption(
            f"push_to_hub takes a model in memory, not {os.fspath(model)!r}. Load the folder first: "
            "AutoModel.from_pretrained(folder), or the Auto class of its task."
        )
    if has_peft_adapter(model):
        raise BadOption("an adapter is loaded on this model, and the card describes whole weights. Merge it first.")
    record = public(provenance_of(model.config))
    report = _public_report(model, record, token)
    source = place_of(model)
    if source is not None or model.config.name_or_path or not is_local(record):
        whose = model.config.name_or_path or (source.source if source else record["source"])
        say_left_behind(str(whose), {"token": token}, "push_to_hub of a model in memory")
    api = HfApi(token=token, library_name="transformers_bot", library_version=__version__)
    repo = _tried(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
    place = _Place(api, repo, revision, create_pr)
    if revision is not None and not revision.startswith("refs/pr"):
        _make_branch(place)
    with _scratch() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        _write_record(Path(folder), record)
        if report is not None:
            report.save(folder)
        fresh = _fresh_card(model, record, report, [tags] if isinstance(tags, str) else tags or [], repo, token)
        message = commit_message or "Upload model", commit_description

        def commit() -> CommitInfo:
            return _commit(place, Path(folder), fresh, *message)

        # A second pull request beside one whose answer was lost would be noise; a second commit cannot be.
        return commit() if create_pr else _tried(commit)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A temporary folder for what is going to be uploaded; what killed pushes left of theirs is removed first.

    A folder's name says which process made it. Only folders of this user whose process is gone are removed.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        owner = re.fullmatch(rf"{SCRATCH}(\d+)-\w+", left.name)
        with contextlib.suppress(OSError):  # somebody else has removed it, or owns it
            if owner and left.lstat().st_uid == os.getuid() and not _is_running(int(owner[1])):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as folder:
        yield folder


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def attach(
    model: PreTrainedModel, report: Report | None, files: Mapping[str, Path] | None = None, place: Place | None = None
) -> None:
    """Give a model its report, and make its own `push_to_hub` write our card.

    The class stays what it is; both are attributes of this one instance, which copies and pickles of
    it keep.

    Args:
        files: those of the source, by their names in the record: a push hashes them, if they are still
            what was read. Loading does not wait for that.
        place: where the source is.
    """
    model.transfer_report = report
    model.push_to_hub = _Push(model, {name: (path, _stamp(path)) for name, path in (files or {}).items()}, place)


def place_of(model: PreTrainedModel) -> Place | None:
    """Where the source of a model in memory is; None for one that was loaded from its own files."""
    held = vars(model).get("push_to_hub")
    return held.place if isinstance(held, _Push) else None


Stamps = dict[str, tuple[Path, tuple[int, int] | None]]  # name -> where the file is, its size and time of change


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _Push:
    """A model's own `push_to_hub`: `transformers_bot.push_to_hub` for it, with the same keywords.

    It holds the model weakly: through a strong reference the model would hold itself, and its memory
    would be freed late.
    """

    def __init__(self, model: PreTrainedModel, files: Stamps, place: Place | None = None) -> None:
        self._model, self._files, self.place = weakref.ref(model), files, place

    def __call__(self, repo_id: str, **keywords: Any) -> CommitInfo:
        model = self._held()
        if has_peft_adapter(model):  # only the adapter is pushed, by transformers
            pushed: CommitInfo = type(model).push_to_hub(model, repo_id, **keywords)
            return pushed
        self._hash_files(model)
        return push_to_hub(model, repo_id, **keywords)

    def _hash_files(self, model: PreTrainedModel) -> None:
        """Complete the record by the hashes of the source's files, where loading has not found them for nothing."""
        record = model.config.transformers_bot
        known = record.get("files") or {}
        if not set(self._files) - set(known) or any(_stamp(path) != stamp for path, stamp in self._files.values()):
            return
        hashes = {name: known.get(name) or sha256(path) for name, (path, _) in self._files.items()}
        model.config.transformers_bot = {**record, "files": hashes}

    def _held(self) -> PreTrainedModel:
        model = self._model()
        if model is None:
            raise ReferenceError(
                "this push_to_hub belongs to a model that is gone (it was copied by copy.copy). "
                "Call transformers_bot.push_to_hub(model, repo_id)."
            )
        return model

    def __reduce__(self) -> tuple[type["_Push"], tuple[PreTrainedModel, Stamps, Place | None]]:
        return _Push, (self._held(), self._files, self.place)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Push":
        held = self._held()
        return _Push(memo.get(id(held), held), self._files, self.place)


@dataclass(frozen=True)
class _Place:
    """Where a push goes."""

    api: HfApi
    repo: str
    revision: str | None
    create_pr: bool


def _public_report(model: PreTrainedModel, record: Mapping[str, Any], token: Any) -> Report | None:
    """The model's report without any path of this computer."""
    report = report_of(model, record, token)
    if report is None:
        return None
    place = recorded_path(model.config.transformers_bot)
    warnings = [text.replace(place, record["source"]) for text in report.warnings] if place else report.warnings
    same = report.provenance == record  # then in its own order, whichever way the model was loaded
    return replace(report, provenance=report.provenance if same else dict(record), warnings=tuple(warnings))


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Let a saved config hold this record instead of the model's own, which may say where a folder is."""
    path = folder / CONFIG_NAME
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("transformers_bot") != record:
        fields["transformers_bot"] = record
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _fresh_card(
    model: PreTrainedModel, record: Mapping[str, Any], report: Report | None, tags: list[str], repo: str, token: Any
) -> str:
    config = copy.deepcopy(model.config)
    config.transformers_bot = record
    found = card_of_source(record, place_of(model), token)
    return model_card(config, report, source_card=found, tags=[*(model.model_tags or []), *tags], name=repo)


def _make_branch(place: _Place) -> None:
    try:
        _tried(lambda: place.api.create_branch(place.repo, branch=str(place.revision), exist_ok=True))
    except HfHubHTTPError as error:
        # A pull request may be opened where branches may not; whether this one exists shows in the commit.
        if not (place.create_pr and error.response.status_code == 403):
            raise


def _commit(place: _Place, folder: Path, fresh: str, message: str, description: str | None) -> CommitInfo:
    """One commit on top of the state that was read, so that no text written meanwhile is lost."""
    info = place.api.model_info(place.repo, revision=place.revision)
    there = {file.rfilename for file in info.siblings or ()}
    card = _updated_card(place, info.sha, fresh) if "README.md" in there else fresh
    (folder / "README.md").write_bytes(card.encode())
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = sorted(name for name in there - set(files) if re.fullmatch(WEIGHTS, name))
    if stale:
        logger.info("removing weights of an earlier push from %s: %s", place.repo, ", ".join(stale))
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    made: CommitInfo = place.api.create_commit(
        place.repo,
        [*operations, *map(CommitOperationDelete, stale)],
        commit_message=message,
        commit_description=description,
        revision=place.revision,
        create_pr=place.create_pr,
        parent_commit=info.sha,
    )
    return made


def _updated_card(place: _Place, commit: str | None, fresh: str) -> str:
    """The repository's card, brought up to date."""
    # By its commit: a stale copy in the cache cannot stand in for it when the Hub does not answer.
    path = place.api.hf_hub_download(place.repo, "README.md", revision=commit)
    try:
        existing = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SaveError(
            f"the README.md of {place.repo} is not UTF-8 text, so it cannot be updated without harm: {error}. "
            "Convert or remove it there first; nothing was uploaded."
        ) from None
    return update_card(existing, fresh)


def _tried(call: Callable[[], Result]) -> Result:
    """What `call` gives, after further tries while the server is busy or the connection breaks.

    huggingface_hub repeats by itself what it uploads to the storage (before 2.0 not where a connection
    breaks), but neither the commit nor the calls around it.
    """
    for wait in WAITS:
        try:
            return call()
        except (CONNECTION, LocalEntryNotFoundError, JSONDecodeError, RuntimeError) as error:
            if not _passes(error):
                raise
            logger.warning("the Hub did not answer as it should (%s); trying again in %g s", error, wait)
            time.sleep(wait)
    return call()


def _passes(error: BaseException | None) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache, and asking failed for this reason
        return _passes(error.__cause__)
    if isinstance(error, RuntimeError):  # an upload to the storage; by status it has been tried again already
        return isinstance(error.__cause__, CONNECTION) and not isinstance(error.__cause__, HfHubHTTPError)
    return isinstance(error, (CONNECTION, JSONDecodeError))  # a proxy's page where JSON was due
