"""Random numbers that depend on the example and the epoch, not on order, process or interruption."""

import numpy
import torch


def generator_for(*key: int) -> torch.Generator:
    """A generator seeded with a key of whole numbers such as (seed, epoch, index)."""
    state = numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)
    return torch.Generator().manual_seed(int(state[0] >> numpy.uint64(1)))  # torch takes 63 bits
