"""From stored tensors to encoded stripes, in order: a thread reads ahead while all cores search for codes.

Memory holds a few stripes of rows, however large a tensor is. Where a row is not stored by itself, such as in a
transposed matrix, it holds up to three of such matrices or experts. What is read is a copy, so that a source which is
truncated meanwhile is an error and no signal. `encode.py` encodes a stripe, `conversion/` writes what comes out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.source import Selection
from quantkit.quantization.encode import Encoded, encode, stripes
from quantkit.tensor import GroupScales

BASE_MEMORY = 350_000_000
"""Bytes of the process besides what is read at once: libraries, kernels, the tokenizer, what all threads encode."""
ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
READ_WEIGHTS = 1 << 22
"""About how many weights are read at once: enough that a disk is busy with them, and what a scheme reads besides."""

Importances = Mapping[str, NDArray[np.float32]]
"""Name of a matrix -> f32 `[columns]`: what an error in each of its columns counts."""
NO_IMPORTANCES: Importances = MappingProxyType({})

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stripe:
    """Some rows of a tensor, encoded.

    Attributes
    ----------
    name : str
        Of the tensor.
    encoded : Mapping of str to Encoded
        The rows in each kind that was asked for: whole tiles, or up to the tensor's last row.
    last : bool
        Whether they are the tensor's last rows.
    """

    name: str
    encoded: Mapping[str, Encoded]
    last: bool


def encoded_stripes(
    source: Selection,
    kinds: Mapping[str, Collection[str]],
    threads: int,
    importances: Importances = NO_IMPORTANCES,
    *,
    search: bool = True,
) -> Generator[Stripe]:
    """Read tensors and yield their stripes, all of a tensor before those of the next.

    Parameters
    ----------
    source : Selection
    kinds : mapping of str to collection of str
        Name of each tensor to read, in this order -> the kinds that it is encoded in.
    threads : int
        Threads that encode; one more reads.
    importances : mapping, optional
        Those of the matrices whose columns do not all count the same.
    search : bool
        As of `encode.encode`.

    Raises
    ------
    CheckpointError
        As `encode.encode`, and when a file was truncated meanwhile.
    """

    def encoded(job: _Job) -> Stripe:
        label = f"{source.file_of(job.name)}: tensor {job.name!r}"
        found = encode(
            job.stored,
            source.spec(job.name).kind,
            kinds[job.name],
            scales=job.scales,
            importance=importances.get(job.name),
            search=search,
            label=label,
        )
        return Stripe(job.name, found, job.last)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as workers:
        read = _ahead(reader, lambda part: _read(source, *part), _parts(source, kinds), 1)
        yield from _ahead(workers, encoded, (job for part in read for job in _jobs(part)), 2 * threads)


def memory_needed(source: Selection) -> int:
    """Return more bytes than packing needs in memory, the whole process included: what is read at once, three times."""
    parts = ((source.spec(name), rows) for name, rows in _parts(source, source.names))
    largest: int = max(
        (rows.stop - rows.start) * math.prod(spec.shape[1:]) * ITEM_BYTES[spec.kind] for spec, rows in parts
    )
    return BASE_MEMORY + 3 * largest


@dataclass(frozen=True)
class _Job:
    """Rows to encode, and what they were quantized with before."""

    name: str
    stored: NDArray[Any]
    scales: GroupScales | None
    last: bool


def _parts(source: Selection, names: Iterable[str]) -> Iterator[tuple[str, slice]]:
    """Yield which rows of which tensor are read at once."""
    for name in names:
        shape = source.spec(name).shape
        cut = shape and source.reads_rows(name)
        for rows in stripes(shape, READ_WEIGHTS) if cut else [slice(0, (shape or (1,))[0])]:
            yield name, rows


def _read(source: Selection, name: str, rows: slice) -> _Job:
    """Read some rows of a tensor, a scalar as a vector of one."""
    shape = source.spec(name).shape
    if not shape:
        return _Job(name, source.tensor(name, copy=True).data.reshape(1), None, True)
    scales = source.group_scales(name, rows) if len(shape) == 2 else None
    return _Job(name, source.entries(name, rows, copy=True), scales, rows.stop == shape[0])


def _jobs(job: _Job) -> Iterator[_Job]:
    """Cut rows that were read at once into what one worker encodes at once."""
    for rows in stripes(job.stored.shape):
        scales = job.scales and job.scales.viewed(itemgetter(rows))
        yield _Job(job.name, job.stored[rows], scales, job.last and rows.stop == len(job.stored))


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield `function(item)` of each item, in order; a pool works on up to so many items ahead of what is asked for."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
