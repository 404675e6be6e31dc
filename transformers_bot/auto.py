"""The factories: `BoTModel` and one class per task, in the manner of transformers' Auto classes.

The work is done in `run/loading.py`, which the first call imports: it needs torch and transformers' models, for
which the import of a factory alone should not wait.
"""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, Unpack, overload

from .request.signatures import DEFAULTS
from .tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from .planning.planner import Plan
    from .request.signatures import (
        Batches,
        DType,
        GenerativeModel,  # noqa: F401  # named in a string below
        Keep,
        ModelKeywords,
        Nonfinite,
        Options,
        Target,
    )

    Model = TypeVar("Model", bound=PreTrainedModel)

    class _Of(Generic[Model]):
        """What a factory makes, for type checkers."""

else:

    class _Of:
        def __class_getitem__(cls, _model: object) -> type:
            return cls

    Model = Any  # appears only in brackets, which are ignored at run time


NEVER = 2**30  # threshold of a full garbage collection that no process reaches
_LOCK = threading.Lock()
_WITHOUT = 0  # how many calls are inside `no_full_search`
_BEFORE = (0, 0, 0)  # the thresholds before the first of them


def stated(**ours: Any) -> dict[str, Any]:
    """The keywords that are neither None nor at their default.

    >>> stated(method="bot", strict=False, config=None)
    {'strict': False}
    """
    return {name: value for name, value in ours.items() if value is not None and value is not DEFAULTS.get(name)}


@contextmanager
def no_full_search() -> Iterator[None]:
    """Switch off full garbage collections meanwhile, in all threads; young objects are collected as usual.

    A full collection visits every object of torch and transformers: 0.1 to 0.2 s, three times while a first call
    imports and builds models. The cycles that a resize leaves hold no weights.
    """
    global _WITHOUT, _BEFORE
    with _LOCK:
        if not _WITHOUT:
            _BEFORE = gc.get_threshold()
            gc.set_threshold(*_BEFORE[:2], NEVER)
        _WITHOUT += 1
    try:
        yield
    finally:
        with _LOCK:
            _WITHOUT -= 1
            if not _WITHOUT and gc.get_threshold()[2] == NEVER:  # else another one was set meanwhile
                gc.set_threshold(*_BEFORE)


class _Auto:
    """A factory's Auto class of transformers, imported when it is asked for."""

    def __get__(self, _instance: object, owner: "type[_BaseBoTModel[Any]]") -> Any:
        import transformers  # takes half a second, so not at the top

        return getattr(transformers, TASKS[owner.task].auto_class)


class _BaseBoTModel(_Of[Model]):
    """Common to all factories; each names its task."""

    task: ClassVar[str]
    auto_class = _Auto()

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        name = type(self).__name__
        raise OSError(f"{name} is designed to be instantiated using the `{name}.from_pretrained(name_or_path)` method.")

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: "Target" = None,
        bot_config: "Options" = None,
        method: str = "bot",
        calibration: "Batches" = None,
        nonfinite: "Nonfinite" = "error",
        allow_pickle: bool = False,
        strict: bool = True,
        record_path: bool = False,
        vocab_keep: "Keep" = None,
        ignore_mismatched_sizes: bool = False,
        dtype: "DType" = None,
        torch_dtype: "DType" = None,
        output_loading_info: Literal[False] = False,
        **kwargs: "Unpack[ModelKeywords]",
    ) -> "Model": ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: "Target" = None,
        bot_config: "Options" = None,
        method: str = "bot",
        calibration: "Batches" = None,
        nonfinite: "Nonfinite" = "error",
        allow_pickle: bool = False,
        strict: bool = True,
        record_path: bool = False,
        vocab_keep: "Keep" = None,
        ignore_mismatched_sizes: bool = False,
        dtype: "DType" = None,
        torch_dtype: "DType" = None,
        output_loading_info: Literal[True],
        **kwargs: "Unpack[ModelKeywords]",
    ) -> "tuple[Model, dict[str, Any]]": ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: "Target" = None,
        bot_config: "Options" = None,
        method: str = "bot",
        calibration: "Batches" = None,
        nonfinite: "Nonfinite" = "error",
        allow_pickle: bool = False,
        strict: bool = True,
        record_path: bool = False,
        vocab_keep: "Keep" = None,
        ignore_mismatched_sizes: bool = False,
        dtype: "DType" = None,
        torch_dtype: "DType" = None,
        output_loading_info: bool,
        **kwargs: "Unpack[ModelKeywords]",
    ) -> "Model | tuple[Model, dict[str, Any]]": ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: "Target" = None,
        bot_config: "Options" = None,
        method: str = "bot",
        calibration: "Batches" = None,
        nonfinite: "Nonfinite" = "error",
        allow_pickle: bool = False,
        strict: bool = True,
        record_path: bool = False,
        vocab_keep: "Keep" = None,
        ignore_mismatched_sizes: bool = False,
        dtype: "DType" = None,
        torch_dtype: "DType" = None,
        output_loading_info: bool = False,
        **kwargs: "Unpack[ModelKeywords]",
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
            nonfinite: how to treat NaN or infinity in the source's weights: "error", "warn", or "zero" to go on
                with zeros in their place.
            allow_pickle: read pytorch_model.bin where there is no safetensors file; always with
                torch's `weights_only=True`.
            strict: a head of the source's own architecture that its files lack, and tensors that no model
                of its type has, are errors; off, they are warnings. A body with gaps is always an error.
            record_path: note in the config where a source folder is; off, only its own name is noted, and
                the hashes of its files. `push_to_hub` leaves the path out.
            vocab_keep: the tokens to keep: a file with one id or token a line, a tokenizer's file or folder, or a list
                of either. Their rows are picked, `vocab_size` and the token ids of the config follow; what texts need
                beside them (special tokens, single bytes, parts of merges) is kept, too, as the plan says.
            ignore_mismatched_sizes: initialise tensors anew whose fixed axes (vocabulary, labels,
                channels) differ; off, they are an error.
            dtype: of the result, such as "bfloat16"; the source's own by default. `torch_dtype` is its older name.
            kwargs: fields of the config, and transformers' own keywords: those of the Hub for the source,
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
        ours = stated(
            config=config,
            bot_config=bot_config,
            method=method,
            calibration=calibration,
            nonfinite=nonfinite,
            allow_pickle=allow_pickle,
            strict=strict,
            record_path=record_path,
            vocab_keep=vocab_keep,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            dtype=dtype,
            torch_dtype=torch_dtype,
            output_loading_info=output_loading_info,
        )
        from .console import progress  # before the next import, whose time it shows

        # Without keywords there is nothing to resize, and transformers shows its own bar.
        with no_full_search(), progress.bar("resizing") if {**kwargs, **ours} else nullcontext():
            with progress.loading("run.loading"):
                from .run import loading  # torch, transformers' models and the methods

            return loading.load(cls, pretrained_model_name_or_path, model_args, {**kwargs, **ours})

    @classmethod
    def plan(
        cls,
        pretrained_model_name_or_path: "str | os.PathLike[str] | PreTrainedConfig",
        config: "Target" = None,
        *,
        bot_config: "Options" = None,
        method: str = "bot",
        calibration: "Batches" = None,
        nonfinite: "Nonfinite" = "error",
        allow_pickle: bool = False,
        strict: bool = True,
        record_path: bool = False,
        vocab_keep: "Keep" = None,
        ignore_mismatched_sizes: bool = False,
        dtype: "DType" = None,
        torch_dtype: "DType" = None,
        output_loading_info: bool = False,
        **kwargs: "Unpack[ModelKeywords]",
    ) -> "Plan":
        """What `from_pretrained` with the same arguments would do to every tensor, without weights.

        See `transformers_bot.plan`; here the target class is this factory's.
        """
        ours = stated(
            bot_config=bot_config,
            method=method,
            calibration=calibration,
            nonfinite=nonfinite,
            allow_pickle=allow_pickle,
            strict=strict,
            record_path=record_path,
            vocab_keep=vocab_keep,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            dtype=dtype,
            torch_dtype=torch_dtype,
            output_loading_info=output_loading_info,
        )
        from .run.from_configs import plan_for  # as above

        return plan_for(cls.class_for, "from_pretrained", pretrained_model_name_or_path, config, {**kwargs, **ours})

    @classmethod
    def class_for(cls, config: "PreTrainedConfig") -> "type[PreTrainedModel]":
        """The model class that the Auto class would choose for this config."""
        from .architectures.inventory import class_in_mapping  # as above

        return class_in_mapping(TASKS[cls.task].mapping, config, cls.__name__)


def plan(
    source: "str | os.PathLike[str] | PreTrainedConfig",
    config: "Target" = None,
    *,
    task: str | None = None,
    bot_config: "Options" = None,
    method: str = "bot",
    calibration: "Batches" = None,
    nonfinite: "Nonfinite" = "error",
    allow_pickle: bool = False,
    strict: bool = True,
    record_path: bool = False,
    vocab_keep: "Keep" = None,
    ignore_mismatched_sizes: bool = False,
    dtype: "DType" = None,
    torch_dtype: "DType" = None,
    output_loading_info: bool = False,
    **kwargs: "Unpack[ModelKeywords]",
) -> "Plan":
    """What resizing `source` to `config` does to every tensor, from two configs and no weights.

    Print the result for a table, `.to_dict()` it for machines; `.steps`, `.dropped`, `.inherited`,
    `.warnings` hold the parts. The target has the source's own head; `task` or the factories' `plan`
    method take another.

    Example:
        >>> from transformers import BertConfig
        >>> small = plan(BertConfig(), num_hidden_layers=6, hidden_size=384, num_attention_heads=6)
        >>> len(small.steps), round(small.inherited, 2)
        (103, 1.0)

    Args:
        source: hub id, folder, or a config object.
        config: the target, as in `BoTModel.from_pretrained`; overrides may be keywords.
        task: another head than the source's own: one of `transformers_bot.tasks.TASKS`.
        calibration: that there will be batches; the plan from configs does not run them.
        kwargs: fields of the config, hub keywords, and whatever else `from_pretrained` takes: the same call
            can be planned and made.

    Raises:
        What `from_pretrained` raises for the same arguments, before any download of weights.
    """
    ours = stated(
        bot_config=bot_config,
        method=method,
        calibration=calibration,
        nonfinite=nonfinite,
        allow_pickle=allow_pickle,
        strict=strict,
        record_path=record_path,
        vocab_keep=vocab_keep,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        dtype=dtype,
        torch_dtype=torch_dtype,
        output_loading_info=output_loading_info,
    )
    from .request.request import class_for_task  # as in the factories
    from .run.from_configs import plan_for

    return plan_for(class_for_task(task), "plan", source, config, {**kwargs, **ours})


class BoTModel(_BaseBoTModel["PreTrainedModel"]):
    """The base model without a head, like `AutoModel`."""

    task = "base"


class BoTModelForPreTraining(_BaseBoTModel["PreTrainedModel"]):
    """With the heads used for pre-training, like `AutoModelForPreTraining`."""

    task = "pretraining"


class BoTModelForCausalLM(_BaseBoTModel["GenerativeModel"]):
    """With a causal language-modelling head, like `AutoModelForCausalLM`."""

    task = "causal-lm"


class BoTModelForMaskedLM(_BaseBoTModel["PreTrainedModel"]):
    """With a masked language-modelling head, like `AutoModelForMaskedLM`."""

    task = "masked-lm"


class BoTModelForNextSentencePrediction(_BaseBoTModel["PreTrainedModel"]):
    """With a next-sentence head, like `AutoModelForNextSentencePrediction`."""

    task = "next-sentence"


class BoTModelForSequenceClassification(_BaseBoTModel["PreTrainedModel"]):
    """With a sequence-classification head, like `AutoModelForSequenceClassification`."""

    task = "sequence-classification"


class BoTModelForTokenClassification(_BaseBoTModel["PreTrainedModel"]):
    """With a token-classification head, like `AutoModelForTokenClassification`."""

    task = "token-classification"


class BoTModelForQuestionAnswering(_BaseBoTModel["PreTrainedModel"]):
    """With a span head, like `AutoModelForQuestionAnswering`."""

    task = "question-answering"


class BoTModelForMultipleChoice(_BaseBoTModel["PreTrainedModel"]):
    """With a multiple-choice head, like `AutoModelForMultipleChoice`."""

    task = "multiple-choice"


class BoTModelForImageClassification(_BaseBoTModel["PreTrainedModel"]):
    """With an image-classification head, like `AutoModelForImageClassification`."""

    task = "image-classification"


class BoTModelForZeroShotImageClassification(_BaseBoTModel["PreTrainedModel"]):
    """CLIP and SigLIP, which compare images with texts, like `AutoModelForZeroShotImageClassification`."""

    task = "zero-shot-image-classification"


class BoTModelForMaskedImageModeling(_BaseBoTModel["PreTrainedModel"]):
    """With a masked-image-modelling head, like `AutoModelForMaskedImageModeling`."""

    task = "masked-image-modeling"


class BoTModelForSeq2SeqLM(_BaseBoTModel["GenerativeModel"]):
    """An encoder and a decoder with a language-modelling head, like `AutoModelForSeq2SeqLM`."""

    task = "seq2seq-lm"


class BoTModelForSpeechSeq2Seq(_BaseBoTModel["GenerativeModel"]):
    """Speech to text by an encoder and a decoder, like `AutoModelForSpeechSeq2Seq`."""

    task = "speech-seq2seq"


class BoTModelForCTC(_BaseBoTModel["PreTrainedModel"]):
    """With a head of letters for every frame of speech, like `AutoModelForCTC`."""

    task = "ctc"


class BoTModelForAudioClassification(_BaseBoTModel["PreTrainedModel"]):
    """With an audio-classification head, like `AutoModelForAudioClassification`."""

    task = "audio-classification"


class BoTModelForTextEncoding(_BaseBoTModel["PreTrainedModel"]):
    """The encoder of a text model with two stacks, like `AutoModelForTextEncoding`."""

    task = "text-encoding"


# task -> its factory, as the command line and recipes name them
FACTORIES: dict[str, type[_BaseBoTModel[Any]]] = {
    factory.task: factory
    for factory in (
        *(BoTModel, BoTModelForCausalLM, BoTModelForMaskedLM, BoTModelForPreTraining),
        *(BoTModelForNextSentencePrediction, BoTModelForSequenceClassification, BoTModelForTokenClassification),
        *(BoTModelForQuestionAnswering, BoTModelForMultipleChoice),
        *(BoTModelForImageClassification, BoTModelForMaskedImageModeling, BoTModelForZeroShotImageClassification),
        *(BoTModelForSeq2SeqLM, BoTModelForSpeechSeq2Seq, BoTModelForCTC, BoTModelForAudioClassification),
        BoTModelForTextEncoding,
    )
}
