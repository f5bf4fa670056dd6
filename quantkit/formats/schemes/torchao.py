"""torchao, where it stores numbers plainly: whole numbers or floats of 8 bits, with scales and zeros of rows or groups.

A parameter `M.P`, a matrix `[rows, columns]`, is two or three tensors:

    M._P_qdata       I8 or F8_E4M3 [rows, columns]: codes of four bits as well stand in a byte each
    M._P_scale       F32, F16 or BF16 [rows or 1, groups]
    M._P_zero_point  I8 as the scale; may be missing

A number is `scale * (code - zero)`. config.json names the variant; those that interleave codes for one kernel, and
floats with two scales, are refused by their names.

torchao, `torchao.prototype.safetensors` and `torchao.quantization`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import PLAIN, Floats, block_of, e4m3, floats, group_scales, spread
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

VARIANTS = frozenset(
    {
        *("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"),
        *("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig"),
        *("IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig"),
        *("FqnToConfig", "ModuleFqnToConfig"),
    }
)
CODES = re.compile(r"(.+)\._(\w+)_qdata")
"""Names of codes: the module, and its parameter."""


class TorchAo(Scheme):
    """Matrices as torchao stores those of `VARIANTS`."""

    known_as = "torchao"
    variants = "whole numbers of up to 8 bits, a byte each, and FP8"
    kind = "f32"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TorchAo:
        found = config.get("quant_type")
        variants = list(_variants(found)) if isinstance(found, dict) else [found]
        for variant in variants:
            if not isinstance(variant, str) or variant not in VARIANTS:
                raise UnsupportedError(f"quantization_config: quant_type {variant!r:.60} of torchao is not supported")
        return cls()

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        found = {}
        for codes in filter(None, map(CODES.fullmatch, held)):
            scale, zero = (f"{codes[1]}._{codes[2]}_{end}" for end in ("scale", "zero_point"))
            found[f"{codes[1]}.{codes[2]}"] = (codes[0], scale, *({zero} & held))
        return found

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        codes, scale, *zero = parts
        if codes.dtype not in ("I8", "F8_E4M3") or scale.dtype not in PLAIN:
            raise ValueError(f"its codes are {codes.dtype} and its scales {scale.dtype}")
        if zero and (zero[0].dtype, zero[0].shape) != ("I8", scale.shape):
            raise ValueError(f"its zeros are {zero[0].dtype} of shape {zero[0].shape}, its scales {scale.shape}")
        block_of(codes.shape, scale.shape)
        return codes.shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        codes, scale, *zero = parts
        block, first = block_of(codes.shape, scale.shape), wanted.indices(codes.shape[0])[0]
        stored = codes(wanted)
        numbers: Floats = e4m3()[stored] if codes.dtype == "F8_E4M3" else stored.astype(np.float32)
        if zero:
            numbers -= spread(zero[0]().astype(np.float32), numbers.shape, block, first)
        return numbers * spread(floats(scale()), numbers.shape, block, first)

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        codes, scale, *zero = parts
        if codes.dtype != "I8":
            return None
        (height, width), (rows, columns) = block_of(codes.shape, scale.shape), codes.shape
        blocks = np.arange(*wanted.indices(rows)) // height
        scales = floats(scale())[blocks]
        zeros = zero[0]()[blocks] if zero else np.int8(0)
        return group_scales(scales, scales * (np.float32(-128) - zeros), np.arange(columns) // width, 8)


def _variants(said: Mapping[str, Any]) -> Iterator[str]:
    """The names of all configs in a config, as deep as JSON was nested."""
    kind = said.get("_type")
    if isinstance(kind, str) and kind.endswith("Config"):
        yield kind
    for value in said.values():
        if isinstance(value, dict):
            yield from _variants(value)
