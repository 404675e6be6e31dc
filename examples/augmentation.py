"""Augmentation of images with Pillow and torch, drawn from the example's own generator.

Crops, flips, colour jitter and random erasing follow the usual definitions (Inception crops; Zhong
et al. 2017 for erasing), mixup is Zhang et al. 2018 and CutMix Yun et al. 2019. RandAugment is
timm's, if that is installed.
"""

import argparse
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from options import add
from PIL import Image, ImageEnhance
from randomness import generator_for
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging

logger = logging.get_logger("transformers." + __name__)


@dataclass(frozen=True)
class Pixels:
    """How an image becomes the model's input: size, and mean and deviation of each channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensor(self, image: Image.Image) -> Tensor:
        """(channels, size, size), normalised."""
        array = numpy.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC), dtype=numpy.float32)
        channels = torch.from_numpy(array / 255).reshape(self.size, self.size, -1).permute(2, 0, 1)
        return (channels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def augmentation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of augmentation; all are off by default except crops and flips."""
    group = parser.add_argument_group("augmentation")
    add(group, "crop-scale", type=float, default=0.08, metavar="SHARE",
        help="random crops cover at least this share of the image; 1 turns them off (default: 0.08)")  # fmt: skip
    add(group, "flip", type=float, help="probability of a horizontal flip (default: 0.5, and 0 for digits)")
    add(group, "color-jitter", type=float, default=0.0, help="strength of brightness, contrast and colour changes")
    add(group, "auto-augment", metavar="POLICY", help="a RandAugment policy such as rand-m9-mstd0.5-inc1; needs "
        "pip install timm")  # fmt: skip
    add(group, "random-erase", type=float, default=0.0, help="probability of erasing a rectangle")
    add(group, "mixup", type=float, default=0.0, help="alpha of mixup; 0 turns it off")
    add(group, "cutmix", type=float, default=0.0, help="alpha of CutMix; 0 turns it off")
    add(group, "label-smoothing", type=float, default=0.0, help="share of each label spread over all classes")


class Augmenting:
    """Items of `Pictures` -> a training batch with `pixel_values`, `labels` and `soft_labels`."""

    def __init__(self, options: argparse.Namespace, pixels: Pixels, classes: int) -> None:
        self.options, self.pixels, self.classes = options, pixels, classes
        self.rand_augment = rand_augment(options.auto_augment, pixels)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([self.augmented(item) for item in items])  # (batch, channels, size, size)
        labels = torch.tensor([item["label"] for item in items])
        soft = F.one_hot(labels, self.classes).float()
        soft = soft * (1 - self.options.label_smoothing) + self.options.label_smoothing / self.classes
        draw = generator_for(self.options.seed, items[0]["epoch"], items[0]["index"], 1)
        images, soft = self.mixed(images, soft, draw)
        return {"pixel_values": images, "labels": labels, "soft_labels": soft}

    def augmented(self, item: dict[str, Any]) -> Tensor:
        options, draw = self.options, generator_for(self.options.seed, item["epoch"], item["index"])
        image = cropped(item["image"], options.crop_scale, draw) if options.crop_scale < 1 else item["image"]
        if uniform(draw) < options.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            seeds = generator_for(options.seed, item["epoch"], item["index"], 2)
            number = int(torch.randint(2**31, (), generator=seeds))
            random.seed(number)  # timm draws from the global generators
            numpy.random.seed(number)
            image = self.rand_augment(image)
        if options.color_jitter:
            image = jittered(image, options.color_jitter, draw)
        tensor = self.pixels.tensor(image)
        return erased(tensor, draw) if uniform(draw) < options.random_erase else tensor

    def mixed(self, images: Tensor, soft: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix of the batch with itself reversed; with both on, either with probability 1/2."""
        mixup, cutmix = self.options.mixup, self.options.cutmix
        if not mixup and not cutmix:
            return images, soft
        cutting = bool(cutmix) and (not mixup or uniform(draw) < 0.5)
        alpha = cutmix if cutting else mixup
        seed = int(torch.randint(2**62, (), generator=draw))
        share = float(numpy.random.default_rng(seed).beta(alpha, alpha))  # torch's Beta takes no generator
        other = images.flip(0)
        if cutting:
            top, left, height, width = box(images.shape[-1], math.sqrt(1 - share), draw)
            images = images.clone()
            images[..., top : top + height, left : left + width] = other[..., top : top + height, left : left + width]
            share = 1 - height * width / images.shape[-1] ** 2  # the box may have been cut at the edge
        else:
            images = share * images + (1 - share) * other
        return images, share * soft + (1 - share) * soft.flip(0)


class Plain:
    """Items of `Pictures` -> an evaluation batch, resized only."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([self.pixels.tensor(item["image"]) for item in items])
        return {"pixel_values": images, "labels": torch.tensor([item["label"] for item in items])}


def uniform(draw: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def box(size: int, side: float, draw: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a square of `side * size`, its centre anywhere, cut at the edges."""
    half = side * size / 2
    row, column = uniform(draw, 0, size), uniform(draw, 0, size)
    top, left = max(0, round(row - half)), max(0, round(column - half))
    return top, left, min(size, round(row + half)) - top, min(size, round(column + half)) - left


def cropped(image: Image.Image, smallest: float, draw: torch.Generator) -> Image.Image:
    """A crop of `smallest` to all of the area and an aspect ratio of 3/4 to 4/3."""
    area = uniform(draw, smallest, 1) * image.width * image.height
    ratio = math.exp(uniform(draw, math.log(3 / 4), math.log(4 / 3)))
    width = min(image.width, max(1, round(math.sqrt(area * ratio))))
    height = min(image.height, max(1, round(math.sqrt(area / ratio))))
    left, top = round(uniform(draw, 0, image.width - width)), round(uniform(draw, 0, image.height - height))
    return image.crop((left, top, left + width, top + height))


def jittered(image: Image.Image, strength: float, draw: torch.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each times a factor within 1 - strength to 1 + strength."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(uniform(draw, max(0.0, 1 - strength), 1 + strength))
    return image


def erased(image: Tensor, draw: torch.Generator) -> Tensor:
    """The image (channels, size, size) with noise in a rectangle of 2 % to a third of its area."""
    size = image.shape[-1]
    area, ratio = uniform(draw, 0.02, 1 / 3) * size**2, math.exp(uniform(draw, math.log(0.3), math.log(1 / 0.3)))
    height, width = (max(1, min(size, round(math.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = round(uniform(draw, 0, size - height)), round(uniform(draw, 0, size - width))
    image = image.clone()
    image[:, top : top + height, left : left + width] = torch.randn(len(image), height, width, generator=draw)
    return image


def rand_augment(policy: str | None, pixels: Pixels) -> Any:
    """timm's RandAugment; without timm a warning and None, because all else of a recipe still holds."""
    if policy is None:
        return None
    try:
        from timm.data.auto_augment import rand_augment_transform
    except ImportError:
        logger.warning(f"{policy} is left out: RandAugment comes from timm, which is not installed (pip install timm).")
        return None
    fill = tuple(round(255 * mean) for mean in pixels.mean)
    return rand_augment_transform(policy, {"translate_const": round(pixels.size * 0.45), "img_mean": fill})
