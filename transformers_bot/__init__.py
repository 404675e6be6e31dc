"""Change the size of a trained transformer: smaller or larger, in one line, without training."""

from .version import __version__  # noqa: I001

from . import adapters, configs, wavelets
from .errors import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BadSize,
    BadWeights,
    BoTError,
    IncompatibleModels,
    PlanError,
    RankError,
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
from .report import Report
from .suggest import Suggestion, suggest
from .streaming import memory_bound, resize_checkpoint
from .verifying import Verification, verify
from .hub import push_to_hub

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
    "RankError",
    "Report",
    "SaveError",
    "Suggestion",
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
    "resize_checkpoint",
    "suggest",
    "verify",
    "wavelets",
]
