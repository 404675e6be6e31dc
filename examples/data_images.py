"""Images with labels: scikit-learn's digits, a parquet file, class folders, or the hub."""

import argparse
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from data_text import hub_dataset
from options import add
from PIL import Image
from randomness import generator_for
from torch.utils.data import Dataset

from transformers_bot.errors import BadOption

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
Picture = Image.Image | bytes | Path


@dataclass(frozen=True)
class Labelled:
    """Images as Pillow images, encoded bytes or paths, their class numbers, and the classes' names."""

    images: list[Picture]
    labels: list[int]
    names: list[str]

    def taken(self, chosen: Iterable[int]) -> "Labelled":
        indices = list(chosen)
        return Labelled([self.images[i] for i in indices], [self.labels[i] for i in indices], self.names)


def image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images are read."""
    group = parser.add_argument_group("images")
    add(group, "data", metavar="PATH", help="digits (8x8, from scikit-learn), a .parquet file or a folder of them "
        "with the columns image and label, or a folder with one subfolder of images for each class")  # fmt: skip
    add(group, "eval-data", metavar="PATH", help="the same, to evaluate on (default: a share of the other)")
    add(group, "dataset", metavar="NAME[:CONFIG]", help="read a data set of the hub instead, as in uoft-cs/cifar10; "
        "needs pip install datasets")  # fmt: skip
    add(group, "image-column", default="image", help="field or column of the images (default: image)")
    add(group, "label-column", default="label", help="field or column of the class numbers (default: label)")
    add(group, "eval-share", type=float, default=0.1, metavar="SHARE",
        help="share to hold out if there are no images to evaluate on (default: 0.1)")  # fmt: skip
    add(group, "max-eval-examples", type=int, help="evaluate on this many images at most (default: all)")


def labelled_images(options: argparse.Namespace) -> tuple[Labelled, Labelled]:
    """Images to train on and to evaluate on; a held-out share is the same whatever the --seed."""
    if (options.data is None) == (options.dataset is None):
        raise BadOption("give the images either as --data PATH or as --dataset NAME.")
    evaluation: Labelled | None
    if options.dataset:
        train, evaluation = _of_hub(options)
    else:
        train = read_images(options.data, options)
        evaluation = None if options.eval_data is None else read_images(options.eval_data, options)
    order = torch.randperm(len(train.images), generator=generator_for(0)).tolist()
    if evaluation is None:
        count = max(1, round(options.eval_share * len(order)))
        train, evaluation = train.taken(order[count:]), train.taken(order[:count])
    elif options.max_eval_examples:  # files are often sorted by class
        evaluation = evaluation.taken(torch.randperm(len(evaluation.images), generator=generator_for(0)).tolist())
    if len(evaluation.names) > len(train.names):
        raise BadOption(f"there are {len(evaluation.names)} classes to evaluate on and {len(train.names)} to train on.")
    return train, evaluation.taken(
        range(min(len(evaluation.images), options.max_eval_examples or len(evaluation.images)))
    )


def read_images(name: str, options: argparse.Namespace) -> Labelled:
    """The images of --data.

    Raises:
        BadOption: nothing of that name, or nothing in it.
    """
    path = Path(name)
    if name == "digits":
        return _digits()
    tables = [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet"))
    images = _of_parquet(tables, options.image_column, options.label_column) if tables else _of_folders(path)
    if not images.images:
        raise BadOption(f"{path} holds no images: give digits, a .parquet file, or a folder with one folder a class.")
    return images


def _digits() -> Labelled:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadOption("the digits come with scikit-learn: pip install scikit-learn.") from error
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(numpy.uint8)  # stored as 0 to 16
    return Labelled([Image.fromarray(p) for p in pixels], [int(n) for n in digits.target], [str(n) for n in range(10)])


def _of_parquet(paths: list[Path], image: str, label: str) -> Labelled:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise BadOption("parquet files are read with pyarrow: pip install pyarrow.") from error
    images: list[Picture] = []
    labels: list[int] = []
    for path in paths:
        if not path.is_file():
            raise BadOption(f"there is no file {path}.")
        missing = [name for name in (image, label) if name not in parquet.read_schema(path).names]
        if missing:
            raise BadOption(f"{path} has no column {missing[0]!r}; --image-column and --label-column name others.")
        table = parquet.read_table(path, columns=[image, label])
        cells = table.column(image).to_pylist()
        images += [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]  # the hub's files: a struct
        labels += [int(number) for number in table.column(label).to_pylist()]
    return Labelled(images, labels, [str(number) for number in range(max(labels, default=-1) + 1)])


def _of_folders(folder: Path) -> Labelled:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    images = [
        (path, number)
        for number, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    return Labelled([path for path, _ in images], [number for _, number in images], names)


def _of_hub(options: argparse.Namespace) -> tuple[Labelled, Labelled | None]:
    splits = hub_dataset(options.dataset)
    held = next((name for name in ("validation", "test") if name in splits), None)

    def read(split: str) -> Labelled:
        table = splits[split]
        for name in (options.image_column, options.label_column):
            if name not in table.column_names:
                raise BadOption(f"{options.dataset} has no field {name!r}; it has {', '.join(table.column_names)}.")
        labels = [int(number) for number in table[options.label_column]]
        names = getattr(table.features[options.label_column], "names", None)
        return Labelled(list(table[options.image_column]), labels, names or [str(n) for n in range(max(labels) + 1)])

    return read("train"), None if held is None else read(held)


class Pictures(Dataset[dict[str, Any]]):
    """Decoded images with their labels, their numbers and the epoch."""

    def __init__(self, read: Labelled, mode: str) -> None:
        self.read, self.mode, self.epoch = read, mode, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.read.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = decoded(self.read.images[index]).convert(self.mode)
        return {"image": image, "label": self.read.labels[index], "index": index, "epoch": self.epoch}


def decoded(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
