"""The forms in which `quantkit bench` answers: llama-bench's columns and keys, and quantkit's own behind them.

A form is a function from rows, one for each test as it finishes, to lines. `bench.py` makes the tests; `plot.py` draws.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from quantkit.cli.text import size, table, table_line, table_rule

if TYPE_CHECKING:
    from quantkit.engine.model import Model
    from quantkit.evaluation.benchmark import Measurement

Row = dict[str, Any]
SAMPLES = ("samples_ns", "samples_ts", "operations")
"""Keys that hold lists: json and jsonl alone have them."""


def row(path: str, model: Model, found: Measurement) -> Row:
    """One measurement under llama-bench's keys; quantkit's own begin with `test`. Rates are in 10^9 per second."""
    import quantkit
    from quantkit.engine.machine import cpu_name

    test, ceilings = found.test, found.ceilings
    return {
        "build_version": quantkit.__version__,
        "cpu_info": cpu_name(),
        "backends": "CPU",
        "model_filename": path,
        "model_type": _model_type(model),
        "model_size": model.nbytes,
        "model_n_params": sum(math.prod(spec.shape) for spec in model.program.tensors.values()),
        "n_threads": found.threads,
        "type_k": model.cache_shape.kind,
        "type_v": model.cache_shape.kind,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": found.avg_ns,
        "stddev_ns": found.stddev_ns,
        "avg_ts": found.avg_ts,
        "stddev_ts": found.stddev_ts,
        "samples_ns": list(found.samples_ns),
        "samples_ts": found.samples_ts,
        "test": test.name,
        "n_parallel": test.n_parallel,
        "kv_size": model.cache_shape.nbytes(test.positions) * test.n_parallel,
        "state_size": model.state_bytes * test.n_parallel,
        "read_gbs": found.read_rate / 1e9,
        "bandwidth_gbs": ceilings.read / 1e9,
        "bandwidth_share": found.read_rate / ceilings.read,
        "gmacs": found.mac_rate / 1e9,
        "int8_gmacs": ceilings.int8 / 1e9,
        "int8_share": found.mac_rate / ceilings.int8,
        "roofline_ts": found.bound_ts,
        "operations": [
            {
                "operation": operation.name,
                "calls": operation.calls,
                "bytes": operation.cost.nbytes,
                "macs": operation.cost.macs,
                "ms": operation.seconds * 1e3,
                "share": operation.share,
            }
            for operation in found.operations
        ],
    }


def _model_type(model: Model) -> str:
    """`llama 135M int4`: the architecture, its parameters, and the kind of most of them."""
    parameters: Counter[str] = Counter()
    for tensor in model.tensors.values():
        parameters[tensor.kind] += math.prod(tensor.shape)
    total = parameters.total()
    unit, letter = next((unit, letter) for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if total >= unit)
    return f"{model.config['model_type']} {total / unit:.3g}{letter} {parameters.most_common(1)[0][0]}"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else f"{value:.2g}"


COLUMNS: Mapping[str, tuple[int, Callable[[Row], str]]] = {
    "model": (22, lambda row: row["model_type"]),
    "size": (8, lambda row: size(row["model_size"])),
    "params": (10, lambda row: f"{row['model_n_params'] / 1e6:.2f} M"),
    "backend": (7, lambda row: row["backends"]),
    "threads": (7, lambda row: str(row["n_threads"])),
    "test": (17, lambda row: row["test"]),
    "t/s": (17, lambda row: f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"),
    "GB/s": (5, lambda row: f"{row['read_gbs']:.1f}"),
    "of read": (7, lambda row: f"{row['bandwidth_share']:.0%}"),
    "GMAC/s": (6, lambda row: f"{row['gmacs']:.1f}"),
    "of int8": (7, lambda row: f"{row['int8_share']:.0%}"),
    "KV": (7, lambda row: size(row["kv_size"])),
}
"""Of the table: width, and what stands there."""
STATE = {"state": (7, lambda row: size(row["state_size"]))}
"""A column of models with recurrent layers."""


def markdown(rows: Iterator[Row]) -> Iterator[str]:
    """llama-bench's table, a line for each test as it finishes, then the machine; then the operations, if asked for."""
    seen: list[Row] = []
    for row in rows:
        columns = {**COLUMNS, **(STATE if row["state_size"] else {})}
        widths = [width for width, _ in columns.values()]
        if not seen:
            yield table_line(columns, widths, markdown=True)
            yield table_rule(widths)
        seen.append(row)
        yield table_line([show(row) for _, show in columns.values()], widths, markdown=True)
    yield from _machine(seen)
    for row in seen:
        if row["operations"]:
            yield from _operations(row)


def _machine(rows: list[Row]) -> Iterator[str]:
    """What the shares are shares of: over all tests, since the machine drifts."""
    yield ""
    for threads in dict.fromkeys(row["n_threads"] for row in rows):
        reads, peaks = (
            [row[key] for row in rows if row["n_threads"] == threads] for key in ("bandwidth_gbs", "int8_gmacs")
        )
        yield (
            f"{threads} threads read {_span(reads)} GB/s and multiply {_span(peaks)} GMAC/s of int8 here, "
            "measured between the runs"
        )
    yield f"{rows[0]['cpu_info']}; quantkit {rows[0]['build_version']}"


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _operations(row: Row) -> Iterator[str]:
    """Where the time of a test went, the slowest operation first."""
    unit = f"prompt of {row['n_prompt']} tokens" if row["n_prompt"] else "token"
    sequences = f", {row['n_parallel']} sequences" if row["n_parallel"] > 1 else ""
    yield f"\n{row['test']}, {row['n_threads']} threads{sequences}: each {unit}\n"
    cells = []
    for operation in row["operations"]:
        rate = 1e-6 / operation["ms"] if operation["ms"] > 0 else 0.0
        cells.append(
            (
                operation["operation"],
                f"{operation['calls']:.0f}",
                f"{operation['bytes'] / 1e6:.2f}" if operation["bytes"] else "",
                f"{operation['macs'] / 1e9:.4f}" if operation["macs"] else "",
                f"{operation['ms']:.4f}",
                f"{operation['bytes'] * rate:.1f}" if operation["bytes"] else "",
                f"{operation['macs'] * rate:.1f}" if operation["macs"] else "",
                f"{operation['share']:.1%}",
            )
        )
    headers = ("operation", "calls", "MB", "GMAC", "ms", "GB/s", "GMAC/s", "share")
    yield table(headers, cells, markdown=True)


def json_array(rows: Iterator[Row]) -> Iterator[str]:
    """One array, when all tests are done."""
    yield json.dumps(list(rows), indent=2)


def json_lines(rows: Iterator[Row]) -> Iterator[str]:
    """One object a line, as each test finishes."""
    yield from map(json.dumps, rows)


def comma_separated(rows: Iterator[Row]) -> Iterator[str]:
    """A header, then every value in quotes, as llama-bench writes them."""
    for index, row in enumerate(rows):
        flat = {key: value for key, value in row.items() if key not in SAMPLES}
        if not index:
            yield ",".join(flat)
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(flat.values())
        yield line.getvalue()


FORMS: Mapping[str, Callable[[Iterator[Row]], Iterator[str]]] = {
    "md": markdown,
    "csv": comma_separated,
    "json": json_array,
    "jsonl": json_lines,
}
