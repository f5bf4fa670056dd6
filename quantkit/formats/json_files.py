"""Small files of a model, read whole: JSON objects and texts, within bounds of size, depth and number of values.

They come from strangers. A file that is no regular file (a pipe, a device) is never opened, since that may block or
act; one that is too large is never read; JSON is parsed only when its values are few enough for memory, and comes back
as what can be written as UTF-8 again. Each error names the file. Weights are mapped by `mapped.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.formats.magic import HEAD_BYTES, Magic, recognize
from quantkit.formats.mapped import open_regular

MAX_BYTES = 100_000_000
"""Of a file that is read whole; the largest real ones are tokenizers of 40 MB."""
MAX_VALUES = 2_000_000
"""Of a JSON text: at 150 bytes for each in Python, 300 MB. The index of a model with 200,000 tensors has 200,000."""
MAX_DEPTH = 100
MAX_DIGITS = 300
"""Of a whole number: what a float holds. Tokenizers really say 10^30 for no limit."""


def read_file(file: Path, error: type[QuantkitError] = CheckpointError) -> bytes:
    """Return the contents of a regular file of at most `MAX_BYTES`.

    Raises `error`, naming the file; also when a web page, or a pointer to the file, was downloaded in its place.
    """
    descriptor = open_regular(file, error)
    try:
        with open(descriptor, "rb") as stream:
            size = os.fstat(descriptor).st_size  # a buffer of as many bytes is allocated
            content = stream.read(min(size, MAX_BYTES) + 1)
    except OSError as cause:
        raise error(f"{file}: cannot be read: {cause.strerror or cause}") from cause
    if len(content) > MAX_BYTES:
        raise error(f"{file}: is larger than {MAX_BYTES} bytes")
    if (kind := recognize(content[:HEAD_BYTES])) in (Magic.LFS_POINTER, Magic.WEB_PAGE):
        raise error(f"{file}: is {kind.value}")
    return content


def read_object(file: Path, error: type[QuantkitError] = CheckpointError) -> dict[str, Any]:
    """Return the JSON object that a file holds; raises `error` naming the file."""
    return parse_object(read_file(file, error), file, error)


def parse_object(
    content: bytes, origin: str | os.PathLike[str], error: type[QuantkitError] = CheckpointError
) -> dict[str, Any]:
    """Return the JSON object that some bytes spell out.

    Parameters
    ----------
    content : bytes
        UTF-8, or what else JSON may be written in.
    origin : path
        The file that they belong to, which messages name.
    error : class
        Of the exception that is raised for anything but an object of bounded size whose texts are Unicode.
    """
    if too_many_values(content):
        raise error(f"{origin}: holds more than {MAX_VALUES} values")
    try:
        found = json.loads(content, parse_int=_whole_number)
        # What cannot be written again is refused now: half a surrogate pair, or nesting that a later reader dies of.
        json.dumps(found, ensure_ascii=False).encode()
        depth = _depth(found)
    except UnicodeEncodeError as cause:
        raise error(f"{origin}: holds half of a surrogate pair, which is no text") from cause
    except RecursionError as cause:
        raise error(f"{origin}: is nested too deeply") from cause
    except _TooLong as cause:
        raise error(f"{origin}: {cause}") from cause
    except ValueError as cause:
        raise error(f"{origin}: is not JSON; download it again") from cause
    if depth > MAX_DEPTH:
        raise error(f"{origin}: is nested too deeply")
    if not isinstance(found, dict):
        raise error(f"{origin}: is not a JSON object")
    return found


def too_many_values(content: bytes) -> bool:
    """Whether a JSON text may hold more than `MAX_VALUES`; an upper bound of their number, found without parsing."""
    return content.count(b",") + content.count(b"[") + content.count(b"{") > MAX_VALUES


class _TooLong(ValueError):
    """A number has too many digits."""


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _TooLong(f"holds a number of {len(digits)} digits")
    return int(digits)


def _depth(value: Any) -> int:
    """Levels of lists and objects, one inside the other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list)) and item]:
        depth += 1
        level = [one for item in level for one in (item.values() if isinstance(item, dict) else item)]
    return depth
