"""Pushes a resized model to the Hub with its card, report and provenance.

Why not HfApi.upload_folder: the card must be merged with the card of exactly the parent commit, and huggingface_hub
retries uploads only, not the commit.
"""

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
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from ..compat import NO_ERROR, has_peft_adapter
from ..console.progress import logger
from ..errors import BadCheckpoint, BadOption, SaveError
from ..io.checkpoint import say_left_behind
from ..io.files import HUB, Stamp, check_unchanged, opened
from ..io.fingerprints import sha256
from ..io.plain_yaml import NotPlain, read_yaml
from ..report.report import FILE as REPORT_FILE
from ..report.report import Report
from ..version import __version__
from .card import HOME, model_card, update_card
from .provenance import hub_source, is_local, provenance_of, public, recorded_path

__all__ = ["push_to_hub", "source_card"]

Result = TypeVar("Result")

SCRATCH = "transformers-bot-push-"  # then the process, then random letters
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
# Statuses of a busy or broken server; 412: there is a newer commit than the one whose card was read.
TEMPORARY = (408, 412, 429, 500, 502, 503, 504)
# Files that a plain `from_pretrained` loads: those of an earlier push could be loaded instead of the new ones.
WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"


@dataclass(frozen=True)
class Place:
    """Where the source of a model in memory is, by an absolute path; kept with the model, never saved or pushed."""

    source: str
    subfolder: str | None = None


Stamps = Mapping[str, tuple[Path, Stamp]]  # name in the record -> where the file is, and what it was when it was read


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
    the same with `model.push_to_hub(repo_id)`. For a model that was saved and loaded again:

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("my-gpt2")            # doctest: +SKIP
        >>> transformers_bot.push_to_hub(model, "me/gpt2-small").commit_url      # doctest: +SKIP
        'https://huggingface.co/me/gpt2-small/commit/...'

    The repository is made if it does not exist. An existing card keeps what people wrote (see
    `card.update_card`). Weight files of an earlier push that the new ones do not replace are
    removed in the same commit, because loading could prefer them. While the server is busy or the
    connection breaks, calls are retried; nothing is committed twice, because each try names the parent
    commit that it has read.

    Raises:
        BadOption: the model has no provenance, or an adapter that is not merged.
        SaveError: the metadata of an existing card cannot be read.
        HfHubHTTPError: the Hub's own answer, if it refuses or still fails after all retries.
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
        source_name = model.config.name_or_path or (source.source if source else record["source"])
        say_left_behind(str(source_name), {"token": token}, "push_to_hub of a model in memory")
    api = HfApi(token=token, library_name="transformers_bot", library_version=__version__)
    repo = _with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
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

        # Not retried for a pull request: if only the answer was lost, there would be two. A commit names its parent,
        # so there cannot be two.
        return commit() if create_pr else _with_retries(commit)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A temporary folder for the files to upload; folders that killed pushes left behind are removed first.

    A folder's name says which process made it. Only folders of this user whose process is gone are removed.
    """
    for leftover in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        owner = re.fullmatch(rf"{SCRATCH}(\d+)-\w+", leftover.name)
        with contextlib.suppress(OSError):  # another process has removed it, or another user owns it
            if owner and leftover.lstat().st_uid == os.getuid() and not _is_running(int(owner[1])):
                shutil.rmtree(leftover)
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


@dataclass(frozen=True)
class _Place:
    """The target of a push."""

    api: HfApi
    repo: str
    revision: str | None
    create_pr: bool


def _public_report(model: PreTrainedModel, record: Mapping[str, Any], token: Any) -> Report | None:
    """The model's report without the path of its source folder."""
    report = report_of(model, record, token)
    if report is None:
        return None
    place = recorded_path(model.config.transformers_bot)
    warnings = [text.replace(place, record["source"]) for text in report.warnings] if place else report.warnings
    same = report.provenance == record  # then keep the report's own order of fields
    return replace(report, provenance=report.provenance if same else dict(record), warnings=tuple(warnings))


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Put this record into a saved config, in place of the model's own, which may hold the path of a folder."""
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
    fields = card_of_source(record, place_of(model), token)
    return model_card(config, report, source_card=fields, tags=[*(model.model_tags or []), *tags], name=repo)


def _make_branch(place: _Place) -> None:
    try:
        _with_retries(lambda: place.api.create_branch(place.repo, branch=str(place.revision), exist_ok=True))
    except HfHubHTTPError as error:
        # A pull request may be allowed where branches are not; the commit fails if the branch does not exist.
        if not (place.create_pr and error.response.status_code == 403):
            raise


def _commit(place: _Place, folder: Path, fresh: str, message: str, description: str | None) -> CommitInfo:
    """Make one commit on top of the commit that was read, so that no text written since is lost."""
    info = place.api.model_info(place.repo, revision=place.revision)
    present = {file.rfilename for file in info.siblings or ()}
    card = _updated_card(place, info.sha, fresh) if "README.md" in present else fresh
    (folder / "README.md").write_bytes(card.encode())
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = sorted(name for name in present - set(files) if re.fullmatch(WEIGHTS, name))
    if stale:
        logger.info("removing weights of an earlier push from %s: %s", place.repo, ", ".join(stale))
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    commit: CommitInfo = place.api.create_commit(
        place.repo,
        [*operations, *map(CommitOperationDelete, stale)],
        commit_message=message,
        commit_description=description,
        revision=place.revision,
        create_pr=place.create_pr,
        parent_commit=info.sha,
    )
    return commit


def _updated_card(place: _Place, commit: str | None, fresh: str) -> str:
    """The repository's card with the new section and metadata."""
    # Pinned to the commit: if the Hub does not answer, no older copy from the cache is used instead.
    path = place.api.hf_hub_download(place.repo, "README.md", revision=commit)
    try:
        existing = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SaveError(
            f"the README.md of {place.repo} is not UTF-8 text, so it cannot be updated without harm: {error}. "
            "Convert or remove it there first; nothing was uploaded."
        ) from None
    return update_card(existing, fresh)


def _with_retries(call: Callable[[], Result]) -> Result:
    """The result of `call`, which is retried while the server is busy or the connection breaks.

    huggingface_hub itself retries uploads to the storage (before 2.0 not after a broken connection), but neither
    the commit nor the calls around it.
    """
    for wait in WAITS:
        try:
            return call()
        except (CONNECTION, LocalEntryNotFoundError, JSONDecodeError, RuntimeError) as error:
            if not _is_temporary(error):
                raise
            logger.warning("the Hub did not answer as it should (%s); trying again in %g s", error, wait)
            time.sleep(wait)
    return call()


def _is_temporary(error: BaseException | None) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TEMPORARY
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache; the cause says why the Hub did not give it
        return _is_temporary(error.__cause__)
    if isinstance(error, RuntimeError):  # an upload to the storage, already retried for bad statuses
        return isinstance(error.__cause__, CONNECTION) and not isinstance(error.__cause__, HfHubHTTPError)
    return isinstance(error, (CONNECTION, JSONDecodeError))  # a proxy's page in place of JSON


# -- files beside a model's weights: a source's card, a result's report ------------------------------

LARGEST_CARD = 256_000  # bytes read of a source's card; its metadata stands first
INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
# The base error of the HTTP client that this huggingface_hub uses (httpx, httpx2).
CONNECTION: type[Exception] = HfHubHTTPError.__mro__[1]


def source_card(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a resized model's card inherits from its source's: licence, languages, pipeline tag.

    Args:
        name: hub id or folder.
        keywords: those of the Hub: revision, token, cache_dir, local_files_only, force_download, proxies.

    It is no error if there is no card, no access or no network, or if the metadata cannot be read: the result is
    then empty. Only the beginning of the file is read, as plain YAML.
    """
    path = _file_of(name, "README.md", keywords)
    if path is None:
        return {}
    try:
        with opened(Path(path)) as (stream, _):
            text = stream.read(LARGEST_CARD).decode("utf-8-sig", "replace")
    except BadCheckpoint as error:
        logger.info("nothing is taken over from the model card of %r: %s", name, error)
        return {}
    block = REGEX_YAML_BLOCK.match(text)
    try:
        data = read_yaml(block[2]) if block else None
    except NotPlain as error:
        logger.info("nothing is taken over from the model card of %r: its metadata cannot be read, %s", name, error)
        return {}
    fields = {key: data[key] for key in INHERITED if _is_plain(data.get(key))} if isinstance(data, dict) else {}
    link = fields.get("license_link", "")
    if "://" not in link:  # a file of the source's repository or folder, not of the result's
        fields.pop("license_link", None)
        if link and not os.path.isdir(name):
            fields["license_link"] = f"{HOME}/{name}/blob/{keywords.get('revision') or 'main'}/{link}"
    return fields


def card_of_source(provenance: Mapping[str, Any], place: Place | None, token: bool | str | None) -> dict[str, Any]:
    """The `source_card` of a model's source, if that can be reached.

    Args:
        provenance: names a source on the Hub; a folder that it names is not opened.
        place: the source that a user named in this process.
    """
    if place is not None and os.path.isdir(place.source):
        return source_card(place.source, {})
    repository = hub_source(provenance)
    return source_card(repository[0], {"revision": repository[1], "token": token}) if repository else {}


def report_of(model: PreTrainedModel, provenance: Mapping[str, Any], token: bool | str | None = None) -> Report | None:
    """The report of a model: in memory, or saved beside the weights that it was loaded from."""
    attached = getattr(model, "transfer_report", None)
    if isinstance(attached, Report):
        return attached
    place = str(model.config.name_or_path or "")
    path = _file_of(place, REPORT_FILE, {"token": token}) if place else None
    if path is None:
        return None
    try:
        report = Report.load(os.path.dirname(path))
    except BadCheckpoint as error:
        logger.warning("the model card is written without a report: %s", error)
        return None
    sizes = {role: after for role, (_, after) in report.sizes.items()}
    if any(sizes.get(role, length) != length for role, length in provenance["target_sizes"].items()):
        logger.warning("the model card is written without a report: %s in %s is of other sizes", REPORT_FILE, place)
        return None
    return report


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) and len(value) <= 300 else [value]
    return all(isinstance(item, str) and 0 < len(item) <= 500 and item.isprintable() for item in items)


def _file_of(name: str, filename: str, keywords: Mapping[str, Any]) -> str | None:
    """The path of a file of a folder or repository; None if it does not exist or cannot be reached."""
    if os.path.isdir(name):
        path = os.path.join(name, filename)
        return path if os.path.isfile(path) else None
    try:
        path = cached_file(
            name,
            filename,
            **{key: keywords[key] for key in HUB if key != "subfolder" and keywords.get(key) is not None},
            **NO_ERROR,
        )
    except (OSError, CONNECTION) as error:  # no such repository, no connection: loading says so itself
        logger.info("%s of %r cannot be read: %s", filename, name, error)
        return None
    return str(path) if path is not None else None


def place_of(model: PreTrainedModel) -> Place | None:
    """Where the source of a model in memory is; None for one that was loaded from its own files."""
    push = vars(model).get("push_to_hub")
    return push.place if isinstance(push, OwnPush) else None


@dataclass(frozen=True, eq=False, repr=False)
class OwnPush:
    """A model's own `push_to_hub`: `transformers_bot.push_to_hub` for it, with the same keywords.

    Attributes:
        model: held weakly: with a strong reference the model would refer to itself, and its memory would be
            freed late.
        files: of its source, which a push hashes if they have not changed; loading does not wait for that.
        place: of its source.
    """

    model: "weakref.ref[PreTrainedModel]"
    files: Stamps
    place: Place

    def __call__(self, repo_id: str, **keywords: Any) -> CommitInfo:
        model = self._held()
        if has_peft_adapter(model):  # only the adapter is pushed, by transformers
            pushed: CommitInfo = type(model).push_to_hub(model, repo_id, **keywords)
            return pushed
        self._hash_files(model)
        return push_to_hub(model, repo_id, **keywords)

    def _hash_files(self, model: PreTrainedModel) -> None:
        """Add the hashes of the source's files to the record; loading adds only those that need no reading."""
        record = model.config.transformers_bot
        recorded = record.get("files") or {}
        if not set(self.files) - set(recorded):
            return
        with contextlib.suppress(BadCheckpoint):  # the files have changed since they were read: no hashes
            check_unchanged(dict(self.files.values()))
            hashes = {
                name: recorded.get(name) or sha256(path, stamp=stamp) for name, (path, stamp) in self.files.items()
            }
            model.config.transformers_bot = {**record, "files": hashes}

    def _held(self) -> PreTrainedModel:
        model = self.model()
        if model is None:
            raise ReferenceError(
                "this push_to_hub belongs to a model that is gone (it was copied by copy.copy). "
                "Call transformers_bot.push_to_hub(model, repo_id)."
            )
        return model

    def __reduce__(self) -> "tuple[Callable[..., OwnPush], tuple[PreTrainedModel, Stamps, Place]]":
        return _own_push, (self._held(), self.files, self.place)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnPush":
        model = self._held()
        return _own_push(memo.get(id(model), model), self.files, self.place)


def _own_push(model: PreTrainedModel, files: Stamps, place: Place) -> OwnPush:
    return OwnPush(weakref.ref(model), files, place)
