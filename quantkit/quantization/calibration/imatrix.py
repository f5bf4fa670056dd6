"""Importance files and the matrices of a model: what columns count by a file, and a file of what was measured.

The format is `quantkit.formats.gguf.imatrix`'s, the names are `quantkit.models.gguf.matrices`'. `inputs.py` measures.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import OptionError, notice
from quantkit.formats.gguf.imatrix import Sums, read_imatrix
from quantkit.models.gguf.matrices import Place, places
from quantkit.models.program import Program
from quantkit.models.registry import Architecture
from quantkit.quantization.calibration.inputs import Squares

logger = logging.getLogger(__name__)


class ImportanceFile(NamedTuple):
    """What an importance file says of a model.

    Attributes
    ----------
    name : str
        Of the file.
    digest : str
        SHA-256 of its bytes.
    importances : mapping
        Name of a matrix -> f32 `[columns]`.
    """

    name: str
    digest: str
    importances: Mapping[str, NDArray[np.float32]]

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest of a packed model says of it."""
        return {"file": self.name, "sha256": self.digest}


def read_importances(
    path: str | os.PathLike[str], architecture: Architecture, program: Program, names: Collection[str]
) -> ImportanceFile:
    """Read what a file says of some matrices of a model; a warning names what it lacks.

    Raises
    ------
    CheckpointError
        As `read_imatrix`.
    OptionError
        The file is about another model: it has none of the matrices, one of another size, or more layers.
    """
    file, entries = Path(path), read_imatrix(path)
    known = places(architecture, program)
    means = _Means(file, entries, known)
    found: dict[str, NDArray[np.float32]] = {}
    for name in names:
        place = next((place for place in known[name] if place.name in entries), None)
        importance = means.of(place, program.tensors[name].shape[1]) if place else None
        if importance is not None and importance.any():
            found[name] = importance
    # llama.cpp measures a head if it is asked to, an embedding never.
    expected = [name for name in names if program.tensors[name].role in ("linear", "expert")]
    if names and not found:
        wanted = known[next(iter(expected or names))][0].name
        held = "all that it has is 0" if wanted in entries else f"it has {next(iter(entries))!r}"
        raise OptionError(f"imatrix: {file} says nothing of this model's matrices, such as {wanted!r}; {held}")
    if (last := max(map(_layer, entries))) > max(_layer(place.name) for each in known.values() for place in each):
        raise OptionError(f"imatrix: {file} is of another model: it has a layer {last}, which the model lacks")
    if missing := [name for name in expected if name not in found]:
        lacks = f"{file}: says nothing of {len(missing)} matrices, such as {missing[0]!r}"
        notice(logger, f"{lacks}: all columns of these count the same")
    return ImportanceFile(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), found)


def _layer(name: str) -> int:
    """Return the number of the layer that a matrix of a GGUF file belongs to, -1 where it belongs to none."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


class _Means:
    """Mean squares by a file, computed once for all experts of a layer."""

    def __init__(self, file: Path, entries: Mapping[str, Sums], known: Mapping[str, Sequence[Place]]) -> None:
        self._file, self._entries = file, entries
        self._matrices: dict[str, int] = {}
        for place in chain.from_iterable(known.values()):
            self._matrices[place.name] = max(self._matrices.get(place.name, 1), (place.expert or 0) + 1)
        self._found: dict[str, NDArray[np.float32]] = {}

    def of(self, place: Place, columns: int) -> NDArray[np.float32]:
        """Return those of the matrix at a place, f32 `[columns]`; raises `OptionError` if it is of another size."""
        sums, counts = self._entries[place.name]
        matrices = self._matrices[place.name]
        if sums.size != matrices * columns or sums.shape[1] not in (columns, sums.size):
            wanted = f"matrix {columns} columns" if matrices == 1 else f"{matrices} experts {columns} columns each"
            raise OptionError(
                f"imatrix: {self._file} is of another model: {place.name!r} has {sums.size} values, "
                f"and the model's {wanted}"
            )
        if place.name not in self._found:
            rows = np.broadcast_to(counts, matrices).astype(np.int64)
            self._found[place.name] = Squares(("",) * matrices, sums.reshape(matrices, columns), rows).means
        found: NDArray[np.float32] = self._found[place.name][place.expert or 0]
        return found[np.array(place.order)] if place.order else found


def entries_of(measured: Iterable[Squares], architecture: Architecture, program: Program) -> dict[str, Sums]:
    """Return what an importance file is to say of what was measured: the first of matrices of the same name counts."""
    known = places(architecture, program)
    found: dict[str, Sums] = {}
    for squares in measured:
        place = known[squares.names[0]][0]
        sums = squares.sums
        if place.order:
            sums = np.empty_like(sums)
            sums[:, list(place.order)] = squares.sums
        found.setdefault(place.name, Sums(sums, squares.counts.astype(np.float64)))
    return found
