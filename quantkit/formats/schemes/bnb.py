"""bitsandbytes: NF4 and FP4, whose sixteen numbers a table in the file names, and the bytes of LLM.int8().

A matrix `X`, or a tensor of any other shape, of four bits is a stream of codes, two a byte, the upper four bits first:

    X.weight                   U8 [bytes, 1], or the same bytes as other numbers (`bnb_4bit_quant_storage`)
    X.weight.quant_map         F32 [16]: the number of each code
    X.weight.absmax            F32 [blocks]: factor of each block of the stream; or U8, codes of 256 numbers (nested)
    X.weight.nested_quant_map  F32 [256]: the number of each of these
    X.weight.nested_absmax     F32 [nested blocks]: factor of each block of factors
    X.weight.quant_state.bitsandbytes__nf4   U8: JSON that says `shape`, `blocksize`, `nested_blocksize` and
                                             `nested_offset`, which is added to nested factors; or bitsandbytes__fp4

A number is `quant_map[code] * factor`. A matrix of eight bits:

    X.weight         I8 [rows, columns]
    X.SCB            F32 [rows]: the largest magnitude of each row
    X.weight_format  U8 []: 0, for rows one after the other; may be missing

A number is `code * SCB / 127`. The library rounds it to the dtype that the weights had; here it stays f32.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, and "LLM.int8()", 2022.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.formats.json_files import parse_object
from quantkit.formats.schemes.packing import Floats, group_scales
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

ABSMAX, MAP, NESTED_ABSMAX, NESTED_MAP = ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"
STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
OF_FOUR_BITS = re.compile(r"(.+)\.(?:(?:nested_)?(?:absmax|quant_map)|quant_state\.bitsandbytes__(?:nf4|fp4))")
"""Names of what stands beside a tensor of four bits: the first group is the tensor's own."""
STORAGE = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
"""What the bytes of codes may be stored as -> bytes of an entry."""
MAX_STATE_BYTES = 10_000
SCB, FORMAT, LARGEST = ".SCB", ".weight_format", 127


class State(NamedTuple):
    """What the JSON beside a tensor of four bits says; `nested` is the size of blocks of factors, and their offset."""

    shape: tuple[int, ...]
    blocksize: int
    nested: tuple[int, float] | None


class Bnb(Scheme):
    """Tensors as bitsandbytes stores them."""

    known_as = "bitsandbytes"
    variants = "NF4, FP4, nested or not, and LLM.int8()"
    kind = "f32"

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        modules = (name.removesuffix(SCB) for name in held if name.endswith(SCB))
        eight = {f"{it}.weight": (f"{it}.weight", it + SCB, *({it + FORMAT} & held)) for it in modules}
        return eight | {match[1]: _four_bits(match[1], held) for match in map(OF_FOUR_BITS.fullmatch, held) if match}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        return _shape_of_bytes(parts) if parts[1].name.endswith(SCB) else _checked(parts).shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        shape = self.shape(parts)
        if parts[1].name.endswith(SCB):
            bytes_, largest = parts[0](wanted), parts[1](wanted)
            numbers: Floats = bytes_ * largest[:, np.newaxis] * np.float32(1 / LARGEST)
            return numbers
        row = math.prod(shape[1:])
        first, last = (row * place for place in wanted.indices(shape[0])[:2])
        numbers = parts[2]()[_codes(parts[0], first, last)] * _factors(parts, first, last)
        return numbers.reshape(-1, *shape[1:])

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        if not parts[1].name.endswith(SCB):
            return None
        scales = parts[1](wanted)[:, np.newaxis] * np.float32(1 / LARGEST)
        return group_scales(scales, -128 * scales, np.zeros(self.shape(parts)[1], np.intp), 8)


def _four_bits(name: str, held: set[str]) -> tuple[str, ...]:
    """The parts of a tensor of four bits, whether they are there or not."""
    state = next((each for each in STATES if name + each in held), STATES[0])
    nested = (name + NESTED_ABSMAX, name + NESTED_MAP)
    return name, name + ABSMAX, name + MAP, name + state, *(nested if held.intersection(nested) else ())


def _checked(parts: Sequence[Part]) -> State:
    """Read the JSON that says what a tensor of four bits is; raises `ValueError` where the parts do not fit it."""
    codes, absmax, numbers, stored, *nested = parts
    state = _state(stored, nested=bool(nested))
    count = math.prod(state.shape)
    entries, blocks = -(-count // (2 * STORAGE.get(codes.dtype, 1))), -(-count // state.blocksize)
    if codes.dtype not in STORAGE or codes.shape not in ((entries,), (entries, 1)):
        raise ValueError(f"its codes are {codes.dtype} of shape {codes.shape}, for numbers of shape {state.shape}")
    expected = [(absmax, "U8" if nested else "F32", blocks), (numbers, "F32", 16)]
    if state.nested:
        expected += [(nested[0], "F32", -(-blocks // state.nested[0])), (nested[1], "F32", 256)]
    for part, dtype, length in expected:
        if (part.dtype, part.shape) != (dtype, (length,)):
            raise ValueError(f"{part.name!r} is {part.dtype} of shape {part.shape}, not {dtype} of ({length},)")
    return state


def _state(stored: Part, *, nested: bool) -> State:
    """Read the JSON of a tensor of four bits."""
    if stored.dtype != "U8" or len(stored.shape) != 1 or stored.shape[0] > MAX_STATE_BYTES:
        raise ValueError(f"its quant_state is {stored.dtype} of shape {stored.shape}, which is no text")
    try:
        said = parse_object(stored().tobytes(), "its quant_state")
    except CheckpointError as cause:
        raise ValueError(str(cause)) from cause
    shape, sizes = said.get("shape"), [said.get("blocksize"), said.get("nested_blocksize") if nested else 1]
    offset = said.get("nested_offset") if nested else 0
    if not isinstance(shape, list) or not shape or not all(type(side) is int and side > 0 for side in (*shape, *sizes)):
        raise ValueError(f"its quant_state says shape {shape!r:.60} and blocks of {sizes!r:.60}")
    if not isinstance(offset, (int, float)):
        raise ValueError(f"its quant_state says nested_offset {offset!r:.60}")
    return State(tuple(shape), said["blocksize"], (said["nested_blocksize"], float(offset)) if nested else None)


def _codes(stored: Part, first: int, last: int) -> NDArray[np.uint8]:
    """The codes from number `first` to `last` of the stream."""
    per_entry = 2 * STORAGE[stored.dtype]
    begin = first // per_entry
    pairs = np.ascontiguousarray(stored(slice(begin, -(-last // per_entry)))).reshape(-1).view(np.uint8)
    codes = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(-1)
    return codes[first - begin * per_entry : last - begin * per_entry]


def _factors(parts: Sequence[Part], first: int, last: int) -> Floats:
    """The factor of each number from `first` to `last`."""
    _, absmax, _, stored, *nested = parts
    state = _state(stored, nested=bool(nested))
    begin = first // state.blocksize
    factors: Floats = absmax(slice(begin, -(-last // state.blocksize)))
    if state.nested:
        scales, numbers = (part() for part in nested)
        size, offset = state.nested
        factors = numbers[factors] * scales[np.arange(begin, begin + len(factors)) // size] + np.float32(offset)
    begin *= state.blocksize
    return np.repeat(factors, state.blocksize)[first - begin : last - begin]


def _shape_of_bytes(parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of a matrix of eight bits; raises `ValueError` where the parts do not fit."""
    weight, largest, *layouts = parts
    if weight.dtype != "I8" or len(weight.shape) != 2 or (largest.dtype, largest.shape) != ("F32", weight.shape[:1]):
        raise ValueError(
            f"its codes are {weight.dtype} of shape {weight.shape}, its SCB {largest.dtype} of shape {largest.shape}"
        )
    if any(layout.dtype != "U8" or math.prod(layout.shape) != 1 or layout().any() for layout in layouts):
        raise ValueError("its weight_format is not 0, which says that rows lie one after the other")
    return weight.shape
