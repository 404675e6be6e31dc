"""Figures behind the defaults of BoTConfig: real checkpoints right after resizing.

Results after training are in benchmarks/transfer.

    python benchmarks/defaults/run.py untrained     # quality right after resizing, no training
    python benchmarks/defaults/run.py retrieval     # the table of `transformers-bot demo`
    python benchmarks/defaults/run.py table         # redraw the tables from the JSON

All but the retrieval need the research data beside the repository (`../shared/data`, or the folder in
TRANSFORMERS_BOT_DATA) and, for MiniLM, the model that `transformers-bot demo` fetches. Every
entry is written when it is done: an interrupted run continues where it stopped.
"""

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from evaluate import gpt2_loss, sapiens_loss, sts_spearman
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from transformers_bot import BoTModel, BoTModelForCausalLM, BoTModelForMaskedLM
from transformers_bot.tools.demo import TARGETS, fetch_model, retrieve

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TRANSFORMERS_BOT_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"

MINILM = {
    "6 x 768, 24 heads": {"hidden_size": 768, "num_attention_heads": 24},
    "6 x 768, 12 heads": {"hidden_size": 768, "num_attention_heads": 12},
    "6 x 512": {"hidden_size": 512, "num_attention_heads": 16},
    "6 x 576": {"hidden_size": 576, "num_attention_heads": 18},
    "6 x 640": {"hidden_size": 640, "num_attention_heads": 20},
    "12 x 384": {"num_hidden_layers": 12},
    "12 x 768": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 24},
    "6 x 192": {"hidden_size": 192, "num_attention_heads": 6},
}
GROW = {"n_layer": 8, "n_embd": 192, "n_head": 6}
SHRINK = {"n_layer": 4, "n_embd": 96, "n_head": 3}
GROW_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no detail": {"detail": "zero"},
    "detail 4": {"detail_scale": 4.0},
    "db2": {"wavelet": "db2", "detail": "zero"},
    "depth repeat": {"depth": "repeat"},
    "raw": {"gain": "raw"},
}
SHRINK_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "order kept": {"order": "kept"},
    "basis plain": {"basis": "plain"},
    "basis plain, order kept": {"basis": "plain", "order": "kept"},
    "depth wavelet": {"depth": "wavelet"},
    "heads filter": {"heads": "filter"},
    "db2": {"wavelet": "db2"},
    "raw haar": {"gain": "raw", "wavelet": "haar"},
    "raw": {"gain": "raw"},
}


def untrained(store: "Store") -> None:
    """Right after resizing: STS-B of MiniLM, held-out loss of GPT-2, masked loss of Sapiens."""
    _untrained_gpt2(store)
    _untrained_sapiens(store)
    minilm = fetch_model()
    score = sts_spearman(minilm, DATA / "glue" / "STS-B" / "dev.tsv")
    title = "MiniLM STS-B dev, Spearman"
    store.add(title, "source 6 x 384", lambda: score(AutoModel.from_pretrained(minilm)))
    for label, chosen in {"default": {}, "raw": {"gain": "raw"}}.items():
        for name, sizes in MINILM.items():
            store.add(title, f"{name}, {label}", lambda s=sizes, c=chosen: score(_resized(minilm, s, c)))
    kept = {"order": "kept"}
    store.add(title, "6 x 192, order kept", lambda: score(_resized(minilm, MINILM["6 x 192"], kept)))


def _untrained_gpt2(store: "Store") -> None:
    loss = gpt2_loss(DATA / "weights" / "gpt2-gcide")
    for size, sizes, table in (("4x96", GROW, GROW_OPTIONS), ("8x192", SHRINK, SHRINK_OPTIONS)):
        source = DATA / "weights" / f"gpt2-gcide-{size}"
        title = f"GPT-2 held-out loss, {size} to {sizes['n_layer']}x{sizes['n_embd']}"
        store.add(title, "source", lambda s=source: loss(transformers.AutoModelForCausalLM.from_pretrained(s)))
        for label, chosen in table.items():
            store.add(title, label, lambda f=source, s=sizes, c=chosen: loss(_resized(f, s, c, BoTModelForCausalLM)))


def _untrained_sapiens(store: "Store") -> None:
    sapiens = DATA / "weights" / "roberta-sapiens-vh"
    masked = sapiens_loss(DATA / "antibody" / "heavy.txt.xz")
    title = "Sapiens VH masked loss, 4 x 128"
    store.add(title, "source", lambda: masked(transformers.AutoModelForMaskedLM.from_pretrained(sapiens)))
    wide = {"hidden_size": 256, "num_attention_heads": 16, "intermediate_size": 512}
    deep = {"num_hidden_layers": 8}
    for name, sizes in {"4 x 256": wide, "8 x 128": deep, "8 x 256": {**wide, **deep}}.items():
        for label, chosen in {"default": {}, "raw": {"gain": "raw"}}.items():

            def run(s: dict[str, Any] = sizes, c: dict[str, Any] = chosen) -> float:
                return masked(_resized(sapiens, s, c, BoTModelForMaskedLM))

            store.add(title, f"{name}, {label}", run)


def retrieval(store: "Store") -> None:
    """For the demo's questions: how many have the right help topic first or among three, and the MRR."""
    minilm = fetch_model()
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    title = f"Retrieval in the help of Python {platform.python_version()}: first, among three, MRR"

    def score(model: Any) -> list[float]:
        found = retrieve(model, tokenizer)
        return [found.within(1), found.within(3), round(found.reciprocal, 4)]

    def untrained_model() -> Any:
        config = transformers.AutoConfig.from_pretrained(minilm, **{**TARGETS["6x192"], "intermediate_size": 768})
        torch.manual_seed(0)
        return AutoModel.from_config(config).eval()

    store.add(title, "source 6x384", lambda: score(AutoModel.from_pretrained(minilm)))
    for name, sizes in TARGETS.items():
        store.add(title, f"resized {name}", lambda s=sizes: score(_resized(minilm, s, {})))
    store.add(title, "random 6x192", lambda: score(untrained_model()))


def _resized(source: Path, sizes: dict[str, Any], options: dict[str, Any], factory: Any = BoTModel) -> Any:
    return factory.from_pretrained(source, **sizes, bot_config=options)


class Store:
    """Results by group and label in one JSON file, written after every entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"results": {}}
        self.data["machine"] = f"{os.cpu_count()} cores, {platform.machine()} CPU, torch {torch.__version__}"

    def add(self, group: str, label: str, compute: Any) -> None:
        entries = self.data["results"].setdefault(group, {})
        if label in entries:
            return
        start = time.perf_counter()
        entries[label] = {"value": compute(), "date": datetime.date.today().isoformat()}
        entries[label]["seconds"] = round(time.perf_counter() - start, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")
        print(f"{group}: {label}: {entries[label]['value']}", flush=True)

    def table(self) -> str:
        lines = [f"{self.data['machine']}", ""]
        for group, entries in self.data["results"].items():
            lines += [f"**{group}**", "", "| run | result |", "|---|---|"]
            lines += [f"| {label} | {_shown(entry['value'])} |" for label, entry in entries.items()]
            lines.append("")
        return "\n".join(lines)


def _shown(value: float | list[float]) -> str:
    return " / ".join(f"{v:.3f}" for v in value) if isinstance(value, list) else f"{value:.4f}"


SUITES = {"untrained": untrained, "retrieval": retrieval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=[*SUITES, "table"])
    suite = parser.parse_args().suite
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name, run in SUITES.items():
        store = Store(RESULTS / f"defaults-{name}.json")
        if suite == name:
            run(store)
        if suite in (name, "table"):
            print(store.table())


if __name__ == "__main__":
    main()
