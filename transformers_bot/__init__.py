"""Change the size of a trained transformer: smaller or larger, in one line, without training."""

__version__ = "0.1.0"

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
)
from .options import BoTConfig
