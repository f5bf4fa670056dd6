"""The forms in which `quantkit eval` answers: lines for one model, a table for several, JSON for programs.

`eval.py` reads the text; what the figures mean is said in `quantkit.evaluation.estimates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from quantkit.cli.text import size, table

if TYPE_CHECKING:
    from quantkit.evaluation.estimates import Divergence, Estimate
    from quantkit.evaluation.quality import Evaluation

Form = Callable[[float], str]
"""Makes a form, for a figure and its error alike, of how large the figure is."""


def lines(found: Evaluation) -> Iterator[str]:
    """All figures of a model, one a line, in the order of llama-perplexity."""
    figures = [
        ("perplexity", str(found.perplexity)),
        ("tokens scored", f"{found.tokens} in {found.windows} windows of {found.context}"),
    ]
    if found.divergence:
        figures += _lines_of(found.divergence)
    for name, value in figures:
        yield f"{name:22}{value}"


def _lines_of(other: Divergence) -> Iterator[tuple[str, str]]:
    yield "reference perplexity", str(other.reference_perplexity)
    yield "perplexity ratio", str(other.perplexity_ratio)
    yield "perplexity difference", str(other.perplexity_difference)
    yield "log perplexity ratio", both(other.log_perplexity_ratio, nats)
    yield "correlation of losses", alone(other.correlation, share)
    yield "mean KL divergence", both(other.mean_kl, nats)
    yield "KL maximum", alone(other.kl_max, nats)
    for place, value in reversed(other.kl_quantiles.items()):
        yield f"KL quantile {place:.1%}", both(value, nats)
    yield "KL minimum", alone(other.kl_min, nats)
    yield "mean Δp", both(other.mean_dp, share)
    yield "RMS Δp", both(other.rms_dp, share)
    yield "Δp maximum", alone(other.dp_max, share)
    for place, value in reversed(other.dp_quantiles.items()):
        yield f"Δp quantile {place:.1%}", both(value, share)
    yield "Δp minimum", alone(other.dp_min, share)
    yield "same top token", both(other.same_top, share)


def table_of(what: str, names: Sequence[str], sizes: Sequence[int] | None, found: Sequence[Evaluation]) -> str:
    """The chief figures of several models, or of parts of one, a row for each; then what was read."""
    headers = [what, *(["size"] if sizes else []), "perplexity"]
    rows = [
        [name, *([size(sizes[place])] if sizes else []), str(each.perplexity)]
        for place, (name, each) in enumerate(zip(names, found, strict=True))
    ]
    if found[0].divergence:
        headers += ["ratio", "mean KL", "KL 99%", "RMS Δp", "same top"]
    for row, each in zip(rows, found, strict=True):
        if other := each.divergence:
            row += [
                str(other.perplexity_ratio),
                both(other.mean_kl, nats),
                both(other.kl_quantiles[0.99], nats),
                both(other.rms_dp, share),
                both(other.same_top, share),
            ]
    read = f"{found[0].tokens} tokens scored in {found[0].windows} windows of {found[0].context}"
    if other := found[0].divergence:
        read += f"; perplexity of the reference {other.reference_perplexity}"
    return f"{table(headers, rows)}\n{read}"


def nats(value: float) -> str:
    """Five decimals, which small divergences have no use for."""
    return "{:.5f}" if abs(value) >= 1e-3 or not value else "{:.1e}"


def share(value: float) -> str:
    """Percent."""
    return "{:.2%}"


def both(figure: Estimate, form: Form) -> str:
    """Return a figure and its error."""
    chosen = form(figure.value)
    return f"{chosen.format(figure.value)} ± {chosen.format(figure.error)}"


def alone(value: float, form: Form) -> str:
    """Return a figure that has no error."""
    return form(value).format(value)


def as_json(about: Sequence[dict[str, Any]], found: Sequence[Evaluation]) -> str:
    """An object for each model, `about` it first; an array where there are several."""
    import dataclasses
    import json

    objects = [head | dataclasses.asdict(each) for head, each in zip(about, found, strict=True)]
    return json.dumps(objects[0] if len(objects) == 1 else objects, indent=2)
