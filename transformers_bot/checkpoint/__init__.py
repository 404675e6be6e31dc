"""Reading safely: what is known of a source's files before any weight of it is read."""

from .checking import Checkpoint, check_files
from .configs import check_config, source_config
from .headers import StoredTensor, read_header
from .jsons import read_json
from .values import find_nonfinite, nonfinite_message

__all__ = [
    "Checkpoint",
    "StoredTensor",
    "check_config",
    "check_files",
    "find_nonfinite",
    "nonfinite_message",
    "read_header",
    "read_json",
    "source_config",
]
