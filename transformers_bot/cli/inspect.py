"""`transformers-bot inspect`: the tensors of a checkpoint and the energy that halving each role would keep."""

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
    "1.00 is all of it; 0.50 is what halving keeps of weights in random order, such as noise (a little more where a "
    "length is odd, 0.25 where a role is on both axes). Trained weights are in nearly random order. A resize first "
    "puts similar units next to each other and so keeps more; its report says how much."
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


def run(args: argparse.Namespace) -> int:
    from ..tools.inspecting import inspect

    read_adapters(args)
    inspection = inspect(args.source, wavelet=args.wavelet, task=args.task, **hub_keywords(args))
    picture = inspection.plot(args.png) if args.png else None
    text = json.dumps(inspection.to_dict(), indent=2) if args.json else show(inspection, width())
    say(
        f"{text}\n\nHeat map: {picture}" if picture and not args.json else text,
        f"the heat map is in {picture}" if picture else "",
    )
    return 0


def show(inspection: "Inspection", columns: int) -> str:
    sizes = [f"{role} {length}" for role, length in inspection.lengths.items()]
    dtypes = ", ".join(dict.fromkeys(stack.dtype for stack in inspection.stacks))
    title = f"{inspection.model_class}: {inspection.parameters:,} parameters, {size(inspection.bytes)}, {dtypes}"
    shares = [
        ("energy kept by halving", *inspection.measured),
        *_grouped(inspection, partial(_kept, inspection.measured)),
    ]
    share_table = table(shares, columns, right=range(1, len(shares[0])))
    parts = [
        title,
        fill("   ".join(size.replace(" ", "\0") for size in sizes), columns).replace("\0", " "),
        "",
        *table(
            [("tensor", "shape", "bytes", "axes"), *_grouped(inspection, partial(_tensor, inspection.roles))],
            columns,
            right=(2,),
        ),
        "",
        *share_table,
        "",
        fill(NOTE, columns),
    ]
    nonfinite = [stack.name for stack in inspection.stacks if any(share != share for share in stack.kept.values())]
    for names, reason in (
        (inspection.missing, "not in the checkpoint"),
        (inspection.unexpected, f"not part of {inspection.model_class}"),
        (nonfinite, "hold NaN or infinity"),
    ):
        if names:
            examples = ", ".join(shown(name, 60) for name in names[:4]) + (", ..." if len(names) > 4 else "")
            parts.append(fill(f"warning: {len(names)} {reason}: {examples}", columns, hang="  "))
    parts += [fill(f"note: {shown(note)}", columns, hang="  ") for note in inspection.notes]
    return "\n".join(parts)


def _grouped(inspection: "Inspection", cells: Callable[["Stack", str], tuple[str, ...]]) -> list[tuple[str, ...]]:
    """One row per stack; stacks of layers whose names begin alike stand under a row with that beginning."""
    rows: list[tuple[str, ...]] = []
    before = ""
    for stack in inspection.stacks:
        stem, rest = stack.parts
        row = cells(stack, f"  {rest}" if stem else stack.name)
        if stem and stem != before:
            numbers = f"{{0...{stack.layers - 1}}}" if stack.layers > 1 else "0"
            rows.append((f"{stem}{numbers}.", *[""] * (len(row) - 1)))
        before = stem
        rows.append(row)
    return rows


def _tensor(roles: "Roles", stack: "Stack", name: str) -> tuple[str, ...]:
    """The cells of a tensor; a role that only repeats another role is shown by the name of that role."""

    def plain(word: re.Match[str]) -> str:
        return roles.leader(word[1]) if word[1] in roles.echoes else word[1]

    axes = re.sub(r"[~*]?\b([a-z]\w*)\b", plain, stack.axes)
    return name, "x".join(map(str, stack.shape)), size(stack.bytes) if stack.parameters else "tied", axes


def _kept(measured: Sequence[str], stack: "Stack", name: str) -> tuple[str, ...]:
    shares = (stack.kept.get(role) for role in measured)
    return name, *("" if share is None else "nan" if share != share else f"{share:.2f}" for share in shares)
