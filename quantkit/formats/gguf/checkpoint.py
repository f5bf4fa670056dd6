"""A GGUF file, or several that are parts of one, as a source of tensors under GGUF's own names.

Tensors are de-quantized when they are asked for, one at a time. A de-quantized value becomes f16 (f32, f16 and bf16
tensors stay what they are): rounding moves a weight by at most 2^-11 of itself, a tenth of the error of the finest
block type, and takes half the memory of f32. MXFP4's powers of two reach beyond f16; bf16 holds its numbers exactly.

`file.py` reads the layout of a file, `parts.py` finds its other parts, `tokenizer.py` has its tokenizer. What names and
metadata mean for a model is said in `quantkit.models.gguf`, and both meet in `quantkit.engine.binding`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.gguf.file import GGUFFile, gguf_package
from quantkit.formats.gguf.parts import parts_of
from quantkit.formats.gguf.scales import TYPES, group_scales
from quantkit.formats.gguf.tokenizer import check_tokenizer, tokenizer_files
from quantkit.formats.mapped import Entry
from quantkit.formats.source import ModelSource
from quantkit.tensor import GroupScales, Tensor, TensorSpec

PLAIN = {"F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2")}
IN_BF16 = frozenset({"MXFP4"})
CHUNK = 1 << 20  # weights that are de-quantized at a time
_PROJECTOR = "is the part of a multimodal model that sees or hears (mmproj); name the file with its text model"
NO_MODELS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("general.type", "adapter"): "is an adapter for another model; merge it into that one (llama-export-lora)",
        ("general.type", "mmproj"): _PROJECTOR,
        ("general.architecture", "clip"): _PROJECTOR,
        ("general.type", "imatrix"): "is an importance file, no model; `convert --imatrix` takes it",
    }
)
"""Key and value of the metadata of a file that holds no model -> what it is instead."""


class GGUFSource(ModelSource):
    """An open GGUF model.

    Raises
    ------
    CheckpointError
        When a file is truncated or damaged, or one of several is missing.
    UnsupportedError
        When the file holds no model; when the `gguf` package is missing; when the tokenizer or a tensor type cannot be
        read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = parts_of(path)
        self.metadata: Mapping[str, Any] = self._parts[0].metadata
        for (key, value), reason in NO_MODELS.items():
            if self.metadata.get(key) == value:
                raise UnsupportedError(f"{path}: {reason}")
        check_tokenizer(self._parts[0])
        self._places: dict[str, tuple[GGUFFile, Entry]] = {}
        for part in self._parts:
            for name, entry in part.tensors.items():
                if name in self._places:
                    raise part.mapped.fault(f"has tensor {name!r}, as has {self._places[name][0].path.name}")
                self._places[name] = part, entry

    @property
    def config(self) -> Mapping[str, Any]:
        """Nothing but the architecture: `metadata` has the rest."""
        return {"model_type": str(self.metadata.get("general.architecture", ""))}

    @cached_property
    def files(self) -> Mapping[str, bytes | Path]:
        """Built from the metadata; raises `CheckpointError` when its token lists contradict one another."""
        return dict(tokenizer_files(self._parts[0]))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    @property
    def nbytes(self) -> int:
        return sum(entry.end - entry.begin for _, entry in self._places.values())

    def spec(self, name: str) -> TensorSpec:
        file, entry = self._place(name)
        if entry.dtype in PLAIN:
            return TensorSpec(name, entry.shape, kind=PLAIN[entry.dtype][0])
        if entry.dtype not in self._dequantizable:
            raise UnsupportedError(
                f"{file.path}: tensor {name!r} has type {entry.dtype}, which gguf cannot de-quantize"
            )
        return TensorSpec(name, entry.shape, kind="bf16" if entry.dtype in IN_BF16 else "f16")

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        spec = self.spec(name)
        return Tensor(spec.kind, spec.shape, self.entries(name, slice(None), copy=copy))

    def entries(self, name: str, wanted: slice, *, copy: bool = False) -> NDArray[Any]:
        file, entry = self._place(name)
        entry = entry.part(wanted)
        if entry.dtype not in PLAIN:
            return self._dequantize(file, name, entry)
        get = file.mapped.read if copy else file.mapped.view
        return get(PLAIN[entry.dtype][1], entry.shape, entry.begin)

    def group_scales(self, name: str, wanted: slice) -> GroupScales | None:
        file, entry = self._place(name)
        if entry.dtype not in TYPES:
            return None
        entry = entry.part(wanted)
        return group_scales(entry.dtype, self._blocks(file, entry), entry.shape)

    def file_of(self, name: str) -> Path:
        return self._place(name)[0].path

    def _evidence(self) -> Iterator[bytes]:
        for part in self._parts:
            yield part.mapped.identity()
            yield part.raw_header()

    def _place(self, name: str) -> tuple[GGUFFile, Entry]:
        if name not in self._places:
            raise CheckpointError(f"{self.path}: has no tensor {name!r}")
        return self._places[name]

    @cached_property
    def _dequantizable(self) -> frozenset[str]:
        """Types of these tensors that the installed gguf package de-quantizes: it is asked for one block each."""
        package = gguf_package()
        supported = set()
        for name in {entry.dtype for _, entry in self._places.values()} - PLAIN.keys():
            kind = package.GGMLQuantizationType[name]
            try:
                package.dequantize(np.zeros((1, package.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError:
                continue
            supported.add(name)
        return frozenset(supported)

    def _blocks(self, file: GGUFFile, entry: Entry) -> NDArray[np.uint8]:
        """Read the bytes of a tensor's blocks, `[blocks, bytes]`."""
        package = gguf_package()
        _, size = package.GGML_QUANT_SIZES[package.GGMLQuantizationType[entry.dtype]]
        return file.mapped.read("u1", ((entry.end - entry.begin) // size, size), entry.begin)

    def _dequantize(self, file: GGUFFile, name: str, entry: Entry) -> NDArray[Any]:
        package = gguf_package()
        kind = package.GGMLQuantizationType[entry.dtype]
        rows = math.prod(entry.shape[:-1])
        raw = self._blocks(file, entry)
        raw = raw.reshape(rows, raw.size // max(rows, 1))
        in_bf16 = entry.dtype in IN_BF16
        result = np.empty((rows, entry.shape[-1]), np.uint16 if in_bf16 else np.float16)
        step = max(1, CHUNK // max(1, entry.shape[-1]))
        largest = np.finfo(np.float32 if in_bf16 else np.float16).max
        for start in range(0, rows, step):
            with np.errstate(all="ignore"):
                values = package.dequantize(raw[start : start + step], kind)
                result[start : start + step] = values.view(np.uint32) >> 16 if in_bf16 else values
            if np.abs(values).max(initial=0) > largest:
                raise CheckpointError(
                    f"{file.path}: tensor {name!r} has values beyond {'bf16' if in_bf16 else 'f16'}'s range; the file "
                    "is damaged"
                )
        return result.reshape(entry.shape)
