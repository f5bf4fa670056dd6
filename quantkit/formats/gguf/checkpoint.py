"""A GGUF file of architecture `llama` as a checkpoint with Hugging Face's names, config and tokenizer files.

Tensors are de-quantized when they are asked for, one at a time. A de-quantized value becomes f16 (f32, f16 and bf16
tensors stay what they are): rounding moves a weight by at most 2^-11 of itself, a tenth of the error of the finest
block type, and takes half the memory of f32. llama.cpp's converter reorders the rows of q_proj and k_proj of this
architecture so that rotary embedding turns neighbouring columns; that is undone here.

`file.py` reads the layout of the file, `tokenizer.py` its tokenizer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.gguf.file import GGUFFile, gguf_package
from quantkit.formats.gguf.tokenizer import check_tokenizer, tokenizer_files
from quantkit.formats.mapped import Entry
from quantkit.formats.source import ModelSource
from quantkit.tensor import Tensor, TensorSpec

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF module -> Hugging Face module; the lower ones stand inside `blk.N.` and `model.layers.N.`."""

ROTATED = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
ROPE_FACTORS = "rope_freqs.weight"
ROTARY = (ROPE_FACTORS, "attn_rot_embd.weight")
"""Ends of the names of tensors that are no weights: rope's factors, and frequencies, which programs compute."""
PLAIN = {"F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2")}
TOKEN_IDS = ("bos_token_id", "eos_token_id")
CHUNK = 1 << 20  # weights that are de-quantized at a time


class GGUFSource(ModelSource):
    """An open GGUF file.

    Raises
    ------
    CheckpointError
        When the file is truncated or damaged.
    UnsupportedError
        When the `gguf` package is missing; when the architecture, tokenizer, rope scaling or a tensor type cannot be
        read; when the file is one part of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        self._check_support()
        check_tokenizer(self._file)
        self._entries = {
            hugging_face_name(name): entry for name, entry in self._file.tensors.items() if not name.endswith(ROTARY)
        }
        self._config = self._build_config()

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @cached_property
    def files(self) -> Mapping[str, bytes | Path]:
        """Built from the metadata; raises `CheckpointError` when its token lists contradict one another."""
        return dict(tokenizer_files(self._file))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def spec(self, name: str) -> TensorSpec:
        entry = self._entry(name)
        if entry.dtype in PLAIN:
            return TensorSpec(name, entry.shape, kind=PLAIN[entry.dtype][0])
        if entry.dtype not in self._dequantizable:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has type {entry.dtype}, which gguf cannot de-quantize"
            )
        return TensorSpec(name, entry.shape, kind="f16")

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        spec = self.spec(name)
        return Tensor(spec.kind, spec.shape, self.entries(name, slice(None), copy=copy))

    def entries(self, name: str, wanted: slice, *, copy: bool = False) -> NDArray[Any]:
        entry, order = self._entry(name), self._row_order(name)
        if order is None:
            entry = entry.part(wanted)
        else:
            order = order[wanted]
        if entry.dtype not in PLAIN:
            return self._dequantize(name, entry, order)
        get = self._file.mapped.read if copy else self._file.mapped.view
        data = get(PLAIN[entry.dtype][1], entry.shape, entry.begin)
        return data if order is None else data[order]

    def file_of(self, name: str) -> Path:
        return self.path

    def _evidence(self) -> Iterator[bytes]:
        yield self._file.mapped.identity()
        yield self._file.raw_header()

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.path}: has no tensor {name!r}")
        return self._entries[name]

    @cached_property
    def _dequantizable(self) -> frozenset[str]:
        """Types of this file's tensors that the installed gguf package de-quantizes: it is asked for one block each."""
        package = gguf_package()
        supported = set()
        for name in {entry.dtype for entry in self._entries.values()} - PLAIN.keys():
            kind = package.GGMLQuantizationType[name]
            try:
                package.dequantize(np.zeros((1, package.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError:
                continue
            supported.add(name)
        return frozenset(supported)

    def _dequantize(self, name: str, entry: Entry, order: NDArray[np.intp] | None) -> NDArray[np.float16]:
        package = gguf_package()
        kind = package.GGMLQuantizationType[entry.dtype]
        rows = math.prod(entry.shape[:-1])
        raw = self._file.mapped.read("u1", (rows, (entry.end - entry.begin) // max(rows, 1)), entry.begin)
        shape = entry.shape if order is None else (len(order), *entry.shape[1:])
        result = np.empty((math.prod(shape[:-1]), shape[-1]), np.float16)
        step = max(1, CHUNK // max(1, entry.shape[-1]))
        for start in range(0, len(result), step):
            part = raw[start : start + step] if order is None else raw[order[start : start + step]]
            with np.errstate(all="ignore"):
                values = package.dequantize(part, kind)
                result[start : start + step] = values
            if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has values beyond f16's range; the file is damaged"
                )
        return result.reshape(shape)

    def _row_order(self, name: str) -> NDArray[np.intp] | None:
        """Rows of the file's q and k projections in Hugging Face's order; None where the order is the same.

        A head's rows are the pairs (0, 1), (2, 3), ... here and (0, d/2), (1, d/2 + 1), ... there.
        """
        heads = next((self._config[field] for module, field in ROTATED.items() if f".{module}." in name), None)
        if heads is None:
            return None
        rows = math.prod(self._entries[name].shape[:1])
        if rows % (2 * heads):
            raise CheckpointError(f"{self.path}: tensor {name!r} has {rows} rows for {heads} heads")
        return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)

    def _check_support(self) -> None:
        value = self._file.value
        architecture = value("general.architecture", str)
        if architecture != "llama":
            raise UnsupportedError(
                f"{self.path}: has architecture {architecture!r}; only 'llama' is read from GGUF files: "
                "use the model's Hugging Face folder"
            )
        if value("split.count", int, 1) > 1:
            raise UnsupportedError(
                f"{self.path}: is one part of several; join them with `llama-gguf-split --merge` first"
            )
        if value("llama.expert_count", int, 0):
            raise UnsupportedError(f"{self.path}: is a mixture of experts, which quantkit does not run")

    def _build_config(self) -> dict[str, Any]:
        value, metadata, tensors = self._file.value, self._file.metadata, self._entries
        hidden_size = value("llama.embedding_length", int)
        heads = value("llama.attention.head_count", int)
        key_value_heads = value("llama.attention.head_count_kv", int, heads)
        if min(heads, key_value_heads) < 1:
            raise CheckpointError(
                f"{self.path}: its metadata gives {heads} heads and {key_value_heads} key-value heads"
            )
        head_dim = value("llama.attention.key_length", int, hidden_size // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if value(f"llama.{key}", int, head_dim) != head_dim:
                raise UnsupportedError(f"{self.path}: its llama.{key} differs from the head size {head_dim}")
        ids = {key: value(f"tokenizer.ggml.{key}", int) for key in TOKEN_IDS if f"tokenizer.ggml.{key}" in metadata}
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
            **ids,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "intermediate_size": value("llama.feed_forward_length", int),
            "max_position_embeddings": value("llama.context_length", int),
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in tensors,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": value("llama.block_count", int),
            "num_key_value_heads": key_value_heads,
            "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon", float),
            "rope_scaling": self._rope_scaling(head_dim),
            "rope_theta": value("llama.rope.freq_base", float, 10000.0),
            "tie_word_embeddings": "lm_head.weight" not in tensors,
            "torch_dtype": "float16",
            "vocab_size": math.prod(self._entry("model.embed_tokens.weight").shape[:1]),
        }

    def _rope_scaling(self, head_dim: int) -> dict[str, Any] | None:
        value = self._file.value
        kind = value("llama.rope.scaling.type", str, "none")
        factor = value("llama.rope.scaling.factor", float, value("llama.rope.scale_linear", float, 1.0))
        if kind not in ("none", "linear"):
            raise UnsupportedError(f"{self.path}: has rope scaling {kind!r}; read are none, linear and llama3")
        if ROPE_FACTORS in self._file.tensors:
            return self._llama3_scaling(head_dim)
        return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None

    def _llama3_scaling(self, head_dim: int) -> dict[str, Any] | None:
        """Recognize the factors that llama.cpp's converter computes from Llama 3.x's rope scaling.

        The converter writes, for every frequency, by how much it is divided; of the parameters only `factor` varies
        between the published models, and it is the largest of these numbers.
        """
        kind, shape, begin, _ = self._file.tensors[ROPE_FACTORS]
        if kind != "F32" or shape != (head_dim // 2,):
            raise CheckpointError(f"{self.path}: tensor {ROPE_FACTORS!r} is not F32 of shape ({head_dim // 2},)")
        factors = self._file.mapped.read("<f4", shape, begin)
        factor = float(factors.max(initial=1.0))
        if factor == 1.0:
            return None
        theta = self._file.value("llama.rope.freq_base", float, 10000.0)
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if not np.allclose(factors, llama3_factors(theta, head_dim, factor), rtol=1e-4):
            raise UnsupportedError(f"{self.path}: its {ROPE_FACTORS} are not those of Llama 3's rope scaling")
        return scaling


def hugging_face_name(name: str) -> str:
    """Return a tensor's name in Hugging Face's llama; a module that is not in the table keeps its own name."""
    block = re.match(r"blk\.([0-9]+)\.", name)
    module, dot, kind = name[block.end() if block else 0 :].rpartition(".")
    return f"{f'model.layers.{block[1]}.' if block else ''}{NAMES.get(module, module)}{dot}{kind}"


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float = 1.0, high: float = 4.0, original_context: int = 8192
) -> NDArray[np.float64]:
    """Return by how much Llama 3's rope scaling divides each of the `head_dim / 2` frequencies.

    Frequencies that turn more than `high` times within the original context stay, those that turn less than `low` times
    are divided by `factor`, and between the two the inverse is interpolated (Hugging Face's `rope_type` llama3).
    """
    with np.errstate(all="ignore"):  # a damaged theta gives factors that match nothing
        turns = original_context * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return 1 / ((1 - smooth) / factor + smooth)
