"""Stored tensors in memory, as the schemes of quantized checkpoints read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from quantkit.formats.mapped import Entry
from quantkit.formats.schemes.scheme import Part, Scheme

Stored = Mapping[str, tuple[str, NDArray[Any]]]
"""Tensors as a file has them, each with its dtype in the spelling of safetensors, by their names."""


def part(name: str, dtype: str, array: NDArray[Any]) -> Part:
    """A stored tensor."""
    entry = Entry(dtype, array.shape, 0, array.nbytes)
    return Part(name, entry, lambda wanted: array[wanted] if array.ndim else array)


def decoded(scheme: Scheme, stored: Stored, *, wanted: slice = slice(None)) -> NDArray[Any]:
    """What a scheme makes of the one tensor that it finds among these; the shape that it announces is asserted."""
    (names,) = scheme.encoded(stored).values()
    parts = [part(name, *stored[name]) for name in names]
    shape = scheme.shape(parts)
    numbers = scheme.decode(parts, wanted)
    assert numbers.shape == (len(range(shape[0])[wanted]), *shape[1:])
    return numbers
