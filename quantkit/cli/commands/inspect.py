"""`quantkit inspect`: the tensors of a model, their kinds, sizes and errors."""

from __future__ import annotations

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.models import local_path
from quantkit.cli.options import Command, model_argument
from quantkit.cli.streams import echo
from quantkit.errors import OptionError, QuantkitError

if TYPE_CHECKING:
    from quantkit.formats import ModelSource


@dataclass(frozen=True)
class Row:
    """One tensor.

    `relative_error` is squared, relative to the source, and None where nothing was lost. `kept_codes` is the share of
    rows with the codes of a source that was quantized, and None for tensors that were not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    relative_error: float | None = None
    kept_codes: float | None = None

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@click.command("inspect", cls=Command, short_help="List tensors with kinds, sizes and errors.")
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, as_json: bool) -> None:
    """List the tensors of MODEL with kind, shape, size and packing error, and what each kind adds up to.

    MODEL is a packed folder, a checkpoint folder or a GGUF file. Nothing is computed.
    """
    from quantkit import formats

    source = formats.open(local_path(model))
    (_print_json if as_json else _print_tables)(model, source, _rows(source))


def _rows(source: ModelSource) -> list[Row]:
    from quantkit.formats.packed import MEASURED, PackedModel
    from quantkit_kernels.blocks import nbytes

    written = source.manifest["tensors"] if isinstance(source, PackedModel) else {}
    rows = []
    for name in source.names:
        try:
            spec = source.spec(name)
        except QuantkitError as error:  # of a type that quantkit does not read; the others are listed
            echo(f"warning: {error}", err=True)
            continue
        measured = (written.get(name, {}).get(key) for key in MEASURED)
        rows.append(Row(name, spec.kind, spec.shape, nbytes(spec.kind, spec.shape), *measured))
    return rows


def _made(source: ModelSource) -> dict[str, Any]:
    """What quantkit.json says of how a packed model was made; empty for other models."""
    from quantkit.formats.packed import PackedModel

    manifest = source.manifest if isinstance(source, PackedModel) else {}
    kinds = {"source": dict, "options": dict, "method": str, "calibration": dict, "imatrix": dict}
    return {key: manifest[key] for key, kind in kinds.items() if isinstance(manifest.get(key), kind)}


def _made_by(made: Mapping[str, Any]) -> str:
    """The command that makes such a model, as far as it is known."""
    from quantkit.quantization.recipe import Recipe
    from quantkit.quantization.report.card import method_arguments

    try:
        options = Recipe(**made.get("options", {})).arguments
    except (TypeError, OptionError):  # of another version
        options = [json.dumps(made["options"])]
    return shlex.join(["quantkit", "convert", str(made["source"].get("name")), *options, *method_arguments(made)])


def _by_kind(rows: list[Row]) -> dict[str, list[Row]]:
    kinds = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    return dict(sorted(kinds.items(), key=lambda item: -sum(row.nbytes for row in item[1])))


def _bits(rows: list[Row]) -> float:
    return 8 * sum(row.nbytes for row in rows) / max(1, sum(row.weights for row in rows))


def _print_tables(model: str, source: ModelSource, rows: list[Row]) -> None:
    from quantkit.cli.text import one_line, size, table
    from quantkit.quantization.report import codes

    cells = [
        (
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            size(row.nbytes),
            "" if row.relative_error is None else f"{row.relative_error:.2e}",
            codes(row.kept_codes),
        )
        for row in rows
    ]
    headers = ("tensor", "kind", "shape", "size", "error", "codes")
    shown = slice(None if any(row.kept_codes is not None for row in rows) else -1)
    echo(table(headers[shown], [row[shown] for row in cells], left=2))
    groups = _by_kind(rows) | {"all": rows}
    totals = [
        (
            kind,
            len(group),
            sum(row.weights for row in group),
            size(sum(row.nbytes for row in group)),
            f"{_bits(group):.2f}",
        )
        for kind, group in groups.items()
    ]
    echo(f"\n{model}: {source.config['model_type']}")
    if "source" in (made := _made(source)):
        echo(one_line(f"made by {_made_by(made)}"))
    echo(table(("kind", "tensors", "weights", "size", "bits/weight"), totals))


def _print_json(model: str, source: ModelSource, rows: list[Row]) -> None:
    kinds = {
        kind: {
            "tensors": len(group),
            "weights": sum(row.weights for row in group),
            "nbytes": sum(row.nbytes for row in group),
        }
        for kind, group in _by_kind(rows).items()
    }
    found = {
        "model": model,
        "model_type": source.config["model_type"],
        **_made(source),
        "bits_per_weight": _bits(rows),
        "nbytes": sum(row.nbytes for row in rows),
        "kinds": kinds,
        "tensors": [asdict(row) for row in rows],
    }
    echo(json.dumps(found, indent=2))
