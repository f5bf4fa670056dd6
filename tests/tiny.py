"""Tiny random checkpoints: whole Hugging Face folders of a few hundred KB, written with numpy and `tokenizers` alone.

They look like downloaded ones (config, safetensors, tokenizer, chat template), so every part of quantkit can be tested
on them. Weights depend only on the seed and the tensor's name, bit for bit on every platform and numpy version; their
scale keeps logits of order one. Tensor names and shapes are those of transformers, not those of quantkit's recordings.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
"""Ids 0 to 3: the first is put before every text, the last ends a turn; both of its kind (1 and 3) end generation."""

VOCAB_SIZE = 320
"""Tokens of the tokenizer: 4 specials, 256 bytes, 60 merges. A config may have more rows, as real ones do."""

_COMMON: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB_SIZE,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
    },
    "apertus": {
        "architectures": ["ApertusForCausalLM"],
        "attention_bias": False,
        "hidden_act": "xielu",
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "rope_theta": 12000000.0,
    },
    "arcee": {"architectures": ["ArceeForCausalLM"], "hidden_act": "relu2"},
    "bitnet": {
        "architectures": ["BitNetForCausalLM"],
        "hidden_act": "relu2",
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "seed_oss": {
        "architectures": ["SeedOssForCausalLM"],
        "attention_bias": True,
        "attention_out_bias": False,
        "head_dim": 32,
        "mlp_bias": False,
        "residual_dropout": 0.1,
    },
    "internlm3": {
        "architectures": ["InternLM3ForCausalLM"],
        "bias": False,
        "head_dim": 16,
        "qkv_bias": False,
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layer_interval": 2,
        "no_rope_layers": [1, 0],
        "pad_token_id": 2,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "falcon": {
        "activation": "gelu",
        "alibi": False,
        "architectures": ["FalconForCausalLM"],
        "bias": False,
        "hidden_act": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "new_decoder_architecture": False,
        "num_key_value_heads": ...,
        "num_kv_heads": 4,
        "parallel_attn": True,
        "rms_norm_eps": ...,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "hidden_act": ...,
        "hidden_size": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "n_ctx": 256,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": None,
        "n_layer": 2,
        "n_positions": 256,
        "num_attention_heads": ...,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "tie_word_embeddings": True,
    },
    "gpt_bigcode": {
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["GPTBigCodeForCausalLM"],
        "attention_softmax_in_fp32": True,
        "hidden_act": ...,
        "hidden_size": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "multi_query": True,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": 160,
        "n_layer": 2,
        "n_positions": 256,
        "num_attention_heads": ...,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    "gpt_neo": {
        "activation_function": "gelu_new",
        "architectures": ["GPTNeoForCausalLM"],
        "attention_types": [[["global", "local"], 1]],
        "hidden_act": ...,
        "layer_norm_epsilon": 1e-5,
        "num_attention_heads": ...,
        "num_heads": 4,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "num_layers": 2,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "tie_word_embeddings": True,
        "window_size": 16,
    },
    "gptj": {
        "activation_function": "gelu_new",
        "architectures": ["GPTJForCausalLM"],
        "hidden_act": ...,
        "hidden_size": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": None,
        "n_layer": 2,
        "n_positions": 256,
        "num_attention_heads": ...,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "rotary_dim": 8,
    },
    "codegen": {
        "activation_function": "gelu_new",
        "architectures": ["CodeGenForCausalLM"],
        "hidden_act": ...,
        "hidden_size": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "n_ctx": 256,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": None,
        "n_layer": 2,
        "n_positions": 256,
        "num_attention_heads": ...,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "rotary_dim": 12,
    },
    "opt": {
        "_remove_final_layer_norm": False,
        "activation_function": "relu",
        "architectures": ["OPTForCausalLM"],
        "do_layer_norm_before": True,
        "ffn_dim": 160,
        "hidden_act": ...,
        "intermediate_size": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "tie_word_embeddings": True,
        "word_embed_proj_dim": 64,
    },
    "biogpt": {
        "architectures": ["BioGptForCausalLM"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "scale_embedding": True,
        "tie_word_embeddings": True,
    },
    "jais2": {
        "architectures": ["Jais2ForCausalLM"],
        "attention_bias": True,
        "head_dim": 16,
        "hidden_act": "relu2",
        "layer_norm_eps": 1e-5,
        "mlp_bias": True,
        "rms_norm_eps": ...,
    },
    "persimmon": {
        "architectures": ["PersimmonForCausalLM"],
        "hidden_act": "relu2",
        "layer_norm_eps": 1e-5,
        "num_key_value_heads": ...,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": True,
        "rms_norm_eps": ...,
    },
    "cwm": {
        "architectures": ["CwmForCausalLM"],
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {
            "factor": 16.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "sliding_window": 16,
    },
    "exaone": {
        "activation_function": "silu",
        "architectures": ["ExaoneForCausalLM"],
        "hidden_act": ...,
        "layer_norm_epsilon": 1e-5,
        "num_hidden_layers": ...,
        "num_layers": 2,
        "rms_norm_eps": ...,
    },
    "granite_swa": {
        "architectures": ["GraniteSWAForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "layer_rope_theta": [0, 5000.0, 200.0],
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "logits_scaling": 0.7,
        "num_hidden_layers": 3,
        "residual_multiplier": 0.6,
        "sliding_window": 16,
        "tie_word_embeddings": True,
    },
    "hyperclovax": {
        "architectures": ["HyperCLOVAXForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "head_dim": 32,
        "logits_scaling": 1.5,
        "residual_multiplier": 0.6,
        "use_post_norm": True,
    },
    "iquestcoder": {"architectures": ["IQuestCoderForCausalLM"], "head_dim": 32},
    "nanochat": {
        "architectures": ["NanoChatForCausalLM"],
        "final_logit_softcapping": 2.0,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
    },
    "vaultgemma": {
        "architectures": ["VaultGemmaForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": 3.0,
        "head_dim": 32,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-6,
        "sliding_window": 16,
        "tie_word_embeddings": True,
    },
    "bloom": {
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["BloomForCausalLM"],
        "hidden_act": ...,
        "hidden_size": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "n_embed": 64,
        "n_head": 4,
        "n_layer": 2,
        "num_attention_heads": ...,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "seq_length": 256,
        "tie_word_embeddings": True,
    },
    "mpt": {
        "architectures": ["MptForCausalLM"],
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_type": "multihead_attention",
            "clip_qkv": None,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "d_model": 64,
        "expansion_ratio": 4,
        "hidden_act": ...,
        "hidden_size": ...,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "learned_pos_emb": True,
        "max_position_embeddings": ...,
        "max_seq_len": 256,
        "n_heads": 4,
        "n_layers": 2,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "num_attention_heads": ...,
        "num_hidden_layers": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "rotary_emb_base": 5000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.7,
        "residual_multiplier": 0.6,
        "tie_word_embeddings": True,
    },
    "nemotron": {
        "architectures": ["NemotronForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "hidden_act": "relu2",
        "mlp_bias": False,
        "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": ...,
    },
    "olmo": {
        "architectures": ["OlmoForCausalLM"],
        "attention_bias": False,
        "clip_qkv": None,
        "rms_norm_eps": ...,
    },
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], "attention_bias": False},
    "olmo3": {
        "architectures": ["Olmo3ForCausalLM"],
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {
            "attention_factor": 1.2,
            "beta_fast": 2.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_type": "yarn",
        },
        "rope_theta": 500000.0,
        "sliding_window": 16,
    },
    "cohere": {
        "architectures": ["CohereForCausalLM"],
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "rms_norm_eps": ...,
        "rope_theta": 8000000.0,
        "tie_word_embeddings": True,
        "use_qk_norm": False,
    },
    "cohere2": {
        "architectures": ["Cohere2ForCausalLM"],
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "num_hidden_layers": 3,
        "position_embedding_type": "rope_gptj",
        "rms_norm_eps": ...,
        "rope_theta": 50000.0,
        "sliding_window": 16,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    "glm": {
        "architectures": ["GlmForCausalLM"],
        "attention_bias": True,
        "head_dim": 32,
        "pad_token_id": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-7,
    },
    "glm4": {
        "architectures": ["Glm4ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "pad_token_id": 2,
    },
    "ernie4_5": {
        "architectures": ["Ernie4_5ForCausalLM"],
        "compression_ratio": 1.0,
        "head_dim": 32,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
    "helium": {
        "architectures": ["HeliumForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "mlp_bias": False,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-8,
        "rope_theta": 100000.0,
    },
    "hunyuan_v1_dense": {
        "architectures": ["HunYuanDenseV1ForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "pad_token_id": 2,
        "rope_scaling": {
            "alpha": 1000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "type": "dynamic",
        },
        "tie_word_embeddings": True,
        "use_qk_norm": True,
    },
    "exaone4": {
        "architectures": ["Exaone4ForCausalLM"],
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 1000000.0,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
    },
    "stablelm": {
        "architectures": ["StableLmForCausalLM"],
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": False,
        "rms_norm_eps": ...,
        "rope_scaling": None,
        "use_parallel_residual": False,
        "use_qkv_bias": True,
    },
    "starcoder2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "rms_norm_eps": ...,
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 16},
    "ministral": {
        "architectures": ["MinistralForCausalLM"],
        "head_dim": 16,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 16,
    },
    "ministral3": {
        "architectures": ["Ministral3ForCausalLM"],
        "head_dim": 32,
        "rope_parameters": {
            "beta_fast": 2.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "llama_4_scaling_beta": 0.5,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
        "rope_theta": ...,
        "sliding_window": None,
    },
    "phi": {
        "architectures": ["PhiForCausalLM"],
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "num_key_value_heads": None,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "rms_norm_eps": ...,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 256,
        "pad_token_id": 2,
        "sliding_window": None,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "max_window_layers": 1,
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "gemma": {
        "architectures": ["GemmaForCausalLM"],
        "head_dim": 32,
        "hidden_act": "gelu",
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "head_dim": 32,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-6,
        "sliding_window": 16,
        "sliding_window_size": 16,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 16,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "first_k_dense_replace": 1,
        "kv_lora_rank": 40,
        "moe_intermediate_size": 48,
        "moe_layer_freq": 1,
        "n_group": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 12,
        "rope_scaling": {
            "beta_fast": 2,
            "beta_slow": 1,
            "factor": 4,
            "mscale": 0.707,
            "mscale_all_dim": 0.5,
            "original_max_position_embeddings": 16,
            "type": "yarn",
        },
        "routed_scaling_factor": 3.0,
        "scoring_func": "softmax",
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "v_head_dim": 28,
    },
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "first_k_dense_replace": 1,
        "kv_lora_rank": 40,
        "moe_intermediate_size": 48,
        "moe_layer_freq": 1,
        "n_group": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 12,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": 2,
        "topk_method": "noaux_tc",
        "v_head_dim": 28,
    },
    "glm4_moe_lite": {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "kv_lora_rank": 40,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "moe_intermediate_size": 48,
        "n_group": 1,
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "v_head_dim": 32,
    },
    "minicpm3": {
        "architectures": ["MiniCPM3ForCausalLM"],
        "dim_model_base": 32,
        "kv_lora_rank": 40,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-5,
        "scale_depth": 1.4,
        "scale_emb": 3,
        "tie_word_embeddings": True,
        "v_head_dim": 16,
    },
    "youtu": {
        "architectures": ["YoutuForCausalLM"],
        "kv_lora_rank": 40,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 12,
        "rope_interleave": True,
        "tie_word_embeddings": True,
        "v_head_dim": 20,
    },
    "gemma3n_text": {
        "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0],
        "altup_active_idx": 0,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_num_inputs": 3,
        "architectures": ["Gemma3nForCausalLM"],
        "attention_bias": False,
        "final_logit_softcapping": 3.0,
        "head_dim": 16,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 8,
        "intermediate_size": [160, 128, 160, 160],
        "laurel_rank": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "vocab_size_per_layer_input": VOCAB_SIZE,
    },
    "gemma4_text": {
        "architectures": ["Gemma4ForCausalLM"],
        "attention_bias": False,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "final_logit_softcapping": 3.0,
        "global_head_dim": 32,
        "head_dim": 16,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 8,
        "layer_types": [
            *("sliding_attention", "full_attention", "sliding_attention"),
            *("sliding_attention", "full_attention"),
        ],
        "moe_intermediate_size": None,
        "num_experts": None,
        "num_global_key_value_heads": None,
        "num_hidden_layers": 5,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "rope_theta": ...,
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": None,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": VOCAB_SIZE,
    },
    "gemma4_unified_text": {
        "architectures": ["Gemma4UnifiedForCausalLM"],
        "attention_k_eq_v": True,
        "global_head_dim": 32,
        "head_dim": 16,
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"],
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "rope_theta": ...,
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": "vision",
    },
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 6.0,
        "logits_scaling": 2.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "residual_multiplier": 0.4,
    },
    "lfm2": {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": True,
        "block_ff_dim": 300,
        "block_ffn_dim_multiplier": 1.1,
        "block_multiple_of": 32,
        "conv_L_cache": 3,
        "conv_bias": False,
        "full_attn_idxs": [1],
        "hidden_act": ...,
        "intermediate_size": ...,
        "norm_eps": 1e-5,
        "num_hidden_layers": 3,
        "rms_norm_eps": ...,
        "tie_word_embeddings": ...,
    },
    "lfm3": {
        "architectures": ["Lfm3ForCausalLM"],
        "attention_bias": False,
        "conv_L_cache": 7,
        "conv_bias": False,
        "head_dim": 16,
        "hidden_act": ...,
        "norm_eps": 1e-5,
        "num_hidden_layers": 5,
        "pad_token_id": 2,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "use_attention_gate": True,
        "use_sandwich_norm": True,
    },
    "lfm2_moe": {
        "architectures": ["Lfm2MoeForCausalLM"],
        "conv_L_cache": 3,
        "conv_bias": False,
        "hidden_act": ...,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "moe_intermediate_size": 48,
        "norm_eps": 1e-5,
        "norm_topk_prob": True,
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 4,
        "rms_norm_eps": ...,
        "routed_scaling_factor": 1.5,
        "tie_embedding": True,
        "tie_word_embeddings": ...,
        "use_expert_bias": True,
    },
    "glm4_moe": {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "moe_intermediate_size": 48,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 2,
        "partial_rotary_factor": 0.5,
        "routed_scaling_factor": 1.5,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    "dots1": {
        "architectures": ["Dots1ForCausalLM"],
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "max_window_layers": 2,
        "moe_intermediate_size": 48,
        "n_group": 1,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "pad_token_id": 2,
        "routed_scaling_factor": 2.5,
        "scoring_func": "noaux_tc",
        "sliding_window": None,
        "topk_group": 1,
    },
    "exaone_moe": {
        "architectures": ["ExaoneMoEForCausalLM"],
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "moe_intermediate_size": 48,
        "n_group": 1,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_shared_experts": 1,
        "pad_token_id": 2,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "sliding_window": 16,
        "sliding_window_pattern": "LLG",
        "topk_group": 1,
    },
    "sarvam_moe": {
        "architectures": ["SarvamMoEForCausalLM"],
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "pad_token_id": 2,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "use_qkv_bias": False,
    },
    "solar_open": {
        "architectures": ["SolarOpenForCausalLM"],
        "first_k_dense_replace": 0,
        "head_dim": 32,
        "moe_intermediate_size": 48,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
        "pad_token_id": 2,
        "partial_rotary_factor": 1.0,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
    },
    "afmoe": {
        "architectures": ["AfmoeForCausalLM"],
        "global_attn_every_n_layers": 3,
        "head_dim": 32,
        "moe_intermediate_size": 48,
        "mup_enabled": True,
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_shared_experts": 1,
        "pad_token_id": 2,
        "route_norm": True,
        "route_scale": 2.826,
        "score_func": "sigmoid",
        "sliding_window": 16,
    },
    "ernie4_5_moe": {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "moe_intermediate_size": 48,
        "moe_k": 3,
        "moe_layer_end_index": 2,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 8,
        "moe_num_shared_experts": 2,
        "moe_use_aux_free": True,
        "num_hidden_layers": 3,
        "pad_token_id": 2,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
    "flex_olmo": {
        "architectures": ["FlexOlmoForCausalLM"],
        "attention_bias": False,
        "norm_topk_prob": False,
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "pad_token_id": 2,
        "rope_theta": 500000.0,
    },
    "granitemoeshared": {
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 6.0,
        "logits_scaling": 2.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "residual_multiplier": 0.4,
        "shared_intermediate_size": 96,
    },
    "hunyuan_v1_moe": {
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "moe_intermediate_size": [160, 160],
        "moe_topk": [2, 2],
        "num_experts": 6,
        "num_shared_expert": [1, 1],
        "pad_token_id": 2,
        "rope_scaling": {
            "alpha": 1000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "type": "dynamic",
        },
        "tie_word_embeddings": True,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
    },
    "minimax_m2": {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "head_dim": 32,
        "intermediate_size": 96,
        "num_experts_per_tok": 3,
        "num_local_experts": 8,
        "qk_norm_type": "per_layer",
        "rotary_dim": 16,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
    },
    "phimoe": {
        "architectures": ["PhimoeForCausalLM"],
        "attention_bias": True,
        "input_jitter_noise": 0.01,
        "intermediate_size": 96,
        "lm_head_bias": True,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_jitter_noise": 0.01,
        "sliding_window": None,
    },
    "llama4_text": {
        "architectures": ["Llama4ForCausalLM"],
        "attention_bias": False,
        "attention_chunk_size": 16,
        "attn_scale": 0.7,
        "attn_temperature_tuning": True,
        "floor_scale": 8,
        "for_llm_compressor": False,
        "head_dim": 32,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 96,
        "intermediate_size_mlp": 112,
        "no_rope_layer_interval": 2,
        "no_rope_layers": [],
        "num_experts_per_tok": 1,
        "num_hidden_layers": 3,
        "num_local_experts": 4,
        "rope_theta": 500000.0,
        "use_qk_norm": True,
    },
    "granitemoe_swa": {
        "architectures": ["GraniteMoeSWAForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 6.0,
        "layer_rope_theta": [0, 10000.0, 500.0],
        "logits_scaling": 2.0,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_local_experts": 4,
        "residual_multiplier": 0.4,
        "shared_intermediate_size": 96,
        "sliding_window": 16,
    },
    "hy_v3": {
        "architectures": ["HYV3ForCausalLM"],
        "attention_bias": False,
        "enable_moe_fp32_combine": True,
        "head_dim": 32,
        "mlp_bias": False,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_shared_experts": 2,
        "router_scaling_factor": 2.826,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "experts_per_token": 2,
        "head_dim": 32,
        "initial_context_length": 16,
        "intermediate_size": 96,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "rope_scaling": {
            "beta_fast": 2.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000.0,
        "sliding_window": 16,
        "swiglu_limit": 7.0,
    },
    "mamba": {
        "architectures": ["MambaForCausalLM"],
        "conv_kernel": 4,
        "expand": 2,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "num_attention_heads": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "state_size": 12,
        "time_step_rank": "auto",
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": ...,
    },
    "falcon_mamba": {
        "architectures": ["FalconMambaForCausalLM"],
        "conv_kernel": 4,
        "expand": 2,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "num_attention_heads": ...,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "state_size": 12,
        "time_step_rank": 7,
        "use_bias": False,
        "use_conv_bias": True,
        "mixer_rms_eps": 1e-6,
    },
    "jamba": {
        "architectures": ["JambaForCausalLM"],
        "attn_layer_offset": 1,
        "attn_layer_period": 3,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 12,
        "mamba_dt_rank": 6,
        "mamba_expand": 2,
        "mamba_proj_bias": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_logits_to_keep": 1,
        "rope_theta": ...,
        "use_mamba_kernels": True,
    },
    "mamba2": {
        "architectures": ["Mamba2ForCausalLM"],
        "chunk_size": 8,
        "conv_kernel": 4,
        "expand": 2,
        "head_dim": 16,
        "intermediate_size": ...,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": ...,
        "n_groups": 2,
        "num_attention_heads": ...,
        "num_heads": 8,
        "num_hidden_layers": 3,
        "num_key_value_heads": ...,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "state_size": 12,
        "time_step_limit": [0.0, math.inf],
    },
    "bamba": {
        "architectures": ["BambaForCausalLM"],
        "attn_layer_indices": [1],
        "attn_rotary_emb": 8,
        "mamba_chunk_size": 8,
        "mamba_d_head": "auto",
        "mamba_d_state": 12,
        "mamba_n_heads": 8,
        "num_hidden_layers": 3,
    },
    "granitemoehybrid": {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "attention_multiplier": 0.2,
        "embedding_multiplier": 6.0,
        "intermediate_size": 48,
        "layer_types": ["mamba", "attention", "mamba"],
        "logits_scaling": 2.0,
        "mamba_chunk_size": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 12,
        "mamba_n_heads": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_local_experts": 4,
        "position_embedding_type": "nope",
        "residual_multiplier": 0.4,
        "shared_intermediate_size": 80,
    },
    "falcon_h1": {
        "architectures": ["FalconH1ForCausalLM"],
        "attention_in_multiplier": 0.8,
        "attention_out_multiplier": 1.1,
        "embedding_multiplier": 3.0,
        "key_multiplier": 1.5,
        "lm_head_multiplier": 0.7,
        "mamba_chunk_size": 8,
        "mamba_d_head": 16,
        "mamba_d_ssm": 96,
        "mamba_d_state": 12,
        "mamba_n_groups": 2,
        "mamba_n_heads": 6,
        "mlp_multipliers": [0.9, 1.2],
        "ssm_in_multiplier": 1.25,
        "ssm_multipliers": [0.7, 1.3, 1.6, 0.8, 0.6],
        "ssm_out_multiplier": 1.4,
    },
    "nemotron_h": {
        "architectures": ["NemotronHForCausalLM"],
        "chunk_size": 8,
        "head_dim": 24,
        "hidden_act": ...,
        "hybrid_override_pattern": "M*EM-",
        "layer_norm_epsilon": 1e-5,
        "mamba_head_dim": 16,
        "mamba_num_heads": 6,
        "mlp_hidden_act": "relu2",
        "moe_intermediate_size": 48,
        "moe_shared_expert_intermediate_size": 40,
        "n_group": 2,
        "n_groups": 2,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 5,
        "rms_norm_eps": ...,
        "rope_theta": ...,
        "routed_scaling_factor": 1.5,
        "ssm_state_size": 12,
        "topk_group": 1,
    },
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "moe_intermediate_size": 48,
        "norm_topk_prob": False,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "shared_expert_intermediate_size": 80,
    },
    "qwen3_5_text": {
        "architectures": ["Qwen3_5ForCausalLM"],
        "attention_bias": False,
        "attn_output_gate": True,
        "full_attention_interval": 3,
        "head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 24,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_value_head_dim": 24,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000.0,
            "rope_type": "default",
        },
        "rope_theta": ...,
        "tie_word_embeddings": True,
    },
    "qwen3_5_moe_text": {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "head_dim": 32,
        "intermediate_size": ...,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 20,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"},
        "rope_theta": ...,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3_next": {
        "architectures": ["Qwen3NextForCausalLM"],
        "decoder_sparse_step": 1,
        "full_attention_interval": 2,
        "head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 20,
        "mlp_only_layers": [],
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 4,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 32,
        "mlp_only_layers": [],
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "rms_norm_eps": 1e-6,
    },
}
"""What each family's config.json says beyond, or instead of, the common fields."""

ZERO_CENTRED = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Families whose norms multiply by `1 + weight`."""

_TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

_CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_WORDS = "the and that was for with not you this but his from they have had are her which she will would there all one"


def checkpoint(
    folder: str | Path,
    model_type: str = "llama",
    *,
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 0,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    **config_overrides: Any,
) -> Path:
    """Write a checkpoint folder and return it.

    Parameters
    ----------
    folder : path
        Created if missing; files in it are overwritten.
    model_type : str
        A key of `FAMILIES`.
    dtype : {"BF16", "F16", "F32"}
        Of every tensor, as safetensors spells it.
    shards : int
        More than one makes `model-0000i-of-0000n.safetensors` and the index.
    seed : int
        Other seeds, other weights.
    tensors : mapping of str to tuple of int, optional
        Name -> shape of what is stored; needed where `shapes` does not know the family.
    **config_overrides
        Fields of config.json; the value `...` leaves a field out.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(model_type, torch_dtype=_TORCH_DTYPES[dtype], **config_overrides)
    _write_json(folder / "config.json", config)
    tensors = shapes(config) if tensors is None else tensors
    parts = [dict(list(tensors.items())[part::shards]) for part in range(shards)]
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        _write_weights(folder / name, part, dtype, seed, zero_centred_norms=model_type in ZERO_CENTRED)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        size = sum(math.prod(shape) for shape in tensors.values()) * (4 if dtype == "F32" else 2)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    write_tokenizer(folder)
    return folder


def config_of(model_type: str = "llama", **overrides: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model; an override `...` leaves its field out."""
    config = {"model_type": model_type} | _COMMON | FAMILIES[model_type] | overrides
    return {field: value for field, value in config.items() if value is not ...}


SHAPED = frozenset({"llama", "mistral", "ministral", "qwen2", "qwen3", "gemma3_text"})
"""Families that `shapes` knows; for others transformers was asked, see `golden/generate.py`."""


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor that transformers saves for `config`."""
    model_type, hidden, intermediate = config["model_type"], config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    biased = {name for name in linears if config.get("attention_bias" if "attn" in name else "mlp_bias")}
    if model_type == "qwen2":
        biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if model_type == "gemma3_text":
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    if model_type in ("qwen3", "gemma3_text"):
        norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}

    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": shape for name, shape in linears.items()}
        tensors |= {f"{prefix}{name}.bias": shape[:1] for name, shape in linears.items() if name in biased}
        tensors |= {f"{prefix}{name}.weight": (size,) for name, size in norms.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (config["vocab_size"], hidden)
    return tensors


def weight(name: str, shape: tuple[int, ...], seed: int = 0, *, zero_centred_norms: bool = False) -> NDArray[Any]:
    """Return a tensor's random values, float32: matrices `~ 1/sqrt(cols)`, biases `~ 0.3`, `A_log` `~ -1 ± 1`,
    others, such as norms, `~ 1 ± 0.2`.

    Each value is a sum of four 16-bit uniforms from PCG64's raw stream, nearly normal; unlike `Generator.normal`, it is
    the same in every version of numpy.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    raw = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(math.prod(shape))
    values = raw.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64) - 2 * 65535
    normal: NDArray[np.float64] = (values / (65536 / math.sqrt(3))).reshape(shape)
    if len(shape) > 1:
        return (normal / math.sqrt(shape[-1])).astype(np.float32)
    if name.endswith("bias"):
        return (0.3 * normal).astype(np.float32)
    if name.endswith("A_log"):  # states that some heads keep for many tokens
        return (normal - 1).astype(np.float32)
    return (0.2 * normal + (0 if zero_centred_norms else 1)).astype(np.float32)


def encode_dtype(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Return float32 values as a checkpoint stores them: float32, float16, or uint16 patterns of bfloat16."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype])


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """Write name -> (safetensors dtype, array) as one file; `dtype` only labels the array's bytes."""
    header, end = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer that puts a BOS before every text, its config, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        text = f"Ġ{word}"
        merges += [(text[:i], text[i]) for i in range(1, len(text)) if (text[:i], text[i]) not in merges]
    merges = merges[: VOCAB_SIZE - len(SPECIALS) - len(alphabet)]
    tokens = [*SPECIALS, *alphabet, *(left + right for left, right in merges)]
    assert len(set(tokens)) == VOCAB_SIZE, len(tokens)
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", pair=f"{SPECIALS[0]} $A $B", special_tokens=[(SPECIALS[0], 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[3],
        "model_max_length": 256,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 3]})
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)


def _write_weights(
    path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str, seed: int, *, zero_centred_norms: bool
) -> None:
    def values(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return encode_dtype(weight(name, shape, seed, zero_centred_norms=zero_centred_norms), dtype)

    write_safetensors(path, {name: (dtype, values(name, shape)) for name, shape in tensors.items()})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
