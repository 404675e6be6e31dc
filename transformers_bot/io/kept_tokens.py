"""`vocab_keep`: which rows of a vocabulary a call keeps, and the numbers that token ids have then.

Kept rows stay in their order. Beside those that the call names are kept: added and special tokens, the ids that
config.json and generation_config.json name, and what the tokenizer needs to cut texts as before (single bytes, parts of
tokens that are merged, the piece of the lowest score).
"""

import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import BadCheckpoint, BadOption, IncompatibleModels
from ..ops.recipe import Rows
from .checkpoint import VOCABULARIES
from .config_files import folder_name, read_json, read_value
from .fast_tokenizer import FILE, FastTokenizer
from .files import opened, shown
from .vocabulary import LARGE, SENTENCES, SMALL, VALUES, vocabulary_of

IDS = re.compile(r"(^|_)token_(id|ids|index)$")  # names of fields that hold one or more token ids
TABLES = re.compile(r"_to_id$")  # names of fields that hold a table of them
FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")  # tokens that are not written: none is needed
PLACED = "forced_decoder_ids"  # pairs of a position and an id
TIMES = "no_timestamps_token_id"  # all rows behind this id are times, which are counted from it
PHRASES = ("force_words_ids",)  # ids, or lists of them
LONGEST = 200  # characters of the name of a file in a record
SHOWN = 3  # tokens that one message names


@dataclass(frozen=True)
class Named:
    """What a call names: ids or texts of tokens.

    Attributes:
        origin: the name of the file, or of what was given instead.
        ids: of the tokens.
        texts: of the tokens, None where ids are named.
        exact: whether nothing is added, because a resize has chosen the ids before.
    """

    origin: str
    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] | None = None
    exact: bool = False


@dataclass(frozen=True)
class KeptTokens:
    """The rows of a vocabulary that a resize keeps.

    Attributes:
        role: of the vocabulary.
        rows: the kept ones.
        again: whether a record gives them, so that a target of so many rows has the new numbers of token ids already.
    """

    role: str
    rows: Rows
    again: bool = False

    @cached_property
    def numbers(self) -> dict[int, int]:
        """id in the source -> id in the target."""
        return {old: new for new, old in enumerate(self.rows.index)}

    @property
    def record(self) -> dict[str, Any]:
        """The choice in JSON types, as provenance holds it; `vocab_keep` takes it, too."""
        return {"file": self.rows.origin, "rows": self.rows.length, "ids": spans(self.rows.index)}

    def renumber(self, settings: Any) -> None:
        """Give the token ids of a config, or of generation settings, their new numbers."""
        for name, value in list(vars(settings).items()):
            renumbered = self._value(name, value)
            if renumbered != value:
                setattr(settings, name, renumbered)

    def _value(self, name: str, value: Any) -> Any:
        if name in FORBIDDEN and isinstance(value, (list, tuple)):
            return self._allowed(value)
        if name == PLACED and isinstance(value, (list, tuple)):
            return [
                [*pair[:1], *map(self._id, pair[1:])] if isinstance(pair, (list, tuple)) else pair for pair in value
            ]
        if TABLES.search(name) and isinstance(value, dict):
            return {text: self._id(number) for text, number in value.items()}
        return self._all(value) if IDS.search(name) or name in PHRASES else value

    def _all(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._all(member) for member in value)
        return self._id(value)

    def _id(self, value: Any) -> Any:
        """The new number of an id; what is no row of the source stays."""
        return self.numbers.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    def _allowed(self, value: Any) -> Any:
        """A list of ids, or of lists of them, without those that are no longer there; None if none is left."""
        left = [
            self._all(member)
            for member in value
            if all(number in self.numbers for number in (member if isinstance(member, (list, tuple)) else [member]))
        ]
        return type(value)(left) if left or not value else None


def spans(ids: Iterable[int]) -> str:
    """Ascending ids as text.

    >>> spans([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for number in ids:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def from_spans(text: object, rows: int) -> tuple[int, ...]:
    """The ids behind `spans`.

    Raises:
        ValueError: another text, or ids that are not ascending or beyond `rows`.

    >>> from_spans("0-2,5", 6)
    (0, 1, 2, 5)
    """
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise ValueError("not a list of ids such as 0-2,5")
    ids: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if start <= (ids[-1] if ids else -1) or end < start or end >= rows:
            raise ValueError(f"{part} is out of order, or beyond {rows:,} rows")
        ids += range(start, end + 1)
    return tuple(ids)


# -- what a call names ------------------------------------------------------------------------------


def named_tokens(value: Any) -> Named:
    """Read `vocab_keep=`: a file or folder, a list of ids or of tokens, a tokenizer, or the record of a resize.

    A file is a tokenizer's (tokenizer.json, vocab.json, or its folder), a JSON list, or text with one entry a line.
    Text is ids where every line is a whole number, else tokens; digits that are tokens stand in a JSON list of strings.

    Raises:
        BadOption: none of these, or a file that is not there or cannot be read.
    """
    if isinstance(value, (str, os.PathLike)) and value:
        return _of_place(Path(value))
    if isinstance(value, Mapping):
        return _of_record(value)
    if hasattr(value, "get_vocab"):
        return Named("a tokenizer", texts=tuple(value.get_vocab()))
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        entries = list(value.tolist() if hasattr(value, "tolist") else value)
    except TypeError:
        raise BadOption(
            f"vocab_keep= must be a file, a list of token ids or of tokens, or a tokenizer, got {shown(value)}."
        ) from None
    return _of_list(entries, "a list")


def _of_record(record: Mapping[str, Any]) -> Named:
    if wrong := wrong_record(record):
        raise BadOption(f"vocab_keep= is a dict that is no record of a resize: {wrong}.")
    return Named(record["file"], from_spans(record["ids"], record["rows"]), exact=True)


def wrong_record(record: Any) -> str | None:
    """What is wrong with a record of kept rows (see `KeptTokens.record`), None if nothing is."""
    if not isinstance(record, Mapping) or set(record) != {"file", "rows", "ids"}:
        return "it has other fields than file, rows and ids"
    if not isinstance(record["file"], str) or len(record["file"]) > LONGEST:
        return f"its file is {shown(record['file'])}"
    try:
        from_spans(record["ids"], _row_count(record["rows"]))
    except ValueError as error:
        return f"its ids are {error}"
    return None


def _row_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= VALUES:
        raise ValueError(f"of a vocabulary of {shown(value)} rows")
    return value


def _of_list(entries: list[Any], origin: str) -> Named:
    if not entries:
        raise BadOption(f"vocab_keep= names no token: {origin} is empty. Name the tokens to keep.")
    if all(isinstance(entry, str) for entry in entries):
        return Named(origin, texts=tuple(entries))
    ids: list[int] = []
    for entry in entries:
        if isinstance(entry, bool) or not hasattr(entry, "__index__"):
            raise BadOption(
                f"vocab_keep= takes token ids, which are whole numbers, or tokens, which are text; {origin} has "
                f"{shown(entry)} among others. Give the one or the other."
            )
        ids.append(operator.index(entry))
    return Named(origin, tuple(ids))


def _of_place(path: Path) -> Named:
    origin = folder_name(path)
    try:
        if path.is_dir():
            return _of_folder(path, origin)
        if not path.is_file():
            raise BadOption(
                f"vocab_keep=: there is no file {os.fspath(path)!r}. It takes a file with one token id or token a "
                "line, a JSON list, or a tokenizer's file or folder."
            )
        if path.suffix == ".json":
            return _of_json(path, origin)
        with opened(path) as (stream, size):
            if size > LARGE:
                raise BadOption(f"vocab_keep=: {origin} has {size:,} bytes; {LARGE:,} is the most it can have.")
            text = stream.read(LARGE).decode("utf-8-sig")
    except BadCheckpoint as error:
        raise BadOption(f"vocab_keep=: {error}") from None
    except UnicodeDecodeError:
        raise BadOption(f"vocab_keep=: {origin} is not UTF-8 text, JSON or a tokenizer's folder.") from None
    lines = [line for line in re.split(r"\r?\n", text) if line]
    if lines and all(re.fullmatch(r"\s*-?\d{1,18}\s*", line) for line in lines):
        return _of_list([int(line) for line in lines], origin)
    return _of_list(lines, origin)


def _of_folder(path: Path, origin: str) -> Named:
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        why = next(
            (f"{name} does not hold the texts of its tokens" for name in SENTENCES if (path / name).is_file()), ""
        )
        raise BadOption(
            f"vocab_keep=: the folder {origin} has no tokenizer.json{f', and {why}' if why else ''}. Open it with "
            "AutoTokenizer and save it with save_pretrained, which writes one."
        )
    texts, added = vocabulary_of(path)
    return _of_list([*dict.fromkeys((*texts, *sorted(added)))], origin)


def _of_json(path: Path, origin: str) -> Named:
    value = read_value(path, LARGE, VALUES)
    record = value.get("transformers_bot") if isinstance(value, dict) else None
    if isinstance(record, dict) and isinstance(record.get("vocab_keep"), dict):  # config.json of a result
        return _of_record(record["vocab_keep"])
    if isinstance(value, list):
        return _of_list(value, origin)
    if isinstance(value, dict) and "model" in value:
        return _of_list(list(FastTokenizer(value).ids), origin)
    if isinstance(value, dict) and value and all(isinstance(number, int) for number in value.values()):
        return _of_list(list(value), origin)  # vocab.json: token -> id
    raise BadOption(
        f"vocab_keep=: {origin} is neither a list of ids or tokens, nor a tokenizer.json, nor a vocab.json."
    )


# -- what is kept -----------------------------------------------------------------------------------


def kept_rows(
    named: Named, length: int, files: Mapping[str, Path], config: PreTrainedConfig, settings: Iterable[Any], first: int
) -> Rows:
    """The rows that a call keeps of a vocabulary.

    Args:
        length: rows of the source.
        files: the source's tokenizer files and generation_config.json, by their names.
        config: of the source.
        settings: configs and generation settings whose fields name token ids of the source.
        first: how many of the first rows keep their numbers.

    Raises:
        BadOption: ids out of range, tokens that the tokenizer does not have, or no tokenizer to find them in.
        IncompatibleModels: a tokenizer with more tokens than the model has rows.
    """
    if named.exact:
        if named.ids[-1] >= length:
            raise _beyond(named, named.ids[-1], length)
        return Rows(named.ids, length, named.origin)
    tokenizer = FastTokenizer.of(files, config)
    if tokenizer and tokenizer.ids and max(tokenizer.ids.values()) >= length:
        raise IncompatibleModels(
            f"the source's tokenizer has {max(tokenizer.ids.values()) + 1:,} entries, the model {length:,} embeddings: "
            "vocab_keep= cannot match one with the other. Correct the source with resize_token_embeddings."
        )
    chosen = _ids(named, tokenizer, files)
    wrong = next((number for number in sorted(chosen) if not 0 <= number < length), None)
    if wrong is not None:
        raise _beyond(named, wrong, length)
    generation = read_json(files[GENERATION_CONFIG_NAME], SMALL) if GENERATION_CONFIG_NAME in files else {}
    tables = [*map(vars, settings), generation]
    needed = {number for fields in tables for number in needed_ids(fields) if 0 <= number < length}
    starts = [fields[TIMES] for fields in tables if isinstance(fields.get(TIMES), int)]
    needed |= set(range(min(starts, default=length), length))
    reasons = {"special or added": tokenizer.special, "of single bytes": tokenizer.bytes} if tokenizer else {}
    reasons |= {"that the configs name": needed, "whose numbers the model computes with": set(range(first))}
    reasons |= {"with the lowest score": tokenizer.lowest} if tokenizer else {}
    kept, added = set(chosen), []
    rows = set(range(length))
    for reason, ids in ((reason, ids & rows) for reason, ids in reasons.items()):
        added += [f"{len(ids - kept):,} {reason}"] if ids - kept else []
        kept |= ids
    parts = tokenizer.parts(kept) - kept if tokenizer else set()
    added += [f"{len(parts):,} that others are merged from"] if parts else []
    remarks = _remarks(named, len(chosen), added, tokenizer, files)
    return Rows(tuple(sorted(kept | parts)), length, named.origin, remarks)


def needed_ids(fields: Mapping[str, Any]) -> Iterator[int]:
    """The token ids that the fields of a config, or of generation settings, name and that must have a row."""
    for name, value in fields.items():
        if IDS.search(name) or name in PHRASES:
            yield from _numbers(value)
        elif TABLES.search(name) and isinstance(value, dict):
            yield from _numbers(list(value.values()))
        elif name == PLACED and isinstance(value, (list, tuple)):
            yield from _numbers([pair[1] for pair in value if isinstance(pair, (list, tuple)) and len(pair) == 2])


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for member in value:
            yield from _numbers(member)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _ids(named: Named, tokenizer: FastTokenizer | None, files: Mapping[str, Path]) -> set[int]:
    if named.texts is None:
        return set(named.ids)
    if tokenizer is None:
        slow = sorted(set(files) & set(VOCABULARIES))
        has = f"only {', '.join(slow)}, which cannot be written with fewer tokens" if slow else "no tokenizer"
        raise BadOption(
            f"vocab_keep= names tokens ({named.origin}), and the source has {has}: their ids would not match. Save its "
            f"tokenizer into the source's folder with AutoTokenizer and save_pretrained, which writes {FILE}; or name "
            "ids."
        )
    unknown = [text for text in named.texts if text not in tokenizer.ids]
    if unknown:
        listed = ", ".join(map(shown, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
        raise BadOption(
            f"vocab_keep= names {len(unknown):,} tokens ({named.origin}) that the source's tokenizer does not have: "
            f"{listed}. Write tokens as its {FILE} does, and leave out others."
        )
    return {tokenizer.ids[text] for text in named.texts}


def _beyond(named: Named, number: int, length: int) -> BadOption:
    return BadOption(
        f"vocab_keep= names the id {number} ({named.origin}), and the source has {length:,} rows, 0 to {length - 1}. "
        "Leave it out."
    )


def _remarks(
    named: Named, count: int, added: list[str], tokenizer: FastTokenizer | None, files: Mapping[str, Path]
) -> tuple[str, ...]:
    """Sentences on what is kept beside the rows that are named, and on a tokenizer that cannot follow."""
    remarks = []
    if added:
        tokens = "1 token" if count == 1 else f"{count:,} tokens"
        remarks.append(f"{named.origin} names {tokens}; kept, too: {', '.join(added)}")
    if tokenizer is None and set(files) & set(VOCABULARIES):
        remarks.append(
            f"the source has no {FILE}: its tokenizer cannot follow vocab_keep= and is left out; ids that it gives do "
            "not match the result"
        )
    return tuple(remarks)
