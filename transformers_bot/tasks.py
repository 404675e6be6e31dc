"""The tasks that a model can have a head for, and where transformers keeps the classes of each.

Without a task a model keeps the head that its config names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Where the classes of a task are.

    Attributes:
        factory: our class for it, as `transformers_bot` has it.
        auto_class: transformers' Auto class for it.
        mapping: transformers' table from configs to model classes.
    """

    factory: str
    auto_class: str
    mapping: str


def _task(head: str, mapping: str) -> Task:
    return Task(f"BoTModel{head}", f"AutoModel{head}", mapping)


TASKS = {
    "base": _task("", "MODEL_MAPPING"),
    "causal-lm": _task("ForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    "masked-lm": _task("ForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING"),
    "pretraining": _task("ForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING"),
    "next-sentence": _task("ForNextSentencePrediction", "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING"),
    "sequence-classification": _task("ForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    "token-classification": _task("ForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
    "question-answering": _task("ForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING"),
    "multiple-choice": _task("ForMultipleChoice", "MODEL_FOR_MULTIPLE_CHOICE_MAPPING"),
    "image-classification": _task("ForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    "zero-shot-image-classification": _task(
        "ForZeroShotImageClassification", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING"
    ),
    "masked-image-modeling": _task("ForMaskedImageModeling", "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING"),
    "seq2seq-lm": _task("ForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    "speech-seq2seq": _task("ForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING"),
    "ctc": _task("ForCTC", "MODEL_FOR_CTC_MAPPING"),
    "audio-classification": _task("ForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING"),
    "text-encoding": _task("ForTextEncoding", "MODEL_FOR_TEXT_ENCODING_MAPPING"),
}
