"""What a file is, by its first bytes. Its name decides nothing: caches and registries keep files without a suffix."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.formats.mapped import open_regular

HEAD_BYTES = 64
"""Enough to recognize every kind."""


class Magic(Enum):
    """Kinds of files; the value ends the sentence "the file is ..."."""

    SAFETENSORS = "a safetensors file"
    GGUF = "a GGUF file"
    GGML = "a GGML file from before GGUF; look for a newer version of the model"
    PICKLE = "a pickle, which can run code when it is read; use a safetensors version"
    LFS_POINTER = "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    WEB_PAGE = "a web page; download the file again"
    EMPTY = "empty; download it again"
    UNKNOWN = "of no format that quantkit knows"


_PATTERNS = {
    Magic.EMPTY: rb"\Z",
    Magic.GGUF: rb"GGUF",
    Magic.GGML: rb"lmgg|fmgg|tjgg|algg",
    Magic.SAFETENSORS: rb".{4}.\0{3}[ \t\r\n]*\{",  # 8 bytes of header length, below 2^40, and a JSON object
    Magic.PICKLE: rb"PK\x03\x04|\x80[\x02-\x05]",  # torch.save writes a zip archive of pickles, or pickles alone
    Magic.LFS_POINTER: rb"version https://git-lfs",
    Magic.WEB_PAGE: rb"\s*<(?i:!doctype|html|\?xml)",
}
"""First match counts: a header may have a length that reads like another magic, and a GGUF file 123 tensors."""


def recognize(head: bytes) -> Magic:
    """Return what a file is that begins with these bytes, `HEAD_BYTES` or all of it."""
    return next((kind for kind, pattern in _PATTERNS.items() if re.match(pattern, head, re.DOTALL)), Magic.UNKNOWN)


def magic_of(file: Path, error: type[QuantkitError] = CheckpointError) -> Magic:
    """Return what a file is; raises `error` when it cannot be read or is no regular file."""
    descriptor = open_regular(file, error)
    try:
        return recognize(os.pread(descriptor, HEAD_BYTES, 0))
    except OSError as cause:
        raise error(f"{file}: cannot be read: {cause.strerror or cause}") from cause
    finally:
        os.close(descriptor)
