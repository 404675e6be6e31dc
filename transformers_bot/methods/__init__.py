"""Resizing methods by name. A new method is one file here and one entry below, or one file anywhere and `register`.

`"tile+stack"` takes the widths from one method and the depth from another. What methods share, and how one is
looked up, is in `base`.
"""

from ..ops.axis_map import AxisMap, gather
from ..options import Options, option
from .aki import AKI
from .base import METHODS, Fresh, Linear, Method, Task, get, load, options_of, register
from .bot import BoT
from .depth_upscale import DepthUpscale
from .fpi import FPI
from .front import Front
from .importance import Importance
from .interpolate import Interpolate
from .lemon import Lemon
from .ligo import LiGO
from .mango import Mango
from .maps import Depth, Pair
from .scratch import Scratch
from .stack import Stack
from .tile import Tile
from .weight_selection import WeightSelection

BUILT_IN: tuple[type[BoT] | type[Linear] | type[Scratch], ...] = (
    *(BoT, WeightSelection, Importance, FPI, AKI, Stack, Interpolate, DepthUpscale),
    *(Tile, Lemon, Front, Scratch, LiGO, Mango),
)
METHODS.update({method.name: method for method in BUILT_IN})

__all__ = [
    "METHODS",
    "AxisMap",
    "Depth",
    "Fresh",
    "Linear",
    "Method",
    "Options",
    "Pair",
    "Scratch",
    "Task",
    "gather",
    "get",
    "load",
    "option",
    "options_of",
    "register",
]
