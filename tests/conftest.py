"""One thread a process, no network, and one saved source of each head class for the whole session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from families import Built, build, save

torch.set_num_threads(1)


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
