"""What all tests run in, those of the benchmarks, too: no network, one thread, transformers as loud as ever."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers share the cores, and so do the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def loudness():
    """Benchmarks and examples silence transformers for their whole process: the next test hears it again."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    if logging.get_verbosity() != level:
        logging.set_verbosity(level)
    if logging.is_progress_bar_enabled() != bars:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
