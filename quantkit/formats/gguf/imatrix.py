"""Importance files of llama.cpp (`llama-imatrix`): how large the inputs of matrices are, column by column.

GGUF files have two tensors for a matrix, or for all experts of a layer: `NAME.in_sum2`, f32 `[matrices, columns]`, sums
of the squares of inputs, and `NAME.counts`, f32 `[matrices, 1]`, how many rows were added up. `general.type` is
`imatrix`; `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size` say what was read.

Older files (`.dat`) are an i32 count of entries, then of each: i32 length and bytes of its name, i32 calls, i32 count
of values, and the values, f32: mean squares times calls. Behind them may be i32 chunks, and i32 length and name of the
text. All numbers are little-endian.

NAME is that of a matrix in a model's GGUF file, `blk.0.attn_q.weight`; `quantkit.models.gguf.matrices` knows whose
matrix that is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.gguf.file import ARRAY, DEFAULT_ALIGNMENT, STRING, GGUFFile
from quantkit.formats.mapped import MappedFile

SUMS, COUNTS = ".in_sum2", ".counts"
_F32, _U32 = 0, 4
"""Codes of types: of a tensor, and of a metadata value."""


class Sums(NamedTuple):
    """Of a matrix, or of several whose inputs were measured apart.

    Attributes
    ----------
    sums : ndarray
        f64 `[matrices, columns]`: squares of inputs, added up; in older files, those of all matrices are one row.
    counts : ndarray
        f64 `[matrices]`: rows that were added up.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]


def read_imatrix(path: str | os.PathLike[str]) -> dict[str, Sums]:
    """Read an importance file of either form.

    Raises
    ------
    CheckpointError
        The file is missing, truncated or damaged, or no importance file.
    UnsupportedError
        It is a GGUF file, and the package `gguf` is missing.
    """
    mapped = MappedFile(path)
    found = _read_gguf(GGUFFile(path)) if mapped.bytes[:4] == b"GGUF" else dict(_read_dat(mapped))
    if not found:
        raise mapped.fault("is no importance file: it has no sums of squares")
    for name, (sums, counts) in found.items():
        numbers = np.concatenate([sums.reshape(-1), counts])
        if not np.isfinite(numbers).all() or numbers.min() < 0:
            raise mapped.fault(f"is damaged: what it has of {name!r} is negative, infinite or NaN")
    return found


def _read_gguf(file: GGUFFile) -> dict[str, Sums]:
    found = {}
    for name in (key.removesuffix(SUMS) for key in file.tensors if key.endswith(SUMS)):
        parts = []
        for key in (name + SUMS, name + COUNTS):
            entry = file.tensors.get(key)
            if entry is None or entry.dtype != "F32" or len(entry.shape) not in (1, 2):
                raise file.mapped.fault(f"is damaged: tensor {key!r} is missing, or no matrix of F32")
            parts.append(file.mapped.read("<f4", entry.shape, entry.begin).astype(np.float64))
        sums, counts = np.atleast_2d(parts[0]), parts[1].reshape(-1)
        if len(sums) != len(counts):
            raise file.mapped.fault(f"is damaged: {name!r} has sums of {len(sums)} matrices and {len(counts)} counts")
        found[name] = Sums(sums, counts)
    return found


def _read_dat(file: MappedFile) -> Iterator[tuple[str, Sums]]:
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        if not 0 <= count <= file.size - position:
            raise file.fault("is no importance file, or truncated: its entries do not end within the file")
        position += count
        return file.bytes[position - count : position]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    for _ in range(number()):
        name = take(number()).decode("utf-8", "replace")
        calls, count = number(), number()
        values = np.frombuffer(take(4 * count), "<f4").astype(np.float64)
        if calls < 0 or not count:
            raise file.fault(f"is damaged: {name!r} has {count} values of {calls} calls")
        yield name, Sums(values[None], np.array([calls], np.float64))


def imatrix_bytes(entries: Mapping[str, Sums], dataset: str, chunks: int, chunk_size: int) -> Iterator[bytes]:
    """Yield the bytes of a GGUF importance file.

    Parameters
    ----------
    entries : mapping of str to Sums
    dataset : str
        What text was read.
    chunks, chunk_size : int
        How many windows, and tokens of each.
    """
    tensors = {
        name + ending: np.ascontiguousarray(array, "<f4")
        for name, (sums, counts) in entries.items()
        for ending, array in ((SUMS, sums), (COUNTS, counts[:, None]))
    }
    values = {
        "general.type": struct.pack("<I", STRING) + _string("imatrix"),
        "imatrix.datasets": struct.pack("<IIQ", ARRAY, STRING, 1) + _string(dataset),
        "imatrix.chunk_count": struct.pack("<II", _U32, chunks),
        "imatrix.chunk_size": struct.pack("<II", _U32, chunk_size),
    }
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    header += b"".join(_string(key) + value for key, value in values.items())
    offset = 0
    for name, array in tensors.items():
        rows, columns = array.shape
        header += _string(name) + struct.pack("<IQQIQ", 2, columns, rows, _F32, offset)
        offset += _aligned(array.nbytes)
    yield header.ljust(_aligned(len(header)), b"\0")
    for array in tensors.values():
        yield array.tobytes().ljust(_aligned(array.nbytes), b"\0")


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(nbytes: int) -> int:
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
