"""One saved source of each head class for the whole session, and what is slow.

torch, transformers and what imports them is imported in functions: the process that hands tests to workers needs none.
"""

import gc
import os

import pytest
from _pytest.doctest import DoctestModule
from coverings import mark_slow
from surroundings import loudness  # noqa: F401

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: more threads in each wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(items):
    mark_slow(items)


def pytest_collection_finish():
    """What has been imported stays: looking through its million objects for garbage again and again takes time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Examples in docstrings are the package's: tests have none to look for."""
    return [one for one in (yield) if not isinstance(one, DoctestModule)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """torch before 2.6 has no safe way to read pickled weights: tests of such are skipped where it refuses them."""
    try:
        return (yield)
    except ValueError as error:
        import torch

        if "CVE-2025-32434" in str(error) and not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
            pytest.skip("pickled weights need torch 2.6")
        raise


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(family, head, **changes)` -> (folder, what was saved); made once, never written to."""
    from families import build, save

    made = {}

    def get(family: str, head: str, **changes):
        key = f"{head} {sorted(changes.items())}"
        if key not in made:
            built = build(family, head, **changes)
            made[key] = save(built.model, tmp_path_factory.mktemp(head)), built
        return made[key]

    return get
