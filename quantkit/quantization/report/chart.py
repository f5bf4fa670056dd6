"""A chart of errors as inline SVG: one mark for each part of each layer, its shape and colour those of its kind.

The page defines the colours, for light and dark. Experts of a layer that do the same are one mark, at their mean, with
a line from the smallest error to the largest. No library is needed, and names, which come from strangers, are escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from quantkit.quantization.report import TensorReport
from quantkit.quantization.report.text import shown

WIDTH, HEIGHT = 960, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 44
"""Margins around the area of marks, in pixels."""
MARKS = {
    "int4": "M-4-4h8v8h-8z",
    "int8": "M0-5.5L5.5 0 0 5.5-5.5 0z",
    "f16": "M0-5L5 4h-10z",
    "bf16": "M0 5L5-4h-10z",
    "f32": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
}
"""Kind -> path of its mark around 0, 0."""
LAYER = re.compile(r".*?\.(\d+)\.", re.DOTALL)
EXPERT = re.compile(r"\.\d+(?=\.)")
FIRST_ROLES = ("embedding", "positions")
"""What stands before the layers, where its name has no number."""
TICKS = 16
"""Layers that are numbered, at most."""


@dataclass(frozen=True)
class Mark:
    """Tensors of one layer that do the same.

    Attributes
    ----------
    label : str
        Name of the tensor, or what the names have in common.
    kind : str
    layer : int
        Counted from 0; -1 before all layers, their number behind them.
    errors : tuple of float
        Above 0.
    """

    label: str
    kind: str
    layer: int
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the errors."""
        return sum(self.errors) / len(self.errors)

    @property
    def title(self) -> str:
        """What it shows, in words."""
        if not self.errors[1:]:
            return f"{self.label}, {self.kind}: {self.mean:.2e}"
        span = f"{min(self.errors):.2e} to {max(self.errors):.2e}"
        return f"{self.label}, {len(self.errors)} tensors, {self.kind}: {self.mean:.2e}, {span}"


class Axes(NamedTuple):
    """Where layers and errors lie: the first and the last layer, the powers of ten below and above all errors."""

    first: int
    last: int
    low: int
    high: int

    @classmethod
    def of(cls, marks: Iterable[Mark]) -> Axes:
        """Return the axes that hold some marks."""
        layers = [mark.layer for mark in marks]
        logarithms = [math.log10(error) for mark in marks for error in mark.errors]
        low = math.floor(min(logarithms))
        return cls(min(layers), max(layers), low, max(low + 1, math.ceil(max(logarithms))))

    def x(self, layer: int) -> float:
        """Return the middle of a layer's column."""
        return LEFT + (layer - self.first + 0.5) / (self.last - self.first + 1) * (WIDTH - LEFT - RIGHT)

    def y(self, error: float) -> float:
        """Return the height of an error, on a logarithmic scale."""
        return TOP + (self.high - math.log10(error)) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def marks_of(tensors: Iterable[TensorReport]) -> list[Mark]:
    """Return the marks of all tensors that have lost something."""
    lossy = [tensor for tensor in tensors if tensor.error]
    numbers = [int(found[1]) for tensor in lossy if (found := LAYER.match(tensor.name))]
    groups: dict[tuple[str, str, int], list[float]] = {}
    for tensor in lossy:
        behind = max(numbers, default=-1) + 1
        found = LAYER.match(tensor.name)
        layer = int(found[1]) if found else -1 if tensor.role in FIRST_ROLES else behind
        begin = found.end() if found else 0
        label = tensor.name[:begin] + EXPERT.sub(".*", tensor.name[begin:])
        groups.setdefault((label, tensor.kind, layer), []).append(tensor.error or 0.0)
    return [Mark(*key, tuple(errors)) for key, errors in groups.items()]


def chart(tensors: Sequence[TensorReport]) -> str:
    """Return an `<svg>` of the errors over the layers; nothing where no tensor has one."""
    marks = marks_of(tensors)
    if not marks:
        return ""
    axes = Axes.of(marks)
    return "\n".join(
        (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="chart-title">',
            '<title id="chart-title">Relative squared error of each tensor, by layer and kind</title>',
            *_grid(axes),
            *(_drawn(mark, axes) for mark in marks),
            "</svg>",
        )
    )


def _grid(axes: Axes) -> Iterator[str]:
    """Yield a line and a number for each power of ten, and the numbers of layers."""
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0**power)
        yield f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
    step = -(-(axes.last - axes.first + 1) // TICKS)
    for layer in range(max(axes.first, 0), axes.last + 1, step):
        yield f'<text class="axis" x="{axes.x(layer):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{layer}</text>'
    yield f'<text class="axis" x="{(LEFT + WIDTH) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">layer</text>'


def _drawn(mark: Mark, axes: Axes) -> str:
    x = axes.x(mark.layer)
    low, high = axes.y(min(mark.errors)), axes.y(max(mark.errors))
    line = f'<path class="span" d="M{x:.1f} {low:.1f}V{high:.1f}"/>' if mark.errors[1:] else ""
    place = f"translate({x:.1f} {axes.y(mark.mean):.1f})"
    title = f"<title>{escape(shown(mark.title))}</title>"
    return (
        f'<g class="{mark.kind}">{line}<path class="mark" transform="{place}" d="{MARKS[mark.kind]}">{title}</path></g>'
    )
