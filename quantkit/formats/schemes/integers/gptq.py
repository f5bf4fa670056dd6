"""GPTQ, as AutoGPTQ and GPTQModel write it: codes of 2, 3, 4 or 8 bits, and a scale and a zero for each group.

A matrix `X`, `[rows, columns]`, is stored transposed:

    X.qweight  I32 [columns * bits / 32, rows]            codes down the columns, a stream of bits
    X.qzeros   I32 [groups, rows * bits / 32]             codes along the rows
    X.scales   F16, BF16 or F32 [groups, rows]
    X.g_idx    I32 [columns], may be missing              group of each column

A number is `scale * (code - zero)`. The first version of the format (`checkpoint_format` gptq) stores zeros less one.
config.json says the bits of most modules and may say others for some (`dynamic`); they follow from the shapes.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import PLAIN, Floats, floats, group_scales, stream_of
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

BITS = (2, 3, 4, 8)
LESS_ONE = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` -> what must be added to stored zeros."""
LAYOUT = ("format", "checkpoint_format", "method", "quant_method", "pack_dtype")
"""Fields that say how a module is stored, which must not differ among modules."""


class Gptq(Scheme):
    """Matrices in the format of GPTQ.

    Parameters
    ----------
    less : int
        What must be added to stored zeros.
    """

    known_as = "GPTQ"
    variants = "2, 3, 4 and 8 bits, both versions of zeros, columns in any order, modules that differ"
    kind = "f32"

    def __init__(self, less: int = 1) -> None:
        self.less = less

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Gptq:
        form, dynamic = config.get("checkpoint_format", config.get("format", "gptq")), config.get("dynamic")
        modules = dynamic if isinstance(dynamic, dict) else {}
        others = {f"dynamic: {name!r:.60}: ": own for name, own in modules.items() if isinstance(own, dict)}
        for where, said in {"": config, **others}.items():
            bits = said.get("bits", config.get("bits"))
            known = bits in BITS and isinstance(form, str) and form in LESS_ONE
            if not known or (where and not said.keys().isdisjoint(LAYOUT)):
                layout = {field: said[field] for field in LAYOUT if field in said}
                raise UnsupportedError(
                    f"quantization_config: {where}{bits!r:.20} bits and {layout!r:.100} are not supported"
                )
        return cls(LESS_ONE[form])

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        found = {}
        for module in (name.removesuffix(".qweight") for name in held if name.endswith(".qweight")):
            parts = [f"{module}.qweight", f"{module}.qzeros", f"{module}.scales"]
            found[f"{module}.weight"] = (*parts, *({f"{module}.g_idx"} & held))
        return found

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, zeros, scales, *order = parts
        if [each.dtype for each in (weight, zeros, *order)] != ["I32"] * (2 + len(order)) or scales.dtype not in PLAIN:
            raise ValueError(f"its parts are {', '.join(part.dtype for part in parts)}")
        if not all(len(each.shape) == 2 for each in (weight, zeros, scales)):
            raise ValueError(f"its codes have shape {weight.shape}")
        groups, rows = scales.shape
        bits = _bits(zeros, scales)
        columns = weight.shape[0] * 32 // bits
        fits = weight.shape[1] == rows and zeros.shape == (groups, rows * bits // 32)
        if not fits or (order and order[0].shape != (columns,)) or not groups or (columns % groups and not order):
            raise ValueError(f"codes of shape {weight.shape} do not fit scales {scales.shape} and zeros {zeros.shape}")
        return rows, columns

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        codes = stream_of(parts[0]()[:, wanted].T, _bits(*parts[1:3])).astype(np.float32)
        scales, zeros, groups = self._groups(parts, wanted)
        decoded: Floats = (codes - zeros[:, groups]) * scales[:, groups]
        return decoded

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        scales, zeros, groups = self._groups(parts, wanted)
        return group_scales(scales, -scales * zeros, groups, _bits(*parts[1:3]))

    def _groups(self, parts: Sequence[Part], wanted: slice) -> tuple[Floats, Floats, NDArray[Any]]:
        """Scales and zeros `[rows, groups]` of some rows, and the group of each column."""
        _, columns = self.shape(parts)
        _, zero_words, scales, *order = parts
        zeros = stream_of(zero_words(), _bits(zero_words, scales))[:, wanted].astype(np.float32) + np.float32(self.less)
        count = scales.shape[0]
        groups = order[0]() if order else np.arange(columns) // (columns // count)
        if groups.min() < 0 or groups.max() >= count:
            raise ValueError(f"a column is of group {groups.max()}, of which there are {count}")
        return floats(scales()[:, wanted]).T, zeros.T, groups


def _bits(zeros: Part, scales: Part) -> int:
    """Bits of a code, by the words that the zeros of all rows take; raises `ValueError` where that cannot be."""
    bits, rest = divmod(32 * zeros.shape[1], scales.shape[1] or 1)
    if bits not in BITS or rest:
        raise ValueError(f"zeros of shape {zeros.shape} do not fit scales {scales.shape}")
    return bits
