"""Names as wrappers of a model leave them: DistributedDataParallel, torch.compile, FSDP, checkpointing."""

import re
from collections.abc import Iterable

# What a wrapper puts before the names of the model inside it -> the wrapper, and where it holds the model.
WRAPPERS = {
    "module.": ("DistributedDataParallel or DataParallel", "model.module"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "model.module"),
    "_checkpoint_wrapped_module.": ("torch's activation checkpointing", "model._checkpoint_wrapped_module"),
}
LEADING = re.compile(f"(?:{'|'.join(map(re.escape, WRAPPERS))})*")


def wrapper_of(names: Iterable[str]) -> str:
    """What wrappers put before every name, nested ones together; empty unless all names have the same.

    >>> wrapper_of(["_orig_mod.module.wte.weight", "_orig_mod.module.wpe.weight"])
    '_orig_mod.module.'
    >>> wrapper_of(["module.wte.weight", "wpe.weight"])
    ''
    """
    found = {_leading(name) for name in names}
    return found.pop() if len(found) == 1 else ""


def renaming(wrapper: str) -> dict[str, str]:
    """The `key_mapping` with which transformers reads names without their wrapper."""
    return {f"^{re.escape(wrapper)}": ""} if wrapper else {}


def wrapper_hint(names: Iterable[str]) -> str:
    """A sentence on the wrappers that names show, at their beginning or within; empty if they show none.

    >>> wrapper_hint(["bert._orig_mod.pooler.dense.bias"])
    " '_orig_mod.' in a name comes from torch.compile: save the model inside of it (model._orig_mod.save_pretrained)."
    """
    shown = [mark for mark in WRAPPERS if any(_begins(mark, name) or _is_within(mark, name) for name in names)]
    sentences = (
        f" {mark!r} in a name comes from {WRAPPERS[mark][0]}: save the model inside of it "
        f"({WRAPPERS[mark][1]}.save_pretrained)."
        for mark in shown
    )
    return "".join(sentences)


def _leading(name: str) -> str:
    found = LEADING.match(name)
    return found.group() if found else ""


def _begins(mark: str, name: str) -> bool:
    return re.search(rf"(?:^|\.){re.escape(mark)}", _leading(name)) is not None


def _is_within(mark: str, name: str) -> bool:
    return mark.startswith("_") and f".{mark}" in name
