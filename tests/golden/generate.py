"""Golden logits: what transformers answers, in float32, on the tiny checkpoints of every case below.

    python tests/golden/generate.py [CASE ...]

writes `CASE.npz` beside this file, with some rows of the logits of one prompt that is longer than every attention
window, and, for families that `tiny.shapes` does not know, the names and shapes of the tensors that transformers saves.
It needs torch and transformers; tests need neither, they read the files. A new architecture adds a row to `CASES`, and
its config to `tiny.FAMILIES`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent

ROWS = (0, 1, 8, 15, 16, 17, 31, 39)
"""Tokens whose logits are kept; the windows of the tiny checkpoints are 16 tokens."""


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint: its `model_type`, and what its config.json says beyond the family's.

    Where there is a `context`, the model is opened for so many tokens, and rope turns otherwise than for fewer:
    transformers then needs the whole prompt at once. So it does where the steps of a state space are `clamped`, since
    token by token it does not clamp them.
    """

    model_type: str
    overrides: dict[str, Any] = field(default_factory=dict)
    context: int | None = None
    clamped: bool = False


# Wavelengths of a tiny head reach from 6 to thousands of tokens: these make all three of llama3's ranges count.
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Beyond the original length, with pairs on both sides of yarn's ramp and on it.
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0}
_FACTORS = {name: [1.0, 1.1, 1.3, 1.7, 2.5, 3.0, 3.5, 4.0] for name in ("short_factor", "long_factor")}
_LONG_FACTORS = _FACTORS | {"short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3]}
_LONGROPE = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32} | _FACTORS

CASES = {
    "lfm2": Case("lfm2"),
    "lfm2_biases": Case(
        "lfm2",
        {
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 4,
            "conv_bias": True,
            "full_attn_idxs": ...,
            "layer_types": ["conv", "conv", "full_attention"],
            "tie_embedding": False,
        },
    ),
    "lfm3": Case("lfm3"),
    "lfm3_plain": Case(
        "lfm3",
        {
            "attention_bias": True,
            "conv_L_cache": 4,
            "conv_bias": True,
            "layer_types": ["full_attention", "sliding_attention", "conv", "conv", "conv"],
            "rope_parameters": {
                "full_attention": {"rope_theta": 5000.0, "rope_type": "default"},
                "sliding_attention": {"partial_rotary_factor": 0.25, "rope_theta": 500.0, "rope_type": "proportional"},
            },
            "tie_word_embeddings": False,
            "use_attention_gate": False,
            "use_sandwich_norm": False,
        },
    ),
    "lfm2_moe": Case("lfm2_moe"),
    "lfm2_moe_no_bias": Case(
        "lfm2_moe", {"norm_topk_prob": False, "num_dense_layers": 0, "tie_embedding": False, "use_expert_bias": False}
    ),
    "llama": Case("llama"),
    "llama_awkward_sizes": Case(
        "llama",
        {
            "hidden_size": 60,
            "intermediate_size": 101,
            "num_attention_heads": 3,
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-2,
            "vocab_size": 331,
        },
    ),
    "llama_biases": Case("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama_gelu": Case("llama", {"hidden_act": "gelu", "num_key_value_heads": 1}),
    "llama_linear_rope": Case("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama_llama3_rope": Case("llama", {"rope_scaling": _LLAMA3}),
    "llama_rope_parameters": Case(
        "llama", {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": _LLAMA3 | {"rope_theta": 500.0}}
    ),
    "llama_yarn_rope": Case("llama", {"rope_scaling": _YARN}),
    "llama_longrope": Case("llama", {"rope_scaling": _LONGROPE}),
    "apertus": Case("apertus"),
    "apertus_default_rope": Case(
        "apertus",
        {"attention_bias": True, "head_dim": 32, "num_key_value_heads": None, "rope_scaling": ..., "rope_theta": ...},
    ),
    "arcee": Case("arcee"),
    "arcee_biases": Case("arcee", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "bitnet": Case("bitnet"),
    "bitnet_biases": Case("bitnet", {"attention_bias": True, "hidden_act": "silu", "tie_word_embeddings": False}),
    "seed_oss": Case("seed_oss"),
    "seed_oss_biases": Case("seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    "internlm3": Case("internlm3"),
    "internlm3_biases": Case("internlm3", {"qkv_bias": True, "bias": True}),
    "internlm3_long_text": Case("internlm3", {"max_position_embeddings": 24}, context=40),
    "smollm3": Case("smollm3"),
    "smollm3_window_on_every_third_layer": Case(
        "smollm3",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "no_rope_layer_interval": 3,
            "no_rope_layers": ...,
            "num_hidden_layers": 3,
            "sliding_window": 16,
            "use_sliding_window": True,
        },
    ),
    "falcon": Case("falcon"),
    "falcon_in_turn": Case("falcon", {"bias": True, "multi_query": False, "parallel_attn": False}),
    "falcon_new": Case(
        "falcon", {"ffn_hidden_size": 160, "new_decoder_architecture": True, "num_kv_heads": 2, "rope_theta": 5000.0}
    ),
    "falcon_new_one_norm": Case(
        "falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": Case("gpt2"),
    "gpt2_scales": Case(
        "gpt2",
        {
            "activation_function": "gelu",
            "n_inner": 160,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt_bigcode": Case("gpt_bigcode"),
    "gpt_bigcode_many_heads": Case(
        "gpt_bigcode",
        {"multi_query": False, "n_inner": None, "scale_attn_weights": False, "tie_word_embeddings": False},
    ),
    "gpt_neo": Case("gpt_neo"),
    "gpt_neo_wide": Case("gpt_neo", {"attention_types": [[["local"], 2]], "intermediate_size": None}),
    "gptj": Case("gptj"),
    "gptj_wide": Case("gptj", {"n_inner": 160, "rotary_dim": 16}),
    "codegen": Case("codegen"),
    "codegen_many_heads": Case("codegen", {"n_embd": 128, "n_head": 8, "n_inner": 160}),
    "opt": Case("opt"),
    "opt_narrow": Case("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 40}),
    "opt_plain": Case(
        "opt",
        {
            "_remove_final_layer_norm": True,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "tie_word_embeddings": False,
        },
    ),
    "biogpt": Case("biogpt"),
    "biogpt_unscaled": Case("biogpt", {"scale_embedding": False, "tie_word_embeddings": False}),
    "jais2": Case("jais2"),
    "jais2_no_biases": Case("jais2", {"attention_bias": False, "mlp_bias": False}),
    "persimmon": Case("persimmon"),
    "persimmon_no_norms": Case("persimmon", {"partial_rotary_factor": 0.25, "qk_layernorm": False}),
    "cwm": Case("cwm"),
    "cwm_default_layers": Case("cwm", {"layer_types": ..., "mlp_bias": True, "rope_scaling": ...}),
    "exaone": Case("exaone"),
    "exaone_biases": Case("exaone", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "granite_swa": Case("granite_swa"),
    "granite_swa_default_layers": Case(
        "granite_swa",
        {"attention_bias": True, "layer_rope_theta": ..., "layer_types": ..., "mlp_bias": True, "num_hidden_layers": 2},
    ),
    "hyperclovax": Case("hyperclovax"),
    "hyperclovax_no_norms": Case(
        "hyperclovax",
        {"attention_bias": True, "attention_multiplier": None, "mlp_bias": True, "use_post_norm": False},
    ),
    "iquestcoder": Case("iquestcoder"),
    "iquestcoder_biases": Case("iquestcoder", {"attention_bias": True, "mlp_bias": True}),
    "nanochat": Case("nanochat"),
    "nanochat_biases": Case("nanochat", {"attention_bias": True, "final_logit_softcapping": None}),
    "vaultgemma": Case("vaultgemma"),
    "vaultgemma_capped": Case(
        "vaultgemma", {"attn_logit_softcapping": 2.0, "layer_types": ..., "num_hidden_layers": 3}
    ),
    "bloom": Case("bloom"),
    "bloom_six_heads": Case(
        "bloom",
        {
            "apply_residual_connection_post_layernorm": True,
            "n_embed": 96,
            "n_head": 6,
            "tie_word_embeddings": False,
        },
    ),
    "mpt": Case("mpt"),
    "mpt_clipped": Case("mpt", {"attn_config": {"clip_qkv": 0.8, "softmax_scale": 0.4}, "d_model": 96, "n_heads": 6}),
    "axk1": Case("axk1"),
    "axk1_default_layers": Case(
        "axk1", {"mlp_layer_types": ..., "n_group": 1, "num_hidden_layers": 2, "topk_group": 1, "v_head_dim": 20}
    ),
    "sarvam_mla": Case("sarvam_mla"),
    "openai-gpt": Case("openai-gpt"),
    "openai-gpt_relu": Case("openai-gpt", {"afn": "relu", "tie_word_embeddings": False}),
    "xglm": Case("xglm"),
    "xglm_unscaled": Case("xglm", {"scale_embedding": False, "tie_word_embeddings": False}),
    "gpt_neox": Case("gpt_neox"),
    "gpt_neox_in_turn": Case(
        "gpt_neox",
        {"attention_bias": False, "rope_scaling": _YARN, "rotary_pct": 0.5, "use_parallel_residual": False},
    ),
    "granite": Case("granite"),
    "granite_biases": Case(
        "granite",
        {"attention_bias": True, "logits_scaling": 8.0, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "nemotron": Case("nemotron"),
    "nemotron_biases": Case(
        "nemotron",
        {
            "attention_bias": True,
            "head_dim": ...,
            "mlp_bias": True,
            "num_key_value_heads": 4,
            "partial_rotary_factor": ...,
        },
    ),
    "olmo": Case("olmo"),
    "olmo_clipped": Case("olmo", {"attention_bias": True, "clip_qkv": 0.8, "num_key_value_heads": None}),
    "olmo2": Case("olmo2"),
    "olmo2_biases": Case("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "olmo3": Case("olmo3"),
    "olmo3_default_layers": Case("olmo3", {"layer_types": ..., "num_hidden_layers": 4, "rope_scaling": ...}),
    "exaone4": Case("exaone4"),
    "exaone4_no_window": Case(
        "exaone4", {"layer_types": ["full_attention"] * 2, "sliding_window": None, "sliding_window_pattern": None}
    ),
    "exaone4_default_layers": Case("exaone4", {"layer_types": ..., "num_hidden_layers": 3}),
    "cohere": Case("cohere"),
    "cohere_qk_norm": Case("cohere", {"attention_bias": True, "tie_word_embeddings": False, "use_qk_norm": True}),
    "cohere2": Case("cohere2"),
    "cohere2_layer_types": Case(
        "cohere2",
        {
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention"],
            "num_hidden_layers": 2,
            "sliding_window_pattern": ...,
        },
    ),
    "glm": Case("glm"),
    "glm_no_biases": Case("glm", {"attention_bias": False, "partial_rotary_factor": 0.25}),
    "glm4": Case("glm4"),
    "glm4_biases": Case(
        "glm4", {"attention_bias": True, "partial_rotary_factor": ..., "rope_theta": 500.0, "tie_word_embeddings": True}
    ),
    "ernie4_5": Case("ernie4_5"),
    "ernie4_5_biases": Case("ernie4_5", {"head_dim": 16, "tie_word_embeddings": False, "use_bias": True}),
    "helium": Case("helium"),
    "helium_biases": Case("helium", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
    "hunyuan_v1_dense": Case("hunyuan_v1_dense"),
    "hunyuan_v1_dense_biases": Case(
        "hunyuan_v1_dense", {"attention_bias": True, "rope_scaling": None, "tie_word_embeddings": False}
    ),
    "stablelm": Case("stablelm"),
    "stablelm_parallel": Case(
        "stablelm",
        {"partial_rotary_factor": ..., "qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": False},
    ),
    "starcoder2": Case("starcoder2"),
    "starcoder2_no_biases": Case(
        "starcoder2", {"sliding_window": None, "tie_word_embeddings": False, "use_bias": False}
    ),
    "mistral": Case("mistral"),
    "mistral_no_window": Case("mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral_layer_types": Case("mistral", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "ministral": Case("ministral"),
    "ministral3": Case("ministral3"),
    "ministral3_window_default_rope": Case(
        "ministral3", {"head_dim": 16, "rope_parameters": ..., "sliding_window": 16, "tie_word_embeddings": True}
    ),
    "phi": Case("phi"),
    "phi_norms": Case("phi", {"num_key_value_heads": 2, "partial_rotary_factor": ..., "qk_layernorm": True}),
    "phi3": Case("phi3"),
    "phi3_window_longrope": Case(
        "phi3",
        {
            "num_key_value_heads": 4,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"type": "longrope"} | _FACTORS,
            "sliding_window": 16,
        },
    ),
    "phi3_short_text": Case(
        "phi3", {"original_max_position_embeddings": 40, "rope_scaling": {"type": "longrope"} | _LONG_FACTORS}
    ),
    "phi3_long_text": Case(
        "phi3",
        {"original_max_position_embeddings": 32, "rope_scaling": {"type": "longrope"} | _LONG_FACTORS},
        context=256,
    ),
    "phi3_partial_rope": Case(
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": "longrope"} | {name: factors[:6] for name, factors in _FACTORS.items()},
        },
    ),
    "qwen2": Case("qwen2"),
    "qwen2_window": Case("qwen2", {"use_sliding_window": True}),
    "qwen3": Case("qwen3"),
    "qwen3_biases_window": Case(
        "qwen3",
        {
            "attention_bias": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
        },
    ),
    "gemma": Case("gemma"),
    "gemma_biases": Case("gemma", {"attention_bias": True, "hidden_act": "relu", "num_key_value_heads": 4}),
    "gemma2": Case("gemma2"),
    "gemma2_no_caps": Case(
        "gemma2",
        {
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention"],
            "tie_word_embeddings": False,
        },
    ),
    "gemma3_text": Case("gemma3_text"),
    "gemma3_text_linear_rope": Case("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3_text_rope_parameters": Case(
        "gemma3_text",
        {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_local_base_freq": ...,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "rope_theta": ...,
            "sliding_window_pattern": ...,
        },
    ),
    "deepseek_v2": Case("deepseek_v2"),
    "deepseek_v2_greedy_biases": Case(
        "deepseek_v2",
        {"attention_bias": True, "mlp_bias": True, "q_lora_rank": 24, "rope_scaling": None, "topk_method": "greedy"},
    ),
    "deepseek_v3": Case("deepseek_v3"),
    "deepseek_v3_half_split_biases": Case(
        "deepseek_v3",
        {
            "attention_bias": True,
            "n_group": 1,
            "norm_topk_prob": False,
            "q_lora_rank": None,
            "rope_interleave": False,
            "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
            "topk_group": 1,
        },
    ),
    "glm4_moe_lite": Case("glm4_moe_lite"),
    "glm4_moe_lite_default_layers": Case("glm4_moe_lite", {"mlp_layer_types": ..., "num_hidden_layers": 2}),
    "minicpm3": Case("minicpm3"),
    "minicpm3_biases": Case(
        "minicpm3",
        {
            "attention_bias": True,
            "dim_model_base": None,
            "mlp_bias": True,
            "q_lora_rank": None,
            "scale_depth": None,
            "tie_word_embeddings": False,
            "v_head_dim": None,
        },
    ),
    "youtu": Case("youtu"),
    "youtu_half_split": Case("youtu", {"attention_bias": True, "rope_interleave": False, "tie_word_embeddings": False}),
    "mamba": Case("mamba"),
    "mamba_biases": Case(
        "mamba", {"time_step_rank": 5, "tie_word_embeddings": False, "use_bias": True, "use_conv_bias": False}
    ),
    "falcon_mamba": Case("falcon_mamba"),
    "falcon_mamba_large_eps": Case(
        "falcon_mamba", {"expand": 16, "intermediate_size": 104, "mixer_rms_eps": 0.1, "use_bias": True}
    ),
    "recurrent_gemma": Case("recurrent_gemma"),
    "recurrent_gemma_awkward_sizes": Case(
        "recurrent_gemma",
        {
            "attention_bias": True,
            "block_types": ...,
            "head_dim": 20,
            "hidden_size": 60,
            "lru_width": 60,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "rope_theta": 500.0,
            "tie_word_embeddings": False,
        },
    ),
    "jamba": Case("jamba"),
    "jamba_one_expert": Case(
        "jamba", {"mamba_dt_rank": "auto", "mamba_proj_bias": True, "num_experts": 1, "tie_word_embeddings": True}
    ),
    "mamba2": Case("mamba2"),
    "mamba2_biases": Case(
        "mamba2",
        {
            "conv_kernel": 3,
            "head_dim": 20,
            "hidden_size": 60,
            "n_groups": 3,
            "num_heads": 6,
            "tie_word_embeddings": True,
            "use_bias": True,
            "use_conv_bias": False,
        },
    ),
    "zamba2": Case("zamba2"),
    "zamba2_one_block_biases": Case(
        "zamba2",
        {
            "add_bias_linear": True,
            "intermediate_size": ...,
            "num_key_value_heads": 2,
            "num_mem_blocks": 1,
            "use_mem_rope": False,
            "use_shared_attention_adapter": False,
        },
    ),
    "bamba": Case("bamba"),
    "bamba_biases": Case(
        "bamba", {"attention_bias": True, "mamba_n_groups": 2, "mamba_proj_bias": True, "mlp_bias": True}
    ),
    "granitemoehybrid": Case("granitemoehybrid"),
    "granitemoehybrid_no_experts": Case(
        "granitemoehybrid",
        {
            "attention_bias": True,
            "layer_types": ["linear_attention", "full_attention", "full_attention"],
            "mamba_conv_bias": False,
            "mamba_n_groups": 2,
            "mamba_proj_bias": True,
            "num_experts_per_tok": 0,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
    ),
    "falcon_h1": Case("falcon_h1"),
    "falcon_h1_biases": Case(
        "falcon_h1",
        {
            "attention_bias": True,
            "mamba_proj_bias": True,
            "mamba_rms_norm": True,
            "mlp_bias": True,
            "projectors_bias": True,
        },
    ),
    "falcon_h1_norm_behind_the_gate": Case("falcon_h1", {"mamba_norm_before_gate": False, "mamba_rms_norm": True}),
    "falcon_h1_no_factors": Case(
        "falcon_h1", {"mamba_d_ssm": None, "mamba_n_heads": 8, "mlp_multipliers": None, "ssm_multipliers": None}
    ),
    "nemotron_h": Case("nemotron_h"),
    "nemotron_h_latent_experts": Case(
        "nemotron_h",
        {
            "hybrid_override_pattern": ...,
            "layers_block_type": ["moe", "linear_attention", "mlp", "full_attention"],
            "mamba_num_heads": 8,
            "mlp_bias": True,
            "moe_latent_size": 32,
            "n_group": 1,
            "norm_topk_prob": False,
            "num_hidden_layers": ...,
            "tie_word_embeddings": True,
            "time_step_min": 0.8,
            "mamba_proj_bias": True,
            "use_bias": True,
        },
        clamped=True,
    ),
    "nemotron_h_no_experts": Case(
        "nemotron_h", {"hybrid_override_pattern": "M*-M", "mamba_num_heads": 8, "num_hidden_layers": 4}
    ),
    "nemotron_h_no_mlp": Case(
        "nemotron_h",
        {
            "hybrid_override_pattern": "M*EM",
            "mamba_num_heads": 8,
            "moe_latent_size": 32,
            "n_group": 1,
            "num_hidden_layers": 4,
        },
    ),
    "gemma3n_text": Case("gemma3n_text"),
    "gemma3n_text_four_inputs": Case("gemma3n_text", {"altup_num_inputs": 4}),
    "gemma3n_text_published_ranks": Case(
        "gemma3n_text",
        {
            "altup_num_inputs": 4,
            "hidden_size_per_layer_input": 256,
            "intermediate_size": 160,
            "laurel_rank": 64,
            "num_kv_shared_layers": 0,
        },
    ),
    "gemma3n_text_defaults": Case(
        "gemma3n_text",
        {
            "activation_sparsity_pattern": None,
            "altup_correct_scale": False,
            "attention_bias": True,
            "intermediate_size": 96,
            "layer_types": ...,
            "num_hidden_layers": 5,
            "num_kv_shared_layers": 0,
            "rope_local_base_freq": ...,
            "rope_theta": ...,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_text": Case("gemma4_text"),
    "gemma4_text_experts": Case(
        "gemma4_text",
        {
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "final_logit_softcapping": None,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["sliding_attention", "full_attention"],
            "moe_intermediate_size": 48,
            "num_experts": 6,
            "num_global_key_value_heads": 1,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 0,
            "top_k_experts": 2,
            "use_bidirectional_attention": "vision",
            "use_double_wide_mlp": False,
        },
    ),
    "gemma4_unified_text": Case("gemma4_unified_text"),
    "gemma4_text_default_rope": Case(
        "gemma4_text",
        {
            "attention_bias": True,
            "layer_types": ...,
            "num_hidden_layers": 3,
            "num_kv_shared_layers": 0,
            "rope_parameters": ...,
            "tie_word_embeddings": False,
        },
    ),
    "granitemoe": Case("granitemoe"),
    "glm4_moe": Case("glm4_moe"),
    "glm4_moe_groups": Case(
        "glm4_moe",
        {
            "attention_bias": False,
            "first_k_dense_replace": 0,
            "n_group": 4,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "partial_rotary_factor": 0.25,
            "topk_group": 2,
            "use_qk_norm": True,
        },
    ),
    "dots1": Case("dots1"),
    "dots1_windows_biases": Case(
        "dots1",
        {
            "attention_bias": True,
            "max_window_layers": 1,
            "n_group": 2,
            "norm_topk_prob": False,
            "num_experts_per_tok": 3,
            "sliding_window": 16,
            "tie_word_embeddings": True,
        },
    ),
    "exaone_moe": Case("exaone_moe"),
    "exaone_moe_other_layers": Case(
        "exaone_moe",
        {
            "first_k_dense_replace": ...,
            "layer_types": ...,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
        },
    ),
    "sarvam_moe": Case("sarvam_moe"),
    "sarvam_moe_biases": Case("sarvam_moe", {"partial_rotary_factor": 0.5, "use_qk_norm": False, "use_qkv_bias": True}),
    "solar_open": Case("solar_open"),
    "solar_open_biases": Case("solar_open", {"attention_bias": True, "n_group": 2, "norm_topk_prob": False}),
    "afmoe": Case("afmoe"),
    "afmoe_biases": Case(
        "afmoe",
        {
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "mup_enabled": False,
            "num_dense_layers": 0,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5_moe": Case("ernie4_5_moe"),
    "ernie4_5_moe_other_layers": Case(
        "ernie4_5_moe",
        {
            "head_dim": 32,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 2,
            "moe_layer_start_index": 0,
            "moe_num_shared_experts": 0,
            "tie_word_embeddings": False,
            "use_bias": True,
        },
    ),
    "flex_olmo": Case("flex_olmo"),
    "flex_olmo_biases": Case(
        "flex_olmo", {"attention_bias": True, "norm_topk_prob": True, "tie_word_embeddings": True}
    ),
    "granitemoeshared": Case("granitemoeshared"),
    "granitemoeshared_none": Case("granitemoeshared", {"attention_bias": True, "shared_intermediate_size": 0}),
    "hunyuan_v1_moe": Case("hunyuan_v1_moe"),
    "hunyuan_v1_moe_biases": Case(
        "hunyuan_v1_moe",
        {"attention_bias": True, "moe_topk": [1, 3], "rope_scaling": None, "tie_word_embeddings": False},
    ),
    "minimax_m2": Case("minimax_m2"),
    "minimax_m2_whole_heads": Case("minimax_m2", {"rotary_dim": ..., "tie_word_embeddings": True}),
    "phimoe": Case("phimoe"),
    "phimoe_longrope": Case(
        "phimoe",
        {
            "attention_bias": False,
            "lm_head_bias": False,
            "rope_scaling": {
                "type": "longrope",
                "long_mscale": 1.3,
                "original_max_position_embeddings": 64,
                "short_mscale": 1.3,
            }
            | _FACTORS,
            "router_jitter_noise": 0.3,
            "sliding_window": 16,
        },
    ),
    "llama4_text": Case("llama4_text"),
    "llama4_text_as_published": Case(
        "llama4_text",
        {
            "attention_chunk_size": 8192,
            "attn_scale": 0.1,
            "floor_scale": 8192,
            "no_rope_layer_interval": 4,
            "num_hidden_layers": 4,
        },
    ),
    "llama4_text_other_layers": Case(
        "llama4_text",
        {
            "attention_bias": True,
            "attention_chunk_size": 8,
            "attn_temperature_tuning": False,
            "layer_types": ["full_attention", "chunked_attention", "chunked_attention"],
            "moe_layers": [0, 2],
            "no_rope_layers": [1, 1, 0],
            "rope_scaling": {**_LLAMA3, "high_freq_factor": 1.0},
            "use_qk_norm": False,
        },
    ),
    "granitemoe_swa": Case("granitemoe_swa"),
    "granitemoe_swa_other_layers": Case(
        "granitemoe_swa",
        {
            "layer_rope_theta": None,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "shared_intermediate_size": 0,
        },
    ),
    "hy_v3": Case("hy_v3"),
    "hy_v3_biases": Case(
        "hy_v3", {"attention_bias": True, "mlp_bias": True, "mlp_layer_types": ["sparse", "dense", "sparse"]}
    ),
    "gpt_oss": Case("gpt_oss"),
    "gpt_oss_tight_clamp": Case(
        "gpt_oss",
        {
            "layer_types": ...,
            "num_hidden_layers": 3,
            "rope_scaling": ...,
            "swiglu_alpha": 1.5,
            "swiglu_limit": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "aria_text": Case("aria_text"),
    "aria_text_biases": Case(
        "aria_text",
        {
            "attention_bias": True,
            "head_dim": 32,
            "hidden_act": "silu",
            "mlp_bias": True,
            "moe_num_shared_experts": 1,
            "moe_topk": 3,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_neox_japanese": Case("gpt_neox_japanese"),
    "gpt_neox_japanese_partial": Case(
        "gpt_neox_japanese",
        {
            "intermediate_multiple_size": 4,
            "num_hidden_layers": 3,
            "rotary_emb_base": 500,
            "rotary_pct": 0.5,
            "tie_word_embeddings": False,
        },
    ),
    "cohere2_moe": Case("cohere2_moe"),
    "cohere2_moe_others": Case(
        "cohere2_moe",
        {
            "attention_bias": True,
            "expert_selection_fn": "softmax",
            "first_k_dense_replace": ...,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "mlp_layer_types": ["sparse", "dense", "dense", "sparse"],
            "num_shared_experts": 1,
            "prefix_dense_sliding_window_pattern": 2,
            "rms_norm_eps": 1e-5,
            "shared_expert_combination_strategy": "sum",
            "tie_word_embeddings": False,
        },
    ),
    "cohere2_moe_unnormalized": Case(
        "cohere2_moe",
        {
            "first_k_dense_replace": 2,
            "norm_topk_prob": False,
            "num_shared_experts": 0,
            "prefix_dense_sliding_window_pattern": 2,
        },
    ),
    "dbrx": Case("dbrx"),
    "dbrx_others": Case(
        "dbrx",
        {
            "attn_config": {"clip_qkv": 2.5, "kv_n_heads": 1, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_act_fn": {"name": "gelu"},
                "ffn_hidden_size": 32,
                "moe_normalize_expert_weights": None,
                "moe_num_experts": 4,
                "moe_top_k": 2,
            },
            "rope_theta": 10000.0,
        },
    ),
    "mixtral": Case("mixtral"),
    "olmo_hybrid": Case("olmo_hybrid"),
    "olmo_hybrid_defaults": Case(
        "olmo_hybrid",
        {
            "attention_bias": True,
            "layer_types": ...,
            "linear_allow_neg_eigval": False,
            "linear_key_head_dim": ...,
            "linear_num_key_heads": ...,
            "linear_num_value_heads": ...,
            "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
        },
    ),
    "olmoe": Case("olmoe"),
    "qwen2_moe": Case("qwen2_moe"),
    "qwen3_5_moe_text": Case("qwen3_5_moe_text"),
    "qwen3_5_text": Case("qwen3_5_text"),
    "qwen3_5_text_biases": Case(
        "qwen3_5_text",
        {
            "attention_bias": True,
            "full_attention_interval": ...,
            "hidden_act": "gelu",
            "layer_types": ["full_attention", "linear_attention"],
            "linear_num_value_heads": 6,
            "num_hidden_layers": 2,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_moe": Case("qwen3_moe"),
    "qwen3_next": Case("qwen3_next"),
    "qwen3_next_some_plain": Case(
        "qwen3_next",
        {"decoder_sparse_step": 2, "full_attention_interval": ..., "mlp_only_layers": [3], "norm_topk_prob": False},
    ),
}


def token_ids(vocab_size: int, length: int = ROWS[-1] + 1) -> list[int]:
    """Return the prompt of every case."""
    return [(17 * i * i + 5 * i + 3) % vocab_size for i in range(length)]


def checkpoint(
    folder: Path, name: str, tensors: Mapping[str, tuple[int, ...]] | None = None, *, dtype: str = "F32"
) -> Path:
    """Write a case's checkpoint; its tensors are those of its golden file unless they are given."""
    import tiny

    case = CASES[name]
    tensors = shapes(name) if tensors is None else tensors
    return tiny.checkpoint(folder, case.model_type, dtype=dtype, tensors=tensors, **case.overrides)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor that transformers saves for a case."""
    import tiny

    case = CASES[name]
    if case.model_type in tiny.SHAPED:
        return tiny.shapes(tiny.config_of(case.model_type, **case.overrides))
    with np.load(HERE / f"{name}.npz") as file:
        return {tensor: tuple(shape) for tensor, shape in json.loads(str(file["shapes"])).items()}


def transformers_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return what transformers itself saves for a case."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    import tiny

    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        config = tiny.config_of(case.model_type, **case.overrides)
        (Path(folder) / "config.json").write_text(json.dumps(config))
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            return {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118


def transformers_logits(folder: Path, prompt: Sequence[int], *, step: int | None = None) -> NDArray[np.float32]:
    """Return transformers' float32 logits `[T, vocab_size]`, the prompt given whole or `step` tokens at a time."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    # RecurrentGemma returns no cache, and fills the one that it is given.
    cache = DynamicCache(config=model.config) if model.config.model_type == "recurrent_gemma" else None
    parts = []
    ids, positions = torch.tensor([list(prompt)]), torch.arange(len(prompt))[None]
    size = step or len(prompt)
    with torch.no_grad():
        for piece, places in zip(ids.split(size, dim=1), positions.split(size, dim=1), strict=True):
            # Bamba would begin at position 0 again.
            answer = model(piece, cache=cache, position_ids=places, use_cache=True)
            cache = getattr(answer, "cache", cache)
            if step and cache is None:  # the first GPT keeps none
                return transformers_logits(folder, prompt)
            parts.append(answer.logits[0].numpy())
    return np.concatenate(parts)


def main(names: Sequence[str]) -> None:
    """Write the golden files of the named cases, or of all."""
    sys.path.insert(0, str(HERE.parent))
    import tiny

    for name in names or CASES:
        kept = {} if CASES[name].model_type in tiny.SHAPED else {"shapes": transformers_shapes(name)}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint(Path(folder), name, kept.get("shapes"))
            vocab_size = CASES[name].overrides.get("vocab_size", 320)
            answer = transformers_logits(Path(folder), token_ids(vocab_size))
        arrays: dict[str, Any] = {key: np.array(json.dumps(value)) for key, value in kept.items()}
        np.savez_compressed(HERE / f"{name}.npz", logits=answer[list(ROWS)], **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
