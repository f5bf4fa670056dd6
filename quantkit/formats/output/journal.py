"""The journal of an output folder that is growing: which tensors are finished, so that another process can go on.

The first line says by a key of what the folder is made; each further one names a finished tensor and says what the
manifest will say of it. A line begins with a checksum of its own, 16 digits of SHA-256, and is written after the
tensor's bytes. It proves nothing: whoever goes on compares those with their checksum. `packed/writer.py` writes
journals, `output/` asks whether one fits, and removes it from a folder that is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"


class Journal:
    """The journal of a folder, begun anew unless the one that is there has the same key.

    Attributes
    ----------
    finished : dict of str to dict
        Name of each finished tensor -> its entry, which has its `name`, its `sha256` and what else `add` was given.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / JOURNAL
        self.finished = _finished(self._path, key)
        lines = [{"key": key}, *self.finished.values()]
        self._path.write_bytes(b"".join(map(_line, lines)))  # without what a killed process wrote half

    def add(self, entry: dict[str, Any]) -> None:
        """Note that a tensor is finished."""
        with self._path.open("ab") as file:
            file.write(_line(entry))


def has_finished(folder: Path, key: str) -> bool:
    """Whether a folder's journal has some key, and names a finished tensor; never with an empty key."""
    return bool(key and _finished(folder / JOURNAL, key))


def _finished(path: Path, key: str) -> dict[str, dict[str, Any]]:
    lines = list(_whole_lines(path))
    return {entry["name"]: entry for entry in lines[1:]} if lines[:1] == [{"key": key}] else {}


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal, if there is one, up to the first that is not as it was written."""
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        checksum, _, text = line.partition(b" ")
        if checksum != _checksum(text):
            return
        yield json.loads(text)


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value).encode("ascii") + b"\n"
    return _checksum(text) + b" " + text


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode("ascii")
