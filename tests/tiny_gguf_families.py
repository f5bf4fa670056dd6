"""Tiny GGUF files of all architectures: tiny checkpoints of `golden/generate.py`, as llama.cpp's converter writes them.

What the converter does to tensors is stated once more in `tiny_gguf_changes.py`, with names by the `gguf` package; its
metadata are kept in `golden/llama_cpp_files.json`, with a digest of its tensors. `golden/llama_cpp_convert.py` asks the
converter itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

import tiny
import tiny_gguf
from golden import generate
from tiny_gguf_changes import CHANGES, Change, Tensors, fused
from tiny_gguf_words import internlm2, qwen

FILE = Path(__file__).parent / "golden" / "llama_cpp_files.json"
NEWER = {"cohere2moe": "glm4moe", "granite_swa": "granitehybrid", "hy_v3": "exaone-moe"}
"""Architectures that llama.cpp's sources know, and the released `gguf` package does not: one that is named like it."""

FUSED = {"qwen": "qwen2"}
"""Those that have fused tensors alone -> one that has the parts."""


@dataclass(frozen=True)
class Case:
    """A golden case of transformers, changed so that a GGUF file says all of it.

    `layers` are as many as the case has, or so many like its first. `resized` has the shapes that the overrides change,
    by ends of names. With `signs`, weights of layers are 1/16 or -1/16: ternary, as the converter makes BitNet's. With
    `fused`, the converter is asked to make one tensor of queries, keys and values, or of experts' gates and what they
    gate. What it is `told` beside the config are other words for the same model, which is stored as `words` make it.
    """

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    layers: int | None = None
    resized: dict[str, tuple[int, ...]] = field(default_factory=dict)
    signs: bool = False
    told: dict[str, Any] = field(default_factory=dict)
    words: Change | None = None
    fused: Literal["", "attn_q", "ffn_gate_exps"] = ""

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
        folder = tiny.checkpoint(folder, self.model_type, dtype="F32", tensors=self.shapes(), **overrides)
        if self.signs:
            _store(folder, tensors_of(self))
        return folder

    def reworded(self, folder: Path) -> Path:
        """Write the folder that the converter is given."""
        self.checkpoint(folder)
        if self.words is not None:
            _store(folder, self.words(tensors_of(self), self.config()))
        return folder


def _store(folder: Path, tensors: Tensors) -> None:
    stored = {name: ("F32", np.ascontiguousarray(values)) for name, values in tensors.items()}
    tiny.write_safetensors(folder / "model.safetensors", stored)


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
_SECTIONS = {"rope_scaling": {"type": "default", "mrope_section": [4, 2, 2]}}
_INTERLEAVED_SECTIONS = {"rope_scaling": {"type": "default", "mrope_section": [6, 5, 5]}}
"""Channels that turn by a picture's time, height and width, which of text are one."""
_MINICPM = {
    "attention_multiplier": 0.25,
    "embedding_multiplier": 12.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 1.4 / 2**0.5,
}
_MINICPM_WORDS = {"architectures": ["MiniCPMForCausalLM"], "dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 12}
"""MiniCPM 1 and 2 are Granite in other words."""
_QWEN = {"architectures": ["QWenLMHeadModel"], "intermediate_size": 320}
"""Qwen counts the columns of both halves of an MLP."""
_PHI_MOE = {
    "architectures": ["PhiMoEForCausalLM"],
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [1.0, 1.1, 1.3, 1.7, 2.5, 3.0, 3.5, 4.0],
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3],
    },
}
_MPT_CLIPPED = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 0.8}
_SMALL_HEADS_FUSED: dict[str, tuple[int, ...]] = {
    "query_key_value.weight": (128, 64),
    "dense.weight": (64, 64),
    "query_layernorm.weight": (16,),
    "key_layernorm.weight": (16,),
}
_AS_MANY_KEYS: dict[str, tuple[int, ...]] = {"k_proj.weight": (64, 64), "v_proj.weight": (64, 64)}
_EXPERTS_OF_NEMOTRON = ("num_experts_per_tok", "n_routed_experts", "n_group", "topk_group", "routed_scaling_factor")

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
    "gemma4_text_experts": Case("gemma4_text_experts", {"final_logit_softcapping": 30.0}),
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
    "apertus": Case("apertus"),
    "bamba": Case("bamba", {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_head": 16}),
    "bitnet": Case("bitnet", {"hidden_act": "silu"}, signs=True),
    "bloom": Case("bloom"),
    "cohere2_moe": Case("cohere2_moe"),
    "dbrx": Case("dbrx"),
    "dots1": Case("dots1", {"num_key_value_heads": 4, "scoring_func": "sigmoid"}, resized=_AS_MANY_KEYS),
    "exaone": Case("exaone"),
    "falcon_h1": Case("falcon_h1_norm_behind_the_gate", {"head_dim": 16}),
    "falcon_h1_no_norm": Case("falcon_h1", {"head_dim": 16}),
    "falcon_mamba": Case("falcon_mamba"),
    "gemma3n_text": Case("gemma3n_text_four_inputs"),
    "gemma3n_text_published_ranks": Case(
        "gemma3n_text_published_ranks", {"activation_sparsity_pattern": [0.95] * 4, "final_logit_softcapping": 30.0}
    ),
    "granite_swa": Case("granite_swa_default_layers"),
    "granitemoe_swa": Case("granitemoe_swa", {"layer_rope_theta": ...}),
    "hunyuan_v1_moe": Case("hunyuan_v1_moe", {"rope_scaling": ...}),
    "hy_v3": Case("hy_v3"),
    "jamba": Case("jamba"),
    "jamba_one_expert": Case("jamba_one_expert", {"mamba_dt_rank": 4, "num_experts_per_tok": 1}),
    "llama4_text": Case("llama4_text_as_published"),
    "mamba": Case("mamba", {"time_step_rank": 4}),
    "minicpm3": Case("minicpm3", {"dim_model_base": 256, "scale_emb": 12}),
    "mpt": Case("mpt", {"architectures": ["MPTForCausalLM"]}),
    "mpt_clipped": Case("mpt_clipped", {"architectures": ["MPTForCausalLM"], "attn_config": _MPT_CLIPPED}),
    "nemotron_h": Case("nemotron_h_no_experts", dict.fromkeys(_EXPERTS_OF_NEMOTRON, ...)),
    "nemotron_h_experts": Case("nemotron_h_no_mlp"),
    "phimoe": Case("phimoe", _PHI_MOE),
    "sarvam_moe": Case("sarvam_moe", {"head_dim": 16, "score_function": "sigmoid"}, resized=_SMALL_HEADS_FUSED),
    "qwen2_vl": Case("qwen2", {"architectures": ["Qwen2VLForConditionalGeneration"], **_SECTIONS}),
    "qwen3_vl": Case("qwen3", {"architectures": ["Qwen3VLForConditionalGeneration"], **_INTERLEAVED_SECTIONS}),
    "qwen3_vl_moe": Case(
        "qwen3_moe", {"architectures": ["Qwen3VLMoeForConditionalGeneration"], **_INTERLEAVED_SECTIONS}
    ),
    "minicpm": Case("granite", _MINICPM, told=_MINICPM_WORDS),
    "xverse": Case("llama", told={"architectures": ["XverseForCausalLM"]}),
    "internlm2": Case("llama", told={"architectures": ["InternLM2ForCausalLM"]}, words=internlm2),
    "qwen": Case(
        "qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": False}, told=_QWEN, words=qwen, fused="attn_q"
    ),
    "llama_fused": Case("llama_biases", fused="attn_q"),
    "qwen2_fused": Case("qwen2", fused="attn_q"),
    "cohere2_moe_fused": Case("cohere2_moe", fused="ffn_gate_exps"),
}


def tensors_of(case: Case) -> Tensors:
    """Name -> values in the Hugging Face folder."""
    centred = case.model_type in tiny.ZERO_CENTRED
    values = {name: tiny.weight(name, shape, zero_centred_norms=centred) for name, shape in case.shapes().items()}
    for name in values if case.signs else ():
        if name.endswith("_proj.weight"):
            values[name] = np.where(values[name] < 0, -1 / 16, 1 / 16).astype(np.float32)
    return values


def stored(case: Case, architecture: str) -> Tensors:
    """GGUF name -> values, as the converter stores them."""
    config, tensors = case.config(), tensors_of(case)
    for change in CHANGES.get(case.model_type, ()):
        tensors = change(tensors, config)
    layers = max(int(match[1]) for name in tensors if (match := re.search(r"\.(\d+)\.", name))) + 1
    named_as = (NEWER | FUSED).get(architecture, architecture)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == named_as)
    names = gguf.get_tensor_name_map(number, layers)
    found = {}
    for name, values in tensors.items():
        known = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        found[known] = values
    return fused(found, case.fused) if case.fused else found


def write(path: Path, name: str, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a case as a GGUF file, with other values of some keys of its architecture."""
    golden = json.loads(FILE.read_text())[name]
    architecture = golden["architecture"]
    tensors = stored(CASES[name], architecture)
    assert digest(tensors) == golden["digest"], "not what llama.cpp's converter writes"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (golden["metadata"] | dict(changes or {})).items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in golden.get("beside", {}).items():
        _add(writer, key, value)
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

    What is computed counts with three digits: libraries differ in their last one.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        computed = name.endswith(("ssm_a", "exp_probs_b.bias"))
        values = tensors[name].astype(np.float16) if computed else tensors[name]
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
