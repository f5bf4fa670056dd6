"""The file: a packed model folder, written atomically, checked when opened.

A folder looks like the checkpoint that it came from: config.json (the original, plus a section `quantization` that
names each tensor's kind and true shape), model.safetensors, the tokenizer's files, and quantkit.json: format version,
source, options, each tensor's relative error, checksums. In model.safetensors a packed matrix `X.weight` is `X.weight`
U8 `[tiles, groups, block bytes]` and `X.row_scales` F32 `[tiles, 2 or 1, 8]`; plain tensors are as in any checkpoint.
All begin on multiples of 64 bytes; where that takes filling, tensors `padding.N` hold zeros.

What the bytes of a block mean is specified in `quantkit_kernels.blocks`, how folders and safetensors are written in
`output.py` and `writer.py`. No model is known here, and nothing is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, PackedModelError
from quantkit.formats.output import PACKED_MANIFEST as MANIFEST
from quantkit.formats.output import WEIGHTS, as_json, output_folder, write_files
from quantkit.formats.safetensors import SafetensorsFile
from quantkit.formats.writer import PADDING, SafetensorsWriter, as_bytes
from quantkit.tensor import Tensor, TensorSpec
from quantkit_kernels.blocks import KINDS, expected_shapes

FORMAT_VERSION = 1
CONFIG = "config.json"
SECTION = "quantization"
"""Where config.json lists the tensors."""


@dataclass(frozen=True)
class Layout:
    """Kind and true shape of a packed model's tensor."""

    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, row scales included."""
        data, row_scales = expected_shapes(self.kind, self.shape)
        spec = KINDS[self.kind]
        bits = 8 if spec.block_bytes else int(spec.bits)
        return int(np.prod(data, dtype=np.int64)) * bits // 8 + 4 * int(np.prod(row_scales or 0, dtype=np.int64))

    def entries(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape) of what stands for the tensor in the file: data, then row scales."""
        data, row_scales = expected_shapes(self.kind, self.shape)
        found = {name: (KINDS[self.kind].storage, data)}
        return found if row_scales is None else found | {row_scales_name(name): ("F32", row_scales)}


def row_scales_name(name: str) -> str:
    """Name of the row scales of a packed matrix: `X.weight` -> `X.row_scales`."""
    return f"{name.removesuffix('.weight')}.row_scales"


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a packed model, sound or not."""
    return (Path(path) / MANIFEST).is_file()


@contextmanager
def write_packed(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    layouts: Mapping[str, Layout],
    files: Mapping[str, bytes | Path],
    about: Mapping[str, Any],
    *,
    force: bool = False,
) -> Iterator[PackedWriter]:
    """Write a packed folder: it appears when the block ends and every tensor was added; an exception leaves nothing.

    Parameters
    ----------
    path : path
        Folder to write.
    config : mapping
        config.json of the source.
    layouts : mapping of name to Layout
        The tensors to come, in the order of the file: its header is written first, the data streamed behind it.
    files : mapping of name to bytes or Path
        Copied as they are.
    about : mapping
        What quantkit.json shall say besides (source, options).
    force : bool
        Replace a folder that quantkit wrote, see `output.output_folder`.

    Raises
    ------
    PackedModelError
        When the folder cannot be written: permission, full disk, something else of that name.
    """
    tensors = {name: {"kind": layout.kind, "shape": layout.shape} for name, layout in layouts.items()}
    section = {"quant_method": "quantkit", "format_version": FORMAT_VERSION, "tensors": tensors}
    contents: dict[str, bytes | Path] = {CONFIG: as_json({**config, SECTION: section}), **files}
    entries = {key: entry for name, layout in layouts.items() for key, entry in layout.entries(name).items()}
    with output_folder(path, force=force) as folder:
        digests = write_files(folder, contents)
        with SafetensorsWriter(folder / WEIGHTS, entries, {"format": "pt"}) as weights:
            writer = PackedWriter(weights)
            yield writer
        manifest = {
            "format_version": FORMAT_VERSION,
            "quantkit_version": version("quantkit"),
            **about,
            "header_sha256": hashlib.sha256(_header_of(folder / WEIGHTS)).hexdigest(),
            "files": digests,
            "tensors": writer.tensors,
        }
        (folder / MANIFEST).write_bytes(as_json(manifest))


class PackedWriter:
    """Takes the tensors of a packed folder, in any order; `write_packed` makes it."""

    def __init__(self, weights: SafetensorsWriter) -> None:
        self._weights = weights
        self.tensors: dict[str, dict[str, Any]] = {}

    def add(self, name: str, tensor: Tensor, relative_error: float = 0.0) -> None:
        """Write a tensor; its squared error relative to the source goes into the manifest, unless nothing was lost."""
        digest = hashlib.sha256()
        for key, array in ((name, tensor.data), (row_scales_name(name), tensor.row_scales)):
            if array is not None:
                digest.update(as_bytes(array))
                self._weights.write(key, [array])
        lost = {"relative_error": relative_error} if relative_error else {}
        self.tensors[name] = {**lost, "sha256": digest.hexdigest()}


class PackedModel:
    """An open packed folder; its tensors are read-only maps of the file. It is a `WeightSource`.

    Everything but checksums is checked when it is opened: no address that a kernel gets points outside the file.

    Attributes
    ----------
    path : Path
    config : Mapping
        config.json.
    manifest : Mapping
        quantkit.json.
    layouts : Mapping of name to Layout

    Raises
    ------
    PackedModelError
        When something is missing, damaged or inconsistent, or of another format version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = self._read_manifest()
        self.config = self._read_json(CONFIG)
        self.layouts = self._read_layouts()
        self._weights = SafetensorsFile(self.path / WEIGHTS, PackedModelError)
        self._check_entries()
        for name in self.names:
            row_scales = self.tensor(name).row_scales
            if row_scales is not None and not np.isfinite(row_scales).all():
                raise self._fault(WEIGHTS, f"the row scales of {name!r} are not finite")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of their bytes."""
        return tuple(name for name in self._weights.header if name in self.layouts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, row scales included."""
        return sum(layout.nbytes for layout in self.layouts.values())

    @property
    def files(self) -> Mapping[str, Path]:
        """Files of the model besides config, weights and manifest."""
        return {name: self.path / name for name in self.manifest["files"] if name != CONFIG}

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; raises `CheckpointError` when there is none of this name."""
        layout = self.layouts.get(name)
        if layout is None:
            raise CheckpointError(f"{self.path}: has no tensor {name!r}")
        scales = self._weights.array(row_scales_name(name)) if KINDS[layout.kind].scales else None
        return Tensor(layout.kind, layout.shape, self._weights.array(name), scales)

    def release(self, name: str) -> None:
        """Give the pages that a tensor mapped back to the system; the tensor stays usable."""
        for key in self.layouts[name].entries(name):
            self._weights.release(key)

    def check(self, tensors: Mapping[str, TensorSpec]) -> None:
        """Raise `PackedModelError` where the tensors are not those that the recorded program reads."""
        for spec in tensors.values():
            layout = self.layouts.get(spec.name)
            if layout is None or layout.shape != spec.shape:
                found = f"has shape {layout.shape}" if layout else "is missing"
                raise self._fault(WEIGHTS, f"tensor {spec.name!r} {found}; its configuration asks for {spec.shape}")

    def verify(self) -> Iterator[str]:
        """Compare every byte with its checksum; yields the name of each tensor that is what was written.

        Raises
        ------
        PackedModelError
            At the first difference; the message names file and tensor.
        """
        for name, expected in self.manifest["files"].items():
            if hashlib.sha256(self._read(name)).hexdigest() != expected:
                raise self._fault(name, "differs from what was written")
        if hashlib.sha256(_header_of(self.path / WEIGHTS)).hexdigest() != self.manifest["header_sha256"]:
            raise self._fault(WEIGHTS, "its header differs from what was written")
        for name in self._weights.header:
            if name.startswith(PADDING) and self._weights.array(name).any():
                raise self._fault(WEIGHTS, f"{name!r} differs from what was written")
        for name in self.names:
            if self._digest(name) != self.manifest["tensors"][name]["sha256"]:
                raise self._fault(
                    WEIGHTS, f"tensor {name!r} differs from what was written; convert or copy the model again"
                )
            yield name

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for key in self.layouts[name].entries(name):
            digest.update(as_bytes(self._weights.array(key)))
            self._weights.release(key)
        return digest.hexdigest()

    def _check_entries(self) -> None:
        expected = {key: entry for name, layout in self.layouts.items() for key, entry in layout.entries(name).items()}
        header = self._weights.header
        for key, (dtype, shape) in expected.items():
            if key not in header:
                raise self._fault(WEIGHTS, f"has no tensor {key!r}, which {CONFIG} names")
            if header[key][:2] != (dtype, shape):
                raise self._fault(WEIGHTS, f"tensor {key!r} is {header[key][:2]}; {CONFIG} asks for {(dtype, shape)}")
            if header[key].begin % 64:
                raise self._fault(WEIGHTS, f"tensor {key!r} does not begin on a multiple of 64 bytes")
        for key in header:
            if key not in expected and not (key.startswith(PADDING) and header[key].dtype == "U8"):
                raise self._fault(WEIGHTS, f"holds a tensor {key!r}, which {CONFIG} does not name")

    def _read_manifest(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise PackedModelError(f"{self.path}: no such folder")
        if not is_packed(self.path):
            raise PackedModelError(f"{self.path}: is not a packed model: it has no {MANIFEST}; convert it first")
        manifest = self._read_json(MANIFEST)
        self._check_version(MANIFEST, manifest.get("format_version"))
        match manifest:
            case {"files": dict(files), "tensors": dict(tensors), "header_sha256": str()}:
                pass
            case _:
                raise self._fault(MANIFEST, "lacks files, tensors or header_sha256")
        for name, digest in files.items():
            if not re.fullmatch(r"[\w.-]+", name, re.ASCII) or not isinstance(digest, str):
                raise self._fault(MANIFEST, f"{name!r} is not a file of this folder")
        for name, entry in tensors.items():
            match entry:
                case {"sha256": str()} if type(entry.get("relative_error", 0.0)) in (int, float):
                    continue
            raise self._fault(MANIFEST, f"its entry for tensor {name!r} is malformed")
        return manifest

    def _read_layouts(self) -> dict[str, Layout]:
        section = self.config.get(SECTION)
        if not isinstance(section, dict) or not isinstance(section.get("tensors"), dict):
            raise self._fault(CONFIG, f"has no section {SECTION!r} that lists the tensors")
        self._check_version(CONFIG, section.get("format_version"))
        layouts = {name: self._layout(name, entry) for name, entry in section["tensors"].items()}
        if layouts.keys() != self.manifest["tensors"].keys():
            (name, *_) = layouts.keys() ^ self.manifest["tensors"].keys()
            raise self._fault(CONFIG, f"and {MANIFEST} disagree about tensor {name!r}")
        return layouts

    def _layout(self, name: str, entry: Any) -> Layout:
        match entry:
            case {"kind": str(kind), "shape": [*shape]} if kind in KINDS and all(
                type(size) is int and 0 < size < 2**31 for size in shape
            ):
                pass
            case _:
                raise self._fault(CONFIG, f"its entry for tensor {name!r} is malformed: {entry!r:.100}")
        if len(shape) not in ((2,) if KINDS[kind].block_bytes else (1, 2)):
            raise self._fault(CONFIG, f"tensor {name!r} of kind {kind} has the impossible shape {shape}")
        return Layout(kind, tuple(shape))

    def _check_version(self, name: str, version: Any) -> None:
        if type(version) is not int or version != FORMAT_VERSION:
            raise self._fault(
                name, f"has format version {version!r}; this quantkit reads {FORMAT_VERSION}: convert the model again"
            )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._read(name))
        except (ValueError, RecursionError) as cause:
            raise self._fault(name, "is not JSON; convert or copy the model again") from cause
        if not isinstance(content, dict):
            raise self._fault(name, "is not a JSON object")
        return content

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as cause:
            raise self._fault(name, f"cannot be read: {cause.strerror or cause}") from cause

    def _fault(self, name: str, message: str) -> PackedModelError:
        return PackedModelError(f"{self.path / name}: {message}")


def open_packed(path: str | os.PathLike[str]) -> PackedModel:
    """Open a packed folder; raises `PackedModelError` when it is not sound, see `PackedModel`."""
    return PackedModel(path)


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Check every byte of a packed folder against its checksums; returns the names of its tensors.

    Raises
    ------
    PackedModelError
        At the first difference; the message names file and tensor.
    """
    return list(PackedModel(path).verify())


def _header_of(file: Path) -> bytes:
    """Length and header of a safetensors file, as they stand there."""
    with file.open("rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))
