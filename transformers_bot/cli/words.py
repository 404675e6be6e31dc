"""Messages of the Python API in terms of options."""

import re

# Keywords of the Python API that are options of the same name here.
KEYWORDS = (
    *(
        "ignore_mismatched_sizes",
        "overwrite",
        "allow_pickle",
        "nonfinite",
        "dtype",
        "max_shard_size",
        "method",
        "config",
    ),
    *("revision", "subfolder", "variant", "wavelet", "gain", "depth", "detail_scale", "detail", "heads", "positions"),
    *("reheads", "basis", "order", "seed", "params", "like", "ratio", "memory", "source"),
)
KEYWORD = rf"(?<![\w.-])({'|'.join(KEYWORDS)})="


def in_options(message: str) -> str:
    """The message with Python keywords written as command-line options.

    >>> in_options("Choose BoTConfig(reheads='resample'), or pass ignore_mismatched_sizes=True.")
    'Choose --reheads resample, or pass --ignore-mismatched-sizes.'
    """
    message = re.sub(r"BoTConfig\(([^()]*)\)", r"\1", message)
    message = re.sub(r"bot_config=\{'(\w+)': \.\.\.\}", r"\1=", message)
    message = message.replace("strict=False", "--no-strict").replace("tokenizer=False", "--no-tokenizer")
    message = message.replace("fields of the config to change", "--set FIELD=VALUE")
    quoted = r"""(?:'([^']*)'|"([^"]*)"|(True\b)|(\d+))"""
    message = re.sub(KEYWORD + quoted, _with_value, message)
    return re.sub(KEYWORD + r"(?=[\s,.;:)]|$)", lambda found: option(found[1]), message)


def option(name: str) -> str:
    """A keyword as an option: `max_shard_size` is `--max-shard-size`."""
    return "--" + name.replace("_", "-")


def _with_value(found: re.Match[str]) -> str:
    value = found[2] or found[3] or found[5] or ""  # True needs none: the option is its own value
    return f"{option(found[1])} {value}".rstrip()
