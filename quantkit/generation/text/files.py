"""The small files of a checkpoint that say something about text, read with errors that name them.

What they mean is said where they are used: `tokenizer.py`, `chat_template.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError


class TextFiles:
    """The checkpoint's small files, read with errors that name them."""

    def __init__(self, files: Mapping[str, bytes | Path], origin: Path) -> None:
        self._files, self._origin = files, origin

    def path(self, name: str) -> Path:
        held = self._files.get(name)
        return held if isinstance(held, Path) else self._origin / name

    def text(self, name: str) -> str | None:
        held = self._files.get(name)
        if held is None:
            return None
        try:
            return (held.read_bytes() if isinstance(held, Path) else held).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path(name)}: cannot be read: {error}") from error

    def json(self, name: str) -> Mapping[str, Any]:
        try:
            content = json.loads(self.text(name) or "{}")
        except ValueError as error:
            raise CheckpointError(f"{self.path(name)}: not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path(name)}: not a JSON object")
        return content
