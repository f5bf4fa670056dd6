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
from quantkit.models.config import LAYER_TYPES, DecoderConfig, is_positive, shown

Parameters = Mapping[str, Any]
_Floats = NDArray[np.float32]
_Scaled = tuple[_Floats, float]
"""Angles of the pairs of channels, and `Rotary.factor`."""

BESIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Rope parameters that may stand in `config.json` itself."""


LONGEST = 2**31 - 1
"""Tokens of a context at most."""


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
    if not (config.rope_scaling or config.rope_parameters):
        spellings["by default"] = config.default_rope
    parameters = {"rope_theta": config.default_theta, **merged(spellings)}
    if config.default_rotary_part is not None:
        parameters.setdefault("partial_rotary_factor", config.default_rotary_part)
    if isinstance(kind := parameters.get("rope_type"), str):
        parameters["rope_type"] = config.ROPE_TYPES.get(kind, kind)
    return parameters


def parameters_by_type(config: DecoderConfig, layer_type: str, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope parameters of one type of layer, where each type has its own.

    Parameters
    ----------
    config : DecoderConfig
        Its `rope_parameters` hold an object for each type of layer.
    layer_type : str
    others : Mapping
        The same in other spellings, as for `merged`.
    """
    nested = config.rope_parameters or {}
    if unknown := nested.keys() - LAYER_TYPES:
        raise UnsupportedError(
            f"config.json: rope_parameters has {shown(min(unknown))}; supported are {' and '.join(LAYER_TYPES)}"
        )
    return merged({f"in rope_parameters.{layer_type}": nested.get(layer_type), **others})


def beside(config: DecoderConfig) -> dict[str, Any]:
    """Return the rope parameters that stand in `config.json` itself."""
    return {name: getattr(config, name) for name in BESIDE}


class Context(NamedTuple):
    """For how many tokens a model was made, prompt and answer together.

    Attributes
    ----------
    usual : int
        Of short texts: up to here rope turns as it does for them.
    longest : int
        Of long texts, for which some models turn otherwise, see `rotary`.
    """

    usual: int
    longest: int


def context_of(config: DecoderConfig) -> Context:
    """Return how long the texts of a model may be.

    With yarn and dynamic scaling they are `factor` times the original length, also where `max_position_embeddings` does
    not say so.
    """
    longest = config.max_position_embeddings
    parameters = _with_lengths(parameters_of(config), longest)
    kind = parameters.get("rope_type")
    if kind == "longrope" and parameters.get("short_factor") != parameters.get("long_factor"):
        return Context(min(longest, int(_number(parameters, "original_max_position_embeddings"))), longest)
    if kind == "dynamic":
        return Context(longest, min(max(longest, int(longest * _factor(parameters))), LONGEST))
    if kind != "yarn":
        return Context(longest, longest)
    stretched = _number(parameters, "original_max_position_embeddings") * _factor(parameters)
    length = min(max(longest, int(stretched)), LONGEST)
    return Context(length, length)


def rotary(
    parameters: Parameters,
    *,
    head_dim: int,
    context_length: int,
    text_length: int | None = None,
    partial: bool = False,
) -> Rotary:
    """Return the angles of each pair of channels.

    Longrope and dynamic scaling turn otherwise in texts beyond the original length. transformers goes by the text at
    hand: when generation crosses that length, keys that were turned one way meet queries that are turned the other way,
    unless the whole text is read once more. Logits would depend on how a text is cut into passes. Here one set of
    angles is chosen when a model is opened, by the longest text that it shall hold, as in llama.cpp and vLLM: that of
    short texts up to the original length, which is what a model holds unless it is opened for more, and else the one
    which transformers has for a text of that length. So short texts in a model that is opened for long ones are turned
    as those are.

    Rounded to float32 wherever transformers rounds, because at position 100,000 a last bit is seen. The power is
    rounded correctly, so it is the same on every machine; torch's may be one unit off.

    Parameters
    ----------
    parameters : Mapping
        `rope_theta`, the base, and what else `parameters_of` returns.
    head_dim : int
        Channels of a head, even.
    context_length : int
        `max_position_embeddings`, which stands in for a missing `original_max_position_embeddings`.
    text_length : int, optional
        Tokens of the longest text; by default it is a short one.
    partial : bool
        Whether the family can turn the first channels of a head alone, as many as `partial_rotary_factor` says.

    Raises
    ------
    UnsupportedError
        The rope type is unknown, has parameters that it does not use, or rotates only a part of the channels where the
        family rotates all.
    CheckpointError
        A parameter is missing, is not a positive number, or leads beyond float32.

    References
    ----------
    Su et al., "RoFormer", 2021. `modeling_rope_utils.py` of transformers.
    """
    parameters = _with_lengths(parameters, context_length)
    kind = parameters.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        supported = ", ".join(_SCALINGS)
        raise UnsupportedError(f"config.json: rope_type {shown(kind)} is not supported; supported are {supported}")
    if layer_types := [name for name, value in parameters.items() if isinstance(value, Mapping)]:
        raise UnsupportedError(f"config.json: rope parameters of their own for {', '.join(layer_types)}")
    scaling = _SCALINGS[kind]
    channels = _rotated_channels(parameters, head_dim, partial=partial or scaling.whole)
    channels = head_dim if scaling.whole else channels
    _check_unused(parameters, kind, scaling.uses)
    exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    with np.errstate(all="ignore"):
        powers = _number(parameters, "rope_theta") ** exponents.astype(np.float64)
        angles, factor = scaling.compute(powers.astype(np.float32), parameters, text_length or 0)
    if not (np.isfinite(angles).all() and is_positive(factor)):
        raise CheckpointError(f"config.json: the rope parameters {shown(parameters)} are out of float32's range")
    return Rotary(tuple(angles.tolist()), factor)


def score_factor(parameters: Parameters) -> float:
    """Return by what DeepSeek's yarn multiplies the scores of attention, beside what `Rotary.factor` does."""
    mscale = parameters.get("mscale_all_dim")
    if parameters.get("rope_type", "default") == "default" or not mscale:
        return 1.0
    return _yarn_scale(_number(parameters, "factor"), _number(parameters, "mscale_all_dim")) ** 2


def _with_lengths(parameters: Parameters, longest: int) -> dict[str, Any]:
    return {"original_max_position_embeddings": longest, **parameters, "max_position_embeddings": longest}


def _rotated_channels(parameters: Parameters, head_dim: int, *, partial: bool) -> int:
    part = parameters.get("partial_rotary_factor", 1)
    if not partial and part != 1:
        raise UnsupportedError(
            f"config.json: partial_rotary_factor is {shown(part)}; this model type rotates all channels of a head"
        )
    channels = int(head_dim * part) if is_positive(part) and part <= 1 else 0
    if channels < 2 or channels % 2:
        raise CheckpointError(
            f"config.json: partial_rotary_factor is {shown(part)}, not an even share of {head_dim} channels"
        )
    return channels


def _check_unused(parameters: Parameters, kind: str, uses: frozenset[str]) -> None:
    for name in sorted(_SCALING_PARAMETERS - uses):
        if parameters.get(name) not in (None, 1):
            raise UnsupportedError(
                f"config.json: the rope parameter {name} is {shown(parameters[name])}, "
                f"but quantkit's rope_type {kind!r} does not use it"
            )


def _default(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    return np.reciprocal(periods), 1.0


def _dynamic(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    # The base grows with what is longer than `max_position_embeddings`, by a power of `growth` (NTK-aware scaling).
    factor, longest, pairs = _number(parameters, "factor"), parameters["max_position_embeddings"], len(periods)
    growth = factor * max(length, longest) / longest - (factor - 1)
    exponents = np.arange(pairs) / max(pairs - 1, 1)
    return np.reciprocal((periods * growth**exponents).astype(np.float32)), 1.0


def _linear(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    angles: _Floats = np.reciprocal(periods)
    return angles / np.float32(_number(parameters, "factor")), 1.0


def _llama3(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    # Short wavelengths stay, long ones are stretched by `factor`, those between are blended.
    factor, low, high, original = (
        _number(parameters, name)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if high < low:
        raise CheckpointError(f"config.json: high_freq_factor {high} must not be less than low_freq_factor {low}")
    angles = np.reciprocal(periods)
    wavelengths = 2 * math.pi / angles
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * angles / factor + blend * angles
    stretched = np.where(wavelengths > original / low, angles / factor, blended)
    return np.where(wavelengths < original / high, angles, stretched), 1.0


def _yarn(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    # Pairs that turn more than `beta_fast` times within the original length stay, those that turn less than `beta_slow`
    # times are stretched by `factor`, and a ramp over the pairs blends between (Peng et al., "YaRN", 2023).
    factor, original = _factor(parameters), _number(parameters, "original_max_position_embeddings")
    theta, pairs = _number(parameters, "rope_theta"), len(periods)
    if theta <= 1:
        raise CheckpointError(f"config.json: the rope parameter rope_theta is {theta}, not greater than 1")

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(original / (times * 2 * math.pi)) / math.log(theta)

    first = pair_that_turns(_number(parameters, "beta_fast", 32.0))
    last = pair_that_turns(_number(parameters, "beta_slow", 1.0))
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    ramp = (np.arange(pairs, dtype=np.float32) - np.float32(first)) / np.float32(last - first or 0.001)
    kept = 1 - np.clip(ramp, 0, 1)
    angles = np.reciprocal(np.float32(factor) * periods) * (1 - kept) + np.reciprocal(periods) * kept
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        default = _yarn_scale(factor, _number(parameters, "mscale"))
        default /= _yarn_scale(factor, _number(parameters, "mscale_all_dim"))
    else:
        default = _yarn_scale(factor, 1.0)
    return angles, _number(parameters, "attention_factor", default)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    # Each pair has its own factors: one for texts within the original length, another for longer ones.
    original, factor = _number(parameters, "original_max_position_embeddings"), _factor(parameters)
    short, long = (_numbers(parameters, name, len(periods)) for name in ("short_factor", "long_factor"))
    if original <= 1:
        raise CheckpointError("config.json: the rope parameter original_max_position_embeddings is not greater than 1")
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    factors = np.array(long if length > original else short, np.float32)
    return np.reciprocal(factors * periods), _number(parameters, "attention_factor", default)


def _proportional(periods: _Floats, parameters: Parameters, length: int) -> _Scaled:
    # The first pairs of whole heads turn, the others stand still.
    angles: _Floats = np.reciprocal(periods)
    angles[int(len(periods) * parameters.get("partial_rotary_factor", 1)) :] = 0
    return angles / np.float32(_number(parameters, "factor", 1.0)), 1.0


class _Scaling(NamedTuple):
    compute: Callable[[_Floats, Parameters, int], _Scaled]
    """Of the periods of unscaled angles, the parameters, and the tokens of the longest text."""
    uses: frozenset[str]
    whole: bool = False
    """It rotates whole heads, and takes `partial_rotary_factor` itself."""


_SCALINGS = {
    "default": _Scaling(_default, frozenset()),
    "linear": _Scaling(_linear, frozenset({"factor"})),
    "dynamic": _Scaling(_dynamic, frozenset({"factor"})),
    "llama3": _Scaling(_llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor"})),
    "yarn": _Scaling(
        _yarn, frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
    ),
    "proportional": _Scaling(_proportional, frozenset({"factor"}), whole=True),
    "longrope": _Scaling(_longrope, frozenset({"factor", "attention_factor", "short_factor", "long_factor"})),
}

_SCALING_PARAMETERS = frozenset({"alpha", "llama_4_scaling_beta", "short_mscale", "long_mscale"}).union(
    *(scaling.uses for scaling in _SCALINGS.values())
)
"""Parameters that change the angles of some rope type, unless they are 1."""


def _factor(parameters: Parameters) -> float:
    """By how much the original length is stretched: `factor`, or the ratio of the two lengths."""
    original = _number(parameters, "original_max_position_embeddings")
    return _number(parameters, "factor", parameters["max_position_embeddings"] / original)


def _numbers(parameters: Parameters, name: str, count: int) -> list[float]:
    values = parameters.get(name)
    if not isinstance(values, list) or len(values) != count or not all(is_positive(value) for value in values):
        raise CheckpointError(
            f"config.json: the rope parameter {name} is {shown(values)}, not {count} positive numbers"
        )
    return [float(value) for value in values]


def _number(parameters: Parameters, name: str, default: float | None = None) -> float:
    value = parameters.get(name, default)
    if not is_positive(value):
        raise CheckpointError(f"config.json: the rope parameter {name} is {shown(value)}, not a positive number")
    return float(value)
