"""A GGUF model of several files, as llama.cpp splits one: `split.no` of `split.count`, the first with all metadata.

Any part stands for all of them. The others are found beside it, by what they hold; names only save looking into every
file of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.formats.gguf.file import GGUFFile
from quantkit.formats.magic import Magic, magic_of

_NAME = re.compile(r"(.*-)(\d{5})(-of-\d{5}\.gguf)")


def parts_of(path: Path) -> list[GGUFFile]:
    """Open a file and the parts that belong to it, the first one first.

    Raises
    ------
    CheckpointError
        A part is missing or damaged, or is there twice.
    """
    opened = GGUFFile(path)
    count = _count(opened)
    if count <= 1:
        return [opened]
    found: dict[int, GGUFFile] = {}
    for file in [opened, *_beside(opened)]:
        number = file.value("split.no", int, 0)
        if number in found:
            raise CheckpointError(
                f"{opened.path}: is one part of {count}, and {found[number].path.name} and {file.path.name} are both "
                f"part {number + 1}"
            )
        found[number] = file
    if missing := [number + 1 for number in range(count) if number not in found]:
        raise CheckpointError(f"{opened.path}: is one part of {count}; part {missing[0]} is not beside it")
    return [found[number] for number in range(count)]


def _count(file: GGUFFile) -> int:
    return file.value("split.count", int, 1)


def _beside(opened: GGUFFile) -> Iterator[GGUFFile]:
    """Open the other files of the folder that are parts of as many."""
    match = _NAME.fullmatch(opened.path.name)
    for other in sorted(opened.path.parent.iterdir()):
        named = _NAME.fullmatch(other.name)
        if other.name == opened.path.name or not other.is_file():
            continue
        if match and named and (match[1], match[3]) != (named[1], named[3]):
            continue
        try:
            file = GGUFFile(other) if magic_of(other) is Magic.GGUF else None
        except QuantkitError:
            if match and named:
                raise
            continue  # some other model's
        if file is not None and _count(file) == _count(opened):
            yield file
