"""Tiny GGUF files: the tiny llama of `tiny.py` as llama.cpp's converter writes it, with the gguf package."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

import tiny

CONFIG = tiny.config_of("llama", tie_word_embeddings=True)
HEADS = {"q_proj": CONFIG["num_attention_heads"], "k_proj": CONFIG["num_key_value_heads"]}
U16, U32, F32, TEXT, BOOL, ARRAY = (
    GGUFValueType[name] for name in ("UINT16", "UINT32", "FLOAT32", "STRING", "BOOL", "ARRAY")
)

MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Changes = Mapping[str, tuple[Any, GGUFValueType] | None]


def write(
    path: Path,
    changes: Changes | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
) -> Path:
    """Write a GGUF file and return its path.

    Parameters
    ----------
    changes : metadata key -> (value, type) to write instead of or besides `metadata()`; None leaves a key out
    tensors : Hugging Face name -> values, default `weights()`; names that are none of Hugging Face's stay
    kind : how matrices are stored; vectors are F32
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**metadata(), **(changes or {})}.items():
        if value is not None:
            writer.add_key_value(key, *value)
    for name, values in (weights() if tensors is None else tensors).items():
        stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(permuted(name, values), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(**changes: Any) -> dict[str, NDArray[np.float32]]:
    """Hugging Face name -> values of the tiny llama."""
    return {name: tiny.weight(name, shape) for name, shape in tiny.shapes(CONFIG | changes).items()}


def metadata() -> dict[str, tuple[Any, GGUFValueType]]:
    """Metadata of the tiny llama with the tokenizer of `tiny.write_tokenizer`."""
    return {
        "llama.block_count": (CONFIG["num_hidden_layers"], U32),
        "llama.context_length": (CONFIG["max_position_embeddings"], U32),
        "llama.embedding_length": (CONFIG["hidden_size"], U32),
        "llama.feed_forward_length": (CONFIG["intermediate_size"], U32),
        "llama.attention.head_count": (CONFIG["num_attention_heads"], U32),
        "llama.attention.head_count_kv": (CONFIG["num_key_value_heads"], U32),
        "llama.attention.layer_norm_rms_epsilon": (CONFIG["rms_norm_eps"], F32),
        "llama.rope.freq_base": (CONFIG["rope_theta"], F32),
        **tokenizer_metadata(),
    }


def tokenizer_metadata() -> dict[str, tuple[Any, GGUFValueType]]:
    """Metadata of the tokenizer of `tiny.write_tokenizer`."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_tokenizer(Path(folder))
        model = json.loads((Path(folder) / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": ("gpt2", TEXT),
        "tokenizer.ggml.pre": ("gpt-2", TEXT),
        "tokenizer.ggml.tokens": (tokens, ARRAY),
        "tokenizer.ggml.token_type": ([3 if token in tiny.SPECIALS else 1 for token in tokens], ARRAY),
        "tokenizer.ggml.merges": ([m if isinstance(m, str) else " ".join(m) for m in model["merges"]], ARRAY),
        "tokenizer.ggml.bos_token_id": (0, U32),
        "tokenizer.ggml.eos_token_id": (1, U32),
        "tokenizer.ggml.add_bos_token": (True, BOOL),
        "tokenizer.chat_template": ("{{ messages }}", TEXT),
    }


def gguf_name(name: str) -> str:
    """Return the GGUF name of a Hugging Face tensor."""
    module, _, what = name.rpartition(".")
    block = ""
    if module.startswith("model.layers."):
        _, _, layer, module = module.split(".", 3)
        block = f"blk.{layer}."
    return f"{block}{MODULES[module]}.{what}" if module in MODULES else name


def permuted(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Reorder q and k rows as llama.cpp's converter does: the halves of a head become its even and odd rows."""
    heads = next((count for module, count in HEADS.items() if f".{module}." in name), None)
    if heads is None:
        return values
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)
