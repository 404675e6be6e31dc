"""The model card of a resized model: its metadata, what was done, how to load it and how to check it.

Names in it come from configs and files that anybody may have written. So they are put into code spans and YAML
strings, where they cannot become markup.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import transformers
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]
from transformers import PreTrainedConfig

from ..architectures import ADAPTERS
from ..architectures.inventory import auto_class_of
from ..architectures.sizes import get_field
from ..console.progress import logger
from ..errors import SaveError
from ..io.plain_yaml import NotPlain, read_yaml
from .provenance import base_model, claimed_in, hub_source, is_local, provenance_of, public

if TYPE_CHECKING:
    from ..report.report import Report

TAGS = ("transformers_bot", "bot")
# The keys of a recipe that provenance has under the same name; settings that are left out at their default.
RECIPE = ("variant", "method", "dtype")
ROW_TEXT = 2000  # the most characters of kept rows in a recipe
DEFAULTS = {"ignore_mismatched_sizes": False, "nonfinite": "error", "strict": True, "allow_pickle": False}
# The end of an architecture's name -> the Hub's name of what it does.
PIPELINES = {
    "CausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "MaskedLM": "fill-mask",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "ImageClassification": "image-classification",
    "ImageClassificationWithTeacher": "image-classification",
}
# The classes of sentence-transformers that load a folder -> its tags there, and a first call.
LIBRARY_TAGS = {
    "SentenceTransformer": ("sentence-transformers", "feature-extraction", "sentence-similarity"),
    "SparseEncoder": ("sentence-transformers", "sparse-encoder", "sparse"),
    "CrossEncoder": ("sentence-transformers", "cross-encoder", "reranker"),
    "MultiVectorEncoder": ("sentence-transformers", "multi-vector", "late-interaction"),
}
LIBRARY_CALLS = {
    **dict.fromkeys(LIBRARY_TAGS, 'embeddings = model.encode(["A first text.", "A second text."])'),
    "CrossEncoder": 'scores = model.predict([("A question?", "A first text."), ("A question?", "A second text.")])',
}
HOME = "https://huggingface.co"


def model_card(
    config: PreTrainedConfig,
    report: "Report | None",
    *,
    licence: str | None = None,
    source_card: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    name: str | None = None,
    library_class: str | None = None,
) -> str:
    """The README.md text of a resized model, from its config and report.

    Example:
        >>> card = model_card(model.config, model.transfer_report, licence="mit")   # doctest: +SKIP
        >>> Path("out/README.md").write_text(card, encoding="utf-8")               # doctest: +SKIP

    Args:
        config: of the result; its `transformers_bot` field is the provenance.
        report: adds its summary; None leaves that part out.
        licence: the source's, as its own card names it.
        source_card: more of the source's card (see `hub.source_card`): licence, its name and link,
            languages, pipeline tag. `licence` comes first.
        tags: further tags.
        name: the name in the loading example; by default a placeholder for a folder.
        library_class: the class of sentence-transformers that loads the folder, of `LIBRARY_TAGS`; None for a
            plain model.

    Raises:
        BadOption: a config without provenance, or with a damaged one.
    """
    provenance = provenance_of(config)
    source_fields = {**(source_card or {}), **({"license": licence} if licence else {})}
    data = ModelCardData(
        base_model=base_model(provenance),
        library_name="sentence-transformers" if library_class else "transformers",
        license=source_fields.pop("license", None),
        pipeline_tag=_library_pipeline(library_class, config)
        or pipeline_tag(config)
        or source_fields.pop("pipeline_tag", None),
        tags=list(dict.fromkeys([*LIBRARY_TAGS.get(library_class or "", ()), *TAGS, *tags])),
        **{key: value for key, value in source_fields.items() if key != "pipeline_tag"},
    )
    title = (name or "").rsplit("/", 1)[-1] or "Resized model"
    parts = [
        _sizes_part(config, provenance),
        _loading_part(config, name or "path/to/this/folder", library_class),
        _recipe_part(config, provenance, title),
        f"### Report\n\n{report.summary().strip()}" if report is not None else "",
        _origin_part(provenance),
    ]
    section = in_markers("\n\n".join(part for part in parts if part))
    heading = title if re.fullmatch(r"[A-Za-z0-9]([\w. -]*[A-Za-z0-9])?", title, re.ASCII) else code(title)
    return f"---\n{data.to_yaml()}\n---\n\n# {heading}\n\n{section}\n"


def pipeline_tag(config: PreTrainedConfig) -> str | None:
    """The Hub's name of what the architecture's head does; None if the head does not decide it."""
    name = (config.architectures or [""])[0]
    return next((tag for end, tag in PIPELINES.items() if name.endswith(end)), None)


def recipe(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that make this model again, under the names of the API, as `resize --recipe` reads them.

    `config` holds the fields in which the target differs from the source where provenance has them,
    else the fields that set its sizes. A local folder is given by its name, as `local_source`: the reader of the recipe
    must say where it is. If its path was recorded, that is the `source`.
    """
    provenance = provenance_of(config)
    settings = {**_recipe_source(provenance), **{key: provenance.get(key) for key in RECIPE}}
    settings["config"] = _sorted(provenance.get("config")) or _size_fields(config, provenance)
    settings["task"] = (_task_of(config) or (None,))[0]
    settings["bot_config"] = _sorted(provenance.get("options"))
    settings["dtype"] = settings["dtype"] or (str(config.dtype).removeprefix("torch.") if config.dtype else None)
    if kept := provenance.get("vocab_keep"):
        settings["vocab_keep"] = kept if len(kept["ids"]) <= ROW_TEXT else "config.json"
    settings |= {key: provenance[key] for key, default in DEFAULTS.items() if provenance.get(key, default) != default}
    return {key: value for key, value in settings.items() if value is not None and value != {}}


def _recipe_source(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that name its source."""
    if provenance.get("path"):
        return {"source": provenance["path"]}
    shown = public(provenance)
    if is_local(provenance):
        return {"local_source": shown["source"]}
    return {key: shown.get(key) for key in ("source", "revision", "subfolder")}


def code(text: object) -> str:
    r"""A name as a markdown code span: control characters escaped, backticks fenced.

    >>> print(code("a`b\x1b[31m"))
    ``a`b\x1b[31m``
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    fence = "`" * (_longest_run(shown) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _cell(value: object) -> str:
    plain = isinstance(value, int) or re.fullmatch(r"[a-z]+(_[a-z]+)*", str(value))
    return str(value) if plain else code(value).replace("|", "\\|")  # a bare | ends a cell even inside of code


def _block(text: str, language: str) -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _sorted(table: Any) -> dict[str, Any]:
    """A table sorted by name, as a saved config sorts its fields, so that a reloaded model gets the same card."""
    return dict(sorted(table.items())) if isinstance(table, dict) else {}


def _size_fields(config: PreTrainedConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes, changed or not: otherwise a field that follows another one by default would change with it."""
    adapter = ADAPTERS.get(config.model_type)
    roles = adapter.roles if adapter else {}
    names = [roles[role].field for role in provenance["target_sizes"] if role in roles]
    values = {name: get_field(config, name, None) for name in sorted(names)}
    return {name: value for name, value in values.items() if value is not None}


def _task_of(config: PreTrainedConfig) -> tuple[str, str] | None:
    return auto_class_of(config, (config.architectures or [""])[0])


def _order_of_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """Role -> its place in the table: depths, streams, units that hold entries (heads), plain units (MLP units)."""
    adapter = ADAPTERS.get(config.model_type)
    if adapter is None:
        return {}
    roles = adapter.roles
    units = sorted(roles.units, key=lambda unit: not roles.is_whole(unit))
    return {role: place for place, role in enumerate((*roles.depths, *roles.streams, *units))}


def _sizes_part(config: PreTrainedConfig, provenance: Mapping[str, Any]) -> str:
    repository = hub_source(provenance)
    name, claimed = public(provenance)["source"], claimed_in(provenance)
    source = f"a model in a local folder called {code(name)}" if is_local(provenance) else code(name)
    source = f"[{code(repository[0])}]({HOME}/{repository[0]})" if repository else source
    source += f" (which claims to come from {code(claimed[0])})" if claimed and not repository else ""
    sizes, order = provenance["target_sizes"], _order_of_sizes(config)
    rows = [
        f"| {_cell(role)} | {_cell(provenance['source_sizes'].get(role))} | {_cell(length)} |"
        for role, length in sorted(sizes.items(), key=lambda size: (order.get(size[0], len(order)), size[0]))
    ]
    return "\n".join(
        [
            "## Resized with transformers-bot",
            "",
            f"This model was made from {source} by changing its size with transformers-bot, method "
            f"{code(provenance['method'])}. What follows describes it as it was right after that, before any further "
            "training.",
            "",
            "| size | source | this model |",
            "|---|---|---|",
            *rows,
        ]
    )


def _library_pipeline(library_class: str | None, config: PreTrainedConfig) -> str | None:
    """The Hub's name of what a folder of sentence-transformers does."""
    if library_class == "CrossEncoder":
        return "text-ranking" if config.num_labels == 1 else "text-classification"
    if library_class == "SentenceTransformer":
        return "sentence-similarity"
    return "feature-extraction" if library_class else None


def _loading_part(config: PreTrainedConfig, name: str, library_class: str | None) -> str:
    if library_class:
        text = f"from sentence_transformers import {library_class}\n\nmodel = {library_class}({json.dumps(name)})"
        text += f"\n{LIBRARY_CALLS[library_class]}"
        return f"### How to load\n\nIt is an ordinary sentence-transformers model:\n\n{_block(text, 'python')}"
    task = _task_of(config)
    loader = task[1] if task else (config.architectures or ["AutoModel"])[0]
    if not hasattr(transformers, loader):
        loader = "AutoModel"
    text = f"from transformers import {loader}\n\nmodel = {loader}.from_pretrained({json.dumps(name)})"
    return f"### How to load\n\nIt is an ordinary transformers model:\n\n{_block(text, 'python')}"


def _recipe_part(config: PreTrainedConfig, provenance: Mapping[str, Any], title: str) -> str:
    fields = recipe(config)
    out = re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII).strip("-.") or "resized"
    first = "source" if "source" in fields else "local_source"
    settings = {first: fields.pop(first), "out": out, **fields}
    settings = json.loads(json.dumps(settings))  # a copy without shared parts, so that YAML needs no aliases
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=False, width=110)
    note = (
        "\n\nIt was calibrated on batches that this card does not hold, so the recipe alone gives other weights."
        if provenance.get("calibrated")
        else "\n\nIts maps were fitted to data that this card does not hold: give such with `--fit-data`."
        if "fit" in provenance
        else "\n\nIts maps have not been fitted; the command fits them, to data that you give with `--fit-data`."
        if provenance.get("fitted") is False
        else ""
    )
    if fields.get("vocab_keep") == "config.json":
        note += (
            "\n\nThe kept rows of the vocabulary are in the `config.json` of this model: give the path of that file."
        )
    argument = "SOURCE " if first == "local_source" else ""
    note += f"\n\nSOURCE is where the folder {code(settings[first])} is." if argument else ""
    return (
        f"### Recipe\n\nSaved as `recipe.yaml`, this makes it again with `transformers-bot resize {argument}--recipe "
        f"recipe.yaml`:\n\n{_block(text, 'yaml')}{note}"
    )


def _origin_part(provenance: Mapping[str, Any]) -> str:
    repository = hub_source(provenance)
    files, versions = _sorted(provenance.get("files")), _sorted(provenance.get("versions"))
    folder = f"a local folder called {code(public(provenance)['source'])}"
    source = code(repository[0]) if repository else folder if is_local(provenance) else code(provenance["source"])
    lines = ["### Provenance", "", f"- source: {source}"]
    lines += [f"- commit of the source: {code(repository[1])}"] if repository else []
    claimed = claimed_in(provenance)
    if claimed and not repository:
        lines.append(
            f"- the folder's own config claims that it comes from {code(claimed[0])}, commit {code(claimed[1])}"
        )
    if versions:
        lines.append("- made with " + ", ".join(code(f"{package} {version}") for package, version in versions.items()))
    if isinstance(fit := provenance.get("fit"), dict):
        facts = ", ".join(code(f"{key} {fit[key]}") for key in ("steps", "lr", "losses") if key in fit)
        lines.append(f"- fitted by its method: {facts} (of the first and the last step)")
    if files:
        hashes = "\n".join(json.dumps(f"{digest}  {name}")[1:-1] for name, digest in files.items())
        lines += ["- SHA-256 of the source's files:", "", _block(hashes, "text")]
    lines += [
        "",
        f"`transformers-bot verify FOLDER{' --source SOURCE' if is_local(provenance) else ''}` computes the weights "
        "again from the source and says which differ; after "
        "further training all of them do.",
    ]
    return "\n".join(lines)


# -- updating a card in place: our section and our metadata change, all text of people stays ---------

# Why by hand: huggingface_hub's metadata_update and ModelCard.save write all metadata anew, without the comments, the
# order and the quoting of the person who wrote it, and know nothing of a section of the text. The split into metadata
# and text, and the YAML that is added, are the library's.

BEGIN = "<!-- transformers_bot: begin -->"
MARKER = re.compile(r"^<!-- transformers_bot: (begin|end)(?: ([0-9a-f]{16}))? -->[ \t]*(?=\r?$)", re.MULTILINE)
UNITED = ("tags", "base_model")  # lists to which ours are added; any other field that is there stays as it is


def in_markers(text: str) -> str:
    """Our section between two comments; the hash in the last one shows whether a person has edited it since."""
    safe = MARKER.sub(lambda marker: marker[0].replace("<", "&lt;"), text.strip("\n"))
    return f"{BEGIN}\n{safe}\n<!-- transformers_bot: end {_digest(safe)} -->"


def update_card(existing: str, fresh: str) -> str:
    """An existing card with the section and the metadata of a new one.

    Our section is replaced only if nobody has edited it. An edited section, or one that has lost a marker, stays as
    text, and the new one goes to the end. Metadata that is there stays as it is written, comments included; missing
    fields are added, and tags and base models are united. A second update changes nothing.

    Raises:
        SaveError: the metadata is no YAML table; the Hub would refuse such a card as well.
    """
    if not existing.strip():
        return fresh
    bom = "\ufeff" if existing.startswith("\ufeff") else ""
    newline = "\r\n" if 2 * existing.count("\r\n") > existing.count("\n") else "\n"  # what most lines end with
    _, ours, fresh_body = split_card(fresh)
    before, header, body = split_card(existing.removeprefix(bom))
    begin, end = _section(fresh_body)
    section = fresh_body[begin:end].replace("\n", newline)
    data = read_metadata(ours)
    if header is None:
        head = f"---{newline}{_dumped(data, newline)}{newline}---{newline}{newline}"
    else:
        opening, closing = before
        head = f"{opening}{_merged(header, data, newline, opening)}{closing}"
        head += "" if head.endswith("\n") else newline
    return bom + head + _with_section(body, section, newline)


def split_card(card: str) -> tuple[tuple[str, str], str | None, str]:
    """The lines around the metadata, the metadata (None if the card has none), and the text after it."""
    block = REGEX_YAML_BLOCK.match(card)
    if not block:
        return ("", ""), None, card
    return (block[1], block[3]), block[2], card[block.end() :]


def read_metadata(header: str | None, before: str = "---\n") -> dict[str, Any]:
    """The metadata of a card as a table.

    Args:
        before: the text before it in the card, so that a message names the right line.

    Raises:
        SaveError: it is no YAML, no table, too large, or written with anchors, aliases, merge keys or own types, which
            could not be kept.
    """
    try:
        data = read_yaml(header or "", first_line=before.count("\n") + 1)
    except NotPlain as error:
        raise SaveError(
            f"the metadata of the model card (README.md, between the lines ---) cannot be read as plain YAML: {error}. "
            "Correct it there first; nothing was changed."
        ) from None
    if data is not None and not isinstance(data, dict):
        raise SaveError(
            "the metadata of the model card (README.md, between the lines ---) is not a table of fields such as "
            "'license: mit'. Correct it there first; nothing was changed."
        )
    return data or {}


def _digest(section: str) -> str:
    """A hash of the text without trailing spaces and line endings, which editors and git may change."""
    lines = "\n".join(line.rstrip() for line in section.strip().splitlines())
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _section(body: str) -> tuple[int, int]:
    """The begin and the end of the section that may be replaced; both are 0 if there is none."""
    marks = list(MARKER.finditer(body))
    for first, last in pairwise(marks):
        if (first[1], last[1]) != ("begin", "end"):
            continue
        if last[2] in (None, _digest(body[first.end() : last.start()])):
            return first.start(), last.end()
    return 0, 0


def _with_section(body: str, section: str, newline: str) -> str:
    begin, end = _section(body)
    if end:
        return body[:begin] + section + body[end:]
    if MARKER.search(body):
        logger.warning(
            "the model card's section of transformers_bot was edited or has lost a marker: it stays, and the new one "
            "goes to the end of the card."
        )
    gap = "" if not body else newline if body.endswith(("\n", "\r")) else newline * 2
    return f"{body}{gap}{section}{newline}"


def _merged(header: str, ours: Mapping[str, Any], newline: str, before: str) -> str:
    """The text of the metadata with our fields added, and otherwise unchanged if possible."""
    theirs = read_metadata(header, before)
    merged, text, missing = dict(theirs), header, {}
    for name, value in ours.items():
        current = theirs.get(name)
        if name not in theirs:
            merged[name] = missing[name] = value
        elif current is None or name in UNITED:
            merged[name] = _united(current, value)
            if merged[name] != current:
                text = _with_value(text, name, merged[name], newline)
    if missing:
        text = (text.rstrip("\r\n") + newline if text.strip() else "") + _dumped(missing, newline)
    if _reads_as(text, merged):
        return text
    logger.warning(
        "the model card's metadata is written in a form to which fields cannot be added; it is written anew."
    )
    return _dumped(merged, newline)


def _reads_as(text: str, data: dict[str, Any]) -> bool:
    try:
        return read_metadata(text) == data
    except SaveError:
        return False


def _united(theirs: Any, ours: Any) -> Any:
    """Their values, then those of ours that they lack; a single name without additions stays a plain name."""
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in (theirs, ours)]
    added = [value for value in lists[1] if value not in lists[0]]
    if theirs is None:
        return ours
    return [*lists[0], *added] if added else theirs


def _with_value(text: str, name: str, value: Any, newline: str) -> str:
    """The text of the metadata with a new value of one field; new list items follow the last one."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    node = [value_node for key, value_node in root.value if key.value == name][-1]
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        at = node.value[-1].end_mark.index
        line_end = re.compile(r"\r?$", re.MULTILINE).search(text, at)
        at = line_end.start() if line_end else len(text)
        items = [f"{' ' * node.start_mark.column}- {_inline(item)}" for item in value[len(node.value) :]]
        return text[:at] + newline + newline.join(items) + text[at:]
    start, end = node.start_mark.index, node.end_mark.index
    return f"{text[:start]}{'' if text[:start].endswith(' ') else ' '}{_inline(value)}{text[end:]}"


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**20, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _dumped(data: Mapping[str, Any], newline: str) -> str:
    return str(yaml_dump(dict(data), sort_keys=False, line_break=newline)).strip()
