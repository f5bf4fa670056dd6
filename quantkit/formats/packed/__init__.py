"""The file: a packed model folder, written atomically (`writer.py`), checked when opened.

A folder looks like the checkpoint that it came from: config.json (the original, plus a section `quantization` that
names each tensor's kind and true shape), model.safetensors, the tokenizer's files, README.md, and quantkit.json: format
version, source, options, each tensor's relative error and share of kept codes, checksums, and blanks up to a size that
is known beforehand. In model.safetensors a packed matrix `X.weight` is `X.weight` U8 `[tiles, groups, block bytes]` and
`X.row_scales` F32 `[tiles, 2 or 1, 8]`; plain tensors are as in any checkpoint. All begin on multiples of 64 bytes;
where that takes filling, tensors `padding.N` hold zeros.

What the bytes of a block mean is specified in `quantkit_kernels.blocks`, how folders and safetensors are written in
`output/` and `safetensors/writer.py`. No model is known here, and nothing is computed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import PackedModelError
from quantkit.formats.json_files import read_file, read_object
from quantkit.formats.output import CARD, WEIGHTS
from quantkit.formats.output import PACKED_MANIFEST as MANIFEST
from quantkit.formats.safetensors.file import SafetensorsFile
from quantkit.formats.safetensors.writer import PADDING, as_bytes
from quantkit.formats.source import ModelSource
from quantkit.tensor import Tensor, TensorSpec
from quantkit_kernels.blocks import KINDS, expected_shapes, nbytes

FORMAT_VERSION = 1
CONFIG = "config.json"
SECTION = "quantization"
"""Where config.json lists the tensors."""
MEASURED = ("relative_error", "kept_codes")
"""Numbers that quantkit.json may say of a tensor: what was lost, and how much of the source's codes was kept."""


def entries_of(spec: TensorSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of what stands for a tensor in the file: data, then row scales."""
    data, row_scales = expected_shapes(spec.kind, spec.shape)
    found = {spec.name: (KINDS[spec.kind].storage, data)}
    return found if row_scales is None else found | {row_scales_name(spec.name): ("F32", row_scales)}


def row_scales_name(name: str) -> str:
    """Name of the row scales of a packed matrix: `X.weight` -> `X.row_scales`."""
    return f"{name.removesuffix('.weight')}.row_scales"


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a packed model, sound or not."""
    return (Path(os.path.expanduser(path)) / MANIFEST).is_file()


class PackedModel(ModelSource):
    """An open packed folder; its tensors are read-only maps of the file.

    Everything but checksums is checked when it is opened: no address that a kernel gets points outside the file.

    Attributes
    ----------
    path : Path
    manifest : Mapping
        quantkit.json.
    specs : Mapping of name to TensorSpec
        Kind and shape of all tensors.

    Raises
    ------
    PackedModelError
        When something is missing, damaged or inconsistent, or of another format version.
    """

    error = PackedModelError

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        self.manifest = self._read_manifest()
        self._config = read_object(self.path / CONFIG, PackedModelError)
        self.specs = self._read_specs()
        self._weights = SafetensorsFile(self.path / WEIGHTS, PackedModelError)
        self._check_entries()
        self._names = tuple(name for name in self._weights.header if name in self.specs)
        for name in self.names:
            scales = self._row_scales(self.spec(name), copy=True)
            if scales is not None and not np.isfinite(scales).all():
                raise self._fault(WEIGHTS, f"the row scales of {name!r} are not finite")

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def files(self) -> Mapping[str, Path]:
        names = (name for name in self.manifest["files"] if name not in (CONFIG, CARD))
        return {name: self.path / name for name in names if (self.path / name).exists()}

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def nbytes(self) -> int:
        return sum(nbytes(spec.kind, spec.shape) for spec in self.specs.values())

    def spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise PackedModelError(f"{self.path}: has no tensor {name!r}")
        return self.specs[name]

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        spec = self.spec(name)
        return Tensor(spec.kind, spec.shape, self._weights.array(name, copy=copy), self._row_scales(spec, copy=copy))

    def file_of(self, name: str) -> Path:
        return self._weights.path

    def _evidence(self) -> Iterator[bytes]:
        for name in (MANIFEST, CONFIG, *self.files):
            yield name.encode()
            yield read_file(self.path / name, PackedModelError)
        yield self._weights.identity()

    def _row_scales(self, spec: TensorSpec, *, copy: bool) -> NDArray[np.float32] | None:
        return self._weights.array(row_scales_name(spec.name), copy=copy) if KINDS[spec.kind].scales else None

    def verify(self) -> Iterator[str]:
        """Compare every byte with its checksum; yields the name of each tensor that is what was written.

        Raises
        ------
        PackedModelError
            At the first difference; the message names file and tensor.
        """
        for name, expected in self.manifest["files"].items():
            if hashlib.sha256(read_file(self.path / name, PackedModelError)).hexdigest() != expected:
                raise self._fault(name, "differs from what was written")
        if hashlib.sha256(self._weights.raw_header()).hexdigest() != self.manifest["header_sha256"]:
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
        for key in entries_of(self.spec(name)):
            digest.update(as_bytes(self._weights.array(key, copy=True)))
        return digest.hexdigest()

    def _check_entries(self) -> None:
        expected = {key: entry for spec in self.specs.values() for key, entry in entries_of(spec).items()}
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
        manifest = read_object(self.path / MANIFEST, PackedModelError)
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
                case {"sha256": str()} if all(type(entry.get(key, 0.0)) in (int, float) for key in MEASURED):
                    continue
            raise self._fault(MANIFEST, f"its entry for tensor {name!r} is malformed")
        return manifest

    def _read_specs(self) -> dict[str, TensorSpec]:
        section = self.config.get(SECTION)
        if not isinstance(section, dict) or not isinstance(section.get("tensors"), dict):
            raise self._fault(CONFIG, f"has no section {SECTION!r} that lists the tensors")
        self._check_version(CONFIG, section.get("format_version"))
        specs = {name: self._spec(name, entry) for name, entry in section["tensors"].items()}
        if specs.keys() != self.manifest["tensors"].keys():
            (name, *_) = specs.keys() ^ self.manifest["tensors"].keys()
            raise self._fault(CONFIG, f"and {MANIFEST} disagree about tensor {name!r}")
        return specs

    def _spec(self, name: str, entry: Any) -> TensorSpec:
        match entry:
            case {"kind": str(kind), "shape": [*shape]} if kind in KINDS and all(
                type(size) is int and 0 < size < 2**31 for size in shape
            ):
                pass
            case _:
                raise self._fault(CONFIG, f"its entry for tensor {name!r} is malformed: {entry!r:.100}")
        if len(shape) not in ((2,) if KINDS[kind].block_bytes else (0, 1, 2, 3)):
            raise self._fault(CONFIG, f"tensor {name!r} of kind {kind} has the impossible shape {shape}")
        return TensorSpec(name, tuple(shape), kind=kind)

    def _check_version(self, name: str, version: Any) -> None:
        if type(version) is not int or version != FORMAT_VERSION:
            raise self._fault(
                name, f"has format version {version!r}; this quantkit reads {FORMAT_VERSION}: convert the model again"
            )

    def _fault(self, name: str, message: str) -> PackedModelError:
        return PackedModelError(f"{self.path / name}: {message}")


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Check every byte of a packed folder against its checksums; returns the names of its tensors.

    Raises
    ------
    PackedModelError
        At the first difference; the message names file and tensor.
    """
    return list(PackedModel(path).verify())
