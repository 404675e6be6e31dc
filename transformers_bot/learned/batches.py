"""Batches out of files: what a source is calibrated with, and a learned method fitted, without code of one's own."""

import json
import os
import random
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from .. import architectures
from ..architectures.inventory import class_for_task
from ..architectures.sizes import role_sizes
from ..compat import quiet
from ..console import progress
from ..errors import BadCheckpoint, BadOption
from ..io import companions
from ..io.checkpoint import PROCESSOR, VOCABULARIES
from ..io.vocabulary import read_vocabulary
from ..request.request import HUB, picked, read_config
from .targets import class_number, hidden_at_random

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEXTS = (".txt", ".md", ".jsonl", ".text")
MOST = 64 << 20  # bytes of one file of texts that are read
LONGEST = 100_000  # characters of one text
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_batches(
    source: str | os.PathLike[str],
    data: Paths,
    *,
    task: str | None = None,
    config: PreTrainedConfig | None = None,
    labels: bool = False,
    tokens: int = 8192,
    images: int = 64,
    length: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    **hub: Any,
) -> list[dict[str, Tensor]]:
    """Texts or images as batches that a model takes: for `calibration=` and for `fit`.

    Texts are paragraphs of UTF-8 files (lines, where there is no empty line), or the field "text" of every line of a
    .jsonl file, in an order drawn from `seed`, cut into pieces by the source's own tokenizer. Images are prepared as
    the source's preprocessor_config.json says. The same files give the same batches.

    Example:
        >>> batches = read_batches("gpt2", "corpus.txt", tokens=20_000)                           # doctest: +SKIP
        >>> resize_checkpoint("gpt2", "gpt2-small", n_layer=6, calibration=batches)               # doctest: +SKIP

    Args:
        source: hub id or folder, with its tokenizer or image processor.
        data: a file or a folder, or several: texts for a text model, images for an image model.
        task: the head of the model that takes the batches, as in `resize_checkpoint`.
        config: of that model where it is not the source's: its positions, image size and labels hold.
        labels: add what the head learns from: the next tokens, hidden tokens, or classes (the field "label" of a
            .jsonl line, the name of an image's folder).
        tokens: how many tokens of text at least, where there are as many.
        images: how many images at most.
        length: tokens of one sequence at most.
        batch_size: sequences or images of a batch.
        seed: of the order and of the tokens that are hidden.
        hub: hub keywords of the source (revision, subfolder, token, ...).

    Raises:
        BadOption: no such file, nothing readable in it, labels that are missing, or a head that texts and images
            alone do not train.
        BadCheckpoint: a source without a tokenizer, or image processor, that can be used.
    """
    for name, value in (("tokens", tokens), ("images", images), ("length", length), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadOption(f"{name} must be a whole number of at least 1, got {value!r}.")
    name = os.fspath(source)
    places = picked(hub, HUB)
    config = read_config(name, places) if config is None else config
    model = Reader(name, places, config, class_for_task(task)(config), labels, length, batch_size, seed)
    return model.read(data, tokens, images)


def find_files(data: Paths, sees: bool | None = None) -> list[Path]:
    """The files that are named, folders looked through; sorted by name.

    Args:
        sees: images are wanted, or texts; None where that is not known yet.

    Raises:
        BadOption: something that does not exist, or nothing to read in it.
    """
    ends = IMAGES if sees else TEXTS if sees is False else (*IMAGES, *TEXTS)
    found: list[Path] = []
    for path in map(Path, [data] if isinstance(data, (str, os.PathLike)) else data):
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix.lower() in ends)
            if not inside:
                raise BadOption(f"{path} holds no {_kinds(sees)}: files that end in {', '.join(ends)}.")
            found += inside
        elif path.is_file():
            ending = path.suffix.lower()
            if ending not in ("", *IMAGES, *TEXTS):
                raise BadOption(
                    f"{path} ends in {ending}, which is read neither as texts ({', '.join(TEXTS)}) nor as an image "
                    f"({', '.join(IMAGES)}). Write what is to be read into a file of these; plain text of another "
                    "name needs no more than another ending."
                )
            if sees is not None and sees != (ending in IMAGES):
                raise BadOption(f"{path} is no file of {_kinds(sees)}, which this model takes.")
            found.append(path)
        else:
            raise BadOption(f"there is no file or folder {str(path)!r} to read {_kinds(sees)} from.")
    if not found:
        raise BadOption(f"no file is named to read {_kinds(sees)} from.")
    return found


@dataclass(frozen=True)
class Reader:
    """For which model batches are read, and how; see `read_batches`."""

    name: str
    places: Mapping[str, Any]
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    labels: bool
    length: int = 128
    batch_size: int = 8
    seed: int = 0

    def read(self, data: Paths, tokens: int, images: int) -> list[dict[str, Tensor]]:
        """The batches of files."""
        files = find_files(data, self.sees)
        with progress.part(f"reading {'images' if self.sees else 'texts'}", progress.DATA_SECONDS):
            return self.images(files, images) if self.sees else self.texts(files, tokens)

    @property
    def sees(self) -> bool:
        return bool(self.model_class.main_input_name == "pixel_values")

    @property
    def choices(self) -> bool:
        """Whether a text is one of several choices: (example, choice, token)."""
        return self.model_class.__name__.endswith("MultipleChoice")

    def texts(self, files: Sequence[Path], tokens: int) -> list[dict[str, Tensor]]:
        kind = _learns_from(self.model_class) if self.labels else ""
        every = [one for path in files for one in _read_texts(path)]
        if not every:
            raise BadOption(f"{', '.join(map(str, files[:3]))}: there is no text in it.")
        random.Random(self.seed).shuffle(every)
        tokenizer = self._tokenizer()
        adapter = architectures.get(self.config.model_type)
        sizes = role_sizes(adapter, self.config, "target")
        limit = next((sizes[role] for role in adapter.roles.of("place")), None)
        pieces, count = [], 0
        for text, label in every:
            for ids, special in _pieces(tokenizer, text, min(self.length, limit or self.length)):
                pieces.append((ids, special, label))
                count += len(ids)
            if count >= tokens:
                break
        if max(max(ids) for ids, _, _ in pieces) >= self.config.vocab_size:
            raise BadCheckpoint(
                f"the tokenizer of {self.name} gives ids beyond the {self.config.vocab_size} embeddings."
            )
        parts = (pieces[at : at + self.batch_size] for at in range(0, len(pieces), self.batch_size))
        return [self._text_batch(tokenizer, part, kind, at) for at, part in enumerate(parts)]

    def _text_batch(
        self, tokenizer: Any, pieces: Sequence[tuple[list[int], list[bool], Any]], kind: str, number: int
    ) -> dict[str, Tensor]:
        pad = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
        longest = max(len(ids) for ids, _, _ in pieces)
        ids = torch.tensor([[*one, *[pad] * (longest - len(one))] for one, _, _ in pieces])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one, _, _ in pieces])
        batch = {"input_ids": ids, "attention_mask": mask}
        if kind == "next":
            batch["labels"] = ids.masked_fill(mask == 0, -100)
        elif kind == "hidden":
            if tokenizer.mask_token_id is None:
                raise BadCheckpoint(f"the tokenizer of {self.name} has no mask token, which this head is trained with.")
            special = torch.tensor([[*one, *[True] * (longest - len(one))] for _, one, _ in pieces])
            seed = self.seed + number
            batch |= hidden_at_random(ids, special, tokenizer.mask_token_id, self.config.vocab_size, seed)
        elif kind == "class":
            batch["labels"] = torch.tensor([class_number(label, self.config) for _, _, label in pieces])
        return {key: x.unsqueeze(1) for key, x in batch.items()} if self.choices else batch

    def images(self, files: Sequence[Path], count: int) -> list[dict[str, Tensor]]:
        if self.labels and _learns_from(self.model_class) != "class":
            raise BadOption(f"{self.model_class.__name__} learns nothing from images and classes alone.")
        chosen = list(files)
        random.Random(self.seed).shuffle(chosen)
        processor = self._processor()
        parts = (chosen[at : at + self.batch_size] for at in range(0, min(count, len(chosen)), self.batch_size))
        return [self._image_batch(processor, part[: count - at * self.batch_size]) for at, part in enumerate(parts)]

    def _image_batch(self, processor: Any, files: Sequence[Path]) -> dict[str, Tensor]:
        size = self.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        wanted = {"height": int(height), "width": int(width)}
        cropped = {"crop_size": wanted} if getattr(processor, "do_center_crop", False) else {}
        opened = [_image(path, self.config.num_channels) for path in files]
        x = processor(images=opened, return_tensors="pt", size=wanted, **cropped)["pixel_values"]
        batch = {"pixel_values": x.float()}
        if self.labels:
            batch["labels"] = torch.tensor([class_number(path.parent.name, self.config) for path in files])
        return batch

    def _tokenizer(self) -> Any:
        """The source's own tokenizer, from files that were checked; none is made up where it has none."""
        with tempfile.TemporaryDirectory() as place:
            self._carried(Path(place), VOCABULARIES, "tokenizer", "texts")
            return self._loaded(AutoTokenizer, place, "tokenizer")

    def _processor(self) -> Any:
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise BadOption("images are read with Pillow, which is not installed: pip install Pillow.") from None
        with tempfile.TemporaryDirectory() as place:
            self._carried(Path(place), PROCESSOR, "image processor", "images")
            return self._loaded(AutoImageProcessor, place, "image processor")

    def _carried(self, place: Path, needed: Sequence[str], what: str, data: str) -> None:
        files = companions.find(self.name, self.places)
        if not set(needed) & set(files):
            raise BadCheckpoint(
                f"{self.name} has no {what} ({', '.join(needed)}), so {data} cannot be prepared for it. Copy the "
                f"{what}'s files into a folder with the model, or pass batches of tensors from Python."
            )
        self.config.save_pretrained(place)
        companions.carry(files, place, self.config)
        if needed is VOCABULARIES:
            read_vocabulary(place, self.config)  # raises what the library would not survive

    def _loaded(self, auto_class: Any, place: str, what: str) -> Any:
        try:
            with quiet():
                return auto_class.from_pretrained(place, local_files_only=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the tokenizers library's panics are no Exception
            why = " ".join(str(error).split())[:200]
            raise BadCheckpoint(f"the {what} of {self.name} cannot be loaded: {type(error).__name__} {why}") from None


def _learns_from(model_class: type[PreTrainedModel]) -> str:
    """What the labels of a head are: the next tokens, hidden ones, or a class."""
    name = model_class.__name__
    ends = {"LMHeadModel": "next", "CausalLM": "next", "MaskedLM": "hidden"}
    ends |= {"SequenceClassification": "class", "ImageClassification": "class"}
    found = next((kind for end, kind in ends.items() if name.endswith(end)), None)
    if found is None:
        raise BadOption(
            f"{name} cannot be trained on texts or images alone. Choose a head that can: task='causal-lm', "
            "'masked-lm', 'sequence-classification' or 'image-classification'."
        )
    return found


def _read_texts(path: Path) -> Iterator[tuple[str, Any]]:
    """The texts of a file, and their labels where it has such."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST)
        text = data.decode("utf-8-sig") if len(data) < MOST else data.decode("utf-8-sig", "ignore")
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"{path} cannot be read as text in UTF-8: {error}.") from None
    if path.suffix.lower() != ".jsonl":
        parts = re.split(r"\n\s*\n", text) if re.search(r"\S\s*\n\s*\n\s*\S", text) else text.splitlines()
        yield from ((part.strip()[:LONGEST], None) for part in parts if part.strip())
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _json_line(path, number, line)


def _json_line(path: Path, number: int, line: str) -> tuple[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found["text"].strip():
        has = f"it has {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else "it is no JSON object"
        raise BadOption(f'{path}, line {number}, must be a JSON object with a field "text" of text; {has}.')
    return found["text"].strip()[:LONGEST], found.get("label")


def _pieces(tokenizer: Any, text: str, longest: int) -> Iterable[tuple[list[int], list[bool]]]:
    """A text's token ids in pieces of at most `longest`, each with its special tokens, and which those are."""
    own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(text, verbose=False)["input_ids"]
    extra = len(whole) - len(own)
    front = next((at for at in range(extra + 1) if whole[at : at + len(own)] == own), 0)
    before, after = whole[:front], whole[front + len(own) :]
    room = max(1, longest - len(before) - len(after))
    for at in range(0, len(own), room):
        part = own[at : at + room]
        special = [True] * len(before) + [False] * len(part) + [True] * len(after)
        yield [*before, *part, *after], special


def _image(path: Path, channels: int) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadOption(f"{path} cannot be read as an image: {error}.") from None


def _kinds(sees: bool | None) -> str:
    return "texts or images" if sees is None else "images" if sees else "texts"
