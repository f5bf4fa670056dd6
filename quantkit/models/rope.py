"""Rotary embedding parameters: what `config.json` says of them -> the inverse frequency of each pair of channels.

Both spellings are read: `rope_theta` beside `rope_scaling`, and transformers 5's `rope_parameters` that holds all of
it. The rotation itself is an operation of the recorder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import is_positive

_Frequencies = NDArray[np.float32]


def inverse_frequencies(
    head_dim: int, theta: float, parameters: Mapping[str, Any] | None, context_length: int
) -> tuple[float, ...]:
    """Return the angle, in radians per token, by which each pair of channels turns.

    Rounded to float32 wherever transformers rounds, because at position 100,000 a last bit is seen. The power is
    rounded correctly, so it is the same on every machine; torch's may be one unit off.

    Parameters
    ----------
    head_dim : int
        Channels of a head, even; the result has half as many entries.
    theta : float
        The base, used unless `parameters` has its own `rope_theta`.
    parameters : Mapping, optional
        `rope_scaling` or `rope_parameters`; none means no scaling.
    context_length : int
        Default for `original_max_position_embeddings`.

    Raises
    ------
    UnsupportedError
        The rope type is none of `default`, `linear`, `llama3`, or rotates only a part of the channels.
    CheckpointError
        A parameter is missing or not a positive number.

    References
    ----------
    Su et al., "RoFormer", 2021. `modeling_rope_utils.py` of transformers.
    """
    parameters = {"original_max_position_embeddings": context_length, "rope_theta": theta, **(parameters or {})}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        supported = ", ".join(_SCALINGS)
        raise UnsupportedError(f"config.json: rope_type {kind!r:.60} is not supported; supported are {supported}")
    if parameters.get("partial_rotary_factor") not in (None, 1):
        raise UnsupportedError("config.json: partial_rotary_factor is not supported unless it is 1")
    if layer_types := [name for name, value in parameters.items() if isinstance(value, Mapping)]:
        raise UnsupportedError(f"config.json: rope parameters of their own for {', '.join(layer_types)}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with np.errstate(all="ignore"):
        powers = _number(parameters, "rope_theta") ** exponents.astype(np.float64)
        frequencies = _SCALINGS[kind](np.float32(1) / powers.astype(np.float32), parameters)
    if not np.isfinite(frequencies).all():
        raise CheckpointError(f"config.json: the rope parameters {dict(parameters)!r:.200} are out of float32's range")
    return tuple(frequencies.tolist())


def _default(frequencies: _Frequencies, parameters: Mapping[str, Any]) -> _Frequencies:
    return frequencies


def _linear(frequencies: _Frequencies, parameters: Mapping[str, Any]) -> _Frequencies:
    return frequencies / np.float32(_number(parameters, "factor"))


def _llama3(frequencies: _Frequencies, parameters: Mapping[str, Any]) -> _Frequencies:
    # Short wavelengths stay, long ones are stretched by `factor`, those between are blended.
    factor, low, high, original = (
        _number(parameters, name)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if high <= low:
        raise CheckpointError(f"config.json: high_freq_factor {high} must be greater than low_freq_factor {low}")
    wavelengths = 2 * math.pi / frequencies
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    stretched = np.where(wavelengths > original / low, frequencies / factor, blended)
    return np.where(wavelengths < original / high, frequencies, stretched)


_SCALINGS: dict[str, Callable[[_Frequencies, Mapping[str, Any]], _Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
}


def _number(parameters: Mapping[str, Any], name: str) -> float:
    value = parameters.get(name)
    if not is_positive(value):
        raise CheckpointError(f"config.json: the rope parameter {name} is {value!r:.60}, not a positive number")
    return float(value)
