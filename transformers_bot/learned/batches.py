"""Batches from files of texts, images or sounds, to calibrate a source or to fit a learned method."""

import inspect
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
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from .. import architectures
from ..architectures.sizes import part_with, role_sizes
from ..compat import quiet
from ..console import progress
from ..console.progress import logger
from ..errors import BadCheckpoint, BadOption
from ..io import companions
from ..io.checkpoint import PROCESSOR, VOCABULARIES
from ..io.vocabulary import read_vocabulary
from ..request.names import HUB
from ..request.request import class_for_task, picked, read_config, source_name
from .sounds import SOUNDS, read_sound
from .targets import class_number, hidden_at_random

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEXTS = (".txt", ".md", ".jsonl", ".text")
MAX_BYTES = 64 << 20  # of one text file; the rest is not read
MAX_CHARACTERS = 100_000  # of one text; the rest is not used
# What a model takes, by its main input -> the files that hold it.
ENDINGS = {"texts": TEXTS, "images": IMAGES, "sounds": SOUNDS}
KINDS = {"pixel_values": "images", "input_values": "sounds", "input_features": "sounds"}
SECONDS = 10  # of a sound, for models that take any length
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
    """Texts, images or sounds as batches that a model takes: for `calibration=` and for `fit`.

    Texts are the paragraphs of UTF-8 files (lines, if a file has no empty line), or the field "text" of every line
    of a .jsonl file. They are put in a random order by `seed`, tokenized by the source's own tokenizer and cut into
    pieces. Models of two stacks get them for both; a field "target" of a .jsonl line is what the decoder reads
    instead. Images and sounds are prepared by the source's preprocessor_config.json, sounds of any rate. Beside a
    sound, a file of the same name that ends in .txt is what is said in it, which the decoder of a model of speech
    reads. The same files give the same batches.

    Example:
        >>> batches = read_batches("gpt2", "corpus.txt", tokens=20_000)                           # doctest: +SKIP
        >>> resize_checkpoint("gpt2", "gpt2-small", n_layer=6, calibration=batches)               # doctest: +SKIP

    Args:
        source: hub id or folder, with its tokenizer, image processor or feature extractor.
        data: a file or a folder, or several: texts for a text model, images for an image model, sounds (.wav; others
            with soundfile) for a model of speech.
        task: the head of the model that takes the batches, as in `resize_checkpoint`.
        config: the config of that model, if it is not the source's; gives positions, image size and labels.
        labels: add the labels that the head is trained on: the next tokens, masked tokens, or classes (the field
            "label" of a .jsonl line, the name of an image's or sound's folder).
        tokens: read at least so many tokens of text, if there are as many.
        images: read at most so many images or sounds.
        length: largest number of tokens in a sequence.
        batch_size: sequences, images or sounds of a batch.
        seed: of the order and of the choice of masked tokens.
        hub: hub keywords of the source (revision, subfolder, token, ...).

    Raises:
        BadOption: no such file, nothing to read in it, missing labels, or a head that needs more than these labels.
        BadCheckpoint: a source without a usable tokenizer, image processor or feature extractor.
    """
    for name, value in (("tokens", tokens), ("images", images), ("length", length), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadOption(f"{name} must be a whole number of at least 1, got {value!r}.")
    name = source_name(source)
    places = picked(hub, HUB)
    config = read_config(name, places) if config is None else config
    reader = Reader(name, places, config, class_for_task(task)(config), labels, length, batch_size, seed)
    return reader.read(data, tokens, images)


def find_files(data: Paths, kind: str = "") -> list[Path]:
    """The files that are named, and those in named folders, sorted by name.

    Args:
        kind: "texts", "images" or "sounds" are wanted; empty if that is not known yet.

    Raises:
        BadOption: a path that does not exist, or that has no such files.
    """
    kinds = kind or "texts, images or sounds"
    known = [ending for endings in ENDINGS.values() for ending in endings]
    endings = ENDINGS[kind] if kind else known
    if not isinstance(data, (str, os.PathLike, Iterable)):
        raise BadOption(f"data must be a file, a folder or a list of them, got {type(data).__name__}.")
    names = [data] if isinstance(data, (str, os.PathLike)) else [*data]
    odd = next((type(name).__name__ for name in names if not isinstance(name, (str, os.PathLike))), None)
    if odd is not None:
        raise BadOption(f"data must be a file, a folder or a list of them, got {odd} in the list.")
    files: list[Path] = []
    for path in map(Path, names):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in endings)
            if not inside:
                raise BadOption(f"{path} holds no {kinds}: files that end in {', '.join(endings)}.")
            files += inside
        elif path.is_file():
            ending = path.suffix.lower()
            if ending not in ("", *known):
                raise BadOption(
                    f"{path} ends in {ending}, which is read neither as texts ({', '.join(TEXTS)}) nor as an image "
                    f"({', '.join(IMAGES)}) nor as a sound ({', '.join(SOUNDS)}). Convert it to a file of these kinds; "
                    "plain text only needs another ending."
                )
            if kind and ending not in endings and (ending or kind != "texts"):
                raise BadOption(f"{path} is no file of {kinds}, which this model takes.")
            files.append(path)
        else:
            raise BadOption(f"there is no file or folder {str(path)!r} to read {kinds} from.")
    if not files:
        raise BadOption(f"no file is named to read {kinds} from.")
    return files


@dataclass(frozen=True)
class Reader:
    """Reads batches for a model; the fields are explained at `read_batches`."""

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
        files = find_files(data, self.kind)
        with progress.part(f"reading {self.kind}", progress.DATA_SECONDS):
            if self.kind == "texts":
                return self.texts(files, tokens)
            return self.images(files, images) if self.kind == "images" else self.sounds(files, images)

    @property
    def kind(self) -> str:
        """What the model takes: "texts", "images" or "sounds"."""
        return KINDS.get(self.model_class.main_input_name, "texts")

    @property
    def has_decoder(self) -> bool:
        """Whether the model reads token ids in its decoder, too."""
        return "decoder_input_ids" in inspect.signature(self.model_class.forward).parameters

    @property
    def choices(self) -> bool:
        """Whether a text is one of several choices: (example, choice, token)."""
        return self.model_class.__name__.endswith("MultipleChoice")

    def texts(self, files: Sequence[Path], tokens: int) -> list[dict[str, Tensor]]:
        kind = _label_kind(self.model_class) if self.labels else ""
        texts = [text for path in files for text in _read_texts(path)]
        if not texts:
            raise BadOption(f"{', '.join(map(str, files[:3]))}: there is no text in it.")
        random.Random(self.seed).shuffle(texts)
        tokenizer = self._tokenizer()
        adapter = architectures.adapter_of(self.config)
        sizes = role_sizes(adapter, self.config, "target")
        limit = next((sizes[role] for role in adapter.roles.of("place")), None)
        pieces, count = [], 0
        for text, label, written in texts:
            target = self._target(tokenizer, written)
            for ids, special in _pieces(tokenizer, text, min(self.length, limit or self.length)):
                pieces.append((ids, special, label, target or ids))
                count += len(ids)
            if count >= tokens:
                break
        self._check_ids(max(max(*ids, *target) for ids, _, _, target in pieces))
        parts = (pieces[start : start + self.batch_size] for start in range(0, len(pieces), self.batch_size))
        return [self._text_batch(tokenizer, part, kind, number) for number, part in enumerate(parts)]

    def _text_batch(
        self, tokenizer: Any, pieces: Sequence[tuple[list[int], list[bool], Any, list[int]]], kind: str, number: int
    ) -> dict[str, Tensor]:
        ids, mask = _padded([piece for piece, *_ in pieces], _pad(tokenizer))
        longest = ids.shape[1]
        batch = {"input_ids": ids, "attention_mask": mask}
        targets = [target for *_, target in pieces]
        if self.has_decoder:
            batch |= self._decoder_batch(tokenizer, targets)
        if kind == "next":
            labels, written = _padded(targets, _pad(tokenizer))
            batch["labels"] = labels.masked_fill(written == 0, -100)
        elif kind == "hidden":
            if tokenizer.mask_token_id is None:
                raise BadCheckpoint(f"the tokenizer of {self.name} has no mask token, which this head is trained with.")
            special = torch.tensor([[*flags, *[True] * (longest - len(flags))] for _, flags, *_ in pieces])
            seed = self.seed + number
            batch |= hidden_at_random(ids, special, tokenizer.mask_token_id, self._rows, seed)
        elif kind == "class":
            batch["labels"] = torch.tensor([class_number(label, self.config) for _, _, label, _ in pieces])
        return {key: x.unsqueeze(1) for key, x in batch.items()} if self.choices else batch

    def _target(self, tokenizer: Any, text: str) -> list[int]:
        """The ids of what the decoder reads, without the token that it starts with; empty without a text."""
        if not text or not self.has_decoder:
            return []
        ids = tokenizer(text, verbose=False)["input_ids"]
        return list(ids[1:] if ids[:1] == [self._start] else ids)[: self.length - 1]

    @property
    def _start(self) -> int:
        """The token that a decoder starts with."""
        tokens = (getattr(self.config, f"{name}_token_id", None) for name in ("decoder_start", "bos", "pad"))
        return int(next((token for token in tokens if isinstance(token, int)), 0))

    def _decoder_batch(self, tokenizer: Any, targets: Sequence[list[int]]) -> dict[str, Tensor]:
        """The targets moved on by the start token, as the decoder reads them: every token predicts the next."""
        shifted = [[self._start, *ids[:-1]] for ids in targets]
        ids, mask = _padded(shifted, _pad(tokenizer) if tokenizer else 0)
        return {"decoder_input_ids": ids, "decoder_attention_mask": mask}

    @property
    def _rows(self) -> int:
        """The number of token ids that the model has embeddings for."""
        return int(part_with(self.config, "vocab_size").vocab_size)

    def _check_ids(self, largest: int) -> None:
        if largest >= self._rows:
            raise BadCheckpoint(f"the tokenizer of {self.name} gives ids beyond the {self._rows} embeddings.")

    def images(self, files: Sequence[Path], count: int) -> list[dict[str, Tensor]]:
        if self.labels and _label_kind(self.model_class) != "class":
            raise BadOption(f"{self.model_class.__name__} cannot be trained on images and their classes alone.")
        chosen = list(files)
        random.Random(self.seed).shuffle(chosen)
        processor = self._processor()
        chosen = chosen[:count]
        parts = (chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size))
        return [self._image_batch(processor, part) for part in parts]

    def _image_batch(self, processor: Any, files: Sequence[Path]) -> dict[str, Tensor]:
        own = part_with(self.config, "image_size")
        size = own.image_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = {"height": int(height), "width": int(width)}
        crop = {"crop_size": shape} if getattr(processor, "do_center_crop", False) else {}
        pictures = [_image(path, own.num_channels) for path in files]
        x = processor(images=pictures, return_tensors="pt", size=shape, **crop)["pixel_values"]
        batch = {"pixel_values": x.float()}
        if self.labels:
            batch["labels"] = torch.tensor([class_number(path.parent.name, self.config) for path in files])
        return batch

    def sounds(self, files: Sequence[Path], count: int) -> list[dict[str, Tensor]]:
        if self.labels and _label_kind(self.model_class) != "class":
            raise BadOption(f"{self.model_class.__name__} cannot be trained on sounds and their classes alone.")
        chosen = list(files)
        random.Random(self.seed).shuffle(chosen)
        chosen = chosen[:count]
        with tempfile.TemporaryDirectory() as folder:
            self._copy_files(Path(folder), PROCESSOR, "feature extractor", "sounds")
            extractor = self._load(AutoFeatureExtractor, folder, "feature extractor")
        texts = {path: path.with_suffix(".txt") for path in chosen if path.with_suffix(".txt").is_file()}
        if self.has_decoder and len(texts) < len(chosen):
            logger.warning(
                "%d of %d sounds have no text of what is said beside them (NAME.txt for NAME.wav): with these the "
                "decoder reads its first token alone",
                len(chosen) - len(texts),
                len(chosen),
            )
        tokenizer = self._tokenizer() if self.has_decoder and texts else None
        parts = (chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size))
        return [self._sound_batch(extractor, tokenizer, part, texts) for part in parts]

    def _sound_batch(
        self, extractor: Any, tokenizer: Any, files: Sequence[Path], texts: Mapping[Path, Path]
    ) -> dict[str, Tensor]:
        rate = int(extractor.sampling_rate)
        # Spectrograms have one length, which the extractor knows; waves are padded to the longest of the batch.
        fixed = getattr(extractor, "chunk_length", None)
        waves = [read_sound(path, rate, fixed or SECONDS).numpy() for path in files]
        more = {} if fixed else {"padding": True}
        prepared = extractor(waves, sampling_rate=rate, return_tensors="pt", **more)
        name = self.model_class.main_input_name
        batch = {key: prepared[key] for key in (name, "attention_mask") if key in prepared}
        batch[name] = batch[name].float()
        if self.has_decoder:
            said = [" ".join(text for text, *_ in _read_texts(texts[path])) if path in texts else "" for path in files]
            targets = [[*self._target(tokenizer, text), self._start] for text in said]  # the last one is not read
            self._check_ids(max(max(ids) for ids in targets))
            batch |= self._decoder_batch(tokenizer, targets)
        if self.labels:
            batch["labels"] = torch.tensor([class_number(path.parent.name, self.config) for path in files])
        return batch

    def _tokenizer(self) -> Any:
        """The source's own tokenizer, from checked files; without them transformers would make one up."""
        with tempfile.TemporaryDirectory() as folder:
            self._copy_files(Path(folder), VOCABULARIES, "tokenizer", "texts")
            return self._load(AutoTokenizer, folder, "tokenizer")

    def _processor(self) -> Any:
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise BadOption("images are read with Pillow, which is not installed: pip install Pillow.") from None
        with tempfile.TemporaryDirectory() as folder:
            self._copy_files(Path(folder), PROCESSOR, "image processor", "images")
            return self._load(AutoImageProcessor, folder, "image processor")

    def _copy_files(self, folder: Path, needed: Sequence[str], what: str, data: str) -> None:
        """Check and copy the source's files beside its config, so that transformers can load them from there."""
        files = companions.find(self.name, self.places)
        if not set(needed) & set(files):
            raise BadCheckpoint(
                f"{self.name} has no {what} ({', '.join(needed)}), so {data} cannot be prepared for it. Copy the "
                f"{what}'s files into a folder with the model, or pass batches of tensors from Python."
            )
        self.config.save_pretrained(folder)
        companions.carry(files, folder, self.config)
        if needed is VOCABULARIES:
            read_vocabulary(folder, self.config)  # raises for files that would crash the tokenizers library

    def _load(self, auto_class: Any, folder: str, what: str) -> Any:
        try:
            with quiet():
                return auto_class.from_pretrained(folder, local_files_only=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizers library is not an Exception
            why = " ".join(str(error).split())[:200]
            raise BadCheckpoint(f"the {what} of {self.name} cannot be loaded: {type(error).__name__} {why}") from None


def _label_kind(model_class: type[PreTrainedModel]) -> str:
    """The kind of a head's labels: "next" tokens, "hidden" tokens, or a "class"."""
    name = model_class.__name__
    endings = {"LMHeadModel": "next", "CausalLM": "next", "MaskedLM": "hidden"}
    endings |= {"SequenceClassification": "class", "ImageClassification": "class", "AudioClassification": "class"}
    endings |= {"ForConditionalGeneration": "next"}
    kind = next((kind for ending, kind in endings.items() if name.endswith(ending)), None)
    if kind is None:
        raise BadOption(
            f"{name} cannot be trained on texts or images alone. Choose a head that can: task='causal-lm', "
            "'masked-lm', 'sequence-classification', 'image-classification' or 'audio-classification'."
        )
    return kind


def _pad(tokenizer: Any) -> int:
    """The id that fills sequences."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def _padded(sequences: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask: (sequence, token) each."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    return ids, mask


def _read_texts(path: Path) -> Iterator[tuple[str, Any, str]]:
    """The texts of a file, each with its label or None, and what a decoder reads instead of it or nothing."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)
        text = data.decode("utf-8-sig") if len(data) < MAX_BYTES else data.decode("utf-8-sig", "ignore")
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"{path} cannot be read as text in UTF-8: {error}.") from None
    if path.suffix.lower() != ".jsonl":
        parts = re.split(r"\n\s*\n", text) if re.search(r"\S\s*\n\s*\n\s*\S", text) else text.splitlines()
        yield from ((part.strip()[:MAX_CHARACTERS], None, "") for part in parts if part.strip())
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _json_line(path, number, line)


def _json_line(path: Path, number: int, line: str) -> tuple[str, Any, str]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
        has = f"it has {', '.join(map(str, list(entry)[:5]))}" if isinstance(entry, dict) else "it is no JSON object"
        raise BadOption(f'{path}, line {number}, must be a JSON object with a field "text" of text; {has}.')
    target = entry.get("target")
    return entry["text"].strip()[:MAX_CHARACTERS], entry.get("label"), target if isinstance(target, str) else ""


def _pieces(tokenizer: Any, text: str, longest: int) -> Iterable[tuple[list[int], list[bool]]]:
    """A text's token ids in pieces of at most `longest`, special tokens included, and flags of the special tokens."""
    own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(text, verbose=False)["input_ids"]
    extra = len(whole) - len(own)
    front = next((start for start in range(extra + 1) if whole[start : start + len(own)] == own), 0)
    before, after = whole[:front], whole[front + len(own) :]
    room = max(1, longest - len(before) - len(after))
    for start in range(0, len(own), room):
        part = own[start : start + room]
        special = [True] * len(before) + [False] * len(part) + [True] * len(after)
        yield [*before, *part, *after], special


def _image(path: Path, channels: int) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadOption(f"{path} cannot be read as an image: {error}.") from None
