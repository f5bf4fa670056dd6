"""How large the inputs of matrices are, column by column: their mean squares over a text, or over no text at all.

The error of a weight reaches a layer's output as large as its input is, so the search for int4 lets a column count as
much as the mean square of what it meets (`quantkit_kernels.packing.search`). The model itself says it: its program runs
part by part, with weights of int8, which change these numbers by less than another text does.

No text is needed for it. Tokens that are spread evenly over the vocabulary make nearly the inputs of any text, since it
is norms and the columns of the residual stream that differ by orders of magnitude, not texts. Mean divergence of
SmolLM2-135M in int4 on WikiText-2 (6 windows) without importances 0.095, with those of 512 such tokens 0.051, of 128 of
them 0.053, of 8,192 tokens of the built-in text 0.053, of WikiText-2's validation part 0.047. How they are cut into
windows hardly matters: over 24 windows of the text 0.0525 with 8 of 64 tokens, 0.0530 with 4 of 64, 0.0528 with 16 of
16, 0.0537 with one of 256, each +- 0.0009. What can be said without running the program is worse: the squares of a
norm's weights alone 0.109, since what they scale down is large before.

Sums of squares are all that is kept. Calibration under whole Hessians (`layers.py`) collects its own: `X^T X` would be
400 MB of SmolLM2 and 22 GB of a model of 7B, and it has to be that of inputs behind packed layers: under that of the
unpacked model, which a file could keep, SmolLM2 in int4 diverges by 0.0330 instead of 0.0244.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.source import Selection
from quantkit.models.parts import cut
from quantkit.models.program import Program
from quantkit.quantization.calibration.memory import MEASURED_TOKENS
from quantkit.quantization.calibration.passes import Rows, Walk, Weights, rows_of_experts
from quantkit.quantization.calibration.stops import Shared, stops_of
from quantkit.quantization.encode import Encoded
from quantkit.quantization.pipeline import encoded_stripes
from quantkit.quantization.recipe import Recipe, choose
from quantkit.tensor import Tensor

WINDOW_TOKENS = 64
"""Tokens of a window without a text."""
SPREAD = 0x9E3779B1
"""The golden ratio, in units of 2^-32: multiples of it spread evenly over any range."""
PRIOR_ROWS = 8
"""Rows that the inputs of all experts together count, beside an expert's own: few have reached some of them."""


class Squares(NamedTuple):
    """Squares of the inputs of a matrix, or of those of a layer's experts.

    Attributes
    ----------
    names : tuple of str
        The matrix, or that of each expert.
    sums : ndarray
        f64 `[matrices, columns]`
    counts : ndarray
        int64 `[matrices]`: rows that were added up.
    """

    names: tuple[str, ...]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def means(self) -> NDArray[np.float32]:
        """Mean squares `[matrices, columns]`; all 0 where no row was seen."""
        prior = PRIOR_ROWS if self.names[1:] else 0
        common = self.sums.sum(axis=0) / max(1, self.counts.sum())
        rows = np.maximum(1, self.counts + prior)[:, None]
        means: NDArray[np.float32] = ((self.sums + prior * common) / rows).astype(np.float32)
        return means


def importances_of(measured: Iterator[Squares]) -> dict[str, NDArray[np.float32]]:
    """Return what each column of a matrix counts, by its name, where the inputs say something."""
    found = {}
    for squares in measured:
        for name, importance in zip(squares.names, squares.means, strict=True):
            if np.isfinite(importance).all() and importance.any():
                found[name] = importance
    return found


def importances_without_text(
    program: Program,
    source: Selection,
    names: Collection[str],
    threads: int,
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, NDArray[np.float32]]:
    """Return what each column of matrices counts, by their names, as `measure` finds it with any tokens."""
    return importances_of(measure(program, source, names, any_tokens(program), threads, tell))


def any_tokens(program: Program) -> list[list[int]]:
    """Return windows of tokens that are spread evenly over a model's vocabulary."""
    length = min(WINDOW_TOKENS, program.learned_positions or WINDOW_TOKENS)
    windows = MEASURED_TOKENS // length
    places = np.arange(1, windows * length + 1, dtype=np.uint64) * np.uint64(SPREAD) % np.uint64(1 << 32)
    ids = places * np.uint64(program.vocab_size) >> np.uint64(32)
    found: list[list[int]] = ids.reshape(windows, length).tolist()
    return found


def measure(
    program: Program,
    source: Selection,
    names: Collection[str],
    windows: Sequence[Sequence[int]],
    threads: int,
    tell: Callable[[str], None] = lambda name: None,
) -> Iterator[Squares]:
    """Measure the inputs of matrices while a model reads windows of tokens.

    Parameters
    ----------
    program : Program
    source : Selection
        The model's tensors.
    names : collection of str
        The matrices.
    windows : sequence of sequence of int
        Token ids, as many in each.
    threads : int
    tell : callable, optional
        Called with the name of each matrix that was measured.

    Yields
    ------
    Squares
        Of each matrix, those of a layer's experts together, in the order of use.

    Raises
    ------
    CheckpointError
        As `encode`, for a tensor that is damaged.
    """
    stops = stops_of(program, names)
    parts = cut(program, [stop.border for stop in stops])
    walk, reading = Walk(Weights(source.config)), _Reading(program, source, windows, threads)
    for number, (part, stop) in enumerate(zip(parts, stops, strict=False)):
        held = walk.weights.tensors
        held |= reading.tensors([name for name in part.tensors if name not in held])
        walk.run(part, parts[number + 1 :], windows, threads)
        for shared in stop.shared.values():
            yield from _squares(shared, walk.rows, len(windows[0]))
            for name in (name for experts in shared.names for name in experts):
                tell(name)


def _squares(shared: Shared, rows: Mapping[int, Rows], length: int) -> Iterator[Squares]:
    """Add up the squares of what reaches the weights that share inputs."""
    found = [
        (np.square(each, dtype=np.float64).sum(axis=0), len(each)) for each in rows_of_experts(shared, rows, length)
    ]
    sums, counts = np.array([total for total, _ in found]), np.array([count for _, count in found])
    for names in zip(*shared.names, strict=True):
        yield Squares(names, sums, counts)


class _Reading:
    """Reads what parts of a program need: matrices as int8; of a table, the rows that are looked up."""

    def __init__(self, program: Program, source: Selection, windows: Sequence[Sequence[int]], threads: int) -> None:
        self._source, self._threads = source, threads
        self._ids = sorted({token for window in windows for token in window})
        self._kinds = {name: choice.kind for name, choice in choose(program.tensors, Recipe("int8")).items()}
        self._tables = {each.tensors[0] for each in program.operations if each.name == "embed"}

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return some tensors."""
        tables = [name for name in names if name in self._tables and self._source.reads_rows(name)]
        found = {name: self._table(name) for name in tables}
        parts: list[Encoded] = []
        kinds = {name: (self._kinds[name],) for name in names if name not in found}
        for stripe in encoded_stripes(self._source, kinds, self._threads):
            (kind,) = kinds[stripe.name]
            parts.append(stripe.encoded[kind])
            if stripe.last:
                found[stripe.name] = self._joined(stripe.name, kind, parts)
                parts = []
        return found

    def _joined(self, name: str, kind: str, parts: Sequence[Encoded]) -> Tensor:
        shape = self._source.spec(name).shape
        row_scales = [part.row_scales for part in parts if part.row_scales is not None]
        data = np.concatenate([part.data for part in parts]) if shape else parts[0].data.reshape(())
        return Tensor(kind, shape, data, np.concatenate(row_scales) if row_scales else None)

    def _table(self, name: str) -> Tensor:
        """Memory that nothing was written to is none: so a large vocabulary costs what is looked up."""
        spec = self._source.spec(name)
        first = self._source.entries(name, slice(0, 1), copy=True)
        memory = mmap.mmap(-1, math.prod(spec.shape) * first.itemsize)
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # else each row would cost 2 MB
        data = np.frombuffer(memory, first.dtype).reshape(spec.shape)
        for row in self._ids:
            data[row] = self._source.entries(name, slice(row, row + 1), copy=True)[0]
        return Tensor(spec.kind, spec.shape, data)
