"""Folders are written whole or not at all; safetensors files are what the official library reads."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from quantkit.errors import PackedModelError
from quantkit.formats.safetensors import SafetensorsFile
from quantkit.formats.writer import ALIGNMENT, PADDING, SafetensorsWriter, check_output, output_folder

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
NOWHERE = Path("/nowhere")


# --- safetensors ----------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__" and not name.startswith(PADDING)),
        st.tuples(st.sampled_from(["F32", "F16", "U8"]), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        max_size=6,
    ),
    st.sampled_from([1, ALIGNMENT]),
    st.randoms(use_true_random=False),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_the_official_library_reads_what_is_written(tmp_path: Path, tensors, alignment: int, random) -> None:
    path = tmp_path / "x.safetensors"
    path.unlink(missing_ok=True)
    expected = {
        name: np.array([random.randrange(256) for _ in range(int(np.prod(shape)))]).astype(DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape) in tensors.items()
    }
    order = list(tensors)
    random.shuffle(order)
    with SafetensorsWriter(path, tensors, {"format": "pt"}, alignment=alignment) as writer:
        for name in order:
            writer.write(name, [expected[name]])
    found = load_file(path)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    filling = {name: array for name, array in found.items() if name not in expected}
    begins = [entry.begin for name, entry in SafetensorsFile(path).header.items() if name in expected]
    assert not begins or begins[0] % ALIGNMENT == 0
    if alignment == ALIGNMENT:
        assert all(name.startswith(PADDING) and not array.any() for name, array in filling.items())
        assert all(begin % ALIGNMENT == 0 for begin in begins)
    else:
        assert not filling


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x", {"a": ("BF16", (3, 2)), "b": ("U8", (1,))}, {}) as writer:
        writer.write("b", [np.uint8([9])])
        writer.write("a", (np.uint16([[row, row]]) for row in range(3)))
    file = SafetensorsFile(tmp_path / "x")
    assert file.array("a").tolist() == [[0, 0], [1, 1], [2, 2]]
    assert file.array("b").tolist() == [9]


def test_bytes_by_hand(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x", {"a": ("U8", (2,))}, {"format": "pt"}) as writer:
        writer.write("a", [np.uint8([1, 2])])
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"padding.1":{"dtype":"U8","shape":[62],"data_offsets":[2,64]}}'
    )
    header += b" " * (184 - len(header))  # 8 + 184 is a multiple of 64
    assert (tmp_path / "x").read_bytes() == (184).to_bytes(8, "little") + header + b"\1\2" + bytes(62)


def test_missing_and_misfit_tensors_are_mistakes(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="were not written: b"),
        SafetensorsWriter(tmp_path / "x", {"a": ("U8", (1,)), "b": ("U8", (1,))}, {}) as writer,
    ):
        writer.write("a", [np.uint8([1])])
    with (
        pytest.raises(ValueError, match="a: 2 bytes are missing"),
        SafetensorsWriter(tmp_path / "y", {"a": ("U8", (4,))}, {}) as writer,
    ):
        writer.write("a", [np.uint8([1, 2])])


# --- where a folder may be written ----------------------------------------------------------------------------------


def test_new_and_empty_folders_need_no_force(tmp_path: Path) -> None:
    check_output(tmp_path / "new", force=False, source=NOWHERE)
    check_output(tmp_path / "new/below", force=False, source=NOWHERE)
    check_output(tmp_path, force=False, source=NOWHERE)
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(PackedModelError, match=r"exists already.*--force"):
        check_output(tmp_path, force=False, source=NOWHERE)
    for path, message in [("", "not a model folder"), ("file", "is a file"), ("file/out", "is not a folder")]:
        with pytest.raises(PackedModelError, match=message):
            check_output(tmp_path / path, force=True, source=NOWHERE)
    (tmp_path / "config.json").write_text("{}")
    check_output(tmp_path, force=True, source=NOWHERE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(PackedModelError, match="not a model folder"):
        check_output(tmp_path, force=True, source=NOWHERE)


def test_a_mount_point_cannot_be_renamed() -> None:
    with pytest.raises(PackedModelError, match="/proc: is a mount point"):
        check_output(Path("/proc"), force=True, source=NOWHERE)


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(source)
    for output in (source, tmp_path, tmp_path / "link"):
        with pytest.raises(PackedModelError, match="holds the source"):
            check_output(output, force=True, source=source)
    with pytest.raises(PackedModelError, match="holds the source"):
        check_output(source, force=True, source=source / "model.gguf")


# --- all or nothing -------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new/out"
    with output_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert os.listdir(target.parent) == ["out"]
    assert target.stat().st_mode & 0o777 == target.parent.stat().st_mode & 0o777


def test_the_old_folder_stands_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("old", "new"):
        with output_folder(target) as folder:
            (folder / text).write_text(text)
            assert text == "old" or os.listdir(target) == ["old"]
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()

    def fail() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_a_full_disk_is_noticed_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(PackedModelError, match="out: cannot be written: the disk is full"),
        output_folder(tmp_path / "out") as folder,
        SafetensorsWriter(folder / "x", {"a": ("U8", (1,))}, {}),
    ):
        pytest.fail("the body ran")
    assert os.listdir(tmp_path) == []


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_write_leaves_nothing(tmp_path: Path) -> None:
    big = np.zeros(1 << 20, np.uint8)
    with (
        pytest.raises(PackedModelError, match=r"out: cannot be written: .*File too large"),
        output_folder(tmp_path / "out") as folder,
        SafetensorsWriter(folder / "x", {"a": ("U8", big.shape)}, {}) as writer,
        files_limited_to(1 << 16),
    ):
        writer.write("a", [big])
    assert os.listdir(tmp_path) == []


def test_whoever_is_first_wins(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def write_twice() -> None:
        with output_folder(target) as slow:
            (slow / "a").write_text("slow")
            with output_folder(target) as fast:
                (fast / "a").write_text("fast")
            assert slow.exists()  # it is locked, so not taken for abandoned

    with pytest.raises(PackedModelError, match="another process"):
        write_twice()
    assert (target / "a").read_text() == "fast"
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    others = tmp_path / ".out.01234567.partial"
    others.mkdir()
    with output_folder(tmp_path / "out"):
        pass
    assert others.exists()
    assert (tmp_path / "out").exists()


WRITE_AND_WAIT = """
import sys, time
from quantkit.formats.writer import output_folder
with output_folder(sys.argv[1]) as folder:
    (folder / "config.json").write_text("{}")
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "o.t"
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, target], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"written\n"
    with output_folder(tmp_path / "oxt") as folder:  # neither of this name ...
        (folder / "a").write_text("1")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = set(os.listdir(tmp_path)) - {"oxt"}
    assert left.startswith(".o.t.")
    with output_folder(tmp_path / "oxt") as folder:  # ... nor of any other
        assert left in os.listdir(tmp_path)
    with output_folder(target) as folder:
        (folder / "a").write_text("1")
    assert sorted(os.listdir(tmp_path)) == ["o.t", "oxt"]
