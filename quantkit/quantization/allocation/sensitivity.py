"""How much it costs to round a unit: the divergence of the model's predictions where this unit alone is int4.

A unit is int4 as it will be packed: the better it is searched for, the less it costs, and not all gain alike.
Everything else keeps the source's weights and runs in f32 arithmetic, so that nothing but the unit differs and the
divergences of all units add up. What comes before a unit does not depend on it: the values there are computed once, and
each unit runs the rest of the program. `assignment.py` spends bytes by what is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from quantkit.formats.source import ModelSource
from quantkit.models.parts import cut
from quantkit.models.program import Program
from quantkit.quantization.allocation.units import Unit
from quantkit.quantization.calibration.passes import Rows, Walk, Weights, run_part
from quantkit.quantization.encode import dequantize
from quantkit.tensor import Tensor


def measure(
    program: Program,
    source: ModelSource,
    units: Sequence[Unit],
    packed: Callable[[str], Tensor],
    windows: Sequence[Sequence[int]],
    threads: int,
) -> Iterator[tuple[Unit, list[float]]]:
    """Measure the cost of units in int4.

    Parameters
    ----------
    program : Program
    source : ModelSource
        The weights, at most 16 bits of which each is stored.
    units : sequence of Unit
        In the order of use.
    packed : callable
        Returns a matrix in int4, by its name.
    windows : sequence of sequence of int
        A text: token ids, as many in each.
    threads : int
        The result does not depend on it.

    Yields
    ------
    Unit, list of float
        Each unit and, for each window, the mean Kullback-Leibler divergence of its predictions, in nats.
    """
    if not units:
        return
    weights = Weights(source.config, {name: source.tensor(name) for name in program.tensors})
    reference = _Predictions(_logits(program, weights, {}, windows, threads), len(windows))
    parts = cut(program, [unit.border for unit in units])
    walk = Walk(weights)
    for number, unit in enumerate(units):
        if parts[number].outputs:  # else nothing that later ones read comes before the unit
            walk.run(parts[number], parts[number + 1 :], windows, threads)
        rest = cut(program, [unit.border])[1]
        rounded = {name: _floats(packed(name)) for name in unit.names}
        changed = Weights(source.config, weights.tensors | rounded)
        yield unit, reference.divergences(_logits(rest, changed, walk.rows, windows, threads))


def memory_needed(program: Program, source: ModelSource, units: Sequence[Unit], tokens: int) -> int:
    """Return about how many bytes that needs, mapped files included: weights, a unit in f32, and logits three times."""
    largest = max((sum(program.tensors[name].weights for name in unit.names) for unit in units), default=0)
    return source.nbytes + 4 * largest + 3 * 4 * tokens * program.logits.columns


def _floats(packed: Tensor) -> Tensor:
    return Tensor("f32", packed.shape, np.concatenate(list(dequantize(packed))))


def _logits(
    part: Program, weights: Weights, rows: Mapping[int, Rows], windows: Sequence[Sequence[int]], threads: int
) -> Rows:
    """The logits of all tokens of all windows, f32 `[tokens, vocab_size]`."""
    computed = dict(rows)
    run_part(part, weights, computed, windows, threads)
    return computed[part.logits.index][:, : part.logits.columns]


class _Predictions:
    """The predictions of the unrounded model, which others are compared with."""

    def __init__(self, logits: Rows, windows: int) -> None:
        from quantkit_kernels.rows.logits import log_sum_exp

        self._logits, self._windows = logits, windows
        self._log_sums = list(map(log_sum_exp, logits))

    def divergences(self, logits: Rows) -> list[float]:
        """Return the mean Kullback-Leibler divergence of other predictions from these, of each window."""
        from quantkit_kernels.rows.logits import kl_divergence, log_sum_exp

        found = map(kl_divergence, self._logits, logits, self._log_sums, map(log_sum_exp, logits))
        means = np.array(list(found)).reshape(self._windows, -1).mean(axis=1)
        return [max(0.0, mean) for mean in means.tolist()]
