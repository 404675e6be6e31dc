"""`transformers-bot inspect`: what a checkpoint is made of and what halving it would keep."""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..console.tables import table
from ..console.text import size
from .options import add_adapter, add_head, add_hub, add_reading, add_source, hub_keywords, read_adapters
from .terminal import fill, say, shown, width

if TYPE_CHECKING:
    from ..architectures.adapter import Roles
    from ..tools.inspecting import Inspection, Stack

NOTE = (
    "1.00 is all of it; 0.50 is what halving keeps of weights in no order, as of noise (a little more where a length "
    "is odd, 0.25 where a role is on both axes). Trained weights are in hardly any order. A resize puts similar units "
    "next to each other first and so keeps more; its report says how much."
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        usage="transformers-bot inspect SOURCE [--png FILE] [options]",
        help="show what a checkpoint is made of and what halving it would keep",
        description="Show a checkpoint's sizes and tensors, the meaning of their axes, and for every role (layers, "
        "units, heads, ...) the share of the weights' energy in the low band of one wavelet level: what a "
        "plain halving of that role would keep. Reads the weights, one tensor at a time.",
        epilog="examples:\n"
        "  transformers-bot inspect gpt2\n"
        "  transformers-bot inspect ./my-model --png energy.png --wavelet db2",
    )
    add_source(parser)
    add_head(parser)
    parser.add_argument(
        "--png", metavar="FILE", help="save a heat map: kinds of tensors by layers, colour = share kept"
    )
    parser.add_argument("--wavelet", metavar="NAME", default="haar", help="an orthogonal one (default: haar)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    add_reading(parser)
    add_adapter(parser)
    add_hub(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    from ..tools.inspecting import inspect

    read_adapters(chosen)
    found = inspect(chosen.source, wavelet=chosen.wavelet, task=chosen.task, **hub_keywords(chosen))
    drawn = found.plot(chosen.png) if chosen.png else None
    text = json.dumps(found.to_dict(), indent=2) if chosen.json else show(found, width())
    say(
        f"{text}\n\nHeat map: {drawn}" if drawn and not chosen.json else text,
        f"the heat map is in {drawn}" if drawn else "",
    )
    return 0


def show(found: "Inspection", columns: int) -> str:
    sizes = [f"{role} {length}" for role, length in found.lengths.items()]
    dtypes = ", ".join(dict.fromkeys(stack.dtype for stack in found.stacks))
    head = f"{found.model_class}: {found.parameters:,} parameters, {size(found.bytes)}, {dtypes}"
    shares = [("energy kept by halving", *found.measured), *_grouped(found, partial(_kept, found.measured))]
    kept = table(shares, columns, right=range(1, len(shares[0])))
    parts = [
        head,
        fill("   ".join(size.replace(" ", "\0") for size in sizes), columns).replace("\0", " "),
        "",
        *table(
            [("tensor", "shape", "bytes", "axes"), *_grouped(found, partial(_tensor, found.roles))], columns, right=(2,)
        ),
        "",
        *kept,
        "",
        fill(NOTE, columns),
    ]
    broken = [stack.name for stack in found.stacks if any(share != share for share in stack.kept.values())]
    for names, what in (
        (found.missing, "not in the checkpoint"),
        (found.unexpected, f"not part of {found.model_class}"),
        (broken, "hold NaN or infinity"),
    ):
        if names:
            some = ", ".join(shown(name, 60) for name in names[:4]) + (", ..." if len(names) > 4 else "")
            parts.append(fill(f"warning: {len(names)} {what}: {some}", columns, hang="  "))
    parts += [fill(f"note: {shown(note)}", columns, hang="  ") for note in found.notes]
    return "\n".join(parts)


def _grouped(found: "Inspection", cells: Callable[["Stack", str], tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows with the layers' common beginning in a row of its own."""
    rows: list[tuple[str, ...]] = []
    before = ""
    for stack in found.stacks:
        stem, layer, rest = stack.name.partition("{layer}.")
        row = cells(stack, f"  {rest}" if layer else stack.name)
        if layer and stem != before:
            numbers = f"{{0...{stack.layers - 1}}}" if stack.layers > 1 else "0"
            rows.append((f"{stem}{numbers}.", *[""] * (len(row) - 1)))
        before = stem if layer else ""
        rows.append(row)
    return rows


def _tensor(roles: "Roles", stack: "Stack", name: str) -> tuple[str, ...]:
    """An axis that only repeats another role's entries goes by that role's name."""

    def plain(word: re.Match[str]) -> str:
        return roles.leader(word[1]) if word[1] in roles.echoes else word[1]

    axes = re.sub(r"[~*]?\b([a-z]\w*)\b", plain, stack.axes)
    return name, "x".join(map(str, stack.shape)), size(stack.bytes) if stack.parameters else "tied", axes


def _kept(measured: Sequence[str], stack: "Stack", name: str) -> tuple[str, ...]:
    shares = (stack.kept.get(role) for role in measured)
    return name, *("" if share is None else "nan" if share != share else f"{share:.2f}" for share in shares)
