"""Train a DeiT or ViT classifier, from random weights or a resized model.

    python examples/train_image_classification.py --source facebook/deit-base-patch16-224 --config deit-small \\
        --data cifar10/train.parquet --eval-data cifar10/test.parquet --output-dir runs/deit-small \\
        --preset paper-cifar10 --per-device-batch-size 128 --bf16

    accelerate launch --num_processes 2 examples/train_image_classification.py --init scratch \\
        --config deit-tiny --set image_size=32 --set patch_size=4 --dataset uoft-cs/cifar10 --image-column img \\
        --output-dir runs/scratch --num-train-epochs 20 --batch-size 256 --learning-rate 5e-4 --resume

The presets are Table 7 (paper-small, paper-base) and Table 9 (paper-cifar10, ...) of the supplement.
"""

import argparse
from typing import Any

import numpy
import torch
import training
from augmentation import Augmenting, Pixels, Plain, augmentation_options
from data_images import Pictures, image_options, labelled_images
from recipes import IMAGES
from starting_model import wanted_config
from torch import nn
from transformers import PreTrainedModel, ViTImageProcessorPil

from transformers_bot import BoTModelForImageClassification
from transformers_bot.errors import BadOption


def drop_paths(model: PreTrainedModel, rate: float) -> None:
    """Stochastic depth (Huang et al. 2016) on the residual branches of a ViT or DeiT.

    transformers' models have none. The rate grows linearly from 0 in the first layer to `rate` in
    the last; what is kept is scaled so that the mean stays.
    """
    layers = model.base_model.layers
    for number, layer in enumerate(layers):
        share = rate * number / max(1, len(layers) - 1)

        def dropped(branch: nn.Module, _inputs: Any, output: Any, share: float = share) -> Any:
            if not branch.training or not share:
                return output
            hidden = output[0] if isinstance(output, tuple) else output  # (batch, tokens, hidden)
            kept = torch.rand(len(hidden), 1, 1, device=hidden.device) >= share
            hidden = hidden * kept / (1 - share)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        layer.attention.register_forward_hook(dropped)
        layer.mlp.register_forward_hook(dropped)


def pixels_of(options: argparse.Namespace, fields: dict[str, Any]) -> Pixels:
    """Size and normalisation of the model's input: half and half, as in transformers' ViT."""
    config = wanted_config(options, fields)
    if config.num_channels not in (1, 3):
        raise BadOption(f"num_channels is {config.num_channels}: images have 1 (grey) or 3 (RGB).")
    half = (0.5,) * config.num_channels
    return Pixels(config.image_size, half, half)


def accuracy(result: Any) -> dict[str, float]:
    return {"accuracy": float(numpy.mean(result.predictions == result.label_ids))}


def best_class(logits: Any, _labels: Any) -> torch.Tensor:
    """Keep the class instead of all logits while evaluating."""
    found: torch.Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
    return found


def main() -> None:
    parser = training.parser(__doc__)
    image_options(parser)
    augmentation_options(parser)
    training.add(parser, "drop-path", type=float, default=0.0, help="stochastic depth in the last layer (default: 0)")
    options = training.parse(parser, IMAGES)
    if options.flip is None:
        options.flip = 0.0 if options.data == "digits" else 0.5

    train, evaluation = labelled_images(options)
    fields = {"num_labels": len(train.names)}
    pixels = pixels_of(options, fields)
    mode = "L" if len(pixels.mean) == 1 else "RGB"
    data = training.Data(
        train=Pictures(train, mode),
        evaluation=Pictures(evaluation, mode),
        collate=Augmenting(options, pixels, len(train.names)),
        collate_evaluation=Plain(pixels),
    )
    model = training.initial_model(
        options, BoTModelForImageClassification, fields, training.batches(data, options.seed), new_head=True
    )
    model.config.id2label = dict(enumerate(train.names))
    model.config.label2id = {name: number for number, name in enumerate(train.names)}
    teacher = training.load_teacher(options, BoTModelForImageClassification)
    drop_paths(model, options.drop_path)
    size = {"height": pixels.size, "width": pixels.size}
    processor = ViTImageProcessorPil(size=size, image_mean=list(pixels.mean), image_std=list(pixels.std))
    summary = training.run(
        options,
        model,
        data,
        teacher=teacher,
        metrics=accuracy,
        logits_for_metrics=best_class,
        processing=processor,
    )
    result = summary["metrics"]
    print(f"accuracy {result['eval_accuracy']:.4f}, loss {result['eval_loss']:.4f} after {summary['steps']} steps")


if __name__ == "__main__":
    training.script(main)
