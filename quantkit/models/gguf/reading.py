"""From a GGUF file's metadata to an architecture, as `registry.read` makes it from a `config.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import shown
from quantkit.models.config.fields import check_unused
from quantkit.models.gguf.config import config_of
from quantkit.models.gguf.dialect import Dialect, Row
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables import DIALECTS
from quantkit.models.registry import FAMILIES, Architecture
from quantkit.models.stored import Fused, Named, Stated
from quantkit.tensor import TensorSpec

BLOCK = "blk."
_IN_BLOCK = re.compile(r"^blk\.\d+\.")


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
    stated = _stated(dialect, metadata, parsed.num_hidden_layers)
    family = family._replace(stored=(*_present(dialect.rows, tensors), *stated))
    return Architecture(parsed, family, config, renamed=(f"{dialect.blocks}.", BLOCK))


def _variant(dialects: Mapping[str, Dialect], metadata: Metadata) -> Dialect:
    """Return the model type that a file of this architecture is: the first whose telling key or tensor it has."""
    return next(dialect for sign, dialect in dialects.items() if not sign or metadata.says(sign) or metadata.has(sign))


def _stated(dialect: Dialect, metadata: Metadata, layers: int) -> Iterator[Stated]:
    """Yield the tensors whose numbers are metadata."""
    for tensor, key in dialect.stated.items():
        if (numbers := metadata.decimals(key, layers)) is None:
            raise CheckpointError(f"its metadata has no {key}")
        yield Stated(tensor, tuple(numbers))


def _present(rows: Iterable[Row], tensors: Iterable[str]) -> tuple[Row, ...]:
    """Leave out what the file stores in another way: separate where it could be fused, or the other way round."""
    rows = tuple(rows)
    names = {_IN_BLOCK.sub("", name) for name in tensors}
    used = [row for row in rows if not names.isdisjoint(_names(row))]
    there = {part for row in used for part in _parts(row)}
    return tuple(row for row in rows if row in used or there.isdisjoint(_parts(row)))


def _names(row: Row) -> tuple[str, ...]:
    return (row.stored,) if isinstance(row, Named) else (f"{row.module}.weight", f"{row.module}.bias")


def _parts(row: Row) -> tuple[str, ...]:
    return row.parts if isinstance(row, Fused) else (row.tensor.removesuffix(".weight"),)
