"""Reads the number of token ids and the longest text from a folder's tokenizer files, without building a tokenizer.

The Rust library behind tokenizers can panic on a damaged file, or ask for more memory than there is, which ends
the process.

Why by hand: every reader of these files (tokenizers, sentencepiece, transformers' own classes) builds the tokenizer.
"""

import base64
import binascii
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from ..errors import BadCheckpoint
from .config_files import read_json
from .files import opened, shown

SMALL = 4 * 2**20  # bytes of a settings file; chat templates in it have some 100 KB
LARGE = 64 * 2**20  # bytes of a vocabulary; the largest published ones have about half of it
VALUES = 4_000_000  # names, numbers and lists in a vocabulary: the largest have some two million
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "trim_offsets")
TABLES = ("BPE", "WordPiece", "WordLevel")  # models whose vocabulary is a table of ids; Unigram's is a list
SENTENCES = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
ENDS = ("Tokenizer", "TokenizerFast", "TokenizersBackend", "SentencePieceBackend", "PythonBackend")


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer asks of its model.

    Attributes:
        entries: one more than the highest token id.
        longest: how many tokens it allows, None where it does not say.
    """

    entries: int
    longest: float | None


def read_vocabulary(folder: Path, config: PreTrainedConfig) -> Vocabulary:
    """The token ids and the longest text of a folder's tokenizer files.

    Args:
        config: of the model; its type says which tokenizer is meant where the files do not.

    Raises:
        BadCheckpoint: a file that transformers could not make a tokenizer of.
    """
    settings = _object(folder / "tokenizer_config.json")
    special = _object(folder / "special_tokens_map.json")
    check_settings(settings)
    ids, extra = vocabulary_of(folder)
    if not ids:
        raise BadCheckpoint("there is no vocabulary among them")
    name = settings.get("tokenizer_class")
    if name and _class(name) is None and not (folder / "tokenizer.json").is_file():
        raise BadCheckpoint(f"tokenizer_class in tokenizer_config.json is {shown(name)}, unknown to this transformers")
    added = {*extra, *_object(folder / "added_tokens.json")}
    added |= {entry["content"] for entry in (settings.get("added_tokens_decoder") or {}).values()}
    fields = {**_defaults(name, config), **special, **settings}
    # Tokens that the vocabulary lacks get the ids after its last one, whatever ids the files give them.
    appended = {*added, *_special(fields)} - ids.keys()
    return Vocabulary(max(1 + max(ids.values()), len(ids) + len(appended)), fields.get("model_max_length"))


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse fields of tokenizer_config.json that are not of the type that transformers computes with.

    Raises:
        BadCheckpoint: it names the field and what it holds.
    """
    limit = settings.get("model_max_length")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
        raise _wrong("model_max_length", limit, "a number of tokens")
    for name in NAMED:
        if settings.get(name) is not None and _text(settings[name]) is None:
            raise _wrong(name, settings[name], "a token")
    for name in SWITCHES:
        if settings.get(name) is not None and not isinstance(settings[name], bool):
            raise _wrong(name, settings[name], "true or false")
    for name in ("padding_side", "truncation_side"):
        if settings.get(name) not in (None, "left", "right"):
            raise _wrong(name, settings[name], "'left' or 'right'")
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(name)
        members = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [None]
        if value is not None and not all(map(_text, members)):
            raise _wrong(name, value, "a list of tokens")
    _check_other_settings(settings)


def _check_other_settings(settings: Mapping[str, Any]) -> None:
    decoder = settings.get("added_tokens_decoder", {})
    for number, entry in decoder.items() if isinstance(decoder, dict) else [("", None)]:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not (number.isascii() and number.isdigit() and len(number) < 11 and isinstance(content, str)):
            raise _wrong("added_tokens_decoder", decoder, "a table of token ids")
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        "chat_template": ((str, list), "a template"),
        "init_inputs": (list, "a list"),
        "model_input_names": (list, "a list of names"),
        "tokenizer_class": (str, "the name of a class"),
    }
    for name, (kind, expected) in kinds.items():
        if settings.get(name) is not None and not isinstance(settings[name], kind):
            raise _wrong(name, settings[name], expected)
    templates = settings.get("chat_template")
    for template in templates if isinstance(templates, list) else []:
        if not (isinstance(template, dict) and {"name", "template"} <= template.keys()):
            raise _wrong("chat_template", templates, "a template, or a list of named ones")
    name = str(settings.get("tokenizer_class") or "")
    tokenizer_class = _class(name)
    if name and (
        not name.endswith(ENDS) or (tokenizer_class and not issubclass(tokenizer_class, PreTrainedTokenizerBase))
    ):
        raise _wrong("tokenizer_class", name, "a tokenizer")


def _wrong(name: str, value: object, expected: str) -> BadCheckpoint:
    return BadCheckpoint(f"{name} in tokenizer_config.json is {shown(value)}, not {expected}")


def _object(path: Path, most: int = SMALL, values: int | None = None) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json(path, most) if values is None else read_json(path, most, values)


def _text(value: object) -> str | None:
    """The text of a token, given as a string or as an object with settings; None if it is neither."""
    if isinstance(value, dict):
        value = value.get("content") if value.get("__type") == "AddedToken" else None
    return value if isinstance(value, str) else None


def _special(fields: Mapping[str, Any]) -> Iterable[str]:
    """The texts of all special tokens."""
    for name in NAMED:
        if text := _text(fields.get(name)):
            yield text
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = fields.get(name) or ()
        if isinstance(value, (dict, list)):
            yield from filter(None, map(_text, value.values() if isinstance(value, dict) else value))


def special_tokens(files: Mapping[str, Path], config: PreTrainedConfig) -> set[str]:
    """The texts of the special tokens that a tokenizer's settings, or else its class, name.

    Args:
        files: tokenizer files by their names.
        config: of the model.

    Raises:
        BadCheckpoint: settings that cannot be read.
    """
    names = ("tokenizer_config.json", "special_tokens_map.json")
    settings, special = (_object(files[name]) if name in files else {} for name in names)
    check_settings(settings)
    return set(_special({**_defaults(settings.get("tokenizer_class"), config), **special, **settings}))


def _class(name: str) -> type | None:
    """transformers' own class of this name; nothing else is imported, because the name comes from a file."""
    attribute = getattr(transformers, name, None) if name.isidentifier() and name.endswith(ENDS) else None
    return attribute if isinstance(attribute, type) else None


def _defaults(name: str | None, config: PreTrainedConfig) -> dict[str, Any]:
    """The special tokens that the tokenizer's class has where its files name none."""
    tokenizer_class = _class(name or str(TOKENIZER_MAPPING_NAMES.get(config.model_type) or ""))
    parameters = inspect.signature(tokenizer_class.__init__).parameters if tokenizer_class else {}  # type: ignore[misc]
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if key in NAMED and isinstance(parameter.default, str)
    }


# -- vocabularies ---------------------------------------------------------------------------------


def vocabulary_of(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Token -> id of the vocabulary that transformers prefers, and the tokens that are added to it."""
    if (folder / "tokenizer.json").is_file():
        return fast_vocabulary(read_json(folder / "tokenizer.json", LARGE, VALUES))
    if (folder / "vocab.json").is_file():
        table = read_json(folder / "vocab.json", LARGE, VALUES)
        return {text: _id(number, "vocab.json") for text, number in table.items()}, set()
    if (folder / "vocab.txt").is_file():
        lines = _read(folder / "vocab.txt").decode("utf-8", "replace").removesuffix("\n").split("\n")
        return {line: number for number, line in enumerate(lines)}, set()
    for name in SENTENCES:
        if (folder / name).is_file():
            return {f"piece {number}": number for number in range(_pieces(_read(folder / name), name))}, set()
    return {}, set()


def _read(path: Path) -> bytes:
    with opened(path) as (stream, size):
        if size > LARGE:
            raise BadCheckpoint(f"{path.name} has {size:,} bytes; {LARGE:,} is the most it can have")
        return stream.read(LARGE)


def _id(number: object, name: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**32:
        raise BadCheckpoint(f"{name} gives a token the id {shown(number)}")
    return number


def fast_vocabulary(fields: Mapping[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Token -> id of a tokenizer.json, and its added tokens; refuses what would crash the Rust library."""
    model = fields.get("model")
    if not isinstance(model, dict):
        raise BadCheckpoint("tokenizer.json holds no model")
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        if fields.get(name) is not None and not isinstance(fields[name], dict):
            raise BadCheckpoint(f"{name} in tokenizer.json is {shown(fields[name])}, not an object")
    _check_charsmaps(fields)
    vocab = model.get("vocab")
    if isinstance(vocab, dict) and model.get("type") in (*TABLES, None):
        ids = {text: _id(number, "tokenizer.json") for text, number in vocab.items()}
        _check_merges(model, ids)
    elif isinstance(vocab, list) and model.get("type") in ("Unigram", None):
        ids = _unigram(model, vocab)
    else:
        raise BadCheckpoint(f"tokenizer.json holds no vocabulary of its model {shown(model.get('type'))}")
    return ids, _added(fields.get("added_tokens") or [])


def _added(tokens: object) -> set[str]:
    """The texts of added tokens."""
    switches = ("single_word", "lstrip", "rstrip", "normalized", "special")
    texts = set()
    for token in tokens if isinstance(tokens, list) else [None]:
        fields = token if isinstance(token, dict) else {}
        is_complete = isinstance(fields.get("content"), str) and isinstance(fields.get("id"), int)
        if not is_complete or not all(isinstance(fields.get(name), bool) for name in switches):
            raise BadCheckpoint(f"added_tokens in tokenizer.json holds {shown(token)}, not a token")
        texts.add(str(fields["content"]))
    return texts


def _unigram(model: Mapping[str, Any], vocab: list[Any]) -> dict[str, int]:
    for entry in vocab:
        if not (
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and isinstance(entry[1], (int, float))
        ):
            raise BadCheckpoint(f"the vocabulary in tokenizer.json holds {shown(entry)}, not a piece and its score")
    unknown = model.get("unk_id")
    if unknown is not None and (not isinstance(unknown, int) or not 0 <= unknown < len(vocab)):
        raise BadCheckpoint(f"unk_id in tokenizer.json is {shown(unknown)}, beyond its {len(vocab):,} pieces")
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def _check_merges(model: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Refuse merges of tokens that the vocabulary lacks."""
    merges, prefix, dropout = model.get("merges") or [], model.get("continuing_subword_prefix"), model.get("dropout")
    if not isinstance(merges, list):
        raise BadCheckpoint("merges in tokenizer.json is no list")
    if dropout is not None and (not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1):
        raise BadCheckpoint(f"dropout in tokenizer.json is {shown(dropout)}, not a share from 0 to 1")
    prefix_length = len(prefix) if isinstance(prefix, str) else 0
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise BadCheckpoint(f"merges in tokenizer.json holds {shown(merge)}, not two tokens")
        for part in (*parts, parts[0] + parts[1][prefix_length:]):
            if part not in ids:
                raise BadCheckpoint(f"merges in tokenizer.json joins {shown(part)}, which is not in its vocabulary")


def _check_charsmaps(fields: Mapping[str, Any]) -> None:
    """Refuse precompiled normalisation tables whose declared length is beyond their data.

    Their first four bytes are that length, and the library allocates so much memory before it checks.
    """
    level: list[Any] = [fields.get("normalizer"), fields.get("pre_tokenizer"), fields.get("decoder")]
    while level:
        for node in level:
            if isinstance(node, dict) and "precompiled_charsmap" in node:
                _check_charsmap(node["precompiled_charsmap"])
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list))]
        level = [member for members in inner for member in members]


def _check_charsmap(text: object) -> None:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        length = int.from_bytes(data[:4], "little")
        data[4 + length // 4 * 4 :].decode()
    except (ValueError, binascii.Error):
        data, length = b"", 0
    if len(data) < 4 or length > len(data) - 4:
        raise BadCheckpoint("precompiled_charsmap in tokenizer.json is damaged")


def _pieces(data: bytes, name: str) -> int:
    """The number of pieces in a sentencepiece model: its protobuf fields of number 1."""
    place = count = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 2:
            length, place = _varint(data, place)
            place += length
        elif kind == 0:
            _, place = _varint(data, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise BadCheckpoint(f"{name} is no sentencepiece model")
        count += key >> 3 == 1
    if place != len(data) or not count:
        raise BadCheckpoint(f"{name} is no sentencepiece model")
    return count


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A protobuf number, in groups of seven bits, and the place after it."""
    value = shift = 0
    while place < len(data) and shift < 64:
        value |= (data[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if not data[place - 1] & 128:
            return value, place
    return 0, len(data) + 1
