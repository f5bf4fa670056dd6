"""Fields that a family does not use: refused where they change the computation, else without effect."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import tiny
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config.fields import COMPUTING, IGNORED
from quantkit.models.registry import FAMILIES, read

TYPES = list(tiny.FAMILIES)


def record(model_type: str, **overrides: Any) -> object:
    return read(tiny.config_of(model_type, **overrides)).record()


@pytest.mark.parametrize("model_type", TYPES)
def test_whatever_computes_is_refused_unless_it_is_neutral(model_type: str) -> None:
    program, used = record(model_type), FAMILIES[model_type].config.used()
    for field in COMPUTING.keys() - used:
        with pytest.raises(UnsupportedError, match=rf"config\.json: {field} is 'odd', which changes what"):
            record(model_type, **{field: "odd"})
        neutral = COMPUTING[field]
        for value in (None, [], {}, *(() if callable(neutral) else neutral)):
            assert record(model_type, **{field: value}) == program, (field, value)


@pytest.mark.parametrize("model_type", TYPES)
def test_bookkeeping_changes_nothing(model_type: str) -> None:
    fields = IGNORED - FAMILIES[model_type].config.used() - {"model_type"}
    assert record(model_type, **dict.fromkeys(fields, "anything")) == record(model_type)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("llama", "logits_scaling", 8.0),
        ("llama", "logits_scaling", True),
        ("llama", "residual_multiplier", 0.22),
        ("llama", "embedding_multiplier", 12.0),
        ("llama", "attention_multiplier", 0.015625),
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "clip_qkv", 8.0),
        ("llama", "sliding_window", 128),
        ("llama", "use_qk_norm", True),
        ("llama", "scale_emb", 12),
        ("llama", "scale_depth", 1.4),
        ("llama", "dim_model_base", 256),
        ("llama", "no_rope_layers", [1, 0]),
        ("llama", "no_rope_layer_interval", 4),
        ("llama", "layer_types", ["full_attention", "sliding_attention"]),
        ("llama", "num_local_experts", 8),
        ("llama", "rope_interleaved", True),
        ("llama", "is_causal", False),
        ("ministral3", "layer_types", ["sliding_attention"] * 2),
        ("mistral", "attention_bias", True),
        ("mistral", "mlp_bias", True),
        ("qwen2", "mlp_bias", True),
        ("qwen3", "qkv_bias", True),
        ("qwen3", "num_experts", 128),
        ("exaone4", "attention_bias", True),
        ("exaone4", "mlp_bias", True),
        ("falcon", "alibi", True),
        ("gpt2", "add_cross_attention", True),
        ("granite", "sliding_window", 128),
        ("olmo2", "clip_qkv", 8.0),
        ("olmo3", "mlp_bias", True),
        ("phi3", "attention_bias", True),
        ("phi3", "lm_head_bias", True),
        ("seed_oss", "attn_logit_softcapping", 30.0),
        ("gemma3_text", "attn_logit_softcapping", 50),
        ("gemma3_text", "final_logit_softcapping", 30.0),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma3_text", "hidden_act", "silu"),
        ("gemma3_text", "mlp_bias", True),
    ],
)
def test_computing_fields_of_other_families(model_type: str, field: str, value: Any) -> None:
    with pytest.raises((UnsupportedError, CheckpointError), match=rf"config\.json: {field} is .*{model_type}"):
        record(model_type, **{field: value})


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"sliding_window": 256}),  # as long as the context
        ("llama", {"sliding_window": 16, "use_sliding_window": False}),
        ("llama", {"layer_types": ["full_attention"] * 2}),
        ("llama", {"no_rope_layers": [1, 1]}),
        ("llama", {"attention_multiplier": 0.25}),  # 16 channels a head
        ("llama", {"query_pre_attn_scalar": 16, "v_head_dim": 16, "rotary_dim": 16}),
        ("llama", {"dim_model_base": 64}),
        ("llama", {"hidden_activation": "silu"}),
        ("qwen2", {"attention_bias": False, "qkv_bias": True}),
        ("gemma3_text", {"hidden_act": "gelu_pytorch_tanh"}),
    ],
)
def test_what_the_model_does_anyway_is_neutral(model_type: str, overrides: dict[str, Any]) -> None:
    assert record(model_type, **overrides) == record(model_type)


def test_unknown_fields_are_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "quantkit")
    assert record("llama", colour="blue", lora={"r": 8}) == record("llama")
    assert "unknown fields are ignored: colour, lora" in caplog.text
    caplog.clear()
    record("llama", torch_dtype="float16", rope_interleaved=False)
    assert not caplog.records


def test_long_and_deep_values_are_shown_in_short() -> None:
    deep: list[Any] = []
    for _ in range(800):
        deep = [deep]
    for value in ("x" * 10**6, deep, list(range(10**5)), 10**400):
        with pytest.raises(UnsupportedError) as error:
            record("llama", clip_qkv=value)
        assert len(str(error.value)) < 250


@pytest.mark.live
@pytest.mark.parametrize("model_type", TYPES)
def test_every_field_of_transformers_is_used_refused_or_ignored(model_type: str) -> None:
    import dataclasses

    from transformers import CONFIG_MAPPING

    theirs = {known.name for known in dataclasses.fields(CONFIG_MAPPING[model_type])}
    assert theirs - FAMILIES[model_type].config.used() - COMPUTING.keys() - IGNORED == set()
