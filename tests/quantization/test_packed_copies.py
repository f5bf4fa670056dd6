"""`run CHECKPOINT` packs once, and never answers with the weights of what the checkpoint was before."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from quantkit.errors import CheckpointError
from quantkit.formats.packed import is_packed, verify
from quantkit.quantization import packed_copies
from quantkit.quantization.conversion import convert
from quantkit.quantization.packed_copies import packed_copy
from quantkit.quantization.report import Progress


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the packed copies."""
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "tiny")


def copy_of(path: Path) -> Path:
    with packed_copy(path) as folder:
        assert folder.name in os.listdir(folder.parent)
        return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_packed_folder_is_its_own(checkpoint: Path, copies: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "packed")
    assert copy_of(tmp_path / "packed") == tmp_path / "packed"
    assert not copies.exists()


def test_a_checkpoint_is_packed_once(checkpoint: Path, copies: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    with packed_copy(checkpoint, threads=1, progress=steps.append) as first:
        assert len(steps) == len(tiny.shapes(json.loads((checkpoint / "config.json").read_text())))
    with packed_copy(checkpoint, progress=steps.append) as second:
        assert second == first == copies / second.name
    assert steps[-1].done == steps[-1].total
    assert len({step.tensor for step in steps}) == len(steps)
    assert verify(first)
    convert(checkpoint, tmp_path / "packed")
    assert weights(first) == weights(tmp_path / "packed")


def flip(file: Path, position: int) -> None:
    """Change a byte in place, so that size and, since we put it back, time of modification are as before."""
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a weight": lambda folder: flip(folder / "model.safetensors", -5 + (folder / "model.safetensors").stat().st_size),
    "another weight": lambda folder: flip(folder / "model.safetensors", 20_000),
    "the tokenizer": lambda folder: (folder / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>"}'),
    "the weights as a whole": lambda folder: tiny.checkpoint(folder, seed=1),
    "a template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0].content }}"),
    "a missing file": lambda folder: (folder / "generation_config.json").unlink(),
    "its type": lambda folder: tiny.checkpoint(folder, dtype="F16"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_checkpoint_is_packed_again(checkpoint: Path, copies: Path, tmp_path: Path, what: str) -> None:
    before = copy_of(checkpoint)
    CHANGES[what](checkpoint)
    after = copy_of(checkpoint)
    assert after != before
    assert os.listdir(copies) == [after.name]  # the old one is gone
    convert(checkpoint, tmp_path / "fresh")
    assert weights(after) == weights(tmp_path / "fresh")
    for file in (tmp_path / "fresh").iterdir():
        if file.name != "quantkit.json":
            assert (after / file.name).read_bytes() == file.read_bytes()


def test_checkpoints_of_the_same_shape_have_their_own_copies(copies: Path, tmp_path: Path) -> None:
    found = {copy_of(tiny.checkpoint(tmp_path / str(seed), seed=seed)) for seed in range(3)}
    assert len({weights(folder) for folder in found}) == 3
    assert {folder.name for folder in found} == set(os.listdir(copies))


@pytest.mark.parametrize("name", ["ENCODER_VERSION", "FORMAT_VERSION", "RECIPE"])
def test_another_way_to_pack_is_another_copy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = copy_of(checkpoint)
    monkeypatch.setattr(packed_copies, name, {"RECIPE": "int8"}.get(name, 99))
    assert copy_of(checkpoint) != before


def test_a_copy_that_is_being_opened_is_not_removed(checkpoint: Path, copies: Path) -> None:
    with packed_copy(checkpoint) as opened:
        flip(checkpoint / "model.safetensors", 20_000)
        newer = copy_of(checkpoint)
        assert verify(opened)
    assert {opened.name, newer.name} == set(os.listdir(copies))
    flip(checkpoint / "model.safetensors", 30_000)
    latest = copy_of(checkpoint)
    assert os.listdir(copies) == [latest.name]


def test_what_is_removed_is_told(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quantkit")
    before = copy_of(checkpoint)
    assert f"packing {checkpoint}, once, into {before}" in caplog.text
    flip(checkpoint / "model.safetensors", 20_000)
    copy_of(checkpoint)
    assert f"removed {before}" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_copy_is_packed_again(checkpoint: Path, name: str) -> None:
    folder = copy_of(checkpoint)
    sound = (folder / name).read_bytes()
    (folder / name).write_bytes(sound[:-5])
    assert copy_of(checkpoint) == folder
    assert (folder / name).read_bytes() == sound


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_interrupted_is_gone_on_with(checkpoint: Path, copies: Path, changed: bool) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), packed_copy(checkpoint, progress=interrupt):
        pytest.fail("the copy was not made")
    (left,) = copies.iterdir()
    assert left.name.endswith(".partial")
    if changed:
        flip(checkpoint / "model.safetensors", 20_000)
    folder = copy_of(checkpoint)
    assert is_packed(folder)
    assert os.listdir(copies) == [folder.name]


RUN = """
import sys, time
from quantkit.formats.packed import verify
from quantkit.quantization.packed_copies import packed_copy
print("ready", flush=True)
sys.stdin.readline()
with packed_copy(sys.argv[1]) as folder:
    print(len(verify(folder)), folder)
"""


def test_two_processes_at_once(checkpoint: Path, copies: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", RUN, checkpoint]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n", timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(os.listdir(copies)) == 1


def test_copies_that_nobody_used_for_a_month_are_removed(checkpoint: Path, copies: Path, tmp_path: Path) -> None:
    old, recent = copy_of(checkpoint), copy_of(tiny.checkpoint(tmp_path / "recent", seed=1))
    os.utime(old, (time.time() - 40 * 86_400,) * 2)
    os.utime(recent, (time.time() - 20 * 86_400,) * 2)
    latest = copy_of(tiny.checkpoint(tmp_path / "latest", seed=2))
    assert set(os.listdir(copies)) == {recent.name, latest.name}
    os.utime(recent, (time.time() - 40 * 86_400,) * 2)
    assert copy_of(tmp_path / "recent") == recent  # its use counts before its age
    assert set(os.listdir(copies)) == {recent.name, latest.name}


def test_a_refused_checkpoint_leaves_nothing(checkpoint: Path, copies: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="generation_config"), packed_copy(checkpoint):
        pytest.fail("there is no copy")
    assert os.listdir(copies) == []
