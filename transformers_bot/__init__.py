"""Change the size of a trained transformer: smaller or larger, in one line, without training."""

from .version import __version__  # noqa: I001

from . import configs, wavelets
from .errors import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BadSize,
    BadWeights,
    BoTError,
    IncompatibleModels,
    PlanError,
    SaveError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedCheckpoint,
)
from .fitting import fit
from .patching import disable, enable, integration
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
    "IncompatibleModels",
    "PlanError",
    "SaveError",
    "UnsafeCheckpoint",
    "UnsupportedArchitecture",
    "UnsupportedCheckpoint",
    "__version__",
    "configs",
    "disable",
    "enable",
    "fit",
    "integration",
    "plan",
    "wavelets",
]
