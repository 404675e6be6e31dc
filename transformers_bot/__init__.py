"""Change the size of a trained transformer: smaller or larger, in one line, without training.

Importing the package imports neither torch nor transformers: every other name is looked up in its
module when it is first asked for.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .errors import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BadSize,
    BadWeights,
    BoTError,
    HubError,
    IncompatibleModels,
    PlanError,
    RankError,
    SaveError,
    TooLittleMemory,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedCheckpoint,
)
from .version import __version__

if TYPE_CHECKING:  # for type checkers and editors; `_HOMES` says the same to Python
    from . import adapters, configs, wavelets
    from .batches import read_batches
    from .fitting import fit
    from .hub import push_to_hub
    from .model import (
        BoTModel,
        BoTModelForCausalLM,
        BoTModelForImageClassification,
        BoTModelForMaskedImageModeling,
        BoTModelForMaskedLM,
        BoTModelForMultipleChoice,
        BoTModelForNextSentencePrediction,
        BoTModelForPreTraining,
        BoTModelForQuestionAnswering,
        BoTModelForSequenceClassification,
        BoTModelForTokenClassification,
        plan,
    )
    from .options import BoTConfig
    from .patching import disable, enable, integration
    from .report import Report
    from .streaming import resize_checkpoint
    from .suggesting import Suggestion, suggest
    from .verifying import Verification, verify
    from .writing import memory_bound
else:  # hidden from type checkers, for whom any name would exist

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            found = import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found  # asked for once
        return found

    def __dir__() -> list[str]:
        return sorted(__all__)


# public name -> the module that has it
_HOMES = {
    "BoTConfig": "options",
    "BoTModel": "model",
    "BoTModelForCausalLM": "model",
    "BoTModelForImageClassification": "model",
    "BoTModelForMaskedImageModeling": "model",
    "BoTModelForMaskedLM": "model",
    "BoTModelForMultipleChoice": "model",
    "BoTModelForNextSentencePrediction": "model",
    "BoTModelForPreTraining": "model",
    "BoTModelForQuestionAnswering": "model",
    "BoTModelForSequenceClassification": "model",
    "BoTModelForTokenClassification": "model",
    "Report": "report",
    "Suggestion": "suggesting",
    "Verification": "verifying",
    "disable": "patching",
    "enable": "patching",
    "fit": "fitting",
    "integration": "patching",
    "memory_bound": "writing",
    "plan": "model",
    "push_to_hub": "hub",
    "read_batches": "batches",
    "resize_checkpoint": "streaming",
    "suggest": "suggesting",
    "verify": "verifying",
}

__all__ = [
    "BadCheckpoint",
    "BadKeyword",
    "BadOption",
    "BadSize",
    "BadWeights",
    "BoTConfig",
    "BoTError",
    "BoTModel",
    "BoTModelForCausalLM",
    "BoTModelForImageClassification",
    "BoTModelForMaskedImageModeling",
    "BoTModelForMaskedLM",
    "BoTModelForMultipleChoice",
    "BoTModelForNextSentencePrediction",
    "BoTModelForPreTraining",
    "BoTModelForQuestionAnswering",
    "BoTModelForSequenceClassification",
    "BoTModelForTokenClassification",
    "HubError",
    "IncompatibleModels",
    "PlanError",
    "RankError",
    "Report",
    "SaveError",
    "Suggestion",
    "TooLittleMemory",
    "UnsafeCheckpoint",
    "UnsupportedArchitecture",
    "UnsupportedCheckpoint",
    "Verification",
    "__version__",
    "adapters",
    "configs",
    "disable",
    "enable",
    "fit",
    "integration",
    "memory_bound",
    "plan",
    "push_to_hub",
    "read_batches",
    "resize_checkpoint",
    "suggest",
    "verify",
    "wavelets",
]
