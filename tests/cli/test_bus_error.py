"""A file that is truncated while a model runs from it: one line that names the file, status 1, and no core dump."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.cli.bus_error import mapped_file

TRUNCATED_AFTER_LOADING = """
import os, sys
from quantkit.cli import main
from quantkit.generation import loading

def then_truncate(load):
    def loaded(path, **options):
        found = load(path, **options)
        os.truncate(os.path.join(path, "model.safetensors"), 4096)
        return found
    return loaded

loading.load, loading.load_model = then_truncate(loading.load), then_truncate(loading.load_model)
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        ("run", "-p", "hello", "-n", "3", "-t", "1"),
        ("run", "-p", "hello", "-n", "3", "-t", "2"),
        ("eval", "-f", "-", "-c", "8"),
        ("bench", "-p", "4", "-n", "0"),
    ],
    ids=" ".join,
)
def test_the_message_names_the_file(packed: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in packed.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED_AFTER_LOADING, command[0], model, *command[1:]],
        input="a text of some words",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    weights = model / "model.safetensors"
    last = f"error: {weights}: was truncated, or cannot be read any more, while it was in use"
    assert done.stderr.splitlines()[-1] == last


def test_the_file_at_an_address(tmp_path: Path) -> None:
    file = tmp_path / "some name\twith blanks"
    file.write_bytes(bytes(10_000))
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        address = array.ctypes.data
        del array  # which would keep the map open
        assert mapped_file(address) == mapped_file(address + 9_999) == str(file)
    for size in (1, 10_000_000):  # on the heap, and in a map of its own
        memory = np.zeros(size, np.uint8)
        assert mapped_file(memory.ctypes.data) == ""
    assert mapped_file(0) == ""
