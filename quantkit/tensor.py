"""A tensor, as every part of quantkit knows it: `TensorSpec` describes one, `Tensor` holds its numbers.

Programs say by specs what they read, formats say by specs what a file holds, and both meet without knowing each other.
Where a checkpoint stores a program's tensor inside of another one, or in parts, `Piece` says which rows of what it is.
No file format is known here and nothing is computed; the layout of blocks is specified in `quantkit_kernels.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Role = Literal["embedding", "positions", "linear", "expert", "router", "head", "norm", "bias", "channels", "unknown"]
"""What a tensor is for; a quantization recipe chooses its kind by this. A file alone does not know it. `channels` has
several numbers for each, its rows: the weights of a short convolution, the rates of a state."""
ANY = "any"
"""The kind in the spec of a tensor that may be of any kind."""


class Decoder(NamedTuple):
    """How the numbers of a program are found in those that are stored for them.

    Attributes
    ----------
    decode : callable
        From the stored array to the program's.
    computes : bool
        Whether it computes numbers, which are then f32; else it only moves them.
    """

    decode: Callable[[NDArray[Any]], NDArray[Any]]
    computes: bool = True


def _heads_transposed(stored: NDArray[Any]) -> NDArray[Any]:
    return stored.swapaxes(1, 2).reshape(-1, stored.shape[1])


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "minus_one": Decoder(lambda stored: stored - np.float32(1)),
        "log_of_minus": Decoder(lambda stored: np.log(-stored)),
        "heads_transposed": Decoder(_heads_transposed, computes=False),
    }
)


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor of a checkpoint, or all of it.

    Attributes
    ----------
    name : str
        Of the checkpoint's tensor, `model.layers.0.self_attn.qkv_proj.weight`.
    shape : tuple of int
        Of the whole tensor: `(rows, cols)` or `(rows,)`, `(cols, rows)` if it is transposed, or a stack of such.
    begin, end, period : int
        Of every `period` rows those from `begin` up to `end`; a period of 0 takes all rows.
    index : int, optional
        Which matrix or vector of the stack, such as an expert.
    stacked : int
        Of so many matrices the stack consists, which stand below each other in one; 0: it has an axis of its own.
    transposed : bool
        The rows stand side by side, as columns.
    pairs : int
        Of so many heads, whose rows stand in pairs of channels that turn together: 0, d/2, 1, d/2 + 1, ... of a head's
        `d`. By default rows stand in their own order.
    decoder : str
        A name of `DECODERS`, or nothing where the numbers are stored as they are.
    reshaped : bool
        It may be stored in any shape of as many numbers.
    order : tuple of int
        Which stored row each row is, where they stand in another order; which column each column is, if `columns`.
    columns : bool
    either_way : bool
        Its rows may stand the other way as well, side by side or below each other: the stored shape says how.
    """

    name: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    period: int = 0
    index: int | None = None
    transposed: bool = False
    pairs: int = 0
    decoder: str = ""
    reshaped: bool = False
    order: tuple[int, ...] = ()
    columns: bool = False
    either_way: bool = False
    stacked: int = 0

    def as_stored(self, shape: tuple[int, ...]) -> Piece:
        """Return the piece as it is taken from a tensor of some shape: the same, or the other way round."""
        turned = (*self.shape[:-2], *self.shape[:-3:-1])
        if not self.either_way or shape == self.shape or shape != turned:
            return self
        return replace(self, shape=turned, transposed=not self.transposed)

    @property
    def whole(self) -> bool:
        """Whether it is the tensor itself."""
        in_order = self.index is None and not (self.transposed or self.pairs or self.decoder or self.order)
        return in_order and (self.begin, self.end) == (0, self.period)

    @property
    def computed(self) -> bool:
        """Whether its numbers are computed from those that are stored; they are f32, whatever those are."""
        return bool(self.decoder) and DECODERS[self.decoder].computes

    @property
    def rows(self) -> int:
        """How many rows it has."""
        shape = self.shape if self.index is None or self.stacked else self.shape[1:]
        shape = (shape[0] // self.stacked, *shape[1:]) if self.stacked else shape
        count = shape[-1] if self.transposed else math.prod(shape[:1])  # a scalar is one row
        return count // self.period * (self.end - self.begin) if self.period else count

    @property
    def entries(self) -> slice:
        """Entries of the tensor's first axis that hold the rows; the others need not be read."""
        if self.index is not None:
            size = self.shape[0] // self.stacked if self.stacked else 1
            return slice(self.index * size, (self.index + 1) * size)
        if self.transposed or self.pairs or self.period != self.shape[0]:
            return slice(0, self.shape[0])
        return slice(self.begin, self.end)

    @property
    def keeps_rows(self) -> bool:
        """Whether each of its rows is a stored row, with the numbers and the order of columns that are stored."""
        return not (self.transposed or self.decoder or self.columns)

    def places(self) -> NDArray[np.intp] | None:
        """Return which entry of the tensor's first axis each row is; None where rows are no entries, or far apart."""
        moved = bool(self.decoder) and not self.computed
        inside = self.transposed or (self.index is not None and not self.stacked) or not self.shape
        if moved or inside or (self.order and not self.columns):
            return None
        entries = np.arange(self.entries.start, self.entries.stop)
        return replace(self, decoder="", order=()).view(entries).reshape(-1)

    def numbers(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return what stands in some rows: stored ones, at `places`, decoded and with their columns in order."""
        rows = DECODERS[self.decoder].decode(rows) if self.decoder else rows
        return rows[:, self.order] if self.columns else rows

    def view(self, entries: NDArray[Any]) -> NDArray[Any]:
        """Find its rows among the `entries` of the stored tensor, without copying more than their order asks for.

        Returns
        -------
        ndarray
            `[repetitions, rows, cols]` or `[repetitions, rows]`: what was taken of each `period` of rows.
        """
        rows = entries if self.index is None or self.stacked else entries[0]
        rows = rows.T if self.transposed else rows
        if self.pairs:
            heads, columns = self.pairs, rows.shape[1:]
            rows = rows.reshape(heads, -1, 2, *columns).swapaxes(1, 2).reshape(-1, *columns)
        if self.decoder:
            rows = DECODERS[self.decoder].decode(rows)
        if self.order:
            rows = rows[:, self.order] if self.columns else rows[list(self.order)]
        if not self.period or len(rows) < self.period:  # all of them, or those that `entries` has cut out already
            return rows[np.newaxis]
        return rows.reshape(-1, self.period, *rows.shape[1:])[:, self.begin : self.end]


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without its numbers: what a program asks for, or what a file offers.

    Attributes
    ----------
    name : str
        Full name, `model.layers.0.mlp.up_proj.weight`.
    shape : tuple of int
        True shape, without the padding of blocks: `(rows, cols)` or `(n,)`.
    role : str
        What a program uses it for.
    kind : str
        A name of `quantkit_kernels.blocks.KINDS`; in a program `ANY`, for it reads all kinds.
    aliases : tuple of str
        Other names under which a checkpoint may store it; the first that is there counts, `name` before all.
    pieces : tuple of Piece
        Where it is stored under none of its names: what it is put together from, one below the other.
    optional : bool
        Where no block of a checkpoint has such a tensor, all of it is `number`.
    number : float
    """

    name: str
    shape: tuple[int, ...]
    role: Role = "unknown"
    kind: str = ANY
    aliases: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()
    optional: bool = False
    number: float = 0.0

    @property
    def is_vector(self) -> bool:
        """Whether its numbers meet single columns, whatever its shape: they weigh nothing and stay f32."""
        return self.role in ("norm", "bias", "channels")

    @property
    def weights(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GroupScales:
    """What the numbers of a matrix were quantized with before: each is `scale * code + min`, for a whole code.

    The codes need no place here: they follow from the numbers. For a stack of matrices the arrays have another axis,
    the first.

    Attributes
    ----------
    scales, mins : ndarray
        f32 `[rows, ceil(columns / 32)]`: one of each for a row's every group of 32 columns.
    bits : int
        Of a code.
    """

    scales: NDArray[np.float32]
    mins: NDArray[np.float32]
    bits: int

    def viewed(self, view: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> GroupScales:
        """Return what a function finds in both arrays, such as some rows."""
        return replace(self, scales=view(self.scales), mins=view(self.mins))

    @classmethod
    def joined(cls, parts: Sequence[GroupScales]) -> GroupScales:
        """Return those of matrices that are put below each other."""
        scales, mins = (np.concatenate(each) for each in zip(*((it.scales, it.mins) for it in parts), strict=True))
        return cls(scales, mins, max(it.bits for it in parts))


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model.

    Attributes
    ----------
    kind : str
        A name of `quantkit_kernels.blocks.KINDS`: `int4`, `int5`, `int6`, `int8`, `f16`, `bf16` or `f32`.
    shape : tuple of int
        True shape, without the padding of blocks: `(rows, cols)` or `(n,)`.
    data : ndarray
        For block kinds, uint8 `[ceil(rows/8), ceil(cols/32), block_bytes]`; for `f32`/`f16` the numbers themselves with
        `shape`; for `bf16` uint16 bit patterns with `shape`. C-contiguous, possibly a read-only memory map.
    row_scales : ndarray or None
        Block kinds only: float32 `[ceil(rows/8), 2 or 1, 8]`.
    """

    kind: str
    shape: tuple[int, ...]
    data: NDArray[Any]
    row_scales: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor occupies, row scales included."""
        return self.data.nbytes + (0 if self.row_scales is None else self.row_scales.nbytes)
