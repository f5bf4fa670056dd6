"""What `config.json` may say: defaults, both spellings, and hostile values, each refused by its name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from golden.generate import CASES
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.models.config.fields import COMPUTING
from quantkit.models.decoder.latent_attention import LatentConfig
from quantkit.models.program import Program
from quantkit.models.registry import FAMILIES, read

TYPES = list(tiny.FAMILIES)
WITHOUT_DEFAULT: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 20]]},
    "gptj": {"rotary_dim": 8},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 20},
    "mamba2": {"num_heads": 40},
    "opt": {"ffn_dim": 160},
    "xglm": {"ffn_dim": 160},
    "zamba2": {"num_hidden_layers": 54},
}
"""Fields that have no default in transformers, or one that fits a single size."""
OTHER_HEADS = ("falcon_mamba", "mamba", "mamba2", "zamba2")
"""Families without attention, or with heads of another size."""
LATENT = [name for name in TYPES if issubclass(FAMILIES[name].config, LatentConfig)]


def record(config: dict[str, Any]) -> Program:
    return read(config).record()


def spelled(model_type: str, field: str) -> str:
    """How the tiny config of a family spells a field."""
    spellings = FAMILIES[model_type].config.SPELLINGS.items()
    return next((name for name, ours in spellings if ours == field and has(tiny.FAMILIES[model_type], name)), field)


def has(fields: dict[str, Any], name: str) -> bool:
    """Whether a config has a field, which may be that of an object within: `attn_config.kv_n_heads`."""
    first, _, rest = name.partition(".")
    return first in fields and (not rest or has(fields[first], rest))


def windows(program: Program) -> list[int]:
    return [step.parameters["window"] for step in program.operations if step.name == "attention"]


def test_every_architecture_has_a_tiny_checkpoint() -> None:
    assert set(FAMILIES) == set(tiny.FAMILIES)


@pytest.mark.parametrize("model_type", TYPES)
def test_context_length(model_type: str) -> None:
    name = spelled(model_type, "max_position_embeddings")
    assert read(tiny.config_of(model_type, **{name: 77})).context_length == 77


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_impossible_sizes_are_refused(model_type: str, field: str) -> None:
    name = spelled(model_type, field)
    for value in (0, -1, "64", 64.0, True, [64], 2**31, math.nan):
        with pytest.raises(CheckpointError, match=rf"config\.json: {name} is .*, not a whole number from 1 to"):
            record(tiny.config_of(model_type, **{name: value}))


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_sizes_of_null_are_refused(field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} is None, not a whole number"):
        record(tiny.config_of("llama", **{field: None}))


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_missing_sizes_are_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} is missing"):
        record(tiny.config_of("llama", **{field: ...}))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rms_norm_eps", 0, "a positive number"),
        ("rms_norm_eps", math.inf, "a positive number"),
        ("rms_norm_eps", "1e-5", "a positive number"),
        ("rms_norm_eps", 10**400, "a positive number"),
        ("rms_norm_eps", 1e-60, "a positive number"),
        ("rope_theta", math.nan, "a positive number"),
        ("partial_rotary_factor", -1, "a positive number"),
        ("original_max_position_embeddings", 4096.5, "a whole number"),
        ("rope_scaling", ["linear"], "an object"),
        ("rope_parameters", 3, "an object"),
        ("hidden_act", None, "a text"),
        ("tie_word_embeddings", 1, "true or false"),
        ("attention_bias", "no", "true or false"),
        ("num_key_value_heads", 0, "a whole number"),
        ("head_dim", -8, "a whole number"),
        ("max_position_embeddings", 1.5, "a whole number"),
        ("num_hidden_layers", 1001, "a whole number from 1 to 1000"),
    ],
)
def test_ill_typed_fields_are_refused(field: str, value: Any, expected: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} is .*, not {expected}"):
        record(tiny.config_of("llama", **{field: value}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 does not divide into num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 8}, "num_attention_heads 4 is no multiple of num_key_value_heads 8"),
        ({"head_dim": 15}, "head_dim 15 is not an even number up to 65536"),
        ({"head_dim": 2**30}, "head_dim 1073741824 is not an even number up to 65536"),
        ({"hidden_size": 2**30, "num_attention_heads": 1, "num_key_value_heads": 1}, "head_dim 1073741824 is not"),
    ],
)
def test_fields_that_contradict_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        record(tiny.config_of("llama", **overrides))


def test_an_unknown_model_type_lists_what_is_supported() -> None:
    supported = ", ".join(FAMILIES)
    with pytest.raises(UnsupportedError, match=rf"model_type 'rwkv' is not supported; supported are {supported}"):
        record(tiny.config_of("llama") | {"model_type": "rwkv"})
    for config in ({}, {"model_type": None}, {"model_type": 3}):
        with pytest.raises(CheckpointError, match="model_type is missing"):
            read(config)


@pytest.mark.parametrize("model_type", [name for name in TYPES if "hidden_act" not in FAMILIES[name].config.IGNORED])
def test_an_unknown_activation_lists_what_is_supported(model_type: str) -> None:
    field = (
        "hidden_activation" if "hidden_activation" in tiny.FAMILIES[model_type] else spelled(model_type, "hidden_act")
    )
    with pytest.raises(UnsupportedError, match=rf"{field} 'mish' is not supported; supported are silu, .*gelu"):
        record(tiny.config_of(model_type, **{field: "mish"}))


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in (*LATENT, *OTHER_HEADS)])
def test_a_missing_head_dim_may_also_be_null(model_type: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, spelled(model_type, "num_key_value_heads"): None}
    tensors = record(tiny.config_of(model_type, head_dim=None, global_head_dim=16, **sizes)).tensors
    ends = (".q_proj.weight", ".q_proj.query.weight")
    queries = [spec.shape for name, spec in tensors.items() if name.endswith(ends)]
    assert set(queries) == {(64, 64)}


@pytest.mark.parametrize("model_type", TYPES)
def test_the_nearest_class_has_the_last_word_on_a_default(model_type: str) -> None:
    config = FAMILIES[model_type].config
    for known in dataclasses.fields(config):
        nearest: Any = next(each for each in config.__mro__ if known.name in vars(each).get("__annotations__", {}))
        assert known.default == nearest.__dataclass_fields__[known.name].default, known.name


def test_a_field_by_the_name_of_its_family() -> None:
    expected = record(tiny.config_of("gpt_neox", rotary_pct=0.5))
    assert record(tiny.config_of("gpt_neox", rotary_pct=..., partial_rotary_factor=0.5)) == expected
    with pytest.raises(CheckpointError, match=r"rotary_pct is 0\.5, but partial_rotary_factor is 1"):
        record(tiny.config_of("gpt_neox", rotary_pct=0.5, partial_rotary_factor=1))
    with pytest.raises(CheckpointError, match=r"config\.json: norm_epsilon is 'small', not a positive number"):
        record(tiny.config_of("starcoder2", norm_epsilon="small"))


def test_mistral_without_a_window() -> None:
    assert windows(record(tiny.config_of("mistral"))) == [16, 16]
    assert windows(record(tiny.config_of("mistral", sliding_window=None))) == [0, 0]
    assert windows(record(tiny.config_of("mistral", sliding_window=...))) == [4096, 4096]
    mixed = ["full_attention", "sliding_attention"]
    assert windows(record(tiny.config_of("mistral", layer_types=mixed))) == [0, 16]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_windows(model_type: str) -> None:
    def layers(**overrides: Any) -> list[int]:
        return windows(record(tiny.config_of(model_type, sliding_window=16, num_hidden_layers=3, **overrides)))

    assert layers() == [0, 0, 0]
    assert layers(use_sliding_window=True) == ([0, 16, 16] if model_type == "qwen2" else [0, 0, 0])
    assert layers(use_sliding_window=True, max_window_layers=0) == [16, 16, 16]
    mixed = ["sliding_attention", "full_attention", "sliding_attention"]
    assert layers(use_sliding_window=True, layer_types=mixed) == [16, 0, 16]
    with pytest.raises(CheckpointError, match="sliding_attention, but there is no sliding_window"):
        layers(layer_types=mixed)
    with pytest.raises(CheckpointError, match="layer_types has 2 entries for 3 layers"):
        layers(layer_types=mixed[:2])
    with pytest.raises(UnsupportedError, match="layer_types has 'linear_attention'"):
        layers(layer_types=["full_attention", "full_attention", "linear_attention"])


def test_gemma3_windows() -> None:
    def layers(**overrides: Any) -> list[int]:
        return windows(record(tiny.config_of("gemma3_text", num_hidden_layers=7, **overrides)))

    assert layers() == [16, 16, 0, 16, 16, 0, 16]
    assert layers(sliding_window_pattern=...) == [16, 16, 16, 16, 16, 0, 16]
    assert layers(layer_types=["full_attention"] * 6 + ["sliding_attention"]) == [0] * 6 + [16]


def rotated(program: Program) -> list[bool]:
    """Whether each layer's queries are rotated."""
    turned = {step.output.index for step in program.operations if step.name == "rope"}
    return [step.inputs[0].index in turned for step in program.operations if step.name == "attention"]


def test_smollm3_leaves_layers_unrotated() -> None:
    def layers(**overrides: Any) -> Program:
        return record(tiny.config_of("smollm3", **{"num_hidden_layers": 5, "no_rope_layers": ...} | overrides))

    assert rotated(layers()) == [True, False, True, False, True]
    assert rotated(layers(no_rope_layer_interval=...)) == [True, True, True, False, True]
    assert rotated(layers(no_rope_layers=[0, 0, 1, 1, 1, 0])) == [False, False, True, True, True]
    assert windows(layers(sliding_window=16)) == [0] * 5
    assert windows(layers(sliding_window=16, use_sliding_window=True)) == [0, 16, 0, 16, 0]
    for flags in ([1, 0], [1, 0, 1, 1, 2], [1, 1, 1, 1, True], [1, 1, 1, 1, "1"]):
        with pytest.raises(CheckpointError, match=r"no_rope_layers is .*, not 0 or 1 for each of 5 layers"):
            layers(no_rope_layers=flags)


def test_exaone4_rotates_where_it_sees_a_window() -> None:
    def layers(**overrides: Any) -> Program:
        return record(tiny.config_of("exaone4", **{"num_hidden_layers": 5, "layer_types": ...} | overrides))

    assert windows(layers()) == [16, 0, 16, 0, 16]
    assert rotated(layers()) == [True, False, True, False, True]
    assert windows(layers(sliding_window_pattern=...)) == [16, 16, 16, 0, 16]
    for whole in ({"sliding_window": None}, {"sliding_window_pattern": None}):
        assert windows(layers(**whole)) == [0] * 5
    assert rotated(layers(sliding_window=None)) == [True] * 5
    mixed = layers(layer_types=["full_attention", *["sliding_attention"] * 4], sliding_window_pattern="LLLG")
    assert windows(mixed) == [0, 16, 16, 16, 16]
    assert rotated(mixed) == [False, True, True, True, True]
    for pattern in ("LLLG", 0, -1, 2.0, True):
        with pytest.raises(CheckpointError, match=r"sliding_window_pattern is .*, not a whole number from 1 up"):
            layers(sliding_window_pattern=pattern)


def test_olmo3_scales_rope_where_it_sees_all() -> None:
    program = record(tiny.config_of("olmo3", layer_types=..., num_hidden_layers=4))
    assert windows(program) == [16, 16, 16, 0]
    scaled, plain = [step.constant for step in program.operations if step.name == "rotation"]
    assert plain == read(tiny.config_of("llama", rope_theta=500000.0)).record().operations[0].constant
    assert scaled != plain


@pytest.mark.parametrize(
    "biases", [{"qkv_bias": True, "bias": False}, {"attention_bias": True}, {"attention_bias": False, "qkv_bias": True}]
)
def test_internlm3_spells_biases_in_two_ways(biases: dict[str, bool]) -> None:
    config = tiny.config_of("internlm3") | {"qkv_bias": None, "bias": None} | biases
    found = {name.split(".")[-2] for name in record(config).tensors if name.endswith("bias")}
    assert found == {"q_proj", "k_proj", "v_proj"}
    config = tiny.config_of("internlm3") | {"qkv_bias": None, "bias": None, "mlp_bias": True}
    found = {name.split(".")[-2] for name in record(config).tensors if name.endswith("bias")}
    assert found == {"o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([[["global"], 3]], "attention_types are 3 for 2 layers"),
        ([[["global", "sparse"], 1]], "attention_types has 'sparse'"),
        ([[["global"], 0]], r"attention_types has \[\['global'\], 0\]"),
        ([["global", "local"]], "not types and how often"),
        ([3], "attention_types has 3"),
    ],
)
def test_gpt_neo_says_how_often_types_of_layers_come(types: list[Any], message: str) -> None:
    program = record(
        tiny.config_of("gpt_neo", attention_types=[[["local"], 1], [["global", "local"], 1]], num_layers=3)
    )
    assert windows(program) == [16, 0, 16]
    with pytest.raises(QuantkitError, match=message):
        record(tiny.config_of("gpt_neo", attention_types=types))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("expansion_ratio", 2, "expansion_ratio is 2; supported are 4"),
        ("norm_type", "rmsnorm", "norm_type is 'rmsnorm'"),
        ("attn_config", {"alibi": False}, "attn_config.alibi is False; supported are True"),
        ("attn_config", {"qk_ln": True}, "attn_config.qk_ln is True"),
        ("attn_config", {"clip_qkv": "much"}, "attn_config.clip_qkv is 'much', not a positive number"),
    ],
)
def test_mpt_without_what_transformers_lacks(field: str, value: Any, message: str) -> None:
    with pytest.raises(QuantkitError, match=message):
        record(tiny.config_of("mpt", **{field: value}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_config": [8]}, r"attn_config is \[8\], not an object"),
        ({"attn_config": {"clip_qkv": "much"}}, r"attn_config\.clip_qkv is 'much', not a positive number"),
        ({"attn_config": {"rope_theta": 5e4}}, r"attn_config\.rope_theta is 50000\.0, but rope_theta is 500000"),
        ({"attn_config": {"kv_n_heads": 3}}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"ffn_config": {"moe_top_k": 7, "moe_num_experts": 6}}, "a token goes to 7 experts, of which there are 6"),
        ({"ffn_config": {"moe_normalize_expert_weights": 2}}, "weights is 2.0; supported are 1 and null"),
        ({"ffn_config": {"ffn_act_fn": {"name": "mish"}}}, r"ffn_config\.ffn_act_fn\.name 'mish' is not supported"),
        ({"tie_word_embeddings": True}, "dbrx has a head of its own"),
    ],
)
def test_what_dbrx_cannot_say_in_parts(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantkitError, match=message):
        record(tiny.config_of("dbrx", **fields))


def test_fields_of_the_parts_of_dbrx_count_there_alone() -> None:
    fields = {"intermediate_size": 96, "hidden_act": "gelu", "clip_qkv": 3.0, "num_key_value_heads": 4}
    assert record(tiny.config_of("dbrx", **fields)) == record(tiny.config_of("dbrx"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("expert_selection_fn", "argmax", "expert_selection_fn is 'argmax'; supported are softmax and sigmoid"),
        ("shared_expert_combination_strategy", "max", "strategy is 'max'; supported are average and sum"),
        ("mlp_layer_types", ["dense"], "mlp_layer_types has 1 entries for 4 layers"),
        ("mlp_layer_types", ["moe"] * 4, "mlp_layer_types has 'moe'; supported are dense and sparse"),
        ("layer_types", ["full_attention"] * 3, "layer_types has 3 entries for 4 layers"),
        ("num_experts_per_tok", 7, "a token goes to 7 experts, of which there are 6"),
    ],
)
def test_how_cohere_mixes_experts(field: str, value: Any, message: str) -> None:
    with pytest.raises(QuantkitError, match=message):
        record(tiny.config_of("cohere2_moe", **{field: value}))


@pytest.mark.parametrize(
    ("pattern", "windows", "rotated"),
    [(1, (0, 0, 16, 16), (True, True, True, True)), (2, (16, 0, 16, 16), (True, False, True, True))],
)
def test_cohere_rotates_plain_layers_that_all_see_all(
    pattern: int, windows: tuple[int, ...], rotated: tuple[bool, ...]
) -> None:
    fields = {"first_k_dense_replace": 2, "prefix_dense_sliding_window_pattern": pattern}
    config = read(tiny.config_of("cohere2_moe", **fields)).config
    assert (config.windows, config.rotated) == (windows, rotated)


@pytest.mark.parametrize("model_type", ["codegen", "gptj"])
def test_gptj_rotates_a_part_of_its_heads(model_type: str) -> None:
    for rotary_dim in (7, 18):
        with pytest.raises(CheckpointError, match=f"rotary_dim {rotary_dim} is not an even number up to 16"):
            record(tiny.config_of(model_type, rotary_dim=rotary_dim))
    with pytest.raises(UnsupportedError, match="tie_word_embeddings is True"):
        record(tiny.config_of(model_type, tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match="num_attention_heads 2 is no multiple of 4"):
        record(tiny.config_of("codegen", n_head=2))


@pytest.mark.parametrize("model_type", LATENT)
def test_latents_make_keys_for_all_heads(model_type: str) -> None:
    expected = record(tiny.config_of(model_type))
    assert record(tiny.config_of(model_type, head_dim=12, num_key_value_heads=2)) == expected
    with pytest.raises(CheckpointError, match="11 of them rotated"):
        record(tiny.config_of(model_type, qk_rope_head_dim=11))


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("deepseek_v2", "scoring_func", "sigmoid"),
        ("deepseek_v2", "topk_method", "noaux_tc"),
        ("deepseek_v2", "norm_topk_prob", True),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "topk_method", "greedy"),
        ("deepseek_v3", "moe_layer_freq", 2),
        ("deepseek_v3", "mlp_bias", True),
        ("glm4_moe_lite", "mlp_layer_types", ["dense", "sparse"]),
        ("glm4_moe_lite", "mlp_layer_types", ["dense", "sparse", "wide"]),
    ],
)
def test_experts_that_deepseek_does_not_have_are_refused(model_type: str, field: str, value: Any) -> None:
    with pytest.raises(QuantkitError, match=rf"config\.json: {field} is "):
        record(tiny.config_of(model_type, **{field: value}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "llama3", "sliding_attention"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), model_type=st.sampled_from(TYPES))
def test_any_value_of_any_field_is_understood_or_refused(data: st.DataObject, model_type: str) -> None:
    fields = [known.name for known in dataclasses.fields(FAMILIES[model_type].config)] + sorted(COMPUTING)
    changes = data.draw(st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=2))
    try:
        outcome = "recorded" if record(tiny.config_of(model_type, **changes)).logits.selected else ""
    except QuantkitError as error:
        outcome = str(error)
    assert outcome == "recorded" or outcome.startswith("config.json: ")


def as_transformers_saves_it(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    (folder / "config.json").write_text(json.dumps(config))
    AutoConfig.from_pretrained(folder).save_pretrained(folder)
    saved: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return saved


@pytest.mark.live
@pytest.mark.parametrize("name", CASES)
def test_transformers_own_spelling_means_the_same(name: str, tmp_path: Path) -> None:
    config = tiny.config_of(CASES[name].model_type, **CASES[name].overrides)
    assert record(as_transformers_saves_it(config, tmp_path)) == record(config)


@pytest.mark.live
@pytest.mark.parametrize("model_type", TYPES)
def test_missing_fields_have_transformers_defaults(model_type: str, tmp_path: Path) -> None:
    # As many heads as every family's number of KV heads divides.
    sizes = {"hidden_size": 1280, "intermediate_size": 160, "num_attention_heads": 160, "num_hidden_layers": 40}
    config = {"model_type": model_type, "vocab_size": 320} | sizes | WITHOUT_DEFAULT.get(model_type, {})
    saved = as_transformers_saves_it(config, tmp_path)
    assert record(saved) == record(config)
    assert read(saved).context_length == read(config).context_length
