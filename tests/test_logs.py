"""What our messages look like on standard error, and that transformers' settings hold for them."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import transformers_bot
from transformers_bot.console.progress import diverted, logger

FOLDER = Path(transformers_bot.__file__).parent

# A process that says the same in children of its own, each set up in another way.
SAY = """
import json, logging, os, sys, tempfile
from transformers.utils import logging as library
from transformers_bot.console.progress import logger
for setup in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as file:
        if os.fork() == 0:
            os.dup2(file.fileno(), 2)
            exec(setup)
            for level in ("info", "warning", "error"):
                getattr(logger, level)("about %s", level)
            os._exit(0)
        os.wait()
        file.seek(0)
        print(json.dumps(file.read().splitlines()))
"""


def said(*setups: str, **env: str) -> list[list[str]]:
    """For every setup, the lines that a process writes to standard error."""
    plain = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(FOLDER.parent), **env}
    command = [sys.executable, "-c", SAY, json.dumps(setups)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    return [json.loads(line) for line in done.stdout.splitlines()]


BRIEF = [f"[transformers_bot] about {level}" for level in ("info", "warning", "error")]
NAMED = [f"{level.upper()}:transformers_bot:about {level}" for level in ("info", "warning", "error")]
SETUPS = {
    "pass": BRIEF[1:],
    "library.set_verbosity_error()": BRIEF[2:],
    "library.set_verbosity(library.CRITICAL)": [],
    "library.set_verbosity_info()": BRIEF,
    "library.disable_default_handler()": [],
    "logging.getLogger('transformers_bot').setLevel('ERROR')": BRIEF[2:],
    # With handlers of the user's own: under the name of the logger, and each message once.
    "library.disable_default_handler(); library.enable_propagation(); logging.basicConfig()": NAMED[1:],
    "logging.basicConfig()": BRIEF[1:],
    "logging.basicConfig(); logging.getLogger('transformers_bot').propagate = True\n"
    "library.disable_default_handler(); library.enable_propagation()": NAMED[1:],
}


def test_the_line_has_our_name_and_the_settings_of_transformers():
    assert dict(zip(SETUPS, said(*SETUPS), strict=True)) == SETUPS


@pytest.mark.slow
def test_the_environment_sets_how_much_is_shown():
    assert said("pass", TRANSFORMERS_VERBOSITY="error") == [BRIEF[2:]]


@pytest.mark.slow
def test_an_explicit_format_keeps_its_parts_and_gets_our_name():
    (lines,) = said("library.enable_explicit_format()")
    assert len(lines) == 2
    assert lines[0].startswith("[WARNING|")
    assert lines[0].endswith(">> [transformers_bot] about warning")


@pytest.mark.slow
def test_messages_of_transformers_itself_stay_as_they_are():
    (lines,) = said("library.get_logger('transformers.models').warning('theirs')")
    assert lines[0].endswith("theirs")
    assert "transformers_bot" not in lines[0]


class Kept(logging.Handler):
    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_a_handler_added_to_transformers_gets_each_message_once_from_its_level_on():
    handler, theirs = Kept(logging.ERROR), logging.getLogger("transformers")
    theirs.addHandler(handler)
    try:
        logger.warning("one")
        logger.error("two")
    finally:
        theirs.removeHandler(handler)
    assert handler.texts == ["two"]


def test_a_handler_of_both_loggers_gets_each_message_once():
    handler, loggers = Kept(), [logging.getLogger("transformers"), logger, logging.getLogger()]
    for one in loggers:
        one.addHandler(handler)
    try:
        logger.warning("one")
    finally:
        for one in loggers:
            one.removeHandler(handler)
    assert handler.texts == ["one"]


def test_what_is_not_shown_is_not_rendered():
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    logger.info("%s", Costly())


def test_diverted_messages_go_nowhere_else_and_only_inside(capfd):
    inside = Kept()
    with diverted(inside):
        logger.warning("inside")
    logger.warning("outside")
    assert inside.texts == ["inside"]
    assert "inside" not in capfd.readouterr().err


def test_every_message_of_ours_goes_through_this_logger():
    for file in FOLDER.rglob("*.py"):
        assert "get_logger(" not in file.read_text(encoding="utf-8"), file
