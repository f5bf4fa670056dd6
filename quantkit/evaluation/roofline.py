"""What a pass must do at least, and what that costs at best: the roofline.

Each step of a plan has a cost in bytes read from memory and in multiply-adds, which follows from its fields, the bytes
of its weight and what the batch looks like. A machine has two ceilings; the larger of the two times that a cost takes
under them bounds any implementation. Counted are weights, the keys and values of the cache, the states of recurrent
layers, and the multiply-adds of matrix products and attention; values that live in the caches of the processor are not.
`benchmark.py` measures beside it, `quantkit.engine.lowering` makes the steps, and nothing here is measured or run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.engine.model import PASS_TOKENS
from quantkit_kernels.attention.pages import PAGE
from quantkit_kernels.interpreter.operations import Chunk, Cost, Load

if TYPE_CHECKING:
    from quantkit.engine.model import Model
    from quantkit.engine.steps import Step


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do at best.

    Attributes
    ----------
    read : float
        Bytes per second that are read from memory.
    int8 : float
        Multiply-adds per second of the instruction set's int8 dot product.
    """

    read: float
    int8: float

    def seconds(self, cost: Cost) -> float:
        """The least time for some work: reads and products overlap, so the longer of the two."""
        return max(cost.nbytes / self.read, cost.macs / self.int8)


class Costs:
    """The costs of a model's steps.

    Parameters
    ----------
    model : Model
        Its plan, the bytes of its tensors and the form of its KV cache are looked at.
    """

    def __init__(self, model: Model) -> None:
        self._tensors = model.tensors
        self._layer_bytes = model.cache_shape.layer_bytes
        alike: dict[tuple[object, ...], list[Step]] = {}
        for step in model.plan.steps:
            alike.setdefault(self._key(step), []).append(step)
        self._distinct = [(steps[0], len(steps)) for steps in alike.values()]

    def step(self, step: Step, chunks: Sequence[Chunk], wanted: int) -> Cost:
        """Cost of a step in a pass over some chunks, with `wanted` tokens whose logits are asked for."""
        weight = self._tensors[step.weights[0]] if step.weights else None
        load = Load(
            tokens=wanted if step.wanted else sum(chunk.count for chunk in chunks),
            chunks=chunks,
            per_token=step.per_token,
            weight_bytes=self._weight_bytes(step),
            weight_rows=weight.shape[0] if weight else 1,
            position_bytes=self._layer_bytes[step.cache] / PAGE if step.cache >= 0 else 0,
            state_bytes=step.state.nbytes,
        )
        return step.spec.work(step.fields, load)

    def forward(self, chunks: Iterable[Chunk]) -> Cost:
        """Cost of `Model.forward` for some sequences, each chunk's last token being wanted: the sum of its passes."""
        total = Cost()
        for cut, wanted in self.passes(chunks):
            for step, times in self._distinct:
                total += self.step(step, cut, wanted) * times
        return total

    def passes(self, chunks: Iterable[Chunk]) -> list[tuple[list[Chunk], int]]:
        """Cut chunks into passes as the engine does; each with the number of tokens wanted in it."""
        passes: list[tuple[list[Chunk], int]] = []
        room = 0
        for chunk in chunks:
            done = 0
            while done < chunk.count:
                if not room:
                    passes.append(([], 0))
                    room = PASS_TOKENS
                count = min(room, chunk.count - done)
                cut, wanted = passes[-1]
                done, room = done + count, room - count
                cut.append(Chunk(count, chunk.depth + done - count))
                passes[-1] = cut, wanted + (done == chunk.count)
        return passes

    def _key(self, step: Step) -> tuple[object, ...]:
        """Equal for steps that cost the same whatever the batch."""
        weight_bytes = self._weight_bytes(step)
        cached = self._layer_bytes[step.cache] if step.cache >= 0 else 0
        return step.spec.name, step.wanted, step.per_token, weight_bytes, cached, *sorted(step.fields.items())

    def _weight_bytes(self, step: Step) -> int:
        """Of the weight, or of those of all experts."""
        names = step.weights if step.spec.stacked else step.weights[:1]
        return sum(self._tensors[name].nbytes for name in names)
