"""From a GGUF file's metadata to an architecture, as `registry.read` makes it from a `config.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.models.config import shown
from quantkit.models.config.fields import check_unused
from quantkit.models.gguf.config import config_of
from quantkit.models.gguf.dialect import Dialect
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables import DIALECTS
from quantkit.models.registry import FAMILIES, Architecture
from quantkit.models.stored import Fused, Named, Stored
from quantkit.tensor import TensorSpec

BLOCK = "blk."
_BESIDE_BLOCK = re.compile(r"(blk\.\d+\.)?(.*)\.(weight|bias)")


def read(
    values: Mapping[str, Any], tensors: Mapping[str, TensorSpec], numbers: Callable[[str], NDArray[Any]]
) -> Architecture:
    """Read the metadata of a GGUF file.

    Parameters
    ----------
    values : Mapping
        The file's metadata.
    tensors : Mapping
        Name -> spec of each of its tensors.
    numbers : callable
        Returns the numbers of a tensor; asked for a few small ones.

    Raises
    ------
    UnsupportedError
        The architecture is none that quantkit runs, or a key asks for something that it does not compute.
    CheckpointError
        A key or a tensor is missing or ill-typed.
    """
    metadata = Metadata(values, tensors, numbers)
    if metadata.architecture not in DIALECTS:
        raise UnsupportedError(
            f"has architecture {shown(metadata.architecture)}; read from GGUF files are {', '.join(DIALECTS)}: "
            "use the model's Hugging Face folder"
        )
    dialect = _variant(DIALECTS[metadata.architecture], metadata)
    family = FAMILIES[dialect.model_type]
    config = config_of(metadata, dialect, family.config)
    parsed = family.config.from_dict(config)
    check_unused(config, parsed)
    family = family._replace(stored=_present(dialect.rows, tensors))
    return Architecture(parsed, family, config, renamed=(f"{dialect.blocks}.", BLOCK))


def _variant(dialects: Mapping[str, Dialect], metadata: Metadata) -> Dialect:
    """Return the model type that a file of this architecture is: the first whose telling key or tensor it has."""
    return next(dialect for sign, dialect in dialects.items() if not sign or metadata.says(sign) or metadata.has(sign))


def _present(rows: Iterable[Stored], tensors: Iterable[str]) -> tuple[Stored, ...]:
    """Leave out what the file stores in another way: separate where it could be fused, or the other way round."""
    rows = tuple(rows)
    modules = {match[2] for name in tensors if (match := _BESIDE_BLOCK.fullmatch(name))}
    there = {part for row in rows if _module(row) in modules for part in _parts(row)}
    return tuple(row for row in rows if _module(row) in modules or there.isdisjoint(_parts(row)))


def _module(row: Stored) -> str:
    return row.stored.removesuffix(".weight") if isinstance(row, Named) else row.module


def _parts(row: Stored) -> tuple[str, ...]:
    match row:
        case Fused():
            return row.parts
        case Named():
            return (row.tensor.removesuffix(".weight"),)
        case _:
            return (row.module,)
