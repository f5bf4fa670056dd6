"""What llama.cpp's converter does to the tensors of each family, for `tiny_gguf_families.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]
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


def _by_ends(ends: Mapping[str, str]) -> Change:
    """Tensors of blocks under GGUF's own names, known by how they end."""

    def change(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
        found = {}
        for name, values in tensors.items():
            end = next((end for end in ends if name.endswith(end)), None)
            found[f"blk.{name.split('.')[2]}.{ends[end]}" if end else name] = values
        return found

    return change


_gemma4 = _by_ends(
    {
        "layer_scalar": "layer_output_scale.weight",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
)
_bitnet = _by_ends({f"{name}_sub_norm.weight": f"{name}_sub_norm.weight" for name in ("attn", "ffn")})
_granite_swa = _by_ends(
    {
        "sinks": "attn_sinks.weight",
        "block_sparse_moe.router.weight": "ffn_gate_inp.weight",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
        "shared_mlp.input_linear.weight": "ffn_up_shexp.weight",
    }
)
_hy_v3 = _by_ends(
    {
        "mlp.expert_bias": "exp_probs_b",
        "mlp.router.gate.weight": "ffn_gate_inp.weight",
        **{f"shared_mlp.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
    }
)


def _transposed(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return {name: values.T if re.search(r"\.c_\w+\.weight", name) else values for name, values in tensors.items()}


def _heads_apart(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Queries of all groups first, then keys, then values."""
    heads = config.get("num_attention_heads") or config["n_head"]
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


def _halves(module: str, gate: str, up: str) -> Change:
    """Gates and what they gate, which stand below each other."""

    def change(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
        found: Tensors = {}
        for name, values in tensors.items():
            if module in name:
                block = f"blk.{name.split('.')[2]}"
                first, second = np.split(values, 2, axis=values.ndim - 2)
                found |= {f"{block}.{gate}.weight": first, f"{block}.{up}.weight": second}
            else:
                found[name] = values
        return found

    return change


_granite_experts = _halves("block_sparse_moe.input_linear", "ffn_gate_exps", "ffn_up_exps")
_shared_apart = _halves("shared_mlp.input_linear", "ffn_gate_shexp", "ffn_up_shexp")


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
    gates = "linear_attn.norm.weight"
    return {
        name: values + 1 if name.endswith("norm.weight") and not name.endswith(gates) else values
        for name, values in tensors.items()
    }


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


def _without(begin: str) -> Change:
    """Names begin otherwise in the models that the converter was made for."""
    return lambda tensors, config: {name.removeprefix(begin): values for name, values in tensors.items()}


def _apertus(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Numbers of activations become metadata."""
    return {name: values for name, values in tensors.items() if "act_fn" not in name}


def _dbrx(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Experts that stand below each other become a stack."""
    experts, found = config["ffn_config"]["moe_num_experts"], {}
    for name, values in tensors.items():
        if ".experts." in name:
            stack = values.reshape(experts, -1, values.shape[1])
            found[f"{name}.weight"] = stack.swapaxes(1, 2) if name.endswith("w2") else stack
        else:
            found[name] = values
    return found


def _falcon_h1(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Factors are multiplied into weights."""
    gate, down = config["mlp_multipliers"]
    inputs = config["attention_in_multiplier"]
    factors: dict[str, tuple[float, ...]] = {
        "down_proj": (down,),
        "gate_proj": (gate,),
        "k_proj": (config["key_multiplier"], inputs),
        "q_proj": (inputs,),
        "v_proj": (inputs,),
        "o_proj": (config["attention_out_multiplier"],),
        "out_proj": (config["ssm_out_multiplier"],),
        "in_proj": (config["ssm_in_multiplier"],),
        "lm_head": (config["lm_head_multiplier"],),
        "embed_tokens": (config["embedding_multiplier"],),
    }
    inner, states = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    sizes = (inner, inner, states, states, config["mamba_n_heads"])
    columns = np.repeat(np.array(config["ssm_multipliers"], np.float32), sizes)
    found = {}
    for name, values in tensors.items():
        for factor in factors.get(name.split(".")[-2], ()):
            values = values * np.float32(factor)
        found[name] = values * columns[:, np.newaxis] if ".in_proj." in name else values
    return found


def _gemma3n(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Projections of streams become stacks."""
    found: Tensors = {}
    stacks: dict[str, list[NDArray[np.float32]]] = {"altup_projections": [], "altup_unembed_projections": []}
    for name, values in tensors.items():
        module = name.split(".")[1]
        if module in stacks:
            stacks[module].append(values)
        else:
            found[f"{name}.weight" if name.endswith("_scale") else name] = values
    return found | {f"model.{module}.weight": np.stack(stack) for module, stack in stacks.items()}


def _experts_of(module: str) -> Change:
    """Experts of a feed-forward of another name."""
    old, new = re.compile(rf".*\.(\d+)\.{module}\.experts\."), r"model.layers.\1.mlp.experts."
    return lambda tensors, config: {old.sub(new, name): values for name, values in tensors.items()}


def _llama4(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Experts are stored transposed, gates beside what they gate."""
    found: Tensors = {}
    for name, values in tensors.items():
        if name.endswith("gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(values.swapaxes(1, 2), 2, axis=1), strict=True):
                found[name.replace("gate_up_proj", f"{part}_proj.weight")] = half
        elif "experts.down_proj" in name:
            found[f"{name}.weight"] = values.swapaxes(1, 2)
        else:
            found[name] = values
    return found


def _sarvam(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Biases of experts have a mean of zero, which changes no choice."""
    return {name: v - v.mean() if name.endswith("expert_bias") else v for name, v in tensors.items()}


def fused(tensors: Tensors, first: str) -> Tensors:
    """What the converter does where it is asked to fuse tensors: by GGUF's names, of which the first is given."""
    names = {"attn_q": ("attn_q", "attn_k", "attn_v"), "ffn_gate_exps": ("ffn_gate_exps", "ffn_up_exps")}[first]
    whole = {"attn_q": "attn_qkv", "ffn_gate_exps": "ffn_gate_up_exps"}[first]
    found = dict(tensors)
    for name, values in tensors.items():
        if f".{first}." in name:
            parts = [found.pop(name.replace(first, part)) for part in names]
            found[name.replace(first, whole)] = np.concatenate(parts, axis=max(0, values.ndim - 2))
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
    "apertus": (_apertus,),
    "bamba": (_paired, _renamed, _recurrent, _mamba),
    "bitnet": (_bitnet,),
    "bloom": (_heads_apart, _without("transformer.")),
    "cohere2_moe": (_stacked,),
    "dbrx": (_dbrx,),
    "dots1": (_stacked, _renamed),
    "falcon_h1": (_falcon_h1, _renamed, _recurrent, _mamba),
    "falcon_mamba": (_recurrent,),
    "gemma3n_text": (_gemma3n,),
    "granite_swa": (_paired, _granite_swa),
    "granitemoe_swa": (_paired, _granite_swa),
    "hunyuan_v1_moe": (_stacked,),
    "hy_v3": (_hy_v3, _stacked),
    "jamba": (_experts_of("feed_forward"), _stacked, _recurrent),
    "llama4_text": (_llama4,),
    "mamba": (_recurrent,),
    "nemotron_h": (_paired, _experts_of("mixer"), _stacked, _renamed, _recurrent, _mamba),
    "phimoe": (_stacked,),
    "sarvam_moe": (_sarvam, _stacked, _renamed),
}
