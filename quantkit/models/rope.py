"""Rotary embedding: what `config.json` says of it -> the angle by which each pair of channels turns at every token.

Both spellings are read: `rope_theta` and others beside `rope_scaling`, and transformers 5's `rope_parameters` that
holds all of it. Where a config has both, neither is dropped; where they contradict each other, it is refused. The
rotation itself is an operation of the recorder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, is_positive, shown

Parameters = Mapping[str, Any]
_Angles = NDArray[np.float32]

BESIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Rope parameters that may stand in `config.json` itself."""


class Rotary(NamedTuple):
    """What the recorder's `rotation` takes.

    Attributes
    ----------
    inverse_frequencies : tuple of float
        Radians per token of each pair of channels; every one is a float32.
    factor : float
        Multiplies cosines and sines, and by its square the scores.
    """

    inverse_frequencies: tuple[float, ...]
    factor: float = 1.0


def merged(spellings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all rope parameters of a config as one.

    Parameters
    ----------
    spellings : Mapping
        Where in the config ("in rope_scaling") -> the parameters that stand there, or None. `type` is the old name of
        `rope_type`.

    Raises
    ------
    CheckpointError
        One of them is not an object, or two places give a parameter different values.
    """
    parameters: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, given in spellings.items():
        if not isinstance(given, Mapping | None):
            raise CheckpointError(f"config.json: what stands {place} is {shown(given)}, not an object")
        for spelled, value in (given or {}).items():
            name = "rope_type" if spelled == "type" else spelled
            if value is None:
                continue
            if name in parameters and parameters[name] != value:
                raise CheckpointError(
                    f"config.json: {name} is {shown(parameters[name])} {places[name]}, but {shown(value)} {place}"
                )
            parameters[name], places[name] = value, place
    return parameters


def parameters_of(config: DecoderConfig) -> dict[str, Any]:
    """Return the rope parameters of a config whose layers all have the same."""
    spellings = {
        "at the top level": beside(config),
        "in rope_scaling": config.rope_scaling,
        "in rope_parameters": config.rope_parameters,
    }
    return {"rope_theta": config.default_theta, **merged(spellings)}


def beside(config: DecoderConfig) -> dict[str, Any]:
    """Return the rope parameters that stand in `config.json` itself."""
    return {name: getattr(config, name) for name in BESIDE}


def rotary(parameters: Parameters, *, head_dim: int, context_length: int) -> Rotary:
    """Return the angles of each pair of channels.

    Rounded to float32 wherever transformers rounds, because at position 100,000 a last bit is seen. The power is
    rounded correctly, so it is the same on every machine; torch's may be one unit off.

    Parameters
    ----------
    parameters : Mapping
        `rope_theta`, the base, and what else `parameters_of` returns.
    head_dim : int
        Channels of a head, even.
    context_length : int
        `max_position_embeddings`: positions stay below it, and it stands in for a missing
        `original_max_position_embeddings`.

    Raises
    ------
    UnsupportedError
        The rope type is unknown, has parameters that it does not use, or rotates only a part of the channels.
    CheckpointError
        A parameter is missing, is not a positive number, or leads beyond float32.

    References
    ----------
    Su et al., "RoFormer", 2021. `modeling_rope_utils.py` of transformers.
    """
    parameters = {"original_max_position_embeddings": context_length, **parameters}
    kind = parameters.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        supported = ", ".join(_SCALINGS)
        raise UnsupportedError(f"config.json: rope_type {shown(kind)} is not supported; supported are {supported}")
    if layer_types := [name for name, value in parameters.items() if isinstance(value, Mapping)]:
        raise UnsupportedError(f"config.json: rope parameters of their own for {', '.join(layer_types)}")
    if parameters.get("partial_rotary_factor", 1) != 1:
        part = shown(parameters["partial_rotary_factor"])
        raise UnsupportedError(f"config.json: partial_rotary_factor is {part}; quantkit rotates all channels of a head")
    scaling = _SCALINGS[kind]
    _check_unused(parameters, kind, scaling.uses)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with np.errstate(all="ignore"):
        powers = _number(parameters, "rope_theta") ** exponents.astype(np.float64)
        angles = scaling.angles(np.float32(1) / powers.astype(np.float32), parameters)
    if not np.isfinite(angles).all():
        raise CheckpointError(f"config.json: the rope parameters {shown(parameters)} are out of float32's range")
    return Rotary(tuple(angles.tolist()))


def _check_unused(parameters: Parameters, kind: str, uses: frozenset[str]) -> None:
    for name in _SCALING_PARAMETERS - uses:
        if parameters.get(name) not in (None, 1):
            raise UnsupportedError(
                f"config.json: the rope parameter {name} is {shown(parameters[name])}, "
                f"but quantkit's rope_type {kind!r} does not use it"
            )


def _default(angles: _Angles, parameters: Parameters) -> _Angles:
    return angles


def _linear(angles: _Angles, parameters: Parameters) -> _Angles:
    return angles / np.float32(_number(parameters, "factor"))


def _llama3(angles: _Angles, parameters: Parameters) -> _Angles:
    # Short wavelengths stay, long ones are stretched by `factor`, those between are blended.
    factor, low, high, original = (
        _number(parameters, name)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if high <= low:
        raise CheckpointError(f"config.json: high_freq_factor {high} must be greater than low_freq_factor {low}")
    wavelengths = 2 * math.pi / angles
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * angles / factor + blend * angles
    stretched = np.where(wavelengths > original / low, angles / factor, blended)
    return np.where(wavelengths < original / high, angles, stretched)


class _Scaling(NamedTuple):
    angles: Callable[[_Angles, Parameters], _Angles]
    uses: frozenset[str]


_SCALINGS = {
    "default": _Scaling(_default, frozenset()),
    "linear": _Scaling(_linear, frozenset({"factor"})),
    "llama3": _Scaling(_llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor"})),
}

_SCALING_PARAMETERS = frozenset(
    {"factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale"}
    | {"mscale_all_dim", "short_factor", "long_factor", "short_mscale", "long_mscale", "alpha"}
)
"""Parameters that change the angles of some rope type, unless they are 1."""


def _number(parameters: Parameters, name: str) -> float:
    value = parameters.get(name)
    if not is_positive(value):
        raise CheckpointError(f"config.json: the rope parameter {name} is {shown(value)}, not a positive number")
    return float(value)
