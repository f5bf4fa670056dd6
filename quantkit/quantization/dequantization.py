"""From a packed folder back to a checkpoint of 16-bit weights that other tools read.

The weights are those that the packed model computes with, rounded to the source's 16-bit type, under the names of the
original checkpoint: what its family stores as one tensor is one again. A model that was trained in bf16 stays one: its
activations may exceed the range of fp16.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.binding import bind
from quantkit.engine.opening import local_path
from quantkit.errors import PackedModelError
from quantkit.formats.output import UNPACKED_MANIFEST, WEIGHTS, as_json, check_output, output_folder, write_files
from quantkit.formats.packed import CONFIG, SECTION, PackedModel
from quantkit.formats.safetensors.writer import SafetensorsWriter
from quantkit.models.registry import read
from quantkit.quantization.encode import dequantize as dequantize_tensor
from quantkit.quantization.encode import round_to
from quantkit.tensor import Piece
from quantkit_kernels.blocks import KINDS

SPELLINGS = ("torch_dtype", "dtype")
"""Fields of config.json that name the type of a model's weights: of transformers before and since 5."""


class Half(NamedTuple):
    """A 16-bit type: kind, type of the array that holds its bits, largest number."""

    kind: str
    storage: type[np.float16 | np.uint16]
    largest: float


HALVES = {"float16": Half("f16", np.float16, 65504.0), "bfloat16": Half("bf16", np.uint16, 3.3895e38)}
"""The types that a checkpoint is written in, as config.json spells them."""


def dequantize(model: str | os.PathLike[str], output: str | os.PathLike[str], *, force: bool = False) -> str:
    """Unpack a packed folder into a Hugging Face folder of 16-bit weights.

    Parameters
    ----------
    model : path or str
        A packed folder, or the name of one on the hub.
    output : path
        Folder to write. It appears when it is complete.
    force : bool
        Replace `output` if it exists, provided that quantkit wrote every file in it.

    Returns
    -------
    {"float16", "bfloat16"}
        Type of the weights: the source's, as its config.json names it, else as most of its weights were stored. A
        source of 32-bit weights becomes float16, or bfloat16 where a model's activations pass float16's range.

    Raises
    ------
    PackedModelError
        When the packed folder is not sound, holds weights beyond the type's range, or the output cannot be written.
    UnsupportedError, CheckpointError
        When its config.json is not that of a model which quantkit runs.
    """
    packed = PackedModel(local_path(model, packed=True))
    check_output(output, force=force, source=packed.path)
    dtype = _source_dtype(packed)
    stored = _stored(packed)
    config = {key: value for key, value in packed.config.items() if key != SECTION}
    config |= dict.fromkeys([field for field in SPELLINGS if field in config] or SPELLINGS[1:], dtype)
    with output_folder(output, force=force) as folder:
        files = write_files(folder, {CONFIG: as_json(config), **packed.files})
        manifest = {"quantkit_version": version("quantkit"), "files": files}
        (folder / UNPACKED_MANIFEST).write_bytes(as_json(manifest))
        storage = KINDS[HALVES[dtype].kind].storage
        shapes = {name: (storage, parts[0].piece.shape) for name, parts in stored.items()}
        with SafetensorsWriter(folder / WEIGHTS, shapes, {"format": "pt"}, alignment=1) as weights:
            for name, parts in stored.items():
                weights.write(name, _weights(packed, parts, dtype))
    return dtype


class _Part(NamedTuple):
    """Where rows of a packed tensor, from `begin` on, belong in a tensor of the checkpoint."""

    name: str
    piece: Piece
    begin: int


def _stored(packed: PackedModel) -> dict[str, list[_Part]]:
    """Return the tensors of the checkpoint that a packed folder was made of, in the packed order, and their parts."""
    found: dict[str, list[_Part]] = {}
    tensors = bind(packed).program.tensors
    for name in packed.names:
        begin = 0
        for piece in tensors[name].pieces or (Piece(name, packed.spec(name).shape),):
            found.setdefault(piece.name, []).append(_Part(name, piece, begin))
            begin += piece.rows
    return found


def _weights(packed: PackedModel, parts: Sequence[_Part], dtype: str) -> Iterable[NDArray[Any]]:
    """Return a tensor of the checkpoint: a packed one, or rows of several where the checkpoint has them."""
    first = parts[0]
    if first.piece.whole and first.piece.shape == packed.spec(first.name).shape:
        return _halves(packed, first.name, dtype)
    whole = np.zeros(first.piece.shape, HALVES[dtype].storage)
    for name, piece, begin in parts:
        place = piece.view(whole[piece.entries])
        rows = np.concatenate(list(_halves(packed, name, dtype)))
        place[...] = rows[begin : begin + piece.rows].reshape(place.shape)
    return [whole]


def _source_dtype(packed: PackedModel) -> str:
    """Return the 16-bit type of the checkpoint that a model was packed from, or that its activations need."""
    stored = packed.manifest.get("source")
    candidates = [packed.config.get(field) for field in SPELLINGS]
    candidates.append("bfloat16" if read(packed.config).config.beyond_f16 else None)
    candidates.append(stored.get("dtype") if isinstance(stored, dict) else None)
    return next((dtype for dtype in candidates if isinstance(dtype, str) and dtype in HALVES), "float16")


def _halves(packed: PackedModel, name: str, dtype: str) -> Iterator[NDArray[Any]]:
    """Yield a tensor's weights in stripes of rows, rounded to nearest, ties to even."""
    kind, _, largest = HALVES[dtype]
    for stripe in dequantize_tensor(packed.tensor(name, copy=True)):
        rounded, error = round_to(kind, stripe)
        if not np.isfinite(error):
            raise PackedModelError(
                f"{packed.path / WEIGHTS}: tensor {name!r} holds weights up to {np.abs(stripe).max():.4g}, "
                f"beyond {dtype}'s {largest:.5g}; they cannot be written as {dtype}"
            )
        yield rounded
