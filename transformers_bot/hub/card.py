"""The model card of a resized model: its metadata, what was done, how to load it and how to check it.

Every name in it comes from a config or a file that anybody may have written: names stand in code spans
and YAML strings, where they cannot become markup.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import transformers
import yaml
from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig

from ..architectures import ADAPTERS
from ..architectures.classes import auto_class_of
from ..architectures.sizes import config_field
from .card_merge import in_markers
from .origin import base_model, claimed_in, hub_source, is_local, provenance_of, public

if TYPE_CHECKING:
    from ..report.report import Report

TAGS = ("transformers_bot", "bot")
# The keys of a recipe that provenance holds under the same name, and the settings that need not be told.
RECIPE = ("variant", "method", "dtype")
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
SIZES = {"layer": 0, "hidden": 1, "heads": 2, "ffn": 3}  # the order in the table
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
        name: what the loading example loads; a folder's place holder by default.
        library_class: the class of sentence-transformers that loads the folder, of `LIBRARY_TAGS`; None for a
            plain model.

    Raises:
        BadOption: a config without provenance, or with a damaged one.
    """
    provenance = provenance_of(config)
    found = {**(source_card or {}), **({"license": licence} if licence else {})}
    data = ModelCardData(
        base_model=base_model(provenance),
        library_name="sentence-transformers" if library_class else "transformers",
        license=found.pop("license", None),
        pipeline_tag=_library_pipeline(library_class, config)
        or pipeline_tag(config)
        or found.pop("pipeline_tag", None),
        tags=list(dict.fromkeys([*LIBRARY_TAGS.get(library_class or "", ()), *TAGS, *tags])),
        **{key: value for key, value in found.items() if key != "pipeline_tag"},
    )
    title = (name or "").rsplit("/", 1)[-1] or "Resized model"
    parts = [
        _what(provenance),
        _loading(config, name or "path/to/this/folder", library_class),
        _recipe_part(config, provenance, title),
        f"### Report\n\n{report.summary().strip()}" if report is not None else "",
        _origin_part(provenance),
    ]
    section = in_markers("\n\n".join(part for part in parts if part))
    heading = title if re.fullmatch(r"[A-Za-z0-9]([\w. -]*[A-Za-z0-9])?", title, re.ASCII) else code(title)
    return f"---\n{data.to_yaml()}\n---\n\n# {heading}\n\n{section}\n"


def pipeline_tag(config: PreTrainedConfig) -> str | None:
    """What the architecture's head does, in the Hub's words; None without a head that decides."""
    name = (config.architectures or [""])[0]
    return next((tag for end, tag in PIPELINES.items() if name.endswith(end)), None)


def recipe(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that make this model again, under the names of the API; `resize --recipe` reads them.

    `config` holds the fields in which the target differs from the source where provenance has them,
    else the fields that set its sizes. A folder is `local_source`, by its name alone: whoever reads the recipe says
    where it is. Where its path was recorded, that is the `source`.
    """
    provenance = provenance_of(config)
    made = {**_recipe_source(provenance), **{key: provenance.get(key) for key in RECIPE}}
    made["config"] = _sorted(provenance.get("config")) or _size_fields(config, provenance)
    made["task"] = (_task_of(config) or (None,))[0]
    made["bot_config"] = _sorted(provenance.get("options"))
    made["dtype"] = made["dtype"] or (str(config.dtype).removeprefix("torch.") if config.dtype else None)
    made |= {key: provenance[key] for key, usual in DEFAULTS.items() if provenance.get(key, usual) != usual}
    return {key: value for key, value in made.items() if value is not None and value != {}}


def _recipe_source(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Where a recipe's source is."""
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
    """By name: a saved config has its fields sorted, and the card of the reloaded model shall be the same."""
    return dict(sorted(table.items())) if isinstance(table, dict) else {}


def _size_fields(config: PreTrainedConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes, changed or not: a field that follows another by default is pinned where it stayed."""
    adapter = ADAPTERS.get(config.model_type)
    names = [config_field(adapter, role) for role in provenance["target_sizes"]] if adapter else []
    values = {name: getattr(config, name, None) for name in sorted(names)}
    return {name: value for name, value in values.items() if value is not None}


def _task_of(config: PreTrainedConfig) -> tuple[str, str] | None:
    return auto_class_of(config, (config.architectures or [""])[0])


def _what(provenance: Mapping[str, Any]) -> str:
    found = hub_source(provenance)
    name, claimed = public(provenance)["source"], claimed_in(provenance)
    source = f"a model in a local folder called {code(name)}" if is_local(provenance) else code(name)
    source = f"[{code(found[0])}]({HOME}/{found[0]})" if found else source
    source += f" (which claims to come from {code(claimed[0])})" if claimed and not found else ""
    sizes = provenance["target_sizes"]
    rows = [
        f"| {_cell(role)} | {_cell(provenance['source_sizes'].get(role))} | {_cell(length)} |"
        for role, length in sorted(sizes.items(), key=lambda size: (SIZES.get(size[0], len(SIZES)), size[0]))
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
    """What a folder of sentence-transformers does, in the Hub's words."""
    if library_class == "CrossEncoder":
        return "text-ranking" if config.num_labels == 1 else "text-classification"
    if library_class == "SentenceTransformer":
        return "sentence-similarity"
    return "feature-extraction" if library_class else None


def _loading(config: PreTrainedConfig, name: str, library_class: str | None) -> str:
    if library_class:
        text = f"from sentence_transformers import {library_class}\n\nmodel = {library_class}({json.dumps(name)})"
        text += f"\n{LIBRARY_CALLS[library_class]}"
        return f"### How to load\n\nIt is an ordinary sentence-transformers model:\n\n{_block(text, 'python')}"
    known = _task_of(config)
    loader = known[1] if known else (config.architectures or ["AutoModel"])[0]
    if not hasattr(transformers, loader):
        loader = "AutoModel"
    text = f"from transformers import {loader}\n\nmodel = {loader}.from_pretrained({json.dumps(name)})"
    return f"### How to load\n\nIt is an ordinary transformers model:\n\n{_block(text, 'python')}"


def _recipe_part(config: PreTrainedConfig, provenance: Mapping[str, Any], title: str) -> str:
    made = recipe(config)
    out = re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII).strip("-.") or "resized"
    first = "source" if "source" in made else "local_source"
    settings = {first: made.pop(first), "out": out, **made}
    settings = json.loads(json.dumps(settings))  # nothing shared, so that YAML needs no aliases
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
    where = "SOURCE " if first == "local_source" else ""
    note += f"\n\nSOURCE is where the folder {code(settings[first])} is." if where else ""
    return (
        f"### Recipe\n\nSaved as `recipe.yaml`, this makes it again with `transformers-bot resize {where}--recipe "
        f"recipe.yaml`:\n\n{_block(text, 'yaml')}{note}"
    )


def _origin_part(provenance: Mapping[str, Any]) -> str:
    found = hub_source(provenance)
    files, versions = _sorted(provenance.get("files")), _sorted(provenance.get("versions"))
    folder = f"a local folder called {code(public(provenance)['source'])}"
    source = code(found[0]) if found else folder if is_local(provenance) else code(provenance["source"])
    lines = ["### Provenance", "", f"- source: {source}"]
    lines += [f"- commit of the source: {code(found[1])}"] if found else []
    claimed = claimed_in(provenance)
    if claimed and not found:
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
