"""Image classification: CIFAR-10 (or a subset of it) and scikit-learn's digits."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from task import Batch, Task, device_of, need, ridge
from torch import Tensor

# per channel mean and standard deviation that ViT and DeiT checkpoints are trained with (ImageNet's)
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
SPREAD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def task(
    data: Path, _cache: Path, dataset: str, train: int, validation: int, size: int, flip: bool = True, probe: int = 0
) -> Task:
    """Classification of images at `size` x `size` pixels.

    Args:
        dataset: "cifar10" or "digits".
        train, validation: how many images, drawn once in a fixed order.
        flip: mirror half of the training images.
        probe: training images for the ridge probe of a fresh head; 0 for none.
    """
    pixels, labels, unseen, truth = _read(data, dataset, train, validation)

    def batches(seed: int, number: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for places in torch.randperm(len(pixels), generator=generator).split(min(number, len(pixels))):
                if len(places) == min(number, len(pixels)):
                    chosen = _prepared(pixels[places], size)
                    mirrored = (torch.rand(len(chosen), generator=generator) < 0.5) & flip
                    chosen = torch.where(mirrored[:, None, None, None], chosen.flip(-1), chosen)
                    yield {"pixel_values": chosen, "labels": labels[places]}

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        logits = torch.cat([_logits(model, part) for part in _prepared(unseen, size).split(250)])
        accuracy = float((logits.argmax(1) == truth).float().mean())
        return {"loss": float(F.cross_entropy(logits, truth)), "accuracy": accuracy}

    @torch.no_grad()
    def probed(model: Any) -> dict[str, float]:
        known, new = (
            torch.cat([_features(model, part) for part in _prepared(some, size).split(250)])
            for some in (pixels[:probe], unseen)
        )
        scores = ridge(known, labels[:probe], new)
        return {"accuracy": float((scores.argmax(1) == truth).float().mean())}

    classes = int(labels.max()) + 1
    higher = {"loss": False, "accuracy": True}
    fields = {"num_labels": classes}
    return Task("BoTModelForImageClassification", higher, batches, evaluate, fields, probe=probed if probe else None)


def _logits(model: Any, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels.to(device_of(model))).logits.float().cpu()


def _features(model: Any, pixels: Tensor) -> Tensor:
    out = model.base_model(pixel_values=pixels.to(device_of(model)))
    return out.last_hidden_state[:, 0].float().cpu()  # the class token, which the head reads


def _prepared(pixels: Tensor, size: int) -> Tensor:
    """uint8 (image, channel, row, column) -> normalised floats at the wanted size."""
    values = (pixels.float() / 255 - MEAN) / SPREAD
    if values.shape[-1] == size:
        return values
    return F.interpolate(values, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def _read(data: Path, dataset: str, train: int, validation: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dataset == "cifar10":
        folder = data / "images" / "cifar10"
        return (*_cifar(need(folder / "train.parquet"), train), *_cifar(need(folder / "test.parquet"), validation))
    if dataset == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        if not 0 < validation <= len(digits.target) - train:
            raise ValueError(f"digits has {len(digits.target)} images: train {train} leaves none for {validation}.")
        grey = torch.from_numpy(digits.images * 255 / 16).to(torch.uint8)
        pixels, labels = grey[:, None].expand(-1, 3, -1, -1), torch.from_numpy(digits.target).long()
        return pixels[:train], labels[:train], pixels[-validation:], labels[-validation:]
    raise ValueError(f"unknown dataset {dataset!r}; known are cifar10, digits.")


def _cifar(path: Path, number: int) -> tuple[Tensor, Tensor]:
    """The first images of a fixed shuffle: the file is sorted by class."""
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path)
    chosen = np.random.default_rng(0).permutation(len(table))[:number]
    table = table.take(chosen)
    images = []
    for cell in table["image"].to_pylist():
        raw = cell["bytes"] if isinstance(cell, dict) else cell
        images.append(np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(table["label"].to_pylist())
