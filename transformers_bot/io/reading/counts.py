"""Whether a config and the weights beside it can belong together, before memory is taken for either."""

import math
from collections.abc import Mapping

from ...errors import BadCheckpoint
from .checking import Checkpoint
from .paths import shown_path

# A head or a pooler may be new in the class that opens a checkpoint; a model may not.
NEW_SHARE = 2
NEW_ELEMENTS = 1 << 20


def check_amount(checked: Checkpoint, shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str]) -> None:
    """Refuse a config that describes a far larger model than the weights hold.

    What a checkpoint lacks is drawn at random by the loader, in memory: a damaged size in config.json would
    otherwise cost gigabytes before the shapes are compared.

    Args:
        shapes: name -> shape of every tensor of the class that is going to open the checkpoint.
        ties: tied name -> the name that holds the tensor.

    Raises:
        BadCheckpoint: with both numbers of elements.
    """
    described = sum(math.prod(shape) for name, shape in shapes.items() if name not in ties)
    if described > NEW_SHARE * checked.elements + NEW_ELEMENTS:
        raise BadCheckpoint(
            f"{shown_path(checked.folder)}: config.json describes a model of {described:,} elements, but the weights "
            f"hold {checked.elements:,}. Config and weights do not belong together; download both from one revision."
        )
