"""Rope parameters -> inverse frequencies: by hand, against transformers, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tiny
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.registry import read
from quantkit.models.rope import inverse_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

TOLERANCE = 2**-23 * 16
"""Relative. torch's float32 power is off by one unit here and there; llama3's blending multiplies it up to eleven."""


def test_default() -> None:
    assert inverse_frequencies(8, 16.0, None, 64) == (1.0, 0.5, 0.25, 0.125)
    assert inverse_frequencies(8, 16.0, {"rope_type": "default"}, 64) == (1.0, 0.5, 0.25, 0.125)


def test_linear() -> None:
    for spelling in ("type", "rope_type"):
        assert inverse_frequencies(8, 16.0, {spelling: "linear", "factor": 4}, 64) == (0.25, 0.125, 0.0625, 0.03125)


def test_a_theta_among_the_parameters_wins() -> None:
    assert inverse_frequencies(4, 10_000.0, {"rope_theta": 16.0}, 64) == (1.0, 0.25)


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


def test_results_are_float32() -> None:
    for value in inverse_frequencies(80, 1e6, LLAMA3, 1):
        assert float(np.float32(value)) == value


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope", "", None, 7, ["linear"]])
def test_other_types_are_refused_with_a_list(kind: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"rope_type .* is not supported; supported are default, linear, llama3"):
        read(tiny.config_of("llama", rope_scaling={"rope_type": kind, "factor": 2.0})).record()


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 10**400, "8", True, None])
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
    with pytest.raises(CheckpointError, match=r"high_freq_factor 1\.0 must be greater than low_freq_factor 1\.0"):
        inverse_frequencies(64, 1e4, LLAMA3 | {"high_freq_factor": 1.0}, 8192)


def test_partial_rotation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="partial_rotary_factor"):
        inverse_frequencies(64, 1e4, {"partial_rotary_factor": 0.5}, 8192)


def test_parameters_per_layer_type_belong_to_gemma3() -> None:
    nested = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(UnsupportedError, match="rope parameters of their own for full_attention, sliding_attention"):
        read(tiny.config_of("llama", rope_parameters=nested)).record()
    with pytest.raises(UnsupportedError, match="rope_parameters without full_attention and sliding_attention"):
        read(tiny.config_of("gemma3_text", rope_parameters={"rope_type": "linear", "factor": 2.0})).record()


@pytest.mark.live
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize("parameters", [None, {"rope_type": "linear", "factor": 3.0}, LLAMA3])
def test_transformers_computes_the_same(head_dim: int, theta: float, parameters: dict[str, Any] | None) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        rope_theta=theta,
        rope_scaling=parameters and dict(parameters),
    )
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    np.testing.assert_allclose(inverse_frequencies(head_dim, theta, parameters, 2048), expected, rtol=TOLERANCE)
