"""Rope parameters -> inverse frequencies: by hand, against transformers, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tiny
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.registry import read
from quantkit.models.rope import merged, rotary

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
"""As Qwen 2.5 and 3 recommend it for long texts."""


def inverse_frequencies(head_dim: int, theta: float, parameters: Any, context_length: int) -> tuple[float, ...]:
    given = {"rope_theta": theta, **merged({"in rope_scaling": parameters})}
    return rotary(given, head_dim=head_dim, context_length=context_length).inverse_frequencies


TOLERANCE = 2**-23 * 16
"""Relative. torch's float32 power is off by one unit here and there; llama3's blending multiplies it up to eleven."""


def test_default() -> None:
    assert inverse_frequencies(8, 16.0, None, 64) == (1.0, 0.5, 0.25, 0.125)
    assert inverse_frequencies(8, 16.0, {"rope_type": "default"}, 64) == (1.0, 0.5, 0.25, 0.125)


def test_linear() -> None:
    for spelling in ("type", "rope_type"):
        assert inverse_frequencies(8, 16.0, {spelling: "linear", "factor": 4}, 64) == (0.25, 0.125, 0.0625, 0.03125)


def angles(**overrides: Any) -> tuple[float, ...]:
    operations = read(tiny.config_of("llama", hidden_size=32, **({"rope_theta": ...} | overrides))).record().operations
    return next(step.constant for step in operations if step.name == "rotation")


def test_neither_spelling_drops_the_fields_of_the_other() -> None:
    expected = (0.25, 0.125, 0.0625, 0.03125)
    linear, theta = {"type": "linear", "factor": 4.0}, {"rope_theta": 16.0}
    assert angles(rope_theta=16.0, rope_scaling=linear) == expected
    assert angles(rope_parameters=linear | theta) == expected
    assert angles(rope_theta=16, rope_parameters=linear) == expected
    assert angles(rope_scaling=linear, rope_parameters=theta) == expected
    assert angles(rope_scaling=theta, rope_parameters=linear) == expected
    assert angles(rope_scaling={"rope_type": "linear"}, rope_parameters={"factor": 4} | theta) == expected
    both = linear | theta | {"rope_type": "linear"}
    assert angles(rope_theta=16.0, rope_scaling=both, rope_parameters=both) == expected
    nothing = {"rope_type": None, "type": None, "factor": None, "rope_theta": None}
    assert angles(rope_theta=16.0, rope_scaling=linear, rope_parameters=nothing) == expected


def test_the_original_length_may_stand_at_the_top_level() -> None:
    scaling = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    expected = angles(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 4})
    assert angles(rope_scaling=scaling, original_max_position_embeddings=4) == expected
    assert angles(rope_scaling=scaling) != expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            r"rope_theta is 10000\.0 at the top level, but 500000\.0 in rope_parameters",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "llama3"}},
            r"rope_type is 'linear' in rope_scaling, but 'llama3' in rope_scaling",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}},
            r"rope_type is 'linear' in rope_scaling, but 'default' in rope_parameters",
        ),
        (
            {"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}},
            r"partial_rotary_factor is 1\.0 at the top level, but 0\.5 in rope_parameters",
        ),
    ],
)
def test_places_that_contradict_each_other_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        angles(**overrides)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"factor": 2.0}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 0.5}, "attention_factor"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast"),
        ({"rope_type": "default", "long_factor": [2.0]}, "long_factor"),
        (LLAMA3 | {"mscale": 0.7}, "mscale"),
    ],
)
def test_parameters_of_other_types_are_refused(parameters: dict[str, Any], name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"the rope parameter {name} is .*rope_type '\w+' does not use it"):
        angles(rope_scaling=parameters)


def test_parameters_that_change_nothing_are_not() -> None:
    neutral = {"factor": 1.0, "attention_factor": 1, "mscale": None, "mrope_section": [2, 1, 1], "finetuned": True}
    assert angles(rope_scaling=neutral) == angles()
    assert angles(rope_theta=None) == angles()


def test_llama3_keeps_short_wavelengths_stretches_long_ones_and_blends_between() -> None:
    plain = np.array(inverse_frequencies(128, 500_000.0, None, 0))
    scaled = np.array(inverse_frequencies(128, 500_000.0, LLAMA3, 0))
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    assert short.sum() == 29
    assert long.sum() == 29
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert np.all((plain[between] / 8 < scaled[between]) & (scaled[between] < plain[between]))
    assert np.all(np.diff(scaled) < 0)


def test_llama3_uses_the_context_length_when_the_original_is_not_given() -> None:
    without = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    assert inverse_frequencies(64, 1e4, without, 8192) == inverse_frequencies(64, 1e4, LLAMA3, 1)


def test_yarn_keeps_fast_pairs_stretches_slow_ones_and_blends_between() -> None:
    plain = np.array(inverse_frequencies(128, 1e6, None, 0))
    scaled, factor = rotary(YARN | {"rope_theta": 1e6}, head_dim=128, context_length=32768)
    turns = 32768 * plain / (2 * math.pi)
    kept = turns > 40
    stretched = turns < 0.8
    assert kept.sum() == 23
    assert stretched.sum() == 23
    np.testing.assert_array_equal(np.array(scaled)[kept], plain[kept])
    np.testing.assert_allclose(np.array(scaled)[stretched], plain[stretched] / 4, rtol=1e-6)
    assert np.all(np.diff(scaled) < 0)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 0.7}, 0.7),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, (0.05 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
        ({"mscale": 0.5}, 0.1 * math.log(4) + 1),
        ({"mscale": 0.5, "mscale_all_dim": 0}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
        ({"factor": None, "original_max_position_embeddings": 8192}, 0.1 * math.log(4) + 1),
    ],
)
def test_scores_under_yarn(more: dict[str, Any], expected: float) -> None:
    parameters = merged({"": {**YARN, **more}}) | {"rope_theta": 1e4}
    assert rotary(parameters, head_dim=64, context_length=32768).factor == pytest.approx(expected)


def test_yarn_makes_the_context_longer() -> None:
    def context(length: int, **more: Any) -> int:
        return read(tiny.config_of("llama", max_position_embeddings=length, rope_scaling=YARN | more)).context_length

    assert context(32768) == 131072
    assert context(40960) == 131072
    assert context(163840) == 163840
    assert context(32768, original_max_position_embeddings=None) == 131072
    assert context(32768, factor=1e30) == 2**31 - 1
    assert context(32768, rope_type="linear", original_max_position_embeddings=None) == 32768


def test_longrope_has_short_factors_up_to_the_original_length() -> None:
    short, long = [1.0, 2.0, 4.0, 8.0], [10.0, 20.0, 40.0, 80.0]
    parameters = {"rope_type": "longrope", "rope_theta": 16.0, "short_factor": short, "long_factor": long}
    scaled, factor = rotary(parameters, head_dim=8, context_length=64)
    assert scaled == (1.0, 0.25, 0.0625, 0.015625)
    assert factor == 1.0
    beyond = parameters | {"original_max_position_embeddings": 16}
    for length, angles in ((None, scaled), (16, scaled), (17, tuple(angle / 10 for angle in scaled))):
        found, factor = rotary(beyond, head_dim=8, context_length=64, text_length=length)
        assert found == pytest.approx(angles, rel=1e-6)
        assert factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    wrong: list[object] = [short[:3], [*short[:3], 0], [*short[:3], "8"], 4, None, {}]
    for factors in wrong:
        with pytest.raises(CheckpointError, match=r"the rope parameter short_factor is .*, not 4 positive numbers"):
            rotary(parameters | {"short_factor": factors or 0}, head_dim=8, context_length=64)


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_phi3_calls_longrope_otherwise(kind: str) -> None:
    factors = {"short_factor": [2.0] * 8, "long_factor": [2.0] * 8}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
    architectures = [
        read(tiny.config_of("phi3", rope_scaling={"type": name} | factors, **lengths)) for name in (kind, "longrope")
    ]
    assert architectures[0].record() == architectures[1].record()
    assert [each.context_length for each in architectures] == [256, 256]


@pytest.mark.parametrize(
    ("original", "long", "usual", "longest"),
    [(64, 2.0, 64, 256), (64, 1.0, 256, 256), (512, 2.0, 256, 256)],
)
def test_a_model_holds_short_texts_unless_it_is_opened_for_long_ones(
    original: int, long: float, usual: int, longest: int
) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [long] * 8}
    architecture = read(tiny.config_of("phi3", original_max_position_embeddings=original, rope_scaling=scaling))
    assert (architecture.context_length, architecture.longest_context) == (usual, longest)


def test_proportional_turns_the_first_pairs_of_whole_heads() -> None:
    parameters = {"rope_type": "proportional", "rope_theta": 16.0, "partial_rotary_factor": 0.5}
    assert rotary(parameters, head_dim=8, context_length=64).inverse_frequencies == (1.0, 0.5, 0.0, 0.0)
    halves = rotary(parameters | {"factor": 2.0}, head_dim=8, context_length=64).inverse_frequencies
    assert halves == (0.5, 0.25, 0.0, 0.0)


def test_dynamic_grows_with_the_context() -> None:
    internlm = read(tiny.config_of("internlm3"))
    assert (internlm.context_length, internlm.longest_context) == (256, 6 * 256)
    parameters = {"rope_type": "dynamic", "rope_theta": 16.0, "factor": 3.0}
    scaled, _ = rotary(parameters, head_dim=4, context_length=8, text_length=16)
    assert scaled == (1.0, 1 / 16)  # base 16 * 4², of which the second pair has the square root
    scaled, _ = rotary(parameters, head_dim=2, context_length=8, text_length=16)
    assert scaled == (1.0,)


def test_dynamic_changes_nothing_within_the_context() -> None:
    assert inverse_frequencies(64, 1e4, {"type": "dynamic", "factor": 2.0}, 4096) == inverse_frequencies(
        64, 1e4, None, 1
    )
    with pytest.raises(UnsupportedError, match=r"rope parameter alpha is 1000\.0"):
        inverse_frequencies(64, 1e4, {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}, 4096)


def test_results_are_float32() -> None:
    for value in inverse_frequencies(80, 1e6, LLAMA3, 1):
        assert float(np.float32(value)) == value


@pytest.mark.parametrize("kind", ["mrope", "", 7, ["linear"]])
def test_other_types_are_refused_with_a_list(kind: Any) -> None:
    message = "rope_type .* is not supported; supported are default, linear, dynamic, llama3, yarn, proportional, long"
    with pytest.raises(UnsupportedError, match=message):
        read(tiny.config_of("llama", rope_scaling={"rope_type": kind, "factor": 2.0})).record()


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 10**400, "8", True])
def test_hostile_parameters_are_refused(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"the rope parameter {name} is"):
        inverse_frequencies(64, 1e4, LLAMA3 | {name: value}, 8192)


def test_frequencies_beyond_float32_are_refused() -> None:
    with pytest.raises(CheckpointError, match="out of float32's range"):
        inverse_frequencies(64, 1e-30, {"type": "linear", "factor": 1e-30}, 8192)


def test_missing_parameters_are_named() -> None:
    with pytest.raises(CheckpointError, match="the rope parameter factor is None"):
        inverse_frequencies(64, 1e4, {"type": "linear"}, 8192)


def test_contradicting_parameters_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"high_freq_factor 0\.5 must not be less than low_freq_factor 1\.0"):
        inverse_frequencies(64, 1e4, LLAMA3 | {"high_freq_factor": 0.5}, 8192)


def test_partial_rotation_is_refused() -> None:
    for overrides in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        with pytest.raises(UnsupportedError, match=r"partial_rotary_factor is 0\.5"):
            angles(**overrides)


@pytest.mark.parametrize("part", [0, -0.5, 1.5, "0.5", [], True, 0.05, 0.2])
def test_an_odd_part_of_a_head_is_refused(part: Any) -> None:
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor is .*, not an even share of 16 channels"):
        rotary({"rope_theta": 1e4, "partial_rotary_factor": part}, head_dim=16, context_length=64, partial=True)


def test_a_part_of_a_head_has_the_angles_of_a_smaller_head() -> None:
    parameters = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    part = rotary({**parameters, "partial_rotary_factor": 0.25}, head_dim=32, context_length=64, partial=True)
    assert part == rotary(parameters, head_dim=8, context_length=64)


def test_defaults_of_a_family_do_not_join_what_the_config_has() -> None:
    def turns(**overrides: Any) -> tuple[float, ...]:
        fields = {"head_dim": 4, "rope_theta": ..., "rope_scaling": ...} | overrides
        operations = read(tiny.config_of("apertus", **fields)).record().operations
        return next(step.constant for step in operations if step.name == "rotation")

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    assert turns() == turns(rope_theta=12e6, rope_scaling=scaling) == turns(rope_parameters={})
    assert turns(rope_scaling={"rope_type": "default"}, rope_theta=16.0) == (1.0, 0.25)
    with pytest.raises(CheckpointError, match=r"rope_theta is 16\.0 at the top level, but 12000000\.0 by default"):
        turns(rope_theta=16.0)


@pytest.mark.parametrize("change", [{"llama_4_scaling_beta": None}, {"original_max_position_embeddings": 0.5}])
def test_ministral3_scales_queries_by_what_is_given(change: dict[str, Any]) -> None:
    config = tiny.config_of("ministral3")
    (_, *scalings) = [each for each in read(config).record().operations if each.name == "scale_by_position"]
    assert [(each.parameters["beta"], each.parameters["period"]) for each in scalings] == [(0.5, 16)]
    with pytest.raises(CheckpointError, match=r"^config\.json: .*llama_4_scaling_beta and .*, not positive numbers"):
        read(config | {"rope_parameters": config["rope_parameters"] | change}).record()
    with pytest.raises(UnsupportedError, match=r"the rope parameter llama_4_scaling_beta is 0\.5, but"):
        read(tiny.config_of("mistral", rope_parameters=config["rope_parameters"], rope_theta=...)).record()


def test_parameters_per_layer_type_belong_to_gemma3() -> None:
    nested = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(UnsupportedError, match="rope parameters of their own for full_attention, sliding_attention"):
        read(tiny.config_of("llama", rope_parameters=nested)).record()
    message = "rope_parameters has 'factor'; supported are full_attention and sliding_attention"
    for parameters in ({"rope_type": "linear", "factor": 2.0}, nested | {"factor": 2.0}):
        with pytest.raises(UnsupportedError, match=message):
            read(tiny.config_of("gemma3_text", rope_parameters=parameters)).record()
    with pytest.raises(CheckpointError, match=r"what stands in rope_parameters\.full_attention is 1, not an object"):
        read(tiny.config_of("gemma3_text", rope_parameters={"full_attention": 1})).record()


def test_hunyuan_stretches_the_base_by_alpha() -> None:
    def turns(**scaling: Any) -> tuple[float, ...]:
        config = tiny.config_of("hunyuan_v1_dense", head_dim=4, rope_theta=4.0, rope_scaling=scaling)
        return next(step.constant for step in read(config).record().operations if step.name == "rotation")

    assert turns(type="dynamic", alpha=2.0, factor=1.0, beta_fast=32) == (1.0, 0.25)
    assert turns(type="dynamic", alpha=None, factor=3.0) == (1.0, 0.5)
    for alpha in (-1.0, "2"):
        with pytest.raises(CheckpointError, match=r"the rope parameter alpha is .*, not a positive number"):
            turns(type="dynamic", alpha=alpha, factor=1.0)
    with pytest.raises(UnsupportedError, match=r"the rope parameter alpha is 2\.0"):
        turns(type="linear", alpha=2.0, factor=1.0)


def test_gemma3_has_two_bases() -> None:
    def bases(**overrides: Any) -> list[float]:
        fields = {"head_dim": 4, "rope_theta": ..., "rope_local_base_freq": ...} | overrides
        operations = read(tiny.config_of("gemma3_text", **fields)).record().operations
        steps = [step for step in operations if step.name == "rotation"]
        return [round(step.constant[1] ** -2) for step in steps]

    assert bases() == [1_000_000, 10_000]
    assert bases(rope_theta=400.0, rope_local_base_freq=100.0) == [400, 100]
    assert bases(rope_theta=400.0, rope_parameters={"sliding_attention": {"rope_theta": 100.0}}) == [400, 100]
    linear = {"rope_type": "linear", "factor": 2.0}
    assert bases(rope_scaling=linear, rope_parameters={"full_attention": {"rope_theta": 400.0}}) == [1600, 10_000]
    with pytest.raises(CheckpointError, match=r"rope_theta is 100\.0 in rope_parameters\.sliding_attention, but 400"):
        bases(rope_local_base_freq=400.0, rope_parameters={"sliding_attention": {"rope_theta": 100.0}})


FACTORS = [1.0 + i / 16 for i in range(128)]


def longrope(head_dim: int, **more: Any) -> dict[str, Any]:
    factors = FACTORS[: head_dim // 2]
    return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, **more}


@pytest.mark.live
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 3.0},
        LLAMA3,
        YARN,
        YARN | {"original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 0.5, "truncate": False},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.0},
        YARN | {"attention_factor": 1.25},
        {"rope_type": "yarn", "factor": 8},
        "longrope",
        "longrope beyond",
    ],
)
def test_transformers_computes_the_same(head_dim: int, theta: float, parameters: Any) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if parameters == "longrope":
        parameters = longrope(head_dim)
    if parameters == "longrope beyond":
        parameters = longrope(head_dim, original_max_position_embeddings=512)
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        rope_theta=theta,
        rope_scaling=parameters and dict(parameters),
    )
    expected = LlamaRotaryEmbedding(config)
    given = {"rope_theta": theta, **(parameters or {})}
    computed = rotary(given, head_dim=head_dim, context_length=config.max_position_embeddings)
    np.testing.assert_allclose(computed.inverse_frequencies, expected.inv_freq.numpy(), rtol=TOLERANCE)
    assert computed.factor == pytest.approx(expected.attention_scaling, rel=1e-12)
