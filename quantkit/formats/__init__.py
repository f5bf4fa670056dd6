"""The source: a downloaded checkpoint as configuration, tokenizer files and lazily read tensors.

`open_checkpoint` is the one way in. It answers in well under a second, since it reads headers only, and refuses what
cannot be converted before any work is done.
"""

from __future__ import annotations

import os
from pathlib import Path

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.source import Checkpoint, Header

__all__ = ["Checkpoint", "Header", "open_checkpoint"]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a Hugging Face folder, or a GGUF file (extra `gguf`).

    Parameters
    ----------
    path : path of the folder, or of a file that ends in `.gguf`

    Raises
    ------
    CheckpointError
        When something is missing, truncated or damaged; the message names the file.
    UnsupportedError
        When the weights are pickles, already quantized, or of a kind that quantkit does not read.
    """
    path = Path(path)
    if path.is_dir():
        from quantkit.formats.folder import FolderCheckpoint

        ggufs = sorted(path.glob("*.gguf"))
        if ggufs and not any(path.glob("*.safetensors")):
            raise CheckpointError(f"{path}: holds GGUF files; name one of them, such as {ggufs[0]}")
        return FolderCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".gguf":
        from quantkit.formats.gguf.checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise UnsupportedError(f"{path}: is a pickle, which can run code when it is read; use a safetensors version")
    raise CheckpointError(f"{path}: is neither a folder nor a .gguf file; name the folder that holds config.json")
