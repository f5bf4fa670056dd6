"""Columns of inputs made alike before packed weights meet them, as SmoothQuant does (Xiao et al., 2023).

The engine rounds the inputs of a product to int8, 32 columns with one scale. Where one of these is far larger than the
others, these are rounded coarsely. What makes the columns, the weights of a norm or the matrix that a gate multiplies,
can be scaled column by column, and the matrices that read them by the inverse: the model computes the same and loses
less, and nothing of it is left at run time. Its tensors are no longer those of the checkpoint.

`sites_of` finds in a program where that can be done, `inputs.py` measures the columns, and `conversion/` packs the
`Balanced` source instead of the checkpoint's.

Mean divergence of SmolLM2-135M on WikiText-2 (6 windows, weights packed without a text), by the exponent of a column's
mean square in its factor:

======== ====== ====== ====== ======
exponent int4   int5   int6   int8
======== ====== ====== ====== ======
0        0.0513 0.0160 0.0066 0.0030
-0.125   0.0546 0.0145 0.0047 0.0020
-0.25    0.0658 0.0160 0.0047 0.0016
-0.375                        0.0021
-0.5                          0.0038
======== ====== ====== ====== ======

Where codes are calibrated on a text, that of int5 falls from 0.0086 to 0.0065 with -0.125, and that of int4 hardly
moves: 0.0220 and 0.0215, each +- 0.001 (8 windows).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.source import Selection
from quantkit.models.program import Operation, Program, Value
from quantkit.quantization.calibration import BALANCED
from quantkit.quantization.calibration.inputs import importances_of, measure
from quantkit.tensor import GroupScales, Tensor, TensorSpec
from quantkit_kernels.blocks import ROWS, dequantize

MEASURED_WINDOWS = 16
"""Of the text: more than enough to tell large columns from small ones."""
LEAST = 1e-6
"""Of a column's mean square, relative to the mean of all: one that was hardly used may yet be."""

Floats = NDArray[np.float32]
Windows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Site:
    """Where a program's columns can be scaled.

    Attributes
    ----------
    makers : dict of str to float
        Tensors whose entries of the first axis make the columns, and what the program adds to each when it reads it.
    readers : tuple of str
        The matrices that read the columns; nothing else does.
    exponent : float
        How much they are scaled, as of `BALANCED`.
    """

    makers: Mapping[str, float]
    readers: tuple[str, ...]
    exponent: float


def balanced(
    program: Program, source: Selection, specs: Mapping[str, TensorSpec], windows: Windows, threads: int
) -> Selection:
    """Return a model whose columns are alike before matrices of `BALANCED` kinds, as they are on a text.

    Matrices that the source has quantized stay as they are: their codes may be kept.

    Parameters
    ----------
    program : Program
    source : Selection
        The model.
    specs : Mapping of str to TensorSpec
        Kind of each tensor.
    windows : sequence of sequence of int
        Token ids of the text, as many in each.
    threads : int
    """
    matrices = (name for name, spec in specs.items() if len(spec.shape) == 2)
    quantized = {name for name in matrices if source.group_scales(name, slice(0, ROWS)) is not None}
    sites = {site.readers[0]: site for site in sites_of(program, specs, quantized)}
    means = mean_squares(program, source, sites, windows, threads) if sites else {}
    return Balanced(source, [(sites[name], factors_of(of, sites[name].exponent)) for name, of in means.items()])


def mean_squares(
    program: Program, source: Selection, names: Collection[str], windows: Windows, threads: int
) -> dict[str, Floats]:
    """Return the mean squares of the inputs of matrices on a part of a text, by the names of those that it reaches."""
    part = windows[:: -(-len(windows) // MEASURED_WINDOWS)]
    return importances_of(measure(program, source, names, part, threads))


class Balanced(Selection):
    """A model that computes what another does, with columns that are scaled.

    Parameters
    ----------
    source : Selection
        The other.
    factors : sequence of (Site, ndarray)
        What the columns of some sites are multiplied by, f32 `[columns]`.
    """

    def __init__(self, source: Selection, factors: Sequence[tuple[Site, Floats]]) -> None:
        self.__dict__.update(vars(source))  # names, files and the like are the same
        self._other = source
        self._made = {name: (offset, of) for site, of in factors for name, offset in site.makers.items()}
        self._read = {name: of for site, of in factors for name in site.readers}

    def spec(self, name: str) -> TensorSpec:
        spec = self._other.spec(name)
        return replace(spec, kind="f32") if self._scaled(name) else spec

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        if not self._scaled(name):
            return self._other.tensor(name, copy=copy)
        return Tensor("f32", self.spec(name).shape, self.entries(name, slice(None), copy=copy))

    def entries(self, name: str, wanted: slice, *, copy: bool = False) -> NDArray[Any]:
        stored = self._other.entries(name, wanted, copy=copy)
        if not self._scaled(name):
            return stored
        weights = dequantize(self._other.spec(name).kind, stored, None, stored.shape)
        if name in self._read:
            weights = weights / self._read[name]
        if name in self._made:
            offset, factors = self._made[name]
            of_rows = factors[wanted].reshape(-1, *[1] * (weights.ndim - 1))
            weights = (weights + np.float32(offset)) * of_rows - np.float32(offset)
        return weights

    def group_scales(self, name: str, wanted: slice) -> GroupScales | None:
        return None if self._scaled(name) else self._other.group_scales(name, wanted)

    def _scaled(self, name: str) -> bool:
        return name in self._made or name in self._read


def sites_of(program: Program, specs: Mapping[str, TensorSpec], fixed: Collection[str] = ()) -> list[Site]:
    """Return where columns can be scaled, by the kinds that tensors are to have; `fixed` ones stay as they are."""
    uses = Counter(name for each in program.operations for name in each.tensors)
    reading: dict[int, list[Operation]] = defaultdict(list)
    for operation in program.operations:
        for index in {x.index for x in operation.inputs if isinstance(x, Value)}:
            reading[index].append(operation)
    outputs = {value.index for value in program.outputs}
    sites = []
    for operation in program.operations:
        readers = reading[operation.output.index]
        if not readers or operation.output.index in outputs or any(each.name != "linear" for each in readers):
            continue
        makers, matrices = _makers(program, operation, reading), tuple(each.tensors[0] for each in readers)
        exponent = max(BALANCED.get(specs[name].kind, 0.0) for name in matrices)
        alone = all(uses[name] == 1 and name not in fixed for name in (*makers, *matrices))
        if makers and exponent and alone:
            sites.append(Site(makers, matrices, exponent))
    return sites


def _makers(program: Program, operation: Operation, reading: Mapping[int, list[Operation]]) -> dict[str, float]:
    """Return the tensors whose entries make the columns of an operation's output, if there are such, and offsets."""
    if operation.name in ("rms_norm", "layer_norm"):
        columns = operation.output.columns if isinstance(operation.output, Value) else 0
        whole = operation.parameters["weight_columns"] == operation.parameters["size"] == columns
        weight_and_bias = zip(operation.tensors, (operation.parameters["offset"], 0.0), strict=False)
        return dict(weight_and_bias) if whole else {}
    if operation.name == "gated":
        up = operation.inputs[1]
        made_by = program.operations[up.index]
        if made_by.name == "linear" and len(reading[up.index]) == 1:
            return dict.fromkeys(made_by.tensors, 0.0)
    return {}


def factors_of(mean_squares: Floats, exponent: float) -> Floats:
    """Return what columns are multiplied by, f32 `[columns]`, by the mean squares of their numbers."""
    least = LEAST * mean_squares.mean(dtype=np.float64)
    logarithms = exponent * np.log(np.maximum(mean_squares, least))
    factors: Floats = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return factors
