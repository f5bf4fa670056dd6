"""A chart of errors as inline SVG: a panel for each kind, in it one mark for each part of each layer.

Mark and colour are those of the kind; the page defines the colours, for light and dark. Experts of a layer that do the
same are one mark, at their mean, with a line from the smallest error to the largest. No library is needed, and names,
which come from strangers, are escaped.
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

WIDTH, PANEL = 960, 180
"""Size of the panel of one kind, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 26, 44
"""Margins around marks: beside them, above those of a panel, and below the last panel."""
MARKS = {
    "int4": "M-4-4h8v8h-8z",
    "int5": "M0-5.2L4.9-1.6 3.1 4.2-3.1 4.2-4.9-1.6z",
    "int6": "M-5 0l2.5-4.4h5l2.5 4.4-2.5 4.4h-5z",
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
LINES = 6
"""Errors that are numbered in a panel, at most."""
SPREAD = 0.7
"""Share of a layer's column over which its marks are spread."""


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
    """Where layers and errors lie in the panel of a kind.

    Attributes
    ----------
    first, last : int
        Layers, alike in all panels.
    low, high : float
        Logarithms of errors, somewhat below and above all of the panel.
    top : float
        Where the marks' area begins.
    """

    first: int
    last: int
    low: float
    high: float
    top: float

    def x(self, layer: float) -> float:
        """Return the middle of a layer's column."""
        return LEFT + (layer - self.first + 0.5) / (self.last - self.first + 1) * (WIDTH - LEFT - RIGHT)

    def y(self, error: float) -> float:
        """Return the height of an error, on a logarithmic scale."""
        return self.top + (self.high - math.log10(error)) / (self.high - self.low) * (PANEL - TOP)

    @property
    def lines(self) -> list[float]:
        """The errors that are numbered: as many of each power of ten as are not too many."""
        powers = range(math.floor(self.low), math.ceil(self.high))
        for digits in (range(1, 10), (1, 2, 5), (1,)):
            errors = [float(f"{digit}e{power}") for power in powers for digit in digits]
            fitting = [error for error in errors if error and self.low <= math.log10(error) <= self.high]
            if len(fitting) <= LINES:
                return fitting
        return fitting[:: -(-len(fitting) // LINES)]


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
    """Return an `<svg>` of the errors over the layers, a panel for each kind; nothing where no tensor has one."""
    kinds: dict[str, list[Mark]] = {}
    for mark in marks_of(tensors):
        kinds.setdefault(mark.kind, []).append(mark)
    if not kinds:
        return ""
    layers = [mark.layer for marks in kinds.values() for mark in marks]
    height = PANEL * len(kinds) + BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="chart-title">',
        '<title id="chart-title">Relative squared error of each tensor, by layer and kind</title>',
    ]
    for place, marks in enumerate(kinds.values()):
        logarithms = [math.log10(error) for mark in marks for error in mark.errors]
        low, high = min(logarithms), max(logarithms)
        edge = max(0.05, 0.08 * (high - low))
        axes = Axes(min(layers), max(layers), low - edge, high + edge, PANEL * place + TOP)
        parts += _panel(marks, axes)
    parts += _layers(axes, height)
    return "\n".join((*parts, "</svg>"))


def _panel(marks: Sequence[Mark], axes: Axes) -> Iterator[str]:
    """Yield the marks of a kind, those of a layer side by side, with the kind's name and lines at some errors."""
    yield f'<text class="kind" x="{LEFT}" y="{axes.top - 8:.0f}">{marks[0].kind}</text>'
    for error in axes.lines:
        y = axes.y(error)
        yield f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{error:.0e}</text>'
    layers: dict[int, list[Mark]] = {}
    for mark in marks:
        layers.setdefault(mark.layer, []).append(mark)
    for layer, beside in layers.items():
        for place, mark in enumerate(beside):
            yield _drawn(mark, axes.x(layer + SPREAD * ((place + 0.5) / len(beside) - 0.5)), axes)


def _layers(axes: Axes, height: int) -> Iterator[str]:
    """Yield the numbers of layers below the last panel."""
    step = -(-(axes.last - axes.first + 1) // TICKS)
    for layer in range(max(axes.first, 0), axes.last + 1, step):
        yield f'<text class="axis" x="{axes.x(layer):.1f}" y="{height - 24}" text-anchor="middle">{layer}</text>'
    yield f'<text class="axis" x="{(LEFT + WIDTH) / 2:.1f}" y="{height - 6}" text-anchor="middle">layer</text>'


def _drawn(mark: Mark, x: float, axes: Axes) -> str:
    low, high = axes.y(min(mark.errors)), axes.y(max(mark.errors))
    line = f'<path class="span" d="M{x:.1f} {low:.1f}V{high:.1f}"/>' if mark.errors[1:] else ""
    place = f"translate({x:.1f} {axes.y(mark.mean):.1f})"
    title = f"<title>{escape(shown(mark.title))}</title>"
    path = f'<path class="mark" transform="{place}" d="{MARKS[mark.kind]}">{title}</path>'
    return f'<g class="{mark.kind}">{line}{path}</g>'
