"""The small files of a checkpoint that say something about text, read with errors that name them.

What they mean is said where they are used: `special_tokens.py`, `chat_template.py`, `generation_config.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError

MOST_BYTES = 100_000_000
"""Of a file; the largest tokenizers have 35 MB."""


class TextFiles:
    """Named contents or paths, of which any may be missing.

    Parameters
    ----------
    files : Mapping
        Name -> contents or path.
    origin : Path
        Folder or file that they belong to; errors name it.
    """

    def __init__(self, files: Mapping[str, bytes | Path], origin: Path) -> None:
        self._files, self._origin = files, origin

    def path(self, name: str) -> Path:
        """Return where a file is, or would be."""
        held = self._files.get(name)
        return held if isinstance(held, Path) else self._origin / name

    def text(self, name: str) -> str | None:
        """Return a file's text, None where it is missing; raises `CheckpointError` when it cannot be read as UTF-8."""
        held = self._files.get(name)
        if held is None:
            return None
        file = self.path(name)
        try:
            if (held.stat().st_size if isinstance(held, Path) else len(held)) > MOST_BYTES:
                raise CheckpointError(f"{file}: is larger than {MOST_BYTES} bytes")
            text = (held.read_bytes() if isinstance(held, Path) else held).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from error
        if text.startswith("version https://git-lfs."):
            raise CheckpointError(f"{file}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
        return text

    def json(self, name: str) -> Mapping[str, Any]:
        """Return the JSON object in a file, an empty one where it is missing; raises `CheckpointError` for others."""
        file = self.path(name)
        try:
            content = json.loads(self.text(name) or "{}")
            json.dumps(content, ensure_ascii=False).encode()  # fails for half a surrogate pair, which no text may hold
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{file}: not a JSON object")
        return content
