"""The command line called in a window of 80 columns, as fixtures."""

import pytest
from families import tiny_config

from transformers_bot import cli


@pytest.fixture
def call(capsys, monkeypatch):
    """`call("plan", folder, ...)` -> (exit code, standard output, standard error) in a window of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as left:  # help, and usage errors of argparse
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tiny(tmp_path):
    """A folder with the config of a small GPT-2 and nothing else."""
    folder = tmp_path / "tiny"
    tiny_config("gpt2", "GPT2LMHeadModel", layer=4, hidden=48, heads=6, ffn=192).save_pretrained(folder)
    return folder
