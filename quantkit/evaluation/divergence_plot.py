"""A picture of how far models are from a reference: the divergence of their tokens, and what became of the right ones.

Needs matplotlib, as all that `plot.py` draws. `scores.py` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.evaluation.estimates import Values
from quantkit.evaluation.plot import GREY, colours, draw_panels
from quantkit.evaluation.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 400
"""Of a curve, whatever the number of tokens."""
LEAST = 1e-7
"""Divergences below, in nats, are those of f32 arithmetic; they are drawn here."""


def draw_divergences(path: Path, names: Sequence[str], scores: Scores) -> None:
    """Draw the pairs of models that were compared into a file whose suffix says its format.

    Parameters
    ----------
    path : Path
        `.png` or `.svg`; replaced if it exists.
    names : sequence of str
        Of the pairs.
    scores : Scores

    Raises
    ------
    OptionError
        When matplotlib is missing, or the file cannot be written.
    """
    tokens = scores.kl.shape[1]
    title = f"{tokens:,} tokens in {scores.windows} windows of {scores.context}"
    changes = [np.exp(-scores.losses[model]) - np.exp(-scores.losses[reference]) for reference, model in scores.pairs]
    draw_panels(
        path,
        title,
        [partial(_divergences, names=names, values=list(scores.kl)), partial(_changes, names=names, values=changes)],
    )


def _divergences(axes: Axes, names: Sequence[str], values: Sequence[Values]) -> None:
    """Share of the tokens that diverge by more than so much; a dot marks each mean."""
    for name, kl, colour in zip(names, values, colours(), strict=False):
        shares = np.geomspace(1 / kl.size, 1, POINTS)
        axes.plot(np.maximum(np.quantile(kl, 1 - shares), LEAST), shares, color=colour, label=name, linewidth=1.6)
        mean = float(kl.mean())
        axes.plot(max(mean, LEAST), float((kl > mean).mean()) or 1, color=colour, marker="o", markersize=5.5)
    axes.plot([], [], color=GREY, marker="o", markersize=5.5, linestyle="", label="mean")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("KL divergence from the reference, nats")
    axes.set_ylabel("share of tokens above")


def _changes(axes: Axes, names: Sequence[str], values: Sequence[Values]) -> None:
    """The quantiles of the change of the right token's probability."""
    shares = np.linspace(0, 1, POINTS)
    for name, dp, colour in zip(names, values, colours(), strict=False):
        axes.plot(shares, np.quantile(dp, shares), color=colour, label=name, linewidth=1.6)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("quantile")
    axes.set_ylabel("change of the right token's probability")
