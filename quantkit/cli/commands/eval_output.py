"""The forms in which `quantkit eval` answers: lines for one model, a table for several, JSON for programs.

`eval.py` reads the text; what the figures mean is said in `quantkit.evaluation.estimates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from quantkit.cli.text import size, table

if TYPE_CHECKING:
    from quantkit.evaluation.estimates import Divergence, Estimate
    from quantkit.evaluation.quality import Evaluation

NATS, SHARE = "{:.5f}", "{:.2%}"


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
    yield "log perplexity ratio", _both(other.log_perplexity_ratio, NATS)
    yield "correlation of losses", SHARE.format(other.correlation)
    yield "mean KL divergence", _both(other.mean_kl, NATS)
    yield "KL maximum", NATS.format(other.kl_max)
    for share, value in reversed(other.kl_quantiles.items()):
        yield f"KL quantile {share:.1%}", _both(value, NATS)
    yield "KL minimum", NATS.format(other.kl_min)
    yield "mean Δp", _both(other.mean_dp, SHARE)
    yield "RMS Δp", _both(other.rms_dp, SHARE)
    yield "Δp maximum", SHARE.format(other.dp_max)
    for share, value in reversed(other.dp_quantiles.items()):
        yield f"Δp quantile {share:.1%}", _both(value, SHARE)
    yield "Δp minimum", SHARE.format(other.dp_min)
    yield "same top token", _both(other.same_top, SHARE)


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
                _both(other.mean_kl, NATS),
                _both(other.kl_quantiles[0.99], NATS),
                _both(other.rms_dp, SHARE),
                _both(other.same_top, SHARE),
            ]
    read = f"{found[0].tokens} tokens scored in {found[0].windows} windows of {found[0].context}"
    if other := found[0].divergence:
        read += f"; perplexity of the reference {other.reference_perplexity}"
    return f"{table(headers, rows)}\n{read}"


def _both(figure: Estimate, form: str) -> str:
    return f"{form.format(figure.value)} ± {form.format(figure.error)}"


def as_json(about: Sequence[dict[str, Any]], found: Sequence[Evaluation]) -> str:
    """An object for each model, `about` it first; an array where there are several."""
    import dataclasses
    import json

    objects = [head | dataclasses.asdict(each) for head, each in zip(about, found, strict=True)]
    return json.dumps(objects[0] if len(objects) == 1 else objects, indent=2)
