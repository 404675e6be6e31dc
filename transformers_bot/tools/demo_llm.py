"""`transformers-bot demo --llm`: grow a real language model twice, shrink it once, and measure before and after.

The model is SmolLM2-135M-Instruct (Llama, 30 layers x 576), from a wheel on PyPI that is only read. Before and after,
it reads the same text and continues the same sentence. Nothing is trained.
"""

import logging
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..compat import no_bars
from ..console.progress import diverted
from ..console.text import visible
from .resize_checkpoint import resize_checkpoint
from .smollm2 import fetch_model

__all__ = ["run"]

WIDE, DEEP, SMALL = "llm-30x1152", "llm-40x576", "llm-27x576"
TARGETS: dict[str, dict[str, Any]] = {
    WIDE: {"hidden_size": 1152},
    DEEP: {"num_hidden_layers": 40},
    SMALL: {"num_hidden_layers": 27},
}
ABOUT = {
    WIDE: "twice as wide, 18 heads instead of 9",
    DEEP: "10 layers more",
    SMALL: "3 layers fewer",
}
# The beginning of Charles Darwin's "On the Origin of Species" (1859).
TEXT = """\
When on board H.M.S. Beagle, as naturalist, I was much struck with certain facts in the distribution of the inhabitants
of South America, and in the geological relations of the present to the past inhabitants of that continent. These facts
seemed to me to throw some light on the origin of species, that mystery of mysteries, as it has been called by one of
our greatest philosophers. On my return home, it occurred to me, in 1837, that something might perhaps be made out on
this question by patiently accumulating and reflecting on all sorts of facts which could possibly have any bearing on
it. After five years' work I allowed myself to speculate on the subject, and drew up some short notes; these I enlarged
in 1844 into a sketch of the conclusions, which then seemed to me probable: from that period to the present day I have
steadily pursued the same object. I hope that I may be excused for entering on these personal details, as I give them
to show that I have not been hasty in coming to a decision."""
PROMPT = "Once upon a time, there was a little girl who"
NEW_TOKENS = 20


@dataclass(frozen=True)
class Measured:
    """What a model is and does.

    Attributes:
        parameters: tied ones count once.
        loss: mean negative log-likelihood of a token of `TEXT`, in nats.
        continuation: what follows `PROMPT`, the likeliest token at every place.
    """

    parameters: int
    loss: float
    continuation: str


def run(out: str | os.PathLike[str] = "bot-demo", say: Callable[[str], None] = print) -> Path:
    """Grow and shrink the language model, save each result in a folder under `out`, and report what each does."""
    started = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    source = fetch_model()
    tokenizer = AutoTokenizer.from_pretrained(source)
    say(f"Source: SmolLM2-135M-Instruct, a Llama, in\n  {source}\n")
    rows = {"source": measure(source, tokenizer)}
    for name, sizes in TARGETS.items():
        start = time.perf_counter()
        # No warnings: the report itself says what a shrunk model is worth.
        with diverted(logging.NullHandler()):
            resize_checkpoint(source, folder / name, overwrite=True, **sizes)
        fields = ", ".join(f"{field}={size}" for field, size in sizes.items())
        say(f"{name}: {fields}; resized and saved in {time.perf_counter() - start:.0f} s")
        rows[name] = measure(folder / name, tokenizer)
    rows["random"] = _measure(_random_model(folder / SMALL), tokenizer)
    say(_report(rows))
    say(f"Done in {time.perf_counter() - started:.0f} s. The models and their tokenizer lie in")
    say("\n".join(f"  {folder / name}" for name in TARGETS))
    say(f'Load one with\n  AutoModelForCausalLM.from_pretrained("{(folder / WIDE).as_posix()}")')
    return folder


def measure(place: Path, tokenizer: Any) -> Measured:
    """Measure the model that plain transformers loads from `place`, in float32."""
    with no_bars():
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    return _measure(model, tokenizer)


@torch.inference_mode()
def _measure(model: Any, tokenizer: Any) -> Measured:
    ids = tokenizer(TEXT.replace("\n", " "), return_tensors="pt").input_ids  # (1, tokens)
    loss = float(model(input_ids=ids, labels=ids).loss)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    written = model.generate(**prompt)[0, prompt.input_ids.shape[1] :]  # (new tokens,)
    return Measured(model.num_parameters(), loss, visible(" ".join(tokenizer.decode(written).split())))


def _random_model(place: Path) -> Any:
    """A new model of the config in `place`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place), dtype=torch.float32).eval()


def _report(rows: dict[str, Measured]) -> str:
    """A table of losses, then what each model writes; at most 80 columns."""
    about = {"source": "30 layers x 576, 9 heads", "random": f"as {SMALL}, untrained", **ABOUT}
    off = max(abs(rows[name].loss - rows["source"].loss) for name in (WIDE, DEEP))
    lines = [
        "",
        "Without any training. NLL: nats per token of the first page of Darwin's",
        '"On the Origin of Species"; lower is better.',
        "",
        f"{'model':<13}{'parameters':>12}{'NLL':>8}",
    ]
    lines += [f"{name:<13}{row.parameters:>12,}{row.loss:>8.3f}  {about[name]}" for name, row in rows.items()]
    lines += [
        "",
        f"The grown models differ from the source by at most {off:.4f}: train them on from",
        "there. The shrunk one is worse than its source: it is a start for training.",
        "",
        f"{PROMPT} ...",
    ]
    for name, row in rows.items():
        lines += [f"  {name}:", *textwrap.wrap(row.continuation, 76, initial_indent=" " * 4, subsequent_indent=" " * 4)]
    return "\n".join([*lines, ""])
