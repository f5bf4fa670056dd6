"""Stored tensors in memory, as the schemes of quantized checkpoints read them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from quantkit.formats.mapped import Entry
from quantkit.formats.schemes.scheme import Part, Scheme


def part(dtype: str, array: NDArray[Any]) -> Part:
    """A stored tensor of a dtype in the spelling of safetensors."""
    return Part(Entry(dtype, array.shape, 0, array.nbytes), lambda wanted: array[wanted] if array.ndim else array)


def decoded(scheme: Scheme, *stored: tuple[str, NDArray[Any]], wanted: slice = slice(None)) -> NDArray[Any]:
    """What a scheme makes of the parts of a tensor; the shape that it announces is asserted."""
    parts = [part(*each) for each in stored]
    shape = scheme.shape(*(each.entry for each in parts))
    numbers = scheme.decode(parts, wanted)
    assert numbers.shape == (len(range(shape[0])[wanted]), *shape[1:])
    return numbers
