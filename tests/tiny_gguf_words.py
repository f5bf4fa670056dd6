"""Tiny models in the words of others that are the same: what the converter knows, and quantkit reads as GGUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_gguf_changes import Tensors

Fuse = Callable[[list[NDArray[np.float32]]], NDArray[np.float32]]

INTERNLM2 = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wqkv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
QWEN = {
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "model.layers": "transformer.h",
    "self_attn.q_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "mlp.gate_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w1",
    "mlp.down_proj": "mlp.c_proj",
}


def internlm2(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Llama as InternLM 2 stores it: queries that share a key, the key and its value in turn."""
    groups = config["num_key_value_heads"]

    def fuse(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
        return np.concatenate(grouped, axis=1).reshape(-1, *parts[0].shape[1:])

    return _renamed(tensors, INTERNLM2, fuse)


def qwen(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Qwen 2 as the first Qwen stores it."""
    return _renamed(tensors, QWEN, np.concatenate)


def _renamed(tensors: Tensors, names: Mapping[str, str], fuse: Fuse) -> Tensors:
    """Return the tensors under other names, queries, keys and values in one."""
    found = {}
    for name, values in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            values = fuse([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        found[name] = values
    return found
