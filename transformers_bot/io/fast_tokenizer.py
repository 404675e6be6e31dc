"""A fast tokenizer's file, tokenizer.json, with fewer tokens: which ones depend on each other, and their new ids.

Why by hand: no library removes tokens from a tokenizer, and building one from a file that was not checked can end the
process (see `vocabulary`).
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..errors import BadCheckpoint, IncompatibleModels
from .config_files import read_json
from .files import shown
from .vocabulary import LARGE, VALUES, fast_vocabulary, special_tokens

FILE = "tokenizer.json"
Numbers = Mapping[int, int]  # id in the source -> id in the target


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary.

    Bytes that print stand for themselves, the others for the letters from 256 on, in their order.

    >>> byte_letters()[ord(" ")], byte_letters()[ord("a")]
    ('Ġ', 'a')
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


class FastTokenizer:
    """What a tokenizer.json says of its tokens and their ids.

    Attributes:
        fields: of the file.
        vocabulary: token -> id, of the model.
        added: token -> id, of the tokens that are cut out of a text before the model sees it.
        ids: token -> id, of both.
    """

    def __init__(self, fields: Mapping[str, Any], special: Iterable[str] = ()) -> None:
        self.fields = fields
        self.vocabulary, _ = fast_vocabulary(fields)
        self.added = {str(token["content"]): int(token["id"]) for token in fields.get("added_tokens") or []}
        self.ids = {**self.vocabulary, **self.added}
        self.model: Mapping[str, Any] = fields["model"]
        self._special = set(special)

    @classmethod
    def of(cls, files: Mapping[str, Path], config: PreTrainedConfig) -> "FastTokenizer | None":
        """The tokenizer of a source; None if it has no such file.

        Args:
            files: tokenizer files by their names.
            config: of the model.

        Raises:
            BadCheckpoint: a file that cannot be read.
        """
        if FILE not in files:
            return None
        return cls(read_json(files[FILE], LARGE, VALUES), special_tokens(files, config))

    @property
    def special(self) -> set[int]:
        """The ids of added tokens, of special ones, and of those that the model or the template of a text puts in."""
        texts = self._special | {str(self.model.get("unk_token"))}
        own = {self.ids[text] for text in texts if text in self.ids}
        unknown = self.model.get("unk_id")
        own |= {unknown} if isinstance(unknown, int) else set()
        padding = (self.fields.get("padding") or {}).get("pad_id")
        own |= {padding} & set(self.ids.values()) if isinstance(padding, int) else set()
        return own | set(self.added.values()) | set(_template_ids(self.fields.get("post_processor")))

    @property
    def bytes(self) -> set[int]:
        """The ids of single bytes, with which any text can be written; empty if the tokenizer has none."""
        texts: list[str] = []
        if any(_has_type(self.fields.get(part), "ByteLevel") for part in ("pre_tokenizer", "decoder", "normalizer")):
            letters = byte_letters()
            texts += letters
            if suffix := self.model.get("end_of_word_suffix"):
                texts += [letter + suffix for letter in letters]
        if self.model.get("byte_fallback"):
            texts += [f"<0x{byte:02X}>" for byte in range(256)]
        return {self.vocabulary[text] for text in texts if text in self.vocabulary}

    @property
    def lowest(self) -> set[int]:
        """The piece with the lowest score: what is unknown is scored relative to it, so it keeps how texts are cut."""
        pieces = self.model.get("vocab")
        if not isinstance(pieces, list) or not pieces:
            return set()
        return {min(range(len(pieces)), key=lambda number: float(pieces[number][1]))}

    def parts(self, ids: Collection[int]) -> set[int]:
        """The ids of all tokens that arise while the model merges letters into these tokens."""
        if not self.model.get("merges"):
            return set()
        text_of = {number: text for text, number in self.vocabulary.items() if text not in self.added}
        found = {text_of[number] for number in ids if number in text_of}
        rest = list(found)
        while rest:
            parts = self._parts(rest.pop()) - found
            found |= parts
            rest += parts
        return {self.vocabulary[text] for text in found if text in self.vocabulary}

    def subset(self, numbers: Numbers) -> dict[str, Any]:
        """The fields of the file with these tokens alone, under their new ids.

        Raises:
            IncompatibleModels: the library would give a token another id.
        """
        fields = copy.deepcopy(dict(self.fields))
        model = fields["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in numbers]
            if model.get("unk_id") is not None:
                model["unk_id"] = numbers[model["unk_id"]]
        else:
            model["vocab"] = {text: numbers[old] for text, old in self.vocabulary.items() if old in numbers}
        kept = {text for text, old in self.vocabulary.items() if old in numbers}
        if model.get("merges"):
            model["merges"] = [
                stored
                for stored, (first, second) in zip(model["merges"], self._merges, strict=True)
                if {first, second, self._joined(first, second)} <= kept
            ]
        for token in fields.get("added_tokens") or []:
            token["id"] = numbers[token["id"]]
        padding = fields.get("padding")
        if padding and padding.get("pad_id") in numbers:
            padding["pad_id"] = numbers[padding["pad_id"]]
        _renumber_template(fields.get("post_processor"), numbers)
        if _misnumbered(self.fields) is None:  # else the source's own file is at odds with the library
            _check_ids(fields)
        return fields

    # -- merges -------------------------------------------------------------------------------------

    @cached_property
    def _merges(self) -> list[tuple[str, str]]:
        merges = self.model.get("merges") or []
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
        return [(first, second) for first, second in pairs]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        ranks: dict[tuple[str, str], int] = {}
        for rank, pair in enumerate(self._merges):
            ranks.setdefault(pair, rank)
        return ranks

    @cached_property
    def _makers(self) -> dict[str, list[tuple[str, str]]]:
        makers: dict[str, list[tuple[str, str]]] = {}
        for first, second in self._merges:
            makers.setdefault(self._joined(first, second), []).append((first, second))
        return makers

    def _joined(self, first: str, second: str) -> str:
        return first + second[len(self.model.get("continuing_subword_prefix") or "") :]

    def _parts(self, token: str) -> set[str]:
        """Tokens that this one is merged from, directly or by way of others.

        What happens inside of a token's span of a longer word is the same as in the token alone, because no merge goes
        over the ends of the span. So a tokenizer with these tokens cuts every word that it has the tokens of as before.
        Of several merges that lead to a token, one is found by merging its letters. With a prefix inside of words all
        of them count: more tokens than needed, never less.
        """
        makers = self._makers.get(token, [])
        if len(makers) < 2 or self.model.get("continuing_subword_prefix"):
            return {part for pair in makers for part in pair}
        suffix = self.model.get("end_of_word_suffix") or ""
        inside = token.removesuffix(suffix) if suffix else token
        symbols = list(inside)
        if suffix and symbols and inside != token:
            symbols[-1] += suffix
        found = set(symbols)
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            first = min(range(len(pairs)), key=lambda place: self._ranks.get(pairs[place], len(self._ranks)))
            if pairs[first] not in self._ranks:
                return set()
            symbols[first : first + 2] = [symbols[first] + symbols[first + 1]]
            found.add(symbols[first])
        return found


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """An object of the file and all objects in it."""
    level = [node]
    while level:
        yield from (part for part in level if isinstance(part, dict))
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [member for members in inner for member in members]


def _has_type(node: Any, name: str) -> bool:
    return any(part.get("type") == name for part in _nodes(node))


def _template_ids(node: Any) -> Iterator[int]:
    """The ids that a post-processor puts around a text."""
    for part in _nodes(node):
        if isinstance(part.get("ids"), list):
            yield from (number for number in part["ids"] if isinstance(number, int))
        for side in ("sep", "cls"):
            pair = part.get(side)
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int):
                yield pair[1]


def _renumber_template(node: Any, numbers: Numbers) -> None:
    for part in list(_nodes(node)):
        if isinstance(part, dict) and isinstance(part.get("ids"), list):
            part["ids"] = [numbers.get(number, number) for number in part["ids"]]
        for side in ("sep", "cls"):
            pair = part.get(side)
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int):
                pair[1] = numbers.get(pair[1], pair[1])


def _misnumbered(fields: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """The first added token that the library gives another id than the file, with both: it counts on from the last."""
    vocabulary, _ = fast_vocabulary(fields)
    following = len(vocabulary)
    for token in sorted(fields.get("added_tokens") or [], key=lambda token: int(token["id"])):
        expected = vocabulary.get(token["content"], following)
        if token["id"] != expected:
            return token["content"], expected, token["id"]
        following = max(following, expected + 1)
    return None


def _check_ids(fields: Mapping[str, Any]) -> None:
    """Refuse ids of added tokens that the library would not give.

    Raises:
        IncompatibleModels: such a token, by name.
    """
    if wrong := _misnumbered(fields):
        text, expected, number = wrong
        raise IncompatibleModels(
            f"vocab_keep= keeps rows that belong to no token, so that the token {shown(text)} would have the id "
            f"{expected} in the tokenizer and {number} in the model. Leave out rows that belong to no token."
        )


def settings_with(fields: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
    """tokenizer_config.json with the new ids of its tokens."""
    decoder = fields.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return dict(fields)
    try:
        renumbered = {str(numbers[int(old)]): token for old, token in decoder.items() if int(old) in numbers}
    except ValueError:
        raise BadCheckpoint(f"added_tokens_decoder in tokenizer_config.json is {shown(decoder)}") from None
    return {**fields, "added_tokens_decoder": renumbered}
