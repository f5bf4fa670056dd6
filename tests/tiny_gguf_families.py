"""Tiny GGUF files of all architectures: tiny checkpoints of `golden/generate.py`, as llama.cpp's converter writes them.

What the converter does to tensors is stated here once more, with names by the `gguf` package; its metadata are kept in
`golden/llama_cpp_files.json`, with a digest of its tensors. `golden/llama_cpp_convert.py` asks the converter itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

import tiny
import tiny_gguf
from golden import generate

FILE = Path(__file__).parent / "golden" / "llama_cpp_files.json"
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """A golden case of transformers, changed so that a GGUF file says all of it.

    `layers` are as many as the case has, or so many like its first. `resized` has the shapes that the overrides change,
    by ends of names.
    """

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    layers: int | None = None
    resized: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        return generate.CASES[self.name].model_type

    def config(self) -> dict[str, Any]:
        layers = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return tiny.config_of(self.model_type, **(generate.CASES[self.name].overrides | self.overrides | layers))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that transformers saves."""
        if self.model_type in tiny.SHAPED:
            return tiny.shapes(self.config())
        shapes = generate.shapes(self.name)
        for end, shape in self.resized.items():
            shapes |= {name: shape for name in shapes if name.endswith(end)}
        if self.layers is None:
            return shapes
        found = {name: shape for name, shape in shapes.items() if not re.search(r"\.\d+\.", name)}
        first = {name: shape for name, shape in shapes.items() if re.match(r"[a-z_.]*\.0\.", name)}
        return found | {
            name.replace(".0.", f".{n}.", 1): shape for n in range(self.layers) for name, shape in first.items()
        }

    def checkpoint(self, folder: Path) -> Path:
        """Write the Hugging Face folder."""
        layers = {} if self.layers is None else {"num_hidden_layers": self.layers}
        overrides = generate.CASES[self.name].overrides | self.overrides | layers
        return tiny.checkpoint(folder, self.model_type, dtype="F32", tensors=self.shapes(), **overrides)


_SAME = """llama llama_awkward_sizes llama_biases llama_linear_rope llama_llama3_rope llama_yarn_rope arcee seed_oss
internlm3_biases falcon_new_one_norm gpt2 granite granite_biases nemotron_biases olmo olmo2 olmo2_biases
olmo3 olmo3_default_layers exaone4 exaone4_no_window exaone4_default_layers cohere glm4 glm4_biases ernie4_5
hunyuan_v1_dense_biases stablelm mistral_no_window phi phi3 phi3_partial_rope phi3_window_longrope gemma granitemoe
mixtral olmoe qwen3 qwen3_moe"""

_MLA_YARN = {
    "beta_fast": 2,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 0.5,
    "mscale_all_dim": 0.5,
    "original_max_position_embeddings": 16,
    "type": "yarn",
}
_SMALL_HEADS: dict[str, tuple[int, ...]] = {
    "q_proj.weight": (64, 64),
    "q_proj.bias": (64,),
    "k_proj.weight": (32, 64),
    "k_proj.bias": (32,),
    "v_proj.weight": (32, 64),
    "v_proj.bias": (32,),
    "o_proj.weight": (64, 64),
}
"""Of 4 heads of 16 channels, 2 of them keys."""

CASES: dict[str, Case] = {name: Case(name) for name in _SAME.split()} | {
    "seed_oss_biases": Case("seed_oss_biases"),
    "smollm3": Case("smollm3", {"no_rope_layer_interval": 4, "no_rope_layers": ...}, layers=4),
    "falcon_new": Case("falcon_new", {"rope_theta": ...}),
    "gpt2_scales": Case("gpt2_scales", {"activation_function": ..., "scale_attn_by_inverse_layer_idx": False}),
    "gpt_neox": Case("gpt_neox", {"rotary_emb_base": 10000}),
    "gpt_neox_in_turn": Case("gpt_neox_in_turn", {"rope_scaling": ..., "rotary_emb_base": 10000}),
    "cohere2": Case("cohere2", {"rotary_pct": 1.0, "sliding_window_pattern": 4}, layers=4),
    "qwen2_moe": Case("qwen2_moe", {"mlp_only_layers": []}, layers=2),
    "glm": Case("glm", {"head_dim": 16, "rms_norm_eps": 1e-5}, resized=_SMALL_HEADS),
    "starcoder2": Case("starcoder2", {"sliding_window": None}),
    "gemma2": Case("gemma2", {"query_pre_attn_scalar": 32}),
    "gemma3_text": Case("gemma3_text", {"query_pre_attn_scalar": 32, "sliding_window_pattern": 6}, layers=7),
    "gpt_oss": Case("gpt_oss"),
    "qwen2": Case("qwen2"),
    "afmoe": Case("afmoe", {"global_attn_every_n_layers": 4}),
    "deepseek_v2": Case("deepseek_v2", {"rope_scaling": _MLA_YARN}),
    "deepseek_v3": Case("deepseek_v3"),
    "ernie4_5_moe": Case("ernie4_5_moe"),
    "exaone_moe": Case("exaone_moe"),
    "gemma4_text": Case("gemma4_text"),
    "gemma4_text_experts": Case("gemma4_text_experts"),
    "glm4_moe": Case("glm4_moe"),
    "glm4_moe_lite": Case("glm4_moe_lite_default_layers", {"first_k_dense_replace": 1}),
    "gpt_bigcode": Case("gpt_bigcode"),
    "granitemoehybrid": Case("granitemoehybrid", {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1}),
    "granitemoeshared": Case("granitemoeshared"),
    "jais2": Case("jais2"),
    "lfm2": Case("lfm2"),
    "lfm2_moe": Case("lfm2_moe", {"routed_scaling_factor": 1.0}),
    "mamba2": Case("mamba2"),
    "minimax_m2": Case("minimax_m2"),
    "ministral3": Case("ministral3"),
    "qwen3_5_text": Case("qwen3_5_text"),
    "qwen3_5_text_tiled": Case("qwen3_5_text_biases", {"hidden_act": "silu"}),
    "qwen3_5_moe_text": Case("qwen3_5_moe_text"),
    "qwen3_next": Case("qwen3_next"),
    "solar_open": Case("solar_open"),
    "youtu": Case("youtu"),
}


def tensors_of(case: Case) -> Tensors:
    """Name -> values in the Hugging Face folder."""
    centred = case.model_type in tiny.ZERO_CENTRED
    shapes = case.shapes()
    return {name: tiny.weight(name, shape, zero_centred_norms=centred) for name, shape in shapes.items()}


def stored(case: Case, architecture: str) -> Tensors:
    """GGUF name -> values, as the converter stores them."""
    config, tensors = case.config(), tensors_of(case)
    for change in CHANGES.get(case.model_type, ()):
        tensors = change(tensors, config)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, layers)
    found = {}
    for name, values in tensors.items():
        known = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        found[known] = values
    return found


def write(path: Path, name: str, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a case as a GGUF file, with other values of some keys of its architecture."""
    golden = json.loads(FILE.read_text())[name]
    architecture = golden["architecture"]
    tensors = stored(CASES[name], architecture)
    assert digest(tensors) == golden["digest"], "not what llama.cpp's converter writes"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (golden["metadata"] | dict(changes or {})).items():
        _add(writer, f"{architecture}.{key}", value)
    for key, (value, kind) in tiny_gguf.tokenizer_metadata().items():
        writer.add_key_value(key, value, kind)
    for tensor, values in (tensors | factors(golden)).items():
        writer.add_tensor(tensor, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def factors(golden: Mapping[str, Any]) -> Tensors:
    """Rotary factors, which the converter computes."""
    return {name: np.array(values, np.float32) for name, values in golden["factors"].items()}


def digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return what tells one set of tensors from others, whatever their order.

    Exponentials count with three digits: libraries differ in their last one.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].astype(np.float16) if name.endswith("ssm_a") else tensors[name]
        state.update(f"{name} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    return state.hexdigest()[:16]


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


Change = Callable[[Tensors, Mapping[str, Any]], Tensors]


def _paired(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Halves of a head become its even and odd rows."""
    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads") or heads["q_proj"]
    found = dict(tensors)
    for name, values in tensors.items():
        if (count := heads.get(name.split(".")[-2])) is not None:
            found[name] = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return found


def _weights_paired(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    biases = {name: values for name, values in tensors.items() if name.endswith(".bias")}
    return _paired(tensors, config) | biases


def _one_more(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Norms multiply by `1 + weight`."""
    return {name: values + 1 if name.endswith("norm.weight") else values for name, values in tensors.items()}


def _gemma4(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Scales have names of their own."""
    ends = {"layer_scalar": "layer_output_scale.weight", "router.scale": "ffn_gate_inp.scale"}
    ends |= {"router.per_expert_scale": "ffn_down_exps.scale"}
    found = {}
    for name, values in tensors.items():
        end = next((end for end in ends if name.endswith(end)), None)
        is_stack = re.search(r"experts\.\w+$", name)
        found[f"blk.{name.split('.')[2]}.{ends[end]}" if end else f"{name}.weight" if is_stack else name] = values
    return found


def _transposed(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return {name: values.T if re.search(r"\.c_\w+\.weight", name) else values for name, values in tensors.items()}


def _heads_apart(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Queries of all groups first, then keys, then values."""
    heads = config["num_attention_heads"]
    groups = config.get("num_kv_heads") or heads
    found = dict(tensors)
    for name, values in tensors.items():
        if "query_key_value" in name:
            each = values.reshape(groups, heads // groups + 2, -1, *values.shape[1:])
            parts = (each[:, :-2], each[:, -2:-1], each[:, -1:])
            found[name] = np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    return found


def _stacked(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Experts, or norms of heads, that stand one by one become a stack."""
    found: Tensors = {}
    stacks: dict[str, list[NDArray[np.float32]]] = {}
    for name, values in tensors.items():
        if match := re.fullmatch(r"(.*\.)(?:experts|norms)\.(\d+)(\..*)", name):
            stacks.setdefault(f"{match[1]}|{match[3]}", []).append(values)
        else:
            found[name] = values
    for name, stack in stacks.items():
        before, after = name.split("|")
        if "block_sparse_moe" in before or "feed_forward" in before:
            before = before.replace("model.", "").replace("block_sparse_moe", "feed_forward")
        middle = before.rstrip(".") if "layernorm" in before else f"{before}experts"
        found[f"{middle}{after}"] = np.stack(stack)
    return found


def _granite_experts(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    found: Tensors = {}
    for name, values in tensors.items():
        if "block_sparse_moe.input_linear" in name:
            layer, half = name.split(".")[2], values.shape[1] // 2
            found[f"blk.{layer}.ffn_gate_exps.weight"] = values[:, :half]
            found[f"blk.{layer}.ffn_up_exps.weight"] = values[:, half:]
        else:
            found[name] = values
    return found


def _oss_experts(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Gate and up stand in turn, transposed."""
    found: Tensors = {}
    for name, values in tensors.items():
        if "experts." not in name:
            found[f"{name}.weight" if "sinks" in name else name] = values
            continue
        is_bias, stem = name.endswith("_bias"), name.removesuffix("_bias")
        rows, suffix = (values, ".bias") if is_bias else (values.swapaxes(1, 2), ".weight")
        if stem.endswith("gate_up_proj"):
            for start, part in enumerate(("gate_proj", "up_proj")):
                found[stem.replace("gate_up_proj", part) + suffix] = rows[:, start::2]
        else:
            found[stem + suffix] = rows
    return found


def _renamed(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """What ends in `_bias` without being the bias of a matrix."""
    ends = {"e_score_correction_bias": "e_score_correction.bias", "expert_bias": "expert_bias.bias"}
    ends |= {"dt_bias": "dt_proj.bias"}
    found = {}
    for name, values in tensors.items():
        for old, new in ends.items():
            name = name.removesuffix(old) + new if name.endswith(f".{old}") else name
        found[name] = values
    return found


def _latent_heads(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Keys and values apart, as stacks of heads; those of keys transposed."""
    found: Tensors = {}
    for name, values in tensors.items():
        if "kv_b_proj" in name:
            heads = values.reshape(config["num_attention_heads"], -1, values.shape[1])
            size = config["qk_nope_head_dim"]
            found[name.replace("kv_b_proj", "k_b_proj")] = heads[:, :size].swapaxes(1, 2)
            found[name.replace("kv_b_proj", "v_b_proj")] = heads[:, size:]
        else:
            found[name] = values
    return found


def _recurrent(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Kernels of convolutions without their axis of one; `A` itself for its logarithm."""
    found: Tensors = {}
    for name, values in tensors.items():
        if "conv" in name and values.ndim == 3:
            values = values.squeeze(1)
        found[name] = -np.exp(values) if name.endswith("A_log") else values
    return found


def _mamba(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A column for each head, a row for each group."""
    groups = config.get("n_groups", config.get("mamba_n_groups"))
    found = dict(tensors)
    for name, values in tensors.items():
        if name.endswith((".A_log", ".D")):
            found[name] = values[:, np.newaxis]
        elif re.search(r"\.(mixer|mamba)\.norm\.weight", name):
            found[name] = values.reshape(groups, -1)
    return found


def _delta(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return _one_more_but(tensors, "linear_attn.norm.weight")


def _tiled(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Value heads by their places in a group, the first of each group first."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    first = 2 * keys * config["linear_key_head_dim"]

    def reordered(array: NDArray[np.float32]) -> NDArray[np.float32]:
        heads = array.reshape(keys, values // keys, -1, *array.shape[1:])
        return heads.swapaxes(0, 1).reshape(array.shape)

    found = dict(tensors)
    for name, array in tensors.items():
        module = name.partition("linear_attn.")[2]
        if module.startswith(("in_proj_qkv", "conv1d")):
            found[name] = np.concatenate([array[:first], reordered(array[first:])])
        elif module.startswith("out_proj"):
            found[name] = reordered(array.T).T
        elif module and not module.startswith("norm"):
            found[name] = reordered(array)
    return found


def _one_more_but(tensors: Tensors, end: str) -> Tensors:
    return {
        name: values + 1 if name.endswith("norm.weight") and not name.endswith(end) else values
        for name, values in tensors.items()
    }


def _delta_apart(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Queries, keys and values of all heads, and gates by themselves."""
    heads, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    found: Tensors = {}
    for name, values in tensors.items():
        if "in_proj_qkvz" in name:
            layer, each = name.split(".")[2], values.reshape(heads, -1, values.shape[1])
            values_size = (each.shape[1] - 2 * size) // 2
            q, k, v, z = np.split(each, [size, 2 * size, 2 * size + values_size], axis=1)
            qkv = [part.reshape(-1, values.shape[1]) for part in (q, k, v)]
            found[f"blk.{layer}.attn_qkv.weight"] = np.concatenate(qkv)
            found[f"blk.{layer}.attn_gate.weight"] = z.reshape(-1, values.shape[1])
        else:
            found[name] = values
    return found


def _shared_apart(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Gate and up of the MLP that all tokens go to."""
    found: Tensors = {}
    for name, values in tensors.items():
        if "shared_mlp.input_linear" in name:
            layer, half = name.split(".")[2], len(values) // 2
            found[f"blk.{layer}.ffn_gate_shexp.weight"] = values[:half]
            found[f"blk.{layer}.ffn_up_shexp.weight"] = values[half:]
        else:
            found[name] = values
    return found


CHANGES: Mapping[str, tuple[Change, ...]] = {
    "afmoe": (_stacked, _renamed),
    "deepseek_v2": (_latent_heads, _stacked),
    "deepseek_v3": (_latent_heads, _stacked, _renamed),
    "ernie4_5_moe": (_stacked, _renamed),
    "exaone_moe": (_stacked, _renamed),
    "glm4_moe": (_stacked, _renamed),
    "glm4_moe_lite": (_latent_heads, _stacked, _renamed),
    "granitemoehybrid": (_paired, _shared_apart, _granite_experts, _renamed, _recurrent, _mamba),
    "granitemoeshared": (_paired, _shared_apart, _granite_experts),
    "lfm2": (_recurrent,),
    "lfm2_moe": (_stacked, _renamed, _recurrent),
    "mamba2": (_renamed, _recurrent, _mamba),
    "minimax_m2": (_stacked, _renamed),
    "qwen3_5_text": (_tiled, _renamed, _recurrent, _delta),
    "qwen3_5_moe_text": (_tiled, _stacked, _renamed, _recurrent, _delta),
    "qwen3_next": (_stacked, _renamed, _recurrent, _delta, _delta_apart),
    "solar_open": (_stacked, _renamed),
    "youtu": (_latent_heads,),
    "llama": (_paired,),
    "arcee": (_paired,),
    "internlm3": (_paired,),
    "ministral3": (_paired,),
    "mistral": (_paired,),
    "smollm3": (_paired,),
    "granite": (_paired,),
    "granitemoe": (_paired, _granite_experts),
    "mixtral": (_paired, _stacked),
    "olmo": (_weights_paired,),
    "olmoe": (_stacked,),
    "qwen2_moe": (_stacked,),
    "qwen3_moe": (_stacked,),
    "stablelm": (_stacked,),
    "gemma": (_one_more,),
    "gemma2": (_one_more,),
    "gemma3_text": (_one_more,),
    "gemma4_text": (_gemma4,),
    "nemotron": (_one_more,),
    "gpt_oss": (_oss_experts,),
    "gpt2": (_transposed,),
    "gpt_neox": (_heads_apart,),
    "falcon": (_heads_apart,),
}
