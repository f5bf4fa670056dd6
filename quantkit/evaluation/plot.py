"""A picture of measurements: tokens per second over depth and over batch, with the rooflines drawn in.

It needs matplotlib, which the extra `plot` brings, and draws into files alone: no display, no global state.
`benchmark.py` measures and `roofline.py` says where the curves lie.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.machine import cpu_name
from quantkit.errors import OptionError
from quantkit.evaluation.benchmark import Measurement, Test
from quantkit.evaluation.roofline import Ceilings, Costs
from quantkit.formats.output.file import check_file, save_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0b6e99", "#d1495b", "#4c956c", "#e09f3e", "#7b5ea7", "#5c6b73", "#2f4858", "#b56576")
GREY = "#6b7280"
POINTS = 96
"""Of a roofline's curve."""


def check_plot(path: Path, apart_from: Sequence[Path] = ()) -> None:
    """Raise `OptionError` when there is no matplotlib, or the file cannot be written, before anything is measured.

    `apart_from` as of `check_file`.
    """
    if find_spec("matplotlib") is None:
        raise OptionError("drawing needs matplotlib: pip install 'quantkit[plot]'")
    check_file(path, what="picture", apart_from=apart_from, force=True)


def draw(path: Path, title: str, measurements: Sequence[Measurement], costs: Costs) -> None:
    """Draw measurements into a file whose suffix says its format.

    A panel shows speed over depth where there are several depths, another speed over batch where there are several
    batches; with neither, one shows each test below the roofline, over multiply-adds per byte.

    Parameters
    ----------
    path : Path
        `.png` or `.svg`; replaced if it exists.
    title : str
        Name of the model.
    measurements : sequence of Measurement
    costs : Costs
        The model's.

    Raises
    ------
    OptionError
        When matplotlib is missing, or the file cannot be written.
    """
    panels: list[Callable[[Axes, Sequence[Measurement], Costs], None]] = []
    if len({found.test.n_depth for found in measurements}) > 1:
        panels.append(_over_depth)
    if len({found.test.n_parallel for found in measurements if found.test.n_gen}) > 1:
        panels.append(_over_batch)
    panels = panels or [_over_intensity]

    def of_these(panel: Callable[[Axes, Sequence[Measurement], Costs], None]) -> Callable[[Axes], None]:
        return lambda axes: panel(axes, measurements, costs)

    draw_panels(path, _title(title, measurements), [of_these(panel) for panel in panels])


def draw_panels(path: Path, title: str, panels: Sequence[Callable[[Axes], None]]) -> None:
    """Draw panels side by side into a file, each by a function of its axes; raises as `draw`."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 6.2 * len(panels), 5.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        panel(axes)
        _finish(axes)
    figure.suptitle(title, fontsize=11, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=160)
    save_file(path, picture.getvalue())


def _title(title: str, measurements: Sequence[Measurement]) -> str:
    ceilings = _ceilings(measurements)
    threads = sorted({found.threads for found in measurements})
    machine = f"{cpu_name()}, {', '.join(map(str, threads))} thread{'s' if threads[-1] > 1 else ''}"
    return f"{title}  ·  {machine}  ·  {ceilings.read / 1e9:.0f} GB/s, {ceilings.int8 / 1e9:.0f} GMAC/s of int8"


def _ceilings(measurements: Sequence[Measurement]) -> Ceilings:
    """Medians over the tests."""
    return Ceilings(
        statistics.median(found.ceilings.read for found in measurements),
        statistics.median(found.ceilings.int8 for found in measurements),
    )


def _over_depth(axes: Axes, measurements: Sequence[Measurement], costs: Costs) -> None:
    deepest = max(found.test.n_depth for found in measurements)
    _curves(axes, measurements, costs, "n_depth", np.linspace(0, deepest, POINTS))
    axes.set_xlabel("tokens in the cache before")
    axes.set_yscale("log")


def _over_batch(axes: Axes, measurements: Sequence[Measurement], costs: Costs) -> None:
    decoding = [found for found in measurements if found.test.n_gen]
    batches = sorted({found.test.n_parallel for found in decoding})
    _curves(axes, decoding, costs, "n_parallel", np.geomspace(batches[0], batches[-1], POINTS))
    axes.set_xlabel("sequences decoded together")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])


def _curves(
    axes: Axes, measurements: Sequence[Measurement], costs: Costs, field: str, places: NDArray[np.float64]
) -> None:
    """A line for all that differs in `field` alone, and its roofline, dashed, in the same colour."""
    groups: dict[tuple[Test, int], list[Measurement]] = {}
    for found in measurements:
        groups.setdefault((replace(found.test, **{field: 1}), found.threads), []).append(found)
    several_threads = len({threads for _, threads in groups}) > 1
    for colour, ((test, threads), group) in zip(colours(), groups.items(), strict=False):
        group.sort(key=lambda found: getattr(found.test, field))
        label = _label(test, field) + (f", {threads} threads" if several_threads else "")
        x = [getattr(found.test, field) for found in group]
        axes.plot(x, [found.avg_ts for found in group], color=colour, marker="o", markersize=4.5, label=label, zorder=3)
        ceilings = _ceilings(group)
        whole = sorted({round(place) for place in places.tolist()})
        bounds = [_bound(replace(test, **{field: place}), costs, ceilings) for place in whole]
        axes.plot(whole, bounds, color=colour, linestyle=(0, (4, 2)), linewidth=1.1, alpha=0.75)
    axes.plot([], [], color=GREY, linestyle=(0, (4, 2)), linewidth=1.1, label="roofline of each")
    axes.set_ylabel("tokens/s of all sequences")


def _label(test: Test, field: str) -> str:
    return replace(test, **{field: {"n_depth": 0, "n_parallel": 1}[field]}).name


def _bound(test: Test, costs: Costs, ceilings: Ceilings) -> float:
    """Tokens per second at the roofline; generation is taken in its middle."""
    middle = Test(0, 1, test.n_depth + test.n_gen // 2, test.n_parallel) if test.n_gen else test
    return middle.tokens / ceilings.seconds(middle.cost(costs))


def _over_intensity(axes: Axes, measurements: Sequence[Measurement], costs: Costs) -> None:
    """Each test below the roofline of its number of threads."""
    threads = sorted({found.threads for found in measurements})
    intensities = [found.cost.macs / found.cost.nbytes for found in measurements]
    for colour, count in zip(colours(), threads, strict=False):
        group = [found for found in measurements if found.threads == count]
        ceilings = _ceilings(group)
        ridge = ceilings.int8 / ceilings.read
        x = np.geomspace(min(*intensities, ridge) / 2, max(*intensities, ridge) * 2, POINTS)
        roof = np.minimum(x * ceilings.read, ceilings.int8)
        axes.plot(x, roof / 1e9, color=colour, linewidth=1.4, label=f"roofline, {count} threads")
        for found in group:
            place = found.cost.macs / found.cost.nbytes, found.mac_rate / 1e9
            axes.plot(*place, color=colour, marker="o", markersize=5.5, zorder=3)
            right = place[0] > np.sqrt(x[0] * x[-1])
            axes.annotate(
                f"{found.test.name}\n{found.avg_ts:,.0f} tokens/s",
                place,
                xytext=(-9 if right else 9, -6),
                textcoords="offset points",
                horizontalalignment="right" if right else "left",
                verticalalignment="top",
                fontsize=8,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("multiply-adds for each byte read")
    axes.set_ylabel("GMAC/s")


def colours() -> Sequence[str]:
    """Return a colour for each of some curves; after a few they begin anew."""
    return PALETTE * 4


def _finish(axes: Axes) -> None:
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color("#374151")
    axes.tick_params(colors="#374151", which="both")
    axes.legend(frameon=False, fontsize=8.5)
