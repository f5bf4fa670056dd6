"""A packed folder that is written: its size is known before, its tensors come in stripes, its manifest is the last.

What it holds is specified in `packed/__init__.py`, how folders appear and safetensors are streamed in `output/` and
`safetensors/writer.py`. Nothing is computed here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.output import CARD, WEIGHTS, as_json, output_folder, write_files
from quantkit.formats.output import PACKED_MANIFEST as MANIFEST
from quantkit.formats.output.journal import JOURNAL, Journal
from quantkit.formats.packed import CONFIG, FORMAT_VERSION, MEASURED, SECTION, entries_of, row_scales_name
from quantkit.formats.safetensors.file import NUMPY, SafetensorsFile
from quantkit.formats.safetensors.writer import SafetensorsWriter, as_bytes
from quantkit.tensor import Tensor, TensorSpec

Measured = Mapping[str, Mapping[str, Any]]
"""Name of a tensor -> what quantkit.json says of it."""
_SHA256 = "0" * 64
_LONGEST = 1.2345678901234567e-300
"""No number is longer in JSON."""


@dataclass(frozen=True)
class Contents:
    """What a packed folder is made of, known before a tensor is packed.

    Attributes
    ----------
    config : Mapping
        config.json of the source.
    specs : Mapping of name to TensorSpec
        The tensors to come, in the order of the file.
    files : Mapping of name to bytes or Path
        Copied as they are.
    about : Mapping
        What quantkit.json shall say besides (source, options).
    card : callable, optional
        Makes README.md from each tensor's relative error, on which its length does not depend.
    """

    config: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    files: Mapping[str, bytes | Path]
    about: Mapping[str, Any]
    card: Callable[[Measured], bytes] | None = None

    @cached_property
    def small_files(self) -> Mapping[str, bytes | Path]:
        """All files but README.md, model.safetensors and quantkit.json."""
        tensors = {name: {"kind": spec.kind, "shape": spec.shape} for name, spec in self.specs.items()}
        section = {"quant_method": "quantkit", "format_version": FORMAT_VERSION, "tensors": tensors}
        return {CONFIG: as_json({**self.config, SECTION: section}), **self.files}

    def weights(self, file: Path) -> SafetensorsWriter:
        """Return the writer of model.safetensors."""
        entries = {key: entry for spec in self.specs.values() for key, entry in entries_of(spec).items()}
        return SafetensorsWriter(file, entries, {"format": "pt"})

    def late_files(self, tensors: Measured) -> dict[str, bytes | Path]:
        """Return README.md, which is written when the tensors are."""
        return {CARD: self.card(tensors)} if self.card else {}

    def manifest(self, header_sha256: str, files: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
        """Return quantkit.json, as long as with the longest numbers: blanks stand before its last brace."""
        longest = {name: {**dict.fromkeys(MEASURED, _LONGEST), "sha256": _SHA256} for name in self.specs}
        length = len(self._manifest(header_sha256, files, longest))
        end = b"}\n"
        return self._manifest(header_sha256, files, tensors).removesuffix(end).ljust(length - len(end)) + end

    def _manifest(self, header_sha256: str, files: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
        from importlib.metadata import version  # slow to import, and readers do without

        first = {"format_version": FORMAT_VERSION, "quantkit_version": version("quantkit"), **self.about}
        return as_json({**first, "header_sha256": header_sha256, "files": files, "tensors": tensors})

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The bytes of each file, by its name."""
        late = self.late_files({})
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in {**self.small_files, **late}.items()
        }
        manifest = self.manifest(_SHA256, dict.fromkeys(sizes, _SHA256), {})
        return {**sizes, WEIGHTS: self.weights(Path(WEIGHTS)).size, MANIFEST: len(manifest)}


@contextmanager
def write_packed(
    path: str | os.PathLike[str], contents: Contents, *, force: bool = False, key: str = ""
) -> Iterator[PackedWriter]:
    """Write a packed folder: it appears when the block ends and every tensor was added; an exception leaves nothing.

    With a `key`, what is finished outlives an interruption: `PackedWriter.keep_finished` finds it.

    Parameters
    ----------
    path : path
        Folder to write.
    contents : Contents
        The header of the weights is written first, the data streamed behind it.
    force : bool
        Replace a folder that quantkit wrote, see `output.output_folder`.
    key : str
        A hash of all that decides the bytes of the tensors; without one, nothing is gone on with.

    Raises
    ------
    PackedModelError
        When the folder cannot be written: permission, full disk, something else of that name.
    """
    with output_folder(path, force=force, key=key) as folder:
        journal = Journal(folder, key)
        for file in folder.iterdir():
            if file.name not in (JOURNAL, WEIGHTS):
                file.unlink()
        digests = write_files(folder, contents.small_files)
        with contents.weights(folder / WEIGHTS) as weights:
            writer = PackedWriter(weights, journal, contents.specs)
            yield writer
        digests |= write_files(folder, contents.late_files(writer.tensors))
        header_sha256 = hashlib.sha256(SafetensorsFile(folder / WEIGHTS).raw_header()).hexdigest()
        (folder / MANIFEST).write_bytes(contents.manifest(header_sha256, digests, writer.tensors))


class PackedWriter:
    """Takes the tensors of a packed folder, in any order, whole or in stripes; `write_packed` makes it."""

    def __init__(self, weights: SafetensorsWriter, journal: Journal, specs: Mapping[str, TensorSpec]) -> None:
        self._weights, self._journal, self._specs = weights, journal, specs
        self._digest = hashlib.sha256()
        self._row_scales: list[NDArray[np.float32]] = []
        self._entries: dict[str, dict[str, Any]] = {}

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each finished tensor, in the order of the file."""
        return {name: self._entries[name] for name in self._specs if name in self._entries}

    def keep_finished(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the tensors that an interrupted process finished, and what it noted of each; the others are to come.

        Their bytes are compared with their checksums; one that differs is to be written again.
        """
        for name, spec in self._specs.items():
            entry, keys, digest = self._journal.finished.get(name), entries_of(spec), hashlib.sha256()
            if not entry:
                continue
            for piece in (piece for key in keys for piece in self._weights.written(key)):
                digest.update(piece)
            if digest.hexdigest() == entry["sha256"]:
                for key in keys:
                    self._weights.keep(key)
                self._entries[name] = {key: entry[key] for key in (*MEASURED, "sha256") if key in entry}
                yield name, entry

    def read(self, name: str) -> Tensor:
        """Return a finished tensor, from the file."""
        spec, arrays = self._specs[name], []
        for key, (dtype, shape) in entries_of(spec).items():
            arrays.append(np.frombuffer(bytearray().join(self._weights.written(key)), NUMPY[dtype]).reshape(shape))
        return Tensor(spec.kind, spec.shape, *arrays)

    def add(self, name: str, tensor: Tensor, relative_error: float = 0.0, **noted: Any) -> None:
        """Write a tensor; its squared error relative to the source goes into the manifest, unless nothing was lost.

        What is `noted` besides is for `keep_finished`, as JSON.
        """
        self.append(name, tensor.data, tensor.row_scales)
        self.finish(name, relative_error, **noted)

    def append(self, name: str, data: NDArray[Any], row_scales: NDArray[np.float32] | None) -> None:
        """Write the next rows of a tensor, whole tiles or up to its last row; `finish` comes before the next tensor."""
        self._digest.update(as_bytes(data))
        self._weights.append(name, data)
        if row_scales is not None:
            self._row_scales.append(row_scales)

    def finish(self, name: str, relative_error: float = 0.0, kept_codes: float | None = None, **noted: Any) -> None:
        """Note that all rows of a tensor were given, and what was lost, as `add` does.

        `kept_codes` is the share of its rows that keep the codes of a source that has quantized them before.
        """
        for part in self._row_scales:
            self._digest.update(as_bytes(part))
        if self._row_scales:
            self._weights.write(row_scales_name(name), self._row_scales)
        lost = {"relative_error": relative_error} if relative_error else {}
        kept = {} if kept_codes is None else {"kept_codes": kept_codes}
        self._entries[name] = {**lost, **kept, "sha256": self._digest.hexdigest()}
        self._journal.add({**noted, "name": name, **self._entries[name]})
        self._digest, self._row_scales = hashlib.sha256(), []
