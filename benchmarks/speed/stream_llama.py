"""Memory of streaming a Llama of 7 billion parameters: the most that `resize_checkpoint` holds, and its stated bound.

    python benchmarks/speed/stream_llama.py --work DIR [--layers 32] [--width 4096]

Writes a sharded checkpoint in bfloat16 (14 GB with the default sizes), shrinks it, makes it wider and deeper, each in
a fresh process, prints a line for each, and deletes everything. A result that does not fit on the disk is left out.
Each line ends in "held" or, with exit code 1, in "MORE THAN ITS BOUND".
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import speed_synthetic as synthetic
from speed_process import Meter, forked

ROOM = 2**30  # bytes of the disk that stay free


def config_of(layers: int, width: int) -> Any:
    """Llama 2 at 7B, or a smaller one of the same layout: heads of 128, an MLP of 2.6875 times the width."""
    from transformers import LlamaConfig

    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": width * 43 // 16}
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": max(1, width // 512), "head_dim": 128}
    return LlamaConfig(**sizes, **heads, vocab_size=32_000, architectures=["LlamaForCausalLM"], dtype="bfloat16")


def targets(layers: int, width: int) -> dict[str, dict[str, int]]:
    """What is resized to what, by name."""
    return {
        "shrunk": {"num_hidden_layers": layers // 2, "hidden_size": width // 2},
        "wider": {"hidden_size": width * 5 // 4},
        "deeper": {"num_hidden_layers": layers * 5 // 4},
    }


def write(layers: int, width: int, folder: Path) -> Path:
    """The checkpoint in shards of 2 GB: windows of the same normal numbers, so that nothing of it is in memory."""
    import torch
    from transformers import LlamaForCausalLM

    from transformers_bot.io.safetensors_writer import Entry, ShardWriter, lay_out

    config = config_of(layers, width)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    entries = [Entry(name, torch.bfloat16, tuple(tensor.shape)) for name, tensor in state.items()]
    generator = torch.Generator().manual_seed(0)
    numbers = (synthetic.STD * torch.randn(synthetic.NUMBERS, generator=generator)).to(torch.bfloat16)
    place = folder / "source"
    place.mkdir()
    parameters = sum(tensor.numel() for tensor in state.values())
    with ShardWriter(place, lay_out(entries, synthetic.SHARD), parameters=parameters) as writer:
        for order, entry in enumerate(entries):
            writer.put(entry.name, synthetic.weight(entry, order, numbers))
    config.save_pretrained(place)
    return place


def planned(source: Path, fields: dict[str, int]) -> tuple[int, int]:
    """The bound on memory and the bytes of the result."""
    import transformers_bot

    plan = transformers_bot.plan(source, fields)
    return int(transformers_bot.memory_bound(plan)), int(plan.to_dict()["bytes"]["target"])


def streamed(source: Path, out: Path, fields: dict[str, int]) -> dict[str, float]:
    """Costs of one resize; its result is deleted."""
    from transformers.utils import logging

    from transformers_bot import resize_checkpoint

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with Meter() as meter:
            resize_checkpoint(source, out, fields, tokenizer=False)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return meter.costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    options = parser.parse_args()
    broken = False
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        source = forked(write, options.layers, options.width, Path(name))
        for target, fields in targets(options.layers, options.width).items():
            bound, written = forked(planned, source, fields)
            if written + ROOM > shutil.disk_usage(name).free:
                print(f"{target}: left out, {written / 1e9:.1f} GB do not fit on the disk", flush=True)
                continue
            costs = forked(streamed, source, Path(name) / target, fields)
            within = costs["anonymous_peak"] <= bound
            broken = broken or not within
            facts = f"{written / 1e9:.2f} GB written in {costs['wall']:.0f} s"
            memory = f"peak {costs['anonymous_peak'] / 2**20:.0f} MiB, bound {bound / 2**20:.0f} MiB"
            print(f"{target}: {facts}, {memory}: {'held' if within else 'MORE THAN ITS BOUND'}", flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
