"""One thread a process, no network, and one saved source of each head class for the whole session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from families import Built, build, save
from transformers.utils import logging

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """torch before 2.6 has no safe way to read pickled weights: tests of such are skipped where it refuses them."""
    try:
        return (yield)
    except ValueError as error:
        if "CVE-2025-32434" in str(error) and not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
            pytest.skip("pickled weights need torch 2.6")
        raise


@pytest.fixture(autouse=True)
def _loudness():
    """Benchmarks and examples silence transformers for their whole process: the next test hears it again."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    if logging.get_verbosity() != level:
        logging.set_verbosity(level)
    if logging.is_progress_bar_enabled() != bars:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(family, head, **changes)` -> (folder, what was saved); made once, never written to."""
    made: dict[str, tuple[str, Built]] = {}

    def get(family: str, head: str, **changes) -> tuple[str, Built]:
        key = f"{head} {sorted(changes.items())}"
        if key not in made:
            built = build(family, head, **changes)
            made[key] = save(built.model, tmp_path_factory.mktemp(head)), built
        return made[key]

    return get
