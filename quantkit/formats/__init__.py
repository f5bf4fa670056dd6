"""Models on disk. One door, `open(path)`, whatever the format; what comes out is a `ModelSource`.

Opening takes well under a second, since headers alone are read, and refuses what cannot be used before any work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.formats import vocabularies
from quantkit.formats.magic import Magic, magic_of
from quantkit.formats.source import ModelSource

__all__ = ["ModelSource", "open", "tokenizer_files"]


def open(path: str | os.PathLike[str]) -> ModelSource:
    """Open a model: a packed folder, a Hugging Face folder, or a GGUF file (extra `gguf`).

    Parameters
    ----------
    path : path of the folder or file, where `~` is the home folder; its contents decide what it is, not its name

    Raises
    ------
    CheckpointError
        When something is missing, truncated or damaged; the message names the file.
    PackedModelError
        When that is so in a packed folder.
    UnsupportedError
        When the weights are pickles, quantized in no scheme of `schemes/`, or of a kind that quantkit does not read.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        from quantkit.formats.packed import PackedModel, is_packed

        if is_packed(path):
            return PackedModel(path)
        from quantkit.formats.safetensors.folder import FolderSource

        return FolderSource(path)
    kind = magic_of(path)
    if kind is not Magic.GGUF:
        raise _no_model(path, kind)
    from quantkit.formats.gguf.checkpoint import GGUFSource

    return GGUFSource(path)


def tokenizer_files(path: str | os.PathLike[str]) -> Mapping[str, bytes | Path]:
    """Return what a file says of a tokenizer, as the files of a Hugging Face folder.

    It is a GGUF file, whose architecture may be any and which need not hold tensors, or a vocabulary by itself, such as
    a `tokenizer.model`. Raises as `open`.
    """
    path = Path(os.path.expanduser(path))
    kind = magic_of(path)
    if kind is Magic.UNKNOWN:
        return vocabularies.single(path)
    if kind is not Magic.GGUF:
        raise _no_model(path, kind)
    from quantkit.formats.gguf import tokenizer
    from quantkit.formats.gguf.file import GGUFFile

    return dict(tokenizer.tokenizer_files(GGUFFile(path)))


def _no_model(path: Path, kind: Magic) -> QuantkitError:
    """Return the error that says what a file is instead of a model."""
    if kind is Magic.PICKLE:
        return UnsupportedError(f"{path}: is {kind.value}")
    if kind is Magic.SAFETENSORS:
        return CheckpointError(f"{path}: is one file of a model; name the folder that holds it and config.json")
    return CheckpointError(f"{path}: is {kind.value}")
