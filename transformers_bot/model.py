"""The factories: `BoTModel` and one class per task, in the manner of transformers' Auto classes."""

import os
from collections.abc import Callable
from typing import Any, ClassVar

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from . import adapters, methods
from .checkpoint import check_files
from .classes import class_in_mapping, own_class
from .errors import BadKeyword, BadOption
from .keywords import FILES, HUB, ONLY_RESIZING, Keywords, init_keywords, overrides_of, picked, sort_keywords
from .loading import load_resized, logger
from .opening import refuse_unsound
from .options import BoTConfig
from .planner import Plan
from .sizes import differing_roles
from .source import Source
from .targets import plan_from_configs, read_config, sides, target_config

ClassFor = Callable[[PreTrainedConfig], type[PreTrainedModel]]


class _BaseBoTModel:
    """Common to all factories; each names its Auto class and the mapping from configs to classes."""

    auto_class: ClassVar[Any]
    mapping: ClassVar[str]

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        name = type(self).__name__
        raise OSError(f"{name} is designed to be instantiated using the `{name}.from_pretrained(name_or_path)` method.")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """A pretrained model at another size, as an ordinary transformers model in eval mode.

        Without a `config` (or with one of the source's sizes) this is the Auto class's own
        `from_pretrained`, bit for bit. Otherwise the source is read, resampled tensor by tensor and
        handed to transformers, which builds, ties, casts and places the target.

        Example:
            >>> model = BoTModelForCausalLM.from_pretrained("gpt2", n_layer=6, n_embd=384, n_head=6)  # doctest: +SKIP
            >>> type(model).__name__                                                                 # doctest: +SKIP
            'GPT2LMHeadModel'

        Args:
            pretrained_model_name_or_path: hub id or folder of the source.
            config: the target: a config object, a path, the name of a ready config, or a dict of
                overrides on the source's config. Overrides may also be given as keywords.
            bot_config: a `BoTConfig` or a dict of its fields.
            method: the resizing method, "bot" by default; `transformers_bot.methods.METHODS` lists all,
                and "tile+stack" takes widths from one and depth from another.
            calibration: a few batches (dicts of keyword arguments, some thousand tokens in all) to run
                the source on before it shrinks; "bot" then fits every matrix to what is left of its
                input, "importance" ranks units by what they do.
            output_loading_info: also return transformers' loading info, with `resampled_keys`,
                `copied_keys` and the `report` of what happened to each tensor.
            nonfinite: what NaN or infinity in the source's weights is: "error", "warn", or "zero" to go on
                with zeros in their place.
            allow_pickle: read pytorch_model.bin where there is no safetensors file; always with
                torch's `weights_only=True`.
            strict: a head of the source's own architecture that its files lack, and tensors that no model
                of its type has, are errors; off, they are warnings. A body with gaps is always an error.
            ignore_mismatched_sizes: initialise tensors anew whose fixed axes (vocabulary, labels,
                channels) differ; off, they are an error.
            kwargs: every other keyword is transformers': hub keywords for the source, dtype,
                device_map, quantization_config, attn_implementation and the like for the target.

        Raises:
            BadSize: sizes that no model can have, with the nearest valid ones.
            IncompatibleModels: another model type, vocabulary, or head count at equal width.
            BadKeyword, BadOption: a keyword or option that does not exist.
            BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint: files that are damaged or incomplete,
                that could run code or lead out of their folder, or that hold quantised weights.
            BadWeights: NaN or infinity, in the source or (after a cast to float16) in the result.
            UnsupportedArchitecture: a model type without an adapter.

        Source: the BoT paper, section 3 and supplement A; gains and odd ratios are this package's.
        """
        if any(isinstance(value, (PreTrainedConfig, dict)) for value in model_args):
            raise BadKeyword("a config is taken by keyword only: pass the target as config=.")
        as_it_is = kwargs.get("config") is None and not overrides_of(kwargs)
        if as_it_is and kwargs.get("method") != methods.Scratch.name:
            BoTConfig.from_any(kwargs.get("bot_config"))
            return cls._as_auto(pretrained_model_name_or_path, *model_args, **kwargs)
        if model_args:
            raise BadKeyword("a resize takes keywords only: pass the target as config=.")
        return cls._resized(source_name(pretrained_model_name_or_path), kwargs)

    @classmethod
    def _resized(cls, name: str, kwargs: dict[str, Any]) -> Any:
        source, words = read_call(name, kwargs, cls.class_for)
        anew = words.method == methods.Scratch.name  # the source's weights are not wanted at any size
        if words.config is None and not words.overrides and not anew:
            return cls._as_auto(name, **kwargs)
        wanted = target_config(source, words)
        before, after = sides(source, wanted, BoTConfig.from_any(words.bot_config))
        if not differing_roles(before, after) and not anew:
            if source.num_labels != wanted.num_labels:  # a head of another size is refused here as elsewhere
                plan_from_configs(source, wanted, own_class(source), cls.class_for(wanted), words)
            logger.info("source and target have the same sizes: nothing to resample")
            kept = {key: value for key, value in kwargs.items() if key not in words.overrides}
            model, info = cls._as_auto(name, **{**kept, "config": wanted, "output_loading_info": True})
            if not words.target:  # what is placed, split or quantised by now is transformers' business
                opened = Source(model, frozenset(info["missing_keys"]), tuple(info["unexpected_keys"]))
                for sentence in refuse_unsound(name, source, opened, words):
                    logger.warning(sentence)
            return (model, info) if words.output_loading_info else model
        return load_resized(cls.class_for(wanted), name, source, wanted, words)

    @classmethod
    def plan(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | PreTrainedConfig, config: Any = None, **kwargs: Any
    ) -> Plan:
        """What `from_pretrained` with the same arguments would do to every tensor, without weights.

        See `transformers_bot.plan`; here the target class is this factory's.
        """
        return plan_for(cls.class_for, pretrained_model_name_or_path, config, kwargs)

    @classmethod
    def _as_auto(cls, name: str | os.PathLike[str], *model_args: Any, **kwargs: Any) -> Any:
        if kwargs.get("calibration") is not None:
            raise BadOption("calibration= is for shrinking, but the sizes are the source's own. Leave it out.")
        if not any(kwargs.get(key) is not None for key in ("state_dict", "gguf_file")):
            given = picked(kwargs, (*HUB, *FILES))
            check_files(source_name(name), given, allow_pickle=bool(kwargs.get("allow_pickle")), resampled=False)
        kept = {k: v for k, v in kwargs.items() if k not in ONLY_RESIZING}
        return cls.auto_class.from_pretrained(name, *model_args, **kept)

    @classmethod
    def class_for(cls, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The model class that the Auto class would choose for this config."""
        return class_in_mapping(cls.mapping, config, cls.__name__)


def plan(source: str | os.PathLike[str] | PreTrainedConfig, config: Any = None, **kwargs: Any) -> Plan:
    """What resizing `source` to `config` does to every tensor, from two configs and no weights.

    Print the result for a table, `.to_dict()` it for machines; `.steps`, `.dropped`, `.inherited`,
    `.warnings` hold the parts. The target has the source's own architecture; the factories' `plan`
    method takes another head.

    Example:
        >>> from transformers import BertConfig
        >>> small = plan(BertConfig(), num_hidden_layers=6, hidden_size=384, num_attention_heads=6)
        >>> len(small.steps), round(small.inherited, 2)
        (103, 1.0)

    Args:
        source: hub id, folder, or a config object.
        config: the target, as in `BoTModel.from_pretrained`; overrides may be keywords.
        kwargs: `bot_config`, `method`, `ignore_mismatched_sizes` and hub keywords.

    Raises:
        What `from_pretrained` raises for the same arguments, before any download of weights.
    """
    return plan_for(own_class, source, config, kwargs)


def source_name(source: Any) -> str:
    """The hub id or folder of a source as a string; a model object or None is a `BadKeyword`."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    raise BadKeyword(
        f"the source must be a hub id or a folder, got {type(source).__name__}; save a model in memory "
        "with save_pretrained first."
    )


def plan_for(class_for: ClassFor, source: Any, config: Any, kwargs: dict[str, Any]) -> Plan:
    """The plan for a target class chosen by `class_for`; see `plan`."""
    given = {**kwargs, "config": config}
    if not isinstance(source, PreTrainedConfig):
        source_config, words = read_call(source_name(source), given, class_for)
    else:
        source_config, words = source, sort_keywords(given, init_keywords(class_for(source)))
    wanted = target_config(source_config, words)
    source_class = own_class(source_config) if source_config.architectures else class_for(source_config)
    return plan_from_configs(source_config, wanted, source_class, class_for(wanted), words)


def read_call(name: str, kwargs: dict[str, Any], class_for: ClassFor) -> tuple[PreTrainedConfig, Keywords]:
    """The source's config, and the call's keywords sorted with the constructor's own set apart."""
    config = kwargs.get("config")
    like = type(config) if isinstance(config, PreTrainedConfig) else None
    source = read_config(name, picked(kwargs, HUB), like)
    adapters.get(source.model_type)
    words = sort_keywords(kwargs, init_keywords(class_for(source)))
    methods.get(words.method, BoTConfig.from_any(words.bot_config))
    return source, words


class BoTModel(_BaseBoTModel):
    """The base model without a head, like `AutoModel`."""

    auto_class = transformers.AutoModel
    mapping = "MODEL_MAPPING"


class BoTModelForPreTraining(_BaseBoTModel):
    """With the heads used for pre-training, like `AutoModelForPreTraining`."""

    auto_class = transformers.AutoModelForPreTraining
    mapping = "MODEL_FOR_PRETRAINING_MAPPING"


class BoTModelForCausalLM(_BaseBoTModel):
    """With a causal language-modelling head, like `AutoModelForCausalLM`."""

    auto_class = transformers.AutoModelForCausalLM
    mapping = "MODEL_FOR_CAUSAL_LM_MAPPING"


class BoTModelForMaskedLM(_BaseBoTModel):
    """With a masked language-modelling head, like `AutoModelForMaskedLM`."""

    auto_class = transformers.AutoModelForMaskedLM
    mapping = "MODEL_FOR_MASKED_LM_MAPPING"


class BoTModelForNextSentencePrediction(_BaseBoTModel):
    """With a next-sentence head, like `AutoModelForNextSentencePrediction`."""

    auto_class = transformers.AutoModelForNextSentencePrediction
    mapping = "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING"


class BoTModelForSequenceClassification(_BaseBoTModel):
    """With a sequence-classification head, like `AutoModelForSequenceClassification`."""

    auto_class = transformers.AutoModelForSequenceClassification
    mapping = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"


class BoTModelForTokenClassification(_BaseBoTModel):
    """With a token-classification head, like `AutoModelForTokenClassification`."""

    auto_class = transformers.AutoModelForTokenClassification
    mapping = "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"


class BoTModelForQuestionAnswering(_BaseBoTModel):
    """With a span head, like `AutoModelForQuestionAnswering`."""

    auto_class = transformers.AutoModelForQuestionAnswering
    mapping = "MODEL_FOR_QUESTION_ANSWERING_MAPPING"


class BoTModelForMultipleChoice(_BaseBoTModel):
    """With a multiple-choice head, like `AutoModelForMultipleChoice`."""

    auto_class = transformers.AutoModelForMultipleChoice
    mapping = "MODEL_FOR_MULTIPLE_CHOICE_MAPPING"


class BoTModelForImageClassification(_BaseBoTModel):
    """With an image-classification head, like `AutoModelForImageClassification`."""

    auto_class = transformers.AutoModelForImageClassification
    mapping = "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"


class BoTModelForMaskedImageModeling(_BaseBoTModel):
    """With a masked-image-modelling head, like `AutoModelForMaskedImageModeling`."""

    auto_class = transformers.AutoModelForMaskedImageModeling
    mapping = "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING"


# Names of tasks, as the command line and recipes have them.
TASKS: dict[str, type[_BaseBoTModel]] = {
    "base": BoTModel,
    "causal-lm": BoTModelForCausalLM,
    "masked-lm": BoTModelForMaskedLM,
    "pretraining": BoTModelForPreTraining,
    "next-sentence": BoTModelForNextSentencePrediction,
    "sequence-classification": BoTModelForSequenceClassification,
    "token-classification": BoTModelForTokenClassification,
    "question-answering": BoTModelForQuestionAnswering,
    "multiple-choice": BoTModelForMultipleChoice,
    "image-classification": BoTModelForImageClassification,
    "masked-image-modeling": BoTModelForMaskedImageModeling,
}
