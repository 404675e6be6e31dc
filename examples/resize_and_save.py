"""Halve a model's depth, double its width, save both results, load them with plain transformers.

    python examples/resize_and_save.py [SOURCE] [FOLDER]

SOURCE is a BERT on the Hub or in a folder; without one the demo's small sentence encoder is used.
"""

import sys
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoTokenizer

from transformers_bot import BoTModel
from transformers_bot.tools.demo import fetch_model


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else fetch_model()
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "resized")
    before = AutoConfig.from_pretrained(source)

    targets = {
        "half-depth": {"num_hidden_layers": before.num_hidden_layers // 2},
        "double-width": {
            "hidden_size": 2 * before.hidden_size,
            "num_attention_heads": 2 * before.num_attention_heads,
        },
    }
    for name, sizes in targets.items():
        print(f"{name}: {sizes}")
        model = BoTModel.from_pretrained(source, **sizes)
        model.save_pretrained(out / name)
        AutoTokenizer.from_pretrained(source).save_pretrained(out / name)

        again = AutoModel.from_pretrained(out / name)
        after = again.config
        print(f"  {before.num_hidden_layers} x {before.hidden_size} -> {after.num_hidden_layers} x {after.hidden_size}")
        print(f"  {again.num_parameters():,} parameters in {out / name}")


if __name__ == "__main__":
    main()
