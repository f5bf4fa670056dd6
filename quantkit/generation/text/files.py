"""The small files of a checkpoint that say something about text, read with errors that name them.

What they mean is said where they are used: `special_tokens.py`, `chat_template.py`, `generation_config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.formats.json_files import parse_object, read_file


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
        """Return a file's text, None where it is missing; raises `CheckpointError` when it cannot be read as UTF-8.

        A byte order mark, which some editors put before a text, is none of it.
        """
        held = self._files.get(name)
        if held is None:
            return None
        try:
            return (read_file(held) if isinstance(held, Path) else held).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path(name)}: is not UTF-8 text: {error}") from error

    def json(self, name: str) -> Mapping[str, Any]:
        """Return the JSON object in a file, an empty one where it is missing; raises `CheckpointError` for others."""
        text = self.text(name)
        return {} if text is None else parse_object(text.encode(), self.path(name))
