"""Reading safely: what is known of a source's files before any weight of it is read."""

from .checking import Checkpoint, check_files
from .configs import check_config, check_names, source_config
from .counts import check_amount
from .files import has_file, is_folder
from .from_hub import from_hub
from .hashing import Hashing
from .headers import StoredTensor, read_header
from .jsons import read_json, read_value
from .paths import Folder, clean, is_plain, listed, opened, shown, shown_path
from .reading import model_config
from .values import find_nonfinite, nonfinite_message
from .wrappers import renaming, wrapper_hint

__all__ = [
    "Checkpoint",
    "Folder",
    "Hashing",
    "StoredTensor",
    "check_amount",
    "check_config",
    "check_files",
    "check_names",
    "clean",
    "find_nonfinite",
    "from_hub",
    "has_file",
    "is_folder",
    "is_plain",
    "listed",
    "model_config",
    "nonfinite_message",
    "opened",
    "read_header",
    "read_json",
    "read_value",
    "renaming",
    "shown",
    "shown_path",
    "source_config",
    "wrapper_hint",
]
