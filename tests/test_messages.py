"""Every message of the package, as the command line says it: options, and no word of the Python API."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import transformers_bot
from transformers_bot import cli
from transformers_bot.cli.terminal import FLAGS, KEYWORDS, RENAMED, in_options

PACKAGE = Path(transformers_bot.__file__).parent
# Modules whose messages no command can lead to: models in memory, in processes of a job, on GPUs, pushed to the Hub.
NOT_REACHED = {"integration", "rendezvous", "distributed", "gpu", "hub", "signatures"}
NOT_REACHED |= {"tables", "plot", "wavelets", "valid", "axes", "operators", "banded_forms", "axis_map"}
# Parts of messages that only a call from Python can meet, and why.
ONLY_FROM_PYTHON = {
    "is designed to be instantiated": "a factory that is called",
    "resize takes keywords only": "positional arguments",
    "calibration= is for method=": "names of methods are quoted, and so read as options",
    "config is taken by keyword only": "positional arguments",
    "the source must be a hub id or a folder, got": "a model object",
    "or a dict of its fields, got": "another object",
    "BoTConfig has no option": "options of the command line are fields of it; a recipe's table is checked below",
    "config must be a config object": "another object",
    "beside config= only": "--set goes over --config",
    "is given both in config=": "--set goes over --config",
    "must be True or False, got": "flags",
    "cannot be used for resizing": "keywords without an option",
    "fit takes the model that": "fit itself",
    "fit learns the operator of a model": "fit itself",
    "fit must be a dict": "another object",
    "has no keyword": "keywords",
    "is for a model in memory": "keywords without an option",
    "calibration= is one batch": "the files' batches are lists",
    "every batch of calibration= must be": "the files' batches are dicts",
    "attention_mask of calibration=": "the files' batches have a mask for every token",
    "calibration= gave no batch": "files without anything to read are refused before",
    "calibration= must give keyword arguments": "the files' batches are what the model takes",
    "a batch must be a dict": "the files' batches are dicts",
    "batches is empty": "files without anything to read are refused before",
    "cannot be started over": "the files' batches are lists",
    "overwrite must be True": "flags",
    "carries everything along": "a model in memory",
    "Please report this": "a fault of the package",
    "merge_and_unload": "a remedy that only Python has, by its name",
    "save_pretrained": "a remedy that only Python has, by its name",
    "resize_token_embeddings": "a remedy that only Python has, by its name",
    "M.from_pretrained": "a whole command that is to be copied",
}
PYTHON = re.compile(
    r"(?<![\w.-])[a-z_]+=(?=[\s,.;:)'\"]|$)"  # keyword=
    r"|\b(?:calibration|config|task|method|overwrite|strict|allow_pickle|bot_config|dtype|fit|batches|lr|steps)=\S"
    r"|BoTConfig|bot_config|BoTModel|from_pretrained|save_pretrained|resize_checkpoint|return_tensors"
    r"|\bkeywords?\b|\bDataLoader\b|=(?:True|False|None)\b"
)


def text_of(node: ast.AST) -> str | None:
    """A string as it is at run time; what is filled in is a word."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "seed" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "'seed'" if node.conversion == 114 else "seed"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None and right is None else f"{left or 'x'}{right or 'x'}"
    return None


def sentences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings of several words that are no docstrings: all that can become part of a message."""
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.BinOp)) and text_of(node) is not None:
            inner |= {id(part) for part in ast.walk(node)} - {id(node)}
        if isinstance(node, ast.Expr):  # a docstring
            inner.add(id(node.value))
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            inner |= {id(part) for part in ast.walk(node.annotation)}
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            inner |= {id(part) for part in ast.walk(node.returns)}
    for node in ast.walk(tree):
        text = text_of(node)
        if text and id(node) not in inner and len(text.split()) > 2:
            yield node.lineno, text


@functools.cache
def messages() -> list[tuple[str, str]]:
    """Every message of a module that a command can lead to, with its place."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not NOT_REACHED & set(parts) and parts[0] != "cli" and path.stem not in ("card", "demo"):
            tree = ast.parse(path.read_text())
            found += [(f"{'/'.join(parts)}:{line}", text) for line, text in sentences(tree)]
    return found


@pytest.mark.slow
def test_no_message_that_reaches_the_command_line_has_a_word_of_pythons_api():
    found, used = [], set()
    for place, text in messages():
        only = [part for part in ONLY_FROM_PYTHON if part in text]
        used.update(only)
        if not only and (word := PYTHON.search(in_options(text))):
            found.append(f"{place}: {word[0]!r} in {in_options(text)!r}")
    assert not found, "\n".join(found)


def test_a_word_of_pythons_api_would_be_found():
    for text in ("pass foo= batches to it", "set BoTConfig there now", "use strict=False2 of it", "give it x=True now"):
        assert PYTHON.search(text)
    assert len(messages()) > 300


def commands(parser):
    for action in parser._actions:
        yield from action.choices.values() if isinstance(action.choices, dict) else ()


def test_every_option_that_messages_are_translated_to_exists():
    options = {name for command in commands(cli.build_parser()) for name in command._option_string_actions}
    wanted = {"--" + name.replace("_", "-") for name in KEYWORDS} | set(RENAMED.values())
    wanted |= {text.split()[0] for text in FLAGS.values()}
    assert wanted <= options


@pytest.mark.parametrize("command", ["plan", "resize", "suggest", "verify", "inspect", "methods"])
def test_help_speaks_of_what_a_user_decides(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert not re.search(r"\^T|C\^|detail band|low-pass|orthonormal|residual stream|\bdual\b|Python API", text)


@pytest.mark.slow
def test_methods_are_explained_without_formulas(capsys):
    from transformers_bot.methods import METHODS

    assert all(method.advice for method in METHODS.values())
    for name in METHODS:
        assert cli.main(["methods", name]) == 0
        assert not re.search(r"\^T|\bR C|W_|sum_|sqrt|\*\*|`", capsys.readouterr().out), name


@pytest.mark.slow
def test_warnings_of_plans_and_reports_name_options_too(saved, tmp_path, capsys):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    words = [source, "--set", "n_embd=6", "--gain", "raw"]
    assert cli.main(["plan", *words]) == 0
    assert cli.main(["resize", words[0], str(tmp_path / "out"), *words[1:]]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("--gain raw changes the function") == 2
    assert "gain='raw'" not in said
