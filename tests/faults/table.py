"""What one row of the table of bad inputs is."""

from dataclasses import dataclass, field
from typing import Any

from folders import Mutator

from transformers_bot import BoTError

AGAIN = r"Download it again\."


@dataclass(frozen=True)
class Fault:
    """One bad input.

    Attributes:
        mutate: makes it from a copy of a good folder.
        error: the kind of error it gives.
        message: a regular expression for the message: file or tensor, reason, remedy.
        source: the good folder: "single", "sharded" or "pickled".
        keywords: of `from_pretrained`.
    """

    mutate: Mutator
    error: type[BoTError]
    message: str
    source: str = "single"
    keywords: dict[str, Any] = field(default_factory=dict)
