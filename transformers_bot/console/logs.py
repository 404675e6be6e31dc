"""Our messages: shown where transformers shows its own and as long as those are shown, but under our name.

The logger is `transformers_bot`. What it gets goes to the handlers of the logger `transformers`, so that
`transformers.logging.set_verbosity`, `TRANSFORMERS_VERBOSITY`, `add_handler`, `disable_default_handler`
and `enable_propagation` hold for it, too.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as library

from . import progress

NAME, THEIRS = "transformers_bot", "transformers"


def _follows(record: logging.LogRecord) -> bool:
    """Whether transformers would show a message of its own of this level."""
    library.get_verbosity()  # sets up their logger, if nobody has yet
    return logging.getLogger(THEIRS).isEnabledFor(record.levelno)


class _WithTransformers(logging.Handler):
    """Hands every record on to the handlers that transformers' messages reach; no handler gets it twice."""

    def handle(self, record: logging.LogRecord) -> bool:
        theirs, root = logging.getLogger(THEIRS), logging.getLogger()
        reached = [*theirs.handlers, *(root.handlers if theirs.propagate and not logger.propagate else ())]
        for handler in dict.fromkeys(reached):
            if record.levelno >= handler.level and handler not in logger.handlers:
                with progress.aside():
                    _named(handler).handle(record)
        return True


def _named(handler: logging.Handler) -> logging.Handler:
    """The handler that prints transformers' messages, with our name in front of the message instead of theirs.

    One whose format has the logger's name, or that somebody has added, is taken as it is.
    """
    format_: str = getattr(handler.formatter, "_fmt", None) or "%(message)s"
    default: logging.Handler | None = getattr(library, "_default_handler", None)
    if handler is not default or "%(name)" in format_:
        return handler
    ours = format_.replace(f"[{THEIRS}] ", "").replace("%(message)s", f"[{NAME}] %(message)s")
    named = copy.copy(handler)  # the same stream, lock and filters
    named.setFormatter(logging.Formatter(ours, getattr(handler.formatter, "datefmt", None)))
    return named


@contextmanager
def diverted(handler: logging.Handler) -> Iterator[None]:
    """Inside, our messages go to this handler alone."""
    before = list(logger.handlers)
    logger.handlers[:] = [handler]
    try:
        yield
    finally:
        logger.handlers[:] = before


logger = logging.getLogger(NAME)
if not any(isinstance(one, _WithTransformers) for one in logger.handlers):
    logger.setLevel(logging.DEBUG)  # how much is shown is transformers' setting:
    logger.addFilter(_follows)
    logger.propagate = False
    logger.addHandler(_WithTransformers())
