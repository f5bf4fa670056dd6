"""How GGUF files call the matrices of a program, whatever kind of checkpoint it was recorded from.

A model type that is written down under another one's name there, such as InternLM 3 as Llama, is not known by it.

Whoever reads a file about a model that is no model, such as an importance file, asks here. The tables are those by
which GGUF models are read. Rows stand in another order there for some architectures; columns seldom do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from quantkit.models.gguf.dialect import Dialect, Row
from quantkit.models.gguf.reading import BLOCK
from quantkit.models.gguf.tables import DIALECTS
from quantkit.models.program import Program
from quantkit.models.registry import Architecture
from quantkit.models.stored import Fused, ending


class Place(NamedTuple):
    """Where a matrix may stand.

    Attributes
    ----------
    name : str
    expert : int or None
        Which of a stack it is.
    order : tuple of int
        Which column there each of its columns is; empty if they are the same.
    """

    name: str
    expert: int | None = None
    order: tuple[int, ...] = ()


def places(architecture: Architecture, program: Program) -> dict[str, list[Place]]:
    """Return where each matrix of a program may stand, the usual place first; the last is its own name."""
    found: dict[str, list[Place]] = {}
    for dialect in _dialects(architecture):
        for row in dialect.rows:
            for name, place in _of_row(row, dialect, architecture, program):
                found.setdefault(name, []).append(place)
    matrices = (name for name, spec in program.tensors.items() if len(spec.shape) == 2)
    return {name: list(dict.fromkeys([*found.get(name, ()), Place(name)])) for name in matrices}


def _dialects(architecture: Architecture) -> Iterator[Dialect]:
    model_type = architecture.source.get("model_type")
    return (one for variants in DIALECTS.values() for one in variants.values() if one.model_type == model_type)


def _of_row(row: Row, dialect: Dialect, architecture: Architecture, program: Program) -> Iterator[tuple[str, Place]]:
    blocks = f"{dialect.blocks}."

    def renamed(prefix: str) -> str:
        return BLOCK + prefix.removeprefix(blocks) if prefix.startswith(blocks) else prefix

    if isinstance(row, Fused):
        for part in () if row.transposed else row.parts:  # columns there are rows here
            for it in ending(part, program.tensors):
                if it.kind == "weight":
                    yield it.name, Place(renamed(it.prefix) + row.module + row.weight, it.place)
        return
    if row.decoder:  # other numbers are stored, and columns may be rows
        return
    order = row.order(architecture.config) if row.columns and row.order else ()
    for name in program.tensors:
        if name == row.tensor or name.endswith(f".{row.tensor}"):
            yield name, Place(renamed(name.removesuffix(row.tensor)) + row.stored, order=order)
