"""The typed keywords that calls accept beside their own: for editors, type checkers and readers.

A keyword that is in none of these classes is an error: type checkers mark it, and the call raises `BadKeyword`.
Fields of a config whose architecture was registered later (`adapters.register`) are not here; pass them in a
dict, `config={...}`. Nothing is imported at run time, so that importing the factories stays fast.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    import torch
    from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel

    from ..options import BoTConfig

    Target: TypeAlias = PreTrainedConfig | str | os.PathLike[str] | dict[str, Any] | None
    Options: TypeAlias = BoTConfig | Mapping[str, Any] | None
    Batches: TypeAlias = Iterable[Mapping[str, Any]] | None
    Keep: TypeAlias = "str | os.PathLike[str] | Iterable[int] | Iterable[str] | Mapping[str, Any] | None"
    DType: TypeAlias = str | torch.dtype | None

    class GenerativeModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers is untyped for mypy
        """A model that generates, as type checkers see it."""

        # transformers' own is typed so that checkers find it on no model.
        def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any: ...


# Keywords that every call names itself.
OURS = (
    "config",
    "bot_config",
    "method",
    "dtype",
    "torch_dtype",
    "output_loading_info",
    "ignore_mismatched_sizes",
    "calibration",
    "allow_pickle",
    "nonfinite",
    "strict",
    "record_path",
    "vocab_keep",
)
Nonfinite = Literal["error", "warn", "zero"]


class NoKeywords(TypedDict):
    """Of a call that takes no others than its own."""


class HubKeywords(TypedDict, total=False):
    """Where and how the source is found."""

    cache_dir: "str | os.PathLike[str] | None"
    force_download: bool
    local_files_only: bool
    proxies: dict[str, str] | None
    revision: str | None
    subfolder: str | None
    token: str | bool | None
    trust_remote_code: bool | None
    code_revision: str | None


class SourceKeywords(HubKeywords, total=False):
    """The same, and which of the source's files are read."""

    variant: str | None
    use_safetensors: bool | None
    weights_only: bool
    key_mapping: dict[str, str] | None
    disable_mmap: bool | None


class ConfigFields(TypedDict, total=False):
    """Fields of the configs of all built-in architectures; each replaces the source's value."""

    # sizes
    hidden_size: int
    image_size: int | list[int] | tuple[int, int]
    intermediate_size: int
    max_position_embeddings: int
    n_embd: int
    n_head: int
    n_inner: int | None
    n_layer: int
    n_positions: int
    num_attention_heads: int
    num_channels: int
    num_hidden_layers: int
    patch_size: int | list[int] | tuple[int, int]
    pooler_output_size: int | None
    type_vocab_size: int
    vocab_size: int
    # of DINO, CLIP and SigLIP
    apply_layernorm: bool
    attention_dropout: float | None
    drop_path_rate: float
    initializer_factor: float | None
    key_bias: bool
    layerscale_value: float
    logit_scale_init_value: float | None
    mlp_bias: bool
    mlp_ratio: int
    num_register_tokens: int
    pos_embed_jitter: float | None
    pos_embed_rescale: float | None
    pos_embed_shift: float | None
    proj_bias: bool
    projection_dim: int | None
    projection_size: int | None
    query_bias: bool
    reshape_hidden_states: bool
    rope_theta: float
    text_config: "dict[str, Any] | PreTrainedConfig | None"
    use_gated_mlp: bool
    use_swiglu_ffn: bool
    value_bias: bool
    vision_config: "dict[str, Any] | PreTrainedConfig | None"
    vision_use_head: bool
    # of decoders with grouped queries, experts or fused heads
    activation: str | None
    alibi: bool | None
    attention_bias: bool
    attention_multiplier: float
    attn_logit_softcapping: float | None
    bias: bool | None
    decoder_sparse_step: int
    do_layer_norm_before: bool
    dropout: float
    embedding_dropout: float
    embedding_multiplier: float
    enable_bias: bool
    ffn_dim: int
    ffn_hidden_size: int | None
    final_logit_softcapping: float | None
    head_dim: int | None
    hidden_activation: str
    hidden_dropout: float | None
    init_std: float
    layer_norm_elementwise_affine: bool
    layer_types: list[str] | None
    layerdrop: float
    logit_scale: float
    logits_scaling: float
    max_window_layers: int
    mlp_only_layers: list[int] | None
    moe_intermediate_size: int
    multi_query: bool | None
    new_decoder_architecture: bool | None
    no_rope_layer_interval: int
    no_rope_layers: list[int] | None
    norm_epsilon: float
    norm_topk_prob: bool
    num_experts: int
    num_experts_per_tok: int
    num_key_value_heads: int | None
    num_kv_heads: int | None
    num_ln_in_parallel_attn: int | None
    num_local_experts: int
    original_max_position_embeddings: int
    output_router_logits: bool
    parallel_attn: bool | None
    pretraining_tp: int | None
    query_pre_attn_scalar: int
    residual_dropout: float
    residual_multiplier: float
    rms_norm_eps: float
    rope_parameters: dict[str, Any] | None
    router_aux_loss_coef: float
    router_jitter_noise: float
    shared_expert_intermediate_size: int
    sliding_window: int | None
    use_bias: bool
    use_bidirectional_attention: bool | None
    use_parallel_residual: bool
    use_sliding_window: bool
    word_embed_proj_dim: int | None
    # of encoders
    classifier_activation: str
    classifier_bias: bool
    classifier_pooling: str
    cls_token_id: int | None
    decoder_bias: bool
    deterministic_flash_attn: bool
    dim: int
    embedding_size: int
    hidden_dim: int
    initializer_cutoff_factor: float
    legacy: bool
    local_attention: int
    max_relative_positions: int
    mlp_dropout: float
    n_heads: int
    n_layers: int
    norm_bias: bool
    norm_eps: float
    pooler_dropout: float
    pooler_hidden_act: str
    pos_att_type: str | list[str] | None
    position_biased_input: bool
    qa_dropout: float
    relative_attention: bool
    relative_attention_num_buckets: int
    sep_token_id: int | None
    seq_classif_dropout: float
    sinusoidal_pos_embds: bool
    sparse_pred_ignore_index: int
    sparse_prediction: bool
    summary_last_dropout: float
    # heads and labels
    encoder_stride: int
    id2label: dict[int, str] | dict[str, str] | None
    label2id: dict[str, int] | dict[str, str] | None
    num_labels: int
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None
    tie_word_embeddings: bool
    summary_activation: str | None
    summary_proj_to_labels: bool
    summary_type: str
    summary_use_proj: bool
    # what is computed
    activation_function: str
    add_cross_attention: bool
    chunk_size_feed_forward: int
    hidden_act: str
    is_decoder: bool
    is_encoder_decoder: bool
    layer_norm_eps: float
    layer_norm_epsilon: float
    pooler_act: str
    qkv_bias: bool
    reorder_and_upcast_attn: bool
    scale_attn_by_inverse_layer_idx: bool
    scale_attn_weights: bool
    # what is returned
    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None
    use_cache: bool
    # tokens
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    # training
    attention_probs_dropout_prob: float
    attn_pdrop: float
    classifier_dropout: float | None
    embd_pdrop: float
    hidden_dropout_prob: float
    initializer_range: float
    resid_pdrop: float
    summary_first_dropout: float
    # of speech and of two stacks
    activation_dropout: float
    adapter_attn_dim: int | None
    adapter_kernel_size: int
    adapter_stride: int
    add_adapter: bool
    apply_spec_augment: bool
    begin_suppress_tokens: list[int] | tuple[int, ...] | None
    classifier_proj_size: int
    codevector_dim: int
    contrastive_logits_temperature: float
    conv_bias: bool
    conv_dim: list[int] | tuple[int, ...]
    conv_kernel: list[int] | tuple[int, ...]
    conv_pos_batch_norm: bool
    conv_stride: list[int] | tuple[int, ...]
    ctc_loss_reduction: str
    ctc_zero_infinity: bool
    d_ff: int
    d_kv: int
    d_model: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    decoder_layerdrop: float
    decoder_layers: int
    decoder_start_token_id: int
    diversity_loss_weight: float
    do_stable_layer_norm: bool
    dropout_rate: float
    encoder_attention_heads: int
    encoder_ffn_dim: int
    encoder_layerdrop: float
    encoder_layers: int
    feat_extract_activation: str
    feat_extract_norm: str
    feat_proj_dropout: float
    feat_proj_layer_norm: bool
    feat_quantizer_dropout: float
    feed_forward_proj: str
    final_dropout: float
    forced_eos_token_id: int | list[int] | None
    mask_feature_length: int
    mask_feature_min_masks: int
    mask_feature_prob: float
    mask_time_length: int
    mask_time_min_masks: int
    mask_time_prob: float
    max_source_positions: int
    max_target_positions: int
    median_filter_width: int
    num_adapter_layers: int
    num_codevector_groups: int
    num_codevectors_per_group: int
    num_conv_pos_embedding_groups: int
    num_conv_pos_embeddings: int
    num_decoder_layers: int | None
    num_heads: int
    num_layers: int
    num_mel_bins: int
    num_negatives: int
    output_hidden_size: int | None
    proj_codevector_dim: int
    relative_attention_max_distance: int
    scale_embedding: bool
    suppress_tokens: list[int] | None
    tdnn_dilation: list[int] | tuple[int, ...]
    tdnn_dim: list[int] | tuple[int, ...]
    tdnn_kernel: list[int] | tuple[int, ...]
    use_weighted_layer_sum: bool
    xvector_output_dim: int
    add_fpn: bool
    auxiliary_channels: int
    auxiliary_concat_input: bool
    auxiliary_loss_weight: float
    auxiliary_num_convs: int
    layer_scale_init_value: float
    pool_scales: list[int] | tuple[Any, ...]
    semantic_loss_ignore_index: int
    use_absolute_position_embeddings: bool
    use_auxiliary_head: bool
    use_mean_pooling: bool
    use_relative_position_bias: bool
    use_shared_relative_position_bias: bool


class InitKeywords(TypedDict, total=False):
    """Keywords of model constructors beside the config."""

    add_pooling_layer: bool
    target_lang: str | None
    use_mask_token: bool


class FolderKeywords(SourceKeywords, ConfigFields, InitKeywords, total=False):
    """Keywords of a resize into a folder."""

    generation_config: "GenerationConfig | None"


class ModelKeywords(FolderKeywords, total=False):
    """Keywords of a resize into a model: also where it is placed and how it computes."""

    allow_all_kernels: bool
    attn_implementation: str | dict[str, str] | None
    device_map: "str | int | torch.device | dict[str, int | str | torch.device] | None"
    device_mesh: Any
    distributed_config: Any
    experts_implementation: str | dict[str, str] | None
    kernel_config: Any
    low_cpu_mem_usage: bool | None
    max_memory: dict[int | str, int | str] | None
    offload_buffers: bool
    offload_folder: "str | os.PathLike[str] | None"
    offload_state_dict: bool | None
    quantization_config: Any
    tp_plan: str | dict[str, str] | None
    tp_size: int | None
    use_kernels: bool


# The values of keywords that a call leaves out or gives as None.
DEFAULTS: dict[str, Any] = {
    "method": "bot",
    "nonfinite": "error",
    "allow_pickle": False,
    "strict": True,
    "record_path": False,
    "ignore_mismatched_sizes": False,
    "output_loading_info": False,
}
