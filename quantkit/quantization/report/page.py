"""A report as an HTML page that stands alone: no script, nothing from the network, readable in light and dark.

What it says comes from `Report`; `chart.py` draws. The template escapes whatever it is given, and the page's policy
forbids a browser to load or to run anything.
"""

from __future__ import annotations

import shlex

import jinja2
from markupsafe import Markup

from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report import AllocationReport, Report, TensorReport, codes
from quantkit.quantization.report.chart import MARKS, chart
from quantkit.quantization.report.text import shown

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ report.source.name | shown }}, {{ report.options.quantize }}</title>
<style>
:root { --text: #1f2328; --soft: #57606a; --line: #d0d7de; --back: #ffffff;
  --int4: #0969da; --int5: #bf3989; --int6: #9a6700; --int8: #bc4c00;
  --f16: #1a7f37; --bf16: #8250df; --f32: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117;
    --int4: #58a6ff; --int5: #f778ba; --int6: #d29922; --int8: #f0883e;
    --f16: #3fb950; --bf16: #bc8cff; --f32: #9198a1; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.5rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 2px solid var(--int4); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; } tbody th { font-weight: 400; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } .rule { stroke: var(--line); } .axis, .kind { fill: var(--soft); font-size: 12px; }
.kind { fill: var(--text); font-weight: 600; }
.span { stroke: currentColor; stroke-width: 1.5; } .mark { fill: currentColor; stroke: var(--back); stroke-width: .8; }
{% for kind in marks %}.{{ kind }} { color: var(--{{ kind }}); } {% endfor %}

</style>
</head>
<body>
<main>
<h1>{{ report.source.name | shown }}, packed to {{ report.options.quantize }}</h1>
<dl>
{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value | shown }}</dd>
{% endfor %}</dl>
{% if report.notices %}<h2>What is left out, or stands in for what is missing</h2>
<ul>
{% for message in report.notices %}<li>{{ message | shown }}</li>
{% endfor %}</ul>
{% endif %}<h2 id="kinds">Kinds</h2>
<div class="scroll" role="region" aria-labelledby="kinds" tabindex="0">
<table>
<caption>Tensors by kind and reason, largest first</caption>
<thead><tr><th scope="col">Kind</th><th scope="col">Reason</th><th scope="col" class="number">Tensors</th>\
<th scope="col" class="number">Weights</th><th scope="col" class="number">Bytes</th>\
<th scope="col" class="number">Mean error</th><th scope="col" class="number">Largest error</th></tr></thead>
<tbody>
{% for row in report.reasons %}<tr><th scope="row">{{ row.kind }}</th><td>{{ row.reasons | join("; ") | shown }}</td>\
<td class="number">{{ row.tensors | number }}</td><td class="number">{{ row.weights | number }}</td>\
<td class="number">{{ row.nbytes | number }}</td><td class="number">{{ row.mean_error | error }}</td>\
<td class="number">{{ row.largest_error | error }}</td></tr>
{% endfor %}</tbody>
</table>
</div>
{% if chart %}<h2>Errors by layer</h2>
<figure class="scroll">
{{ chart }}
<figcaption>Squared error over the sum of squared weights, on logarithmic scales. What belongs to no layer is at the
left or right edge; experts that do the same are one mark, with a line from the smallest error to the largest. A mark's
name and number show when it is pointed at.</figcaption>
</figure>
{% endif %}<h2 id="tensors">Tensors</h2>
<div class="scroll" role="region" aria-labelledby="tensors" tabindex="0">
<table>
<caption>All {{ tensors | length | number }} tensors, those with the largest error first</caption>
<thead><tr><th scope="col">Tensor</th><th scope="col">Kind</th><th scope="col">Shape</th>\
<th scope="col" class="number">Bytes</th><th scope="col" class="number" aria-sort="descending">Error</th>\
{% if kept %}<th scope="col">Codes</th>{% endif %}<th scope="col">Reason</th></tr></thead>
<tbody>
{% for row in tensors %}<tr><th scope="row">{{ row.name | shown }}</th><td>{{ row.kind }}</td>\
<td>{{ row.shape | join(" × ") }}</td><td class="number">{{ row.nbytes | number }}</td>\
<td class="number">{{ row.error | error }}</td>\
{% if kept %}<td>{{ row.kept_codes | codes }}</td>{% endif %}<td>{{ row.reason | shown }}</td></tr>
{% endfor %}</tbody>
</table>
</div>
</main>
</body>
</html>
"""


def page(report: Report) -> bytes:
    """Return a report as an HTML page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"shown": shown, "number": "{:,}".format, "error": _error, "codes": codes}
    return (
        environment.from_string(TEMPLATE)
        .render(
            report=report,
            facts=_facts(report),
            chart=Markup(chart(report.tensors)),  # escapes by itself what is not its own
            marks=MARKS,
            kept=report.kept_codes,
            tensors=sorted(report.tensors, key=_by_error),
        )
        .encode()
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [
        ("source", f"{report.source['name']}, {report.source['dtype']}, {report.source_bytes:,} bytes of tensors"),
        ("options", shlex.join(Recipe(**report.options).arguments)),
        ("quantkit", report.version),
        ("folder", f"{report.folder_bytes:,} bytes, {report.packed_bytes:,} of tensors"),
        ("bits per weight", f"{report.bits_per_weight:.2f}"),
    ]
    if report.calibration:
        facts.append(("calibration", f"on {report.calibration.tokens:,} tokens of {report.calibration.text}"))
        if rare := report.calibration.uncalibrated:
            facts.append(("not calibrated", f"{len(rare):,} matrices that too few tokens reached: {', '.join(rare)}"))
    if report.allocation:
        facts.append(("mixed", _spent(report.allocation)))
    if report.bytes_per_second:
        facts.append(("time", f"{report.seconds:.1f} s, {report.bytes_per_second / 1e6:.0f} MB/s of the source"))
        facts.append(("peak memory", f"{report.peak_rss / 1e6:.0f} MB"))
    else:
        facts.append(("free on the disk", f"{report.disk_free:,} bytes"))
        facts.append(("memory", f"at most {report.memory / 1e6:.0f} MB"))
        facts.append(("dry run", "nothing was packed, so no error is known"))
    return facts


def _spent(allocation: AllocationReport) -> str:
    """Say what a target was, and what is known of the loss."""
    by = "a rule" if allocation.divergence is None else "measured sensitivities"
    known = "" if allocation.divergence is None else f"; divergence about {allocation.divergence:.2g}"
    return f"at most {allocation.target:,} bytes, spent by {by}{known}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}" if value else "0"


def _by_error(tensor: TensorReport) -> tuple[float, str]:
    return -(tensor.error or 0.0), tensor.name
