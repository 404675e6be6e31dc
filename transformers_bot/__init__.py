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
    from . import adapters, methods
    from .architectures import configs
    from .auto import (
        BoTModel,
        BoTModelForAudioClassification,
        BoTModelForCausalLM,
        BoTModelForCTC,
        BoTModelForImageClassification,
        BoTModelForMaskedImageModeling,
        BoTModelForMaskedLM,
        BoTModelForMultipleChoice,
        BoTModelForNextSentencePrediction,
        BoTModelForPreTraining,
        BoTModelForQuestionAnswering,
        BoTModelForSeq2SeqLM,
        BoTModelForSequenceClassification,
        BoTModelForSpeechSeq2Seq,
        BoTModelForTextEncoding,
        BoTModelForTokenClassification,
        BoTModelForZeroShotImageClassification,
        plan,
    )
    from .hub.push import push_to_hub
    from .learned.batches import read_batches
    from .learned.fitting import fit
    from .ops import wavelets
    from .options import BoTConfig
    from .report.report import Report
    from .run.integration import disable, enable, integration
    from .run.writing import memory_bound
    from .tools.resize_checkpoint import resize_checkpoint
    from .tools.suggesting import Suggestion, suggest
    from .tools.verifying import Verification, verify
else:  # hidden from type checkers, for whom any name would exist

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        elif name in _MODULES:
            value = import_module(f".{_MODULES[name]}", __name__)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            value = import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value  # the next access finds it without this function
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)


# public name -> the module that has it
_HOMES = {
    "BoTConfig": "options",
    "BoTModel": "auto",
    "BoTModelForCausalLM": "auto",
    "BoTModelForImageClassification": "auto",
    "BoTModelForMaskedImageModeling": "auto",
    "BoTModelForSeq2SeqLM": "auto",
    "BoTModelForSpeechSeq2Seq": "auto",
    "BoTModelForCTC": "auto",
    "BoTModelForAudioClassification": "auto",
    "BoTModelForTextEncoding": "auto",
    "BoTModelForMaskedLM": "auto",
    "BoTModelForMultipleChoice": "auto",
    "BoTModelForNextSentencePrediction": "auto",
    "BoTModelForPreTraining": "auto",
    "BoTModelForQuestionAnswering": "auto",
    "BoTModelForSequenceClassification": "auto",
    "BoTModelForTokenClassification": "auto",
    "BoTModelForZeroShotImageClassification": "auto",
    "Report": "report.report",
    "Suggestion": "tools.suggesting",
    "Verification": "tools.verifying",
    "disable": "run.integration",
    "enable": "run.integration",
    "fit": "learned.fitting",
    "integration": "run.integration",
    "memory_bound": "run.writing",
    "plan": "auto",
    "push_to_hub": "hub.push",
    "read_batches": "learned.batches",
    "resize_checkpoint": "tools.resize_checkpoint",
    "suggest": "tools.suggesting",
    "verify": "tools.verifying",
}
# public modules that lie in a room
_MODULES = {"configs": "architectures.configs", "wavelets": "ops.wavelets"}

__all__ = [
    "BadCheckpoint",
    "BadKeyword",
    "BadOption",
    "BadSize",
    "BadWeights",
    "BoTConfig",
    "BoTError",
    "BoTModel",
    "BoTModelForAudioClassification",
    "BoTModelForCTC",
    "BoTModelForCausalLM",
    "BoTModelForImageClassification",
    "BoTModelForMaskedImageModeling",
    "BoTModelForMaskedLM",
    "BoTModelForMultipleChoice",
    "BoTModelForNextSentencePrediction",
    "BoTModelForPreTraining",
    "BoTModelForQuestionAnswering",
    "BoTModelForSeq2SeqLM",
    "BoTModelForSequenceClassification",
    "BoTModelForSpeechSeq2Seq",
    "BoTModelForTextEncoding",
    "BoTModelForTokenClassification",
    "BoTModelForZeroShotImageClassification",
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
    "methods",
    "plan",
    "push_to_hub",
    "read_batches",
    "resize_checkpoint",
    "suggest",
    "verify",
    "wavelets",
]
