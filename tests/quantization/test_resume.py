"""An interrupted conversion goes on where it stopped, and what comes out is the same to the last byte."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from quantkit.errors import CheckpointError, PackedModelError
from quantkit.formats.packed import verify
from quantkit.formats.safetensors.file import SafetensorsFile
from quantkit.formats.safetensors.writer import SafetensorsWriter
from quantkit.quantization import pipeline
from quantkit.quantization.calibration import curvature, layers
from quantkit.quantization.conversion import convert, folders
from quantkit.quantization.report import Progress

Contents = dict[str, bytes]
"""Bytes of the files of a folder, by their names."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("source") / "tiny", shards=2)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return contents(converted(checkpoint, tmp_path_factory.mktemp("whole") / "out"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors of the stripes that are written."""
    names, original = [], pipeline.encoded_stripes

    def noting(*args: Any, **options: Any) -> Iterator[pipeline.Stripe]:
        for stripe in original(*args, **options):
            names.append(stripe.name)
            yield stripe

    monkeypatch.setattr(folders, "encoded_stripes", noting)
    return names


def converted(source: Path, out: Path) -> Path:
    convert(source, out)
    verify(out)
    return out


def contents(folder: Path) -> Contents:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def interrupt(
    source: Path, out: Path, after: int, error: type[BaseException] = KeyboardInterrupt, **options: Any
) -> Path | None:
    """Convert until so many tensors are finished; returns what is left behind."""
    steps: list[Progress] = []

    def progress(now: Progress) -> None:
        steps.append(now)
        if len(steps) == after:
            raise error

    with pytest.raises(error):
        convert(source, out, progress=progress, **options)
    left = list(out.parent.glob(f".{out.name}.*"))
    assert not out.exists()
    return left[0] if left else None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("after", [1, 7, 20])
def test_it_goes_on(
    checkpoint: Path, tmp_path: Path, whole: Contents, encoded: list[str], after: int, error: type[BaseException]
) -> None:
    assert interrupt(checkpoint, tmp_path / "out", after, error)
    encoded.clear()
    steps: list[Progress] = []
    report = convert(checkpoint, tmp_path / "out", progress=steps.append)
    assert contents(tmp_path / "out") == whole
    assert len(encoded) == len(steps) - after
    assert len({step.tensor for step in steps}) == len(steps) == len(report.errors)
    assert steps[-1].done == steps[-1].total
    assert os.listdir(tmp_path) == ["out"]


def test_errors_are_told_of_what_was_finished_before(checkpoint: Path, tmp_path: Path) -> None:
    interrupt(checkpoint, tmp_path / "out", 9)
    assert convert(checkpoint, tmp_path / "out").errors == convert(checkpoint, tmp_path / "other").errors


KILLED = """
import os, signal, sys
from quantkit import convert
from quantkit.quantization.conversion import folders

source, out, left, original = sys.argv[1], sys.argv[2], int(sys.argv[3]), folders.encoded_stripes

def encoded_stripes(*args, **options):
    for number, stripe in enumerate(original(*args, **options)):
        if number == left:
            os.kill(os.getpid(), signal.SIGKILL)
        yield stripe

folders.encoded_stripes = encoded_stripes
convert(source, out, threads=2)
"""


def test_killed_again_and_again(checkpoint: Path, tmp_path: Path, whole: Contents) -> None:
    """At random places, in the middle of tensors as well."""
    out, draw = tmp_path / "out", random.Random(0)
    kills = 0
    while not out.exists():
        left = str(draw.randrange(3, 15))
        done = subprocess.run([sys.executable, "-c", KILLED, checkpoint, out, left], capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        assert kills < 20
    assert kills > 1
    assert contents(out) == whole
    assert os.listdir(tmp_path) == ["out"]


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def grow(file: Path) -> None:
    with file.open("ab") as end:
        end.write(bytes(1000))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the header": lambda folder: flip(folder / "model.safetensors", 0.01),
    "half the weights": lambda folder: os.truncate(folder / "model.safetensors", 40_000),
    "the first tensor": lambda folder: flip(folder / "model.safetensors", 0.2),
    "weights without end": lambda folder: grow(folder / "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a half written line": lambda folder: os.truncate(folder / "journal.jsonl", 1000),
    "a changed line": lambda folder: flip(folder / "journal.jsonl", 0.5),
    "a small file": lambda folder: flip(folder / "tokenizer.json", 0.5),
    "a file too many": lambda folder: (folder / "README.txt").write_text("left by another version"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_damaged_meanwhile_is_made_again(
    checkpoint: Path, tmp_path: Path, whole: Contents, damage: str
) -> None:
    left = interrupt(checkpoint, tmp_path / "out", 20)
    assert left
    DAMAGE[damage](left)
    assert contents(converted(checkpoint, tmp_path / "out")) == whole


def test_every_damaged_tensor_is_made_again_and_no_other(
    checkpoint: Path, tmp_path: Path, whole: Contents, encoded: list[str]
) -> None:
    left = interrupt(checkpoint, tmp_path / "out", 20)
    assert left
    header = SafetensorsFile(left / "model.safetensors").header
    scales = next(name for name in header if name.endswith(".row_scales"))
    flip(left / "model.safetensors", (header[scales].begin + 3) / (left / "model.safetensors").stat().st_size)
    encoded.clear()
    converted(checkpoint, tmp_path / "out")
    assert f"{scales.removesuffix('.row_scales')}.weight" in encoded
    assert len(encoded) == len(whole_names(whole, tmp_path)) - 20 + 1
    assert contents(tmp_path / "out") == whole


def whole_names(whole: Contents, folder: Path) -> list[str]:
    (folder / "x").write_bytes(whole["model.safetensors"])
    header = SafetensorsFile(folder / "x").header
    (folder / "x").unlink()
    return [name for name in header if not name.endswith(".row_scales") and not name.startswith("padding.")]


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"overrides": [("down_proj", "int8")]}])
def test_other_options_begin_anew(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], encoded: list[str]
) -> None:
    left = interrupt(checkpoint, tmp_path / "out", 20)
    encoded.clear()
    steps: list[Progress] = []
    convert(checkpoint, tmp_path / "out", progress=steps.append, **options)
    assert len(encoded) == len(steps)
    assert left
    assert not left.exists()
    verify(tmp_path / "out")


def test_another_source_begins_anew(tmp_path: Path, encoded: list[str]) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    left = interrupt(source, tmp_path / "out", 20)
    file = source / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    encoded.clear()
    steps: list[Progress] = []
    convert(source, tmp_path / "out", progress=steps.append)
    assert len(encoded) == len(steps)
    assert left
    assert not left.exists()


def test_what_another_process_works_on_is_left_alone(
    checkpoint: Path, tmp_path: Path, whole: Contents, encoded: list[str]
) -> None:
    left = interrupt(checkpoint, tmp_path / "out", 20)
    assert left
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    encoded.clear()
    steps: list[Progress] = []
    convert(checkpoint, tmp_path / "out", progress=steps.append)
    assert len(encoded) == len(steps)
    assert left.exists()
    os.close(descriptor)
    convert(checkpoint, tmp_path / "out", force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == whole


def test_two_processes_at_once(checkpoint: Path, tmp_path: Path, whole: Contents) -> None:
    interrupt(checkpoint, tmp_path / "out", 5)
    code = "import sys; from quantkit import convert; convert(*sys.argv[1:], force=True)"
    command = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "out")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "out") == whole
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_that_will_come_again_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def refuse(now: Progress) -> None:
        raise CheckpointError("bad")

    with pytest.raises(CheckpointError, match="bad"):
        convert(checkpoint, tmp_path / "out", progress=refuse)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_in_the_middle(
    checkpoint: Path, tmp_path: Path, whole: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    def append(self: SafetensorsWriter, *args: Any) -> None:
        nonlocal turns
        turns += 1
        if turns == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, *args)

    original = SafetensorsWriter.append
    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsWriter, "append", append)
        with pytest.raises(
            PackedModelError, match="the disk is full; what is finished is kept: the same command goes on"
        ):
            convert(checkpoint, tmp_path / "out")
    assert contents(converted(checkpoint, tmp_path / "out")) == whole


def test_nothing_is_kept_of_nothing(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first tensor is finished."""

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    caplog.set_level("INFO", "quantkit.formats.output")
    monkeypatch.setattr(pipeline, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert not caplog.text


def test_it_is_told_once(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quantkit.formats.output")
    left = interrupt(checkpoint, tmp_path / "out", 5)
    assert [record.getMessage() for record in caplog.records] == [
        f"interrupted: what is finished is kept in {left}; the same command goes on from there"
    ]


def test_calibration_goes_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is read, not calibrated again: what follows depends on it."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number} is {number * number % 997}," for number in range(1500)))
    whole = convert(checkpoint, tmp_path / "whole", calibration=text)
    assert whole.calibration
    assert interrupt(checkpoint, tmp_path / "out", 12, calibration=text)
    calibrated, original = [], curvature.pack_under

    def pack_under(*args: Any) -> Any:
        calibrated.append(args)
        return original(*args)

    monkeypatch.setattr(layers, "pack_under", pack_under)
    steps: list[Progress] = []
    report = convert(checkpoint, tmp_path / "out", calibration=text, progress=steps.append)
    assert 0 < len(calibrated) < len(whole.calibration.output_errors)
    assert len({step.tensor for step in steps}) == len(steps) == len(report.errors)
    assert (report.errors, report.calibration) == (whole.errors, whole.calibration)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    interrupt(checkpoint, tmp_path / "other", 12, calibration=text)
    text.write_text(text.read_text() + "And so on.")
    calibrated.clear()
    convert(checkpoint, tmp_path / "other", calibration=text)
    assert len(calibrated) == len(whole.calibration.output_errors)
