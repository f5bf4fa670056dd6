"""What a pass must do at least, and what that costs at best: the roofline.

Each step of a plan has a cost in bytes read from memory and in multiply-adds, which follows from its fields, the bytes
of its weight and what the batch looks like. A machine has two ceilings; the larger of the two times that a cost takes
under them bounds any implementation. Counted are weights, the keys and values of the cache, and the multiply-adds of
matrix products and attention; values that live in the caches of the processor are not. `benchmark.py` measures beside
it, `plan.py` makes the steps, and nothing here is measured or run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.engine.model import PASS_TOKENS
from quantkit_kernels.attention.pages import PAGE
from quantkit_kernels.interpreter.table import Field, Opcode

if TYPE_CHECKING:
    from quantkit.engine.lowering import Step
    from quantkit.engine.model import Model


@dataclass(frozen=True)
class Cost:
    """Work of a step, a pass or a test.

    Attributes
    ----------
    weight_bytes, cache_bytes : float
        Bytes read of weights, and of keys and values.
    macs : float
        Multiply-adds of matrix products and attention.
    """

    weight_bytes: float = 0
    cache_bytes: float = 0
    macs: float = 0

    @property
    def nbytes(self) -> float:
        """All bytes read."""
        return self.weight_bytes + self.cache_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weight_bytes + other.weight_bytes, self.cache_bytes + other.cache_bytes, self.macs + other.macs
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.weight_bytes * times, self.cache_bytes * times, self.macs * times)


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


@dataclass(frozen=True)
class Part:
    """`count` new tokens of one sequence that holds `depth` already."""

    count: int
    depth: int


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

    def step(self, step: Step, parts: Sequence[Part], wanted: int) -> Cost:
        """Cost of a step in a pass over some parts, with `wanted` tokens whose logits are asked for."""
        tokens = wanted if step.wanted else sum(part.count for part in parts)
        if step.opcode is Opcode.ATTENTION:
            return self._attention(step, parts)
        nbytes = self._weight_bytes(step)
        if step.opcode is Opcode.EMBED and step.weight is not None:
            return Cost(nbytes / self._tensors[step.weight].shape[0] * tokens)
        if step.opcode is Opcode.LINEAR:
            macs = int(step.numbers[Field.ROWS]) * int(step.numbers[Field.COLUMNS]) * tokens
            return Cost(nbytes if tokens else 0, macs=macs)
        return Cost(nbytes if tokens else 0)

    def forward(self, parts: Iterable[Part]) -> Cost:
        """Cost of `Model.forward` for some sequences, each part's last token being wanted: the sum of its passes."""
        total = Cost()
        for passing, wanted in self.passes(parts):
            for step, times in self._distinct:
                total += self.step(step, passing, wanted) * times
        return total

    def passes(self, parts: Iterable[Part]) -> list[tuple[list[Part], int]]:
        """Cut parts into passes as the engine does; each with the number of tokens wanted in it."""
        passes: list[tuple[list[Part], int]] = []
        room = 0
        for part in parts:
            done = 0
            while done < part.count:
                if not room:
                    passes.append(([], 0))
                    room = PASS_TOKENS
                count = min(room, part.count - done)
                cut, wanted = passes[-1]
                done, room = done + count, room - count
                cut.append(Part(count, part.depth + done - count))
                passes[-1] = cut, wanted + (done == part.count)
        return passes

    def _attention(self, step: Step, parts: Sequence[Part]) -> Cost:
        """Keys and values that any token sees are read once; each token meets those that it sees."""
        numbers = {field: int(step.numbers[field]) for field in (Field.SIZE, Field.KV_HEADS, Field.GROUP, Field.WINDOW)}
        window = numbers[Field.WINDOW] or sum(part.depth + part.count for part in parts)
        read = sum(min(part.depth + part.count, window + part.count - 1) for part in parts)
        seen = sum(_seen(part, window) for part in parts)
        heads = numbers[Field.KV_HEADS] * numbers[Field.GROUP]
        return Cost(
            cache_bytes=read * self._layer_bytes[step.cache] / PAGE,
            macs=2 * seen * heads * numbers[Field.SIZE],
        )

    def _weight_bytes(self, step: Step) -> int:
        # Not every weight is a tensor of the model: the frequencies of a rotation are made.
        return self._tensors[step.weight].nbytes if step.weight and step.weight in self._tensors else 0

    def _key(self, step: Step) -> tuple[object, ...]:
        """Equal for steps that cost the same whatever the batch."""
        fields = (Field.ROWS, Field.COLUMNS, Field.SIZE, Field.KV_HEADS, Field.GROUP, Field.WINDOW)
        return step.opcode, step.wanted, self._weight_bytes(step), *(step.numbers.get(field) for field in fields)


def _seen(part: Part, window: int) -> int:
    """Positions that the tokens of a part see, all together: a token at `p` sees `min(p + 1, window)`."""
    first, last = part.depth + 1, part.depth + part.count
    whole = min(max(window, first - 1), last)  # tokens up to here see everything before them
    return (first + whole) * (whole - first + 1) // 2 + (last - whole) * window
