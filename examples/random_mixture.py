"""A mixture of experts of the shape of Qwen3-30B-A3B with random weights: packed, and in llama.cpp's types.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf    # built for this machine
    python examples/random_mixture.py FOLDER --layers 8
    python examples/compare_llama_cpp.py FOLDER/int4 FOLDER/q4_0.gguf FOLDER/q4_k_m.gguf -p 512 -n 64
    quantkit bench FOLDER/int4 --ops

It shows how fast a model is that nobody needs to download; it says nothing of quality. Each file has the same weights,
rounded in its own way, and every layer and expert has bytes of its own. A layer is 350 MB. Numbers are drawn once for
each shape of matrix, `VARIANTS` of them, which the experts take in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from quantkit.formats.packed.writer import Contents, write_packed
from quantkit.models.registry import read
from quantkit.quantization.encode import quantize
from quantkit.quantization.recipe import Recipe, choose
from quantkit.tensor import Tensor, TensorSpec

Matrix = NDArray[np.float32]
VARIANTS = 8
EMBEDDING_ROWS = 4096
"""Rows of the embedding that are drawn; the others repeat them."""
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.*.gate_proj": "ffn_gate_exps",
    "mlp.experts.*.up_proj": "ffn_up_exps",
    "mlp.experts.*.down_proj": "ffn_down_exps",
}
"""Module of a layer -> its name in a GGUF file, where the experts of a layer are one tensor."""


@cache
def numbers(shape: tuple[int, ...], role: str, variant: int) -> Matrix:
    """The weights of a matrix, or ones for a norm."""
    if role == "norm":
        return np.ones(shape, np.float32)
    rows = min(shape[0], EMBEDDING_ROWS) if role in ("embedding", "head") else shape[0]
    random = np.random.default_rng([variant, *shape, *role.encode()])
    drawn = random.standard_normal((rows, *shape[1:]), np.float32) / np.float32(shape[-1] ** 0.5)
    return np.resize(drawn, shape)


def write_int4(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> None:
    """Write the packed folder."""
    chosen = choose(tensors, Recipe("int4"))
    specs = {name: TensorSpec(name, spec.shape, spec.role, chosen[name].kind) for name, spec in tensors.items()}

    @cache
    def packed(shape: tuple[int, ...], role: str, kind: str, variant: int) -> tuple[Tensor, float]:
        return quantize(Tensor("f32", shape, numbers(shape, role, variant)), kind)

    turns = itertools.cycle(range(VARIANTS))
    with write_packed(folder, Contents(config, specs, {}, {})) as writer:
        for name, spec in specs.items():
            writer.add(name, *packed(spec.shape, spec.role, spec.kind, next(turns)))


def write_gguf(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], type_of: Callable[[str, int, int], str]
) -> None:
    """Write a GGUF file; `type_of` a module, its layer and the number of layers is a name of llama.cpp's types."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    _add_metadata(writer, config)
    turn = {name: place % VARIANTS for place, name in enumerate(tensors)}
    stacks = dict(_stacks(tensors))
    kinds = {}
    for name, members in stacks.items():
        shape, role = tensors[members[0]].shape, tensors[members[0]].role
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        plain = role in ("norm", "router")
        kinds[name] = "F32" if plain else type_of(name, layer, config["num_hidden_layers"])
        kind = gguf.GGMLQuantizationType[kinds[name]]
        stack = (len(members), *shape) if role == "expert" else shape
        stored = gguf.quant_shape_to_byte_shape(stack, kind)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    encode = cache(_encoder())
    for name, members in stacks.items():
        specs = [tensors[member] for member in members]
        parts = [encode(spec.shape, spec.role, turn[spec.name], kinds[name]) for spec in specs]
        writer.write_tensor_data(np.concatenate(parts))
    writer.close()


def q4_0(name: str, layer: int, layers: int) -> str:
    """Types of a Q4_0 file."""
    return "Q6_K" if name == "output.weight" else "Q4_0"


def q4_k_m(name: str, layer: int, layers: int) -> str:
    """Types of a Q4_K_M file, as llama.cpp chooses them: some values and down projections have more bits."""
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if name == "output.weight" or (more and ("attn_v" in name or "ffn_down" in name)) else "Q4_K"


def _stacks(tensors: Mapping[str, TensorSpec]) -> Iterator[tuple[str, list[str]]]:
    """Name in a GGUF file -> names of the program's tensors that it has, one after the other."""
    found: dict[str, list[str]] = {}
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name in tensors:
        module = name.removesuffix(".weight")
        if module in outside:
            found[f"{outside[module]}.weight"] = [name]
            continue
        layer, inner = module.removeprefix("model.layers.").split(".", 1)
        parts = ["*" if part.isdigit() else part for part in inner.split(".")]
        found.setdefault(f"blk.{layer}.{NAMES['.'.join(parts)]}.weight", []).append(name)
    yield from found.items()


def _add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _encoder() -> Callable[[tuple[int, ...], str, int, str], NDArray[np.uint8]]:
    """Return llama.cpp's own rounding: to the bytes of a matrix in one of its types."""
    import llama_cpp

    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def encode(shape: tuple[int, ...], role: str, variant: int, name: str) -> NDArray[np.uint8]:
        values = np.ascontiguousarray(numbers(shape, role, variant))
        if name == "F32":
            return values.view(np.uint8).reshape(-1)
        kind = gguf.GGMLQuantizationType[name]
        out = np.empty(gguf.quant_shape_to_byte_shape(shape, kind), np.uint8)
        source, target = (array.ctypes.data_as(ctypes.c_void_p) for array in (values, out))
        rows, columns = (ctypes.c_int64(size) for size in shape)
        library.ggml_quantize_chunk(int(kind), source, target, ctypes.c_int64(0), rows, columns, None)
        return out.reshape(-1)

    return encode


def main() -> None:
    """Write the folder and the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8, help="of 48, 350 MB each")
    parser.add_argument("--only", choices=("int4", "q4_0", "q4_k_m"), help="write one of the three alone")
    options = parser.parse_args()
    config = {**CONFIG, "num_hidden_layers": options.layers}
    tensors = read(config).record().tensors
    options.folder.mkdir(exist_ok=True)
    if options.only in (None, "int4"):
        write_int4(options.folder / "int4", config, tensors)
    for name, type_of in (("q4_0", q4_0), ("q4_k_m", q4_k_m)):
        if options.only in (None, name):
            write_gguf(options.folder / f"{name}.gguf", config, tensors, type_of)


if __name__ == "__main__":
    main()
