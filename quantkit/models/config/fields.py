"""Fields of `config.json` that a family does not use: which of them may be ignored, and which change the computation.

A family uses the fields of its config dataclass. Of the others, those in `IGNORED` compute nothing here whatever their
value, those in `COMPUTING` change the forward pass of some architecture unless they have a neutral value, and the rest
is unknown. A model whose config asks for a computation that its family does not have is refused: it would answer, and
answer wrong. The tables were collected from the configuration files of transformers and from published models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from quantkit.errors import UnsupportedError, notice
from quantkit.models.config import DecoderConfig, shown

logger = logging.getLogger(__name__)

Neutral = Callable[[Any, DecoderConfig], bool]
"""Whether a value changes nothing in the model that the rest of the config describes."""


def check_unused(config: Mapping[str, Any], parsed: DecoderConfig) -> None:
    """Refuse a config that asks for something its family does not compute.

    Parameters
    ----------
    config : Mapping
        `config.json`.
    parsed : DecoderConfig
        What its family read from it.

    Raises
    ------
    UnsupportedError
        A field that the family does not use has a value that is not neutral; the message names field and value.
    """
    unused = config.keys() - parsed.used() - IGNORED
    unused -= {field for field, switch in SWITCHES.items() if config.get(switch) is False}
    for field, neutral in COMPUTING.items():
        if field in unused and not _is_neutral(config[field], neutral, parsed):
            raise UnsupportedError(
                f"config.json: {field} is {shown(config[field])}, which changes what the model computes; "
                f"quantkit has no {field} for model_type {shown(config.get('model_type'))}"
            )
    if unknown := unused - COMPUTING.keys():
        notice(logger, f"config.json: unknown fields are ignored: {', '.join(sorted(unknown))}", logging.DEBUG)


def _is_neutral(value: Any, neutral: tuple[Any, ...] | Neutral, parsed: DecoderConfig) -> bool:
    if value is None or value == [] or value == {}:
        return True
    if callable(neutral):
        return neutral(value, parsed)
    # True is not 1 here: a factor of true means nothing.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


def _equals(attribute: str) -> Neutral:
    """Neutral is what the family uses under another name, or computes from its sizes."""
    return lambda value, parsed: value == getattr(parsed, attribute, None)


def _same_scale(value: Any, parsed: DecoderConfig) -> bool:
    return isinstance(value, float) and math.isclose(value, parsed.head_size**-0.5, rel_tol=1e-6)


def _window_beyond_context(value: Any, parsed: DecoderConfig) -> bool:
    return type(value) is int and value >= parsed.max_position_embeddings


def _full_attention_everywhere(value: Any, parsed: DecoderConfig) -> bool:
    return isinstance(value, list) and all(kind == "full_attention" for kind in value)


def _rotated_everywhere(value: Any, parsed: DecoderConfig) -> bool:
    return isinstance(value, list) and all(flag == 1 for flag in value)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _each(text: str, neutral: tuple[Any, ...] | Neutral) -> dict[str, tuple[Any, ...] | Neutral]:
    return dict.fromkeys(text.split(), neutral)


COMPUTING: Mapping[str, tuple[Any, ...] | Neutral] = MappingProxyType(
    # Experts, latent attention, recurrent layers, encoders: another architecture altogether.
    _each("num_experts num_local_experts n_routed_experts moe_num_experts num_shared_experts n_shared_experts", (0,))
    | _each("moe_layers shared_intermediate_size kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim", (0,))
    | _each("mamba_d_state mamba_d_ssm mamba_n_heads mamba_num_heads state_size ssm_state_size n_mamba_heads", (0,))
    | _each("linear_num_key_heads linear_num_value_heads linear_conv_kernel_dim conv_L_cache conv_kernel", (0,))
    | _each("layers_block_type block_types attn_layer_indices full_attn_idxs attention_types attn_config", ())
    | _each("cross_attention_layers per_layer_config pruned_heads adapter_rank", ())
    | _each("is_moe enable_moe_block is_encoder_decoder add_cross_attention use_mla", (False,))
    # Factors, caps and limits.
    | _each("logits_scaling logit_scale residual_multiplier embedding_multiplier lm_head_multiplier", (1,))
    | _each("key_multiplier attention_in_multiplier attention_out_multiplier attention_value_scale", (1,))
    | _each("ssm_in_multiplier ssm_out_multiplier scale_emb embedding_scale embedding_fraction", (1,))
    | _each("logits_mup_width_multiplier output_multiplier_scale embedding_multiplier_scale", (1,))
    | _each("full_attn_alpha_factor full_attn_beta_factor mlp_alpha_factor mlp_beta_factor", (1,))
    | _each("mlp_multipliers ssm_multipliers scale_depth width_scale", ())
    | _each("attn_logit_softcapping final_logit_softcapping logits_soft_cap clip_qkv swiglu_limit", (0,))
    | _each("attention_multiplier", _same_scale)
    | _each("query_pre_attn_scalar", _equals("head_size"))
    | _each("dim_model_base", _equals("hidden_size"))
    # Biases.
    | _each("attention_bias attention_out_bias mlp_bias qkv_bias use_qkv_bias add_qkv_bias use_bias bias", (False,))
    | _each("add_bias_linear lm_head_bias enable_bias norm_bias projectors_bias", (False,))
    | _each("no_bias", (True,))
    # Norms and residual connections.
    | _each(
        "use_qk_norm qk_norm qk_layernorm qk_layer_norms use_qk_layernorm use_post_norm use_sandwich_norm", (False,)
    )
    | _each("use_parallel_residual parallel_attn apply_residual_connection_post_layernorm", (False,))
    | _each("new_decoder_architecture mup_enabled scale_embedding", (False,))
    | _each("do_layer_norm_before layer_norm_elementwise_affine scale_attn_weights", (True,))
    # Activations and MLPs.
    | _each("hidden_act", _equals("hidden_activation"))
    | _each("hidden_activation activation_function mlp_hidden_act", _equals("hidden_act"))
    | _each("activation_sparsity_pattern swiglu_alpha", ())
    | _each("use_double_wide_mlp", (False,))
    # Positions.
    | _each("partial_rotary_factor rotary_pct rotary_percent rope_pct", (1,))
    | _each("rotary_dim", _equals("head_size"))
    | _each("no_rope_layers", _rotated_everywhere)
    | _each("no_rope_layer_interval nope_layer_interval layer_rope_theta", (0,))
    | _each("position_embedding_type", ("rope", "rotary"))
    | _each(
        "rope_interleaved rope_interleave rope_traditional use_mrope use_dynamic_ntk use_logn_attn use_mem_rope",
        (False,),
    )
    | _each("alibi use_alibi learned_pos_emb use_long_context", (False,))
    # Attention.
    | _each("sliding_window sliding_window_size attention_window_size window_size", _window_beyond_context)
    | _each("layer_types", _full_attention_everywhere)
    | _each("v_head_dim", _equals("head_size"))
    | _each("use_sliding_window use_bidirectional_attention attention_k_eq_v multi_query", (False,))
    | _each("attn_temperature_tuning add_swa_attention_sink_bias add_full_attention_sink_bias", (False,))
    | _each("scale_attn_by_inverse_layer_idx", (False,))
    | _each("is_causal", (True,))
    | _each("attention_chunk_size num_kv_shared_layers num_kv_heads num_attention_heads_per_layer", (0,))
    # Other inputs of the layers.
    | _each("hidden_size_per_layer_input altup_num_inputs laurel_rank word_embed_proj_dim", (0,))
)
"""Field -> the values with which it changes nothing, besides null and what is empty."""

SWITCHES: Mapping[str, str] = MappingProxyType({"sliding_window": "use_sliding_window"})
"""Field -> the field that says, when it is false, that it does not apply."""

IGNORED = _names(
    # What the file is about, and who wrote it.
    """model_type architectures auto_map _name_or_path _model_name_or_path name_or_path _commit_hash
    transformers_version torch_dtype dtype tokenizer_class unsloth_fixed unsloth_version is_llama_config
    transformers.js_config finetuning_task id2label label2id num_labels problem_type task_specific_params"""
    # How tensors are stored; `quantkit.formats` reads these.
    """ quantization_config quantization compression_config"""
    # Tokens; the tokenizer reads them.
    """ bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id eod_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id image_token_id video_token_id audio_token_id
    vision_token_id vision_start_token_id vision_end_token_id n_special predict_special_tokens tokenizer_name
    model_max_length pad_vocab_size_multiple"""
    # How to run it: what to return, in which precision, with which kernels.
    """ use_cache cache_implementation return_dict output_hidden_states output_attentions output_router_logits
    num_logits_to_keep chunk_size_feed_forward torchscript use_bfloat16 tie_encoder_decoder tie_last_hidden_states
    is_decoder attn_implementation _attn_implementation _attn_implementation_autoset use_flash_attn
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 reorder_and_upcast_attn residual_in_fp32 slow_but_exact
    pretraining_tp gradient_checkpointing chunk_size mamba_chunk_size use_mamba_kernels use_mem_eff_path use_mambapy
    use_associative_scan mamba_ssm_cache_dtype mamba_ssm_dtype moe_shared_expert_overlap n_ctx use_grouped_mm ep_size
    inference_runner max_batch_size pad_key_length pre_allocate_kv_cache validate_runner_input fused_add_norm
    bias_dropout_fusion masked_softmax_fusion _flash_attn_2_enabled verbose"""
    # Training.
    """ attention_dropout hidden_dropout hidden_dropout_prob residual_dropout resid_dropout resid_pdrop embd_pdrop
    activation_dropout attention_probs_dropout_prob
    emb_pdrop attn_pdrop embed_dropout embedding_dropout classifier_dropout summary_first_dropout dropout layerdrop
    summary_type summary_use_proj summary_activation summary_proj_to_labels
    initializer_range embedding_initializer_range init_std init_device rescale_prenorm_residual router_aux_loss_coef
    router_jitter_noise input_jitter_noise z_loss_coefficient num_mtp_layers num_nextn_predict_layers
    mtp_layers_block_type mtp_num_hidden_layers mtp_use_dedicated_embeddings mtp_transformer_layers num_mtp_modules
    use_mtp init_config aux_loss_alpha seq_aux load_balance_coeff moe_use_aux_free moe_capacity neftune_noise_alpha
    block_mlp_init_scale block_out_init_scale block_use_xavier_init conv_use_xavier_init altup_lr_multiplier
    w_init_variance_scale final_w_init_variance_scale time_step_floor time_step_init_scheme time_step_max time_step_min
    time_step_scale time_step_rank linear_a_log_max linear_a_log_min linear_dt_init_floor linear_dt_max linear_dt_min"""
    # Defaults of generation; `generation_config.json` has those that count.
    """ do_sample temperature top_k top_p min_p typical_p repetition_penalty length_penalty diversity_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size num_beams num_beam_groups num_return_sequences max_length
    min_length early_stopping bad_words_ids suppress_tokens begin_suppress_tokens exponential_decay_length_penalty
    remove_invalid_values return_dict_in_generate output_scores prefix"""
    # How something would be that other fields switch on: windows, experts, temperature tuning.
    """ max_window_layers sliding_window_pattern _sliding_window_pattern num_experts_per_tok top_k_experts moe_k
    moe_topk moe_layer_start_index moe_layer_end_index moe_layer_interval moe_intermediate_size
    shared_expert_intermediate_size decoder_sparse_step mlp_only_layers first_k_dense_replace norm_topk_prob
    n_group topk_group topk_method scoring_func routed_scaling_factor floor_scale attn_scale"""
)
"""Fields that compute nothing, whatever their value."""
