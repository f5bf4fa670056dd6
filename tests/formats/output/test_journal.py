"""What a journal says is what was written into it, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantkit.formats.output.journal import JOURNAL, Journal, has_finished

ENTRIES: list[dict[str, Any]] = [
    {"name": "a.weight", "sha256": "1" * 64, "relative_error": 0.25},
    {"name": "\ud800 \n", "sha256": "2" * 64},
    {"name": "c", "sha256": "3" * 64},
]


def write(folder: Path, key: str = "key") -> bytes:
    journal = Journal(folder, key)
    for entry in ENTRIES:
        journal.add(entry)
    return (folder / JOURNAL).read_bytes()


def test_what_is_finished_is_found_again(tmp_path: Path) -> None:
    assert not has_finished(tmp_path, "key")
    assert not Journal(tmp_path, "key").finished
    assert not has_finished(tmp_path, "key")
    write(tmp_path)
    assert has_finished(tmp_path, "key")
    assert list(Journal(tmp_path, "key").finished.values()) == ENTRIES


def test_another_key_begins_anew(tmp_path: Path) -> None:
    write(tmp_path)
    assert not has_finished(tmp_path, "other")
    assert not Journal(tmp_path, "other").finished
    assert not has_finished(tmp_path, "key")
    write(tmp_path, "")
    assert not has_finished(tmp_path, "")


def test_every_truncation_and_every_flipped_bit_ends_it(tmp_path: Path) -> None:
    whole = write(tmp_path)
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for content in damaged:
        (tmp_path / JOURNAL).write_bytes(content)
        found = list(Journal(tmp_path, "key").finished.values())
        assert found == ENTRIES[: len(found)] != ENTRIES
        assert list(Journal(tmp_path, "key").finished.values()) == found  # what is damaged is gone


@pytest.mark.parametrize("content", [b"", b"\n", b" ", b"0123456789abcdef {}\n", bytes(range(256))])
def test_other_contents(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    assert not has_finished(tmp_path, "key")
