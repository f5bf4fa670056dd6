"""Output folders appear whole or not at all, and nothing that quantkit did not write is ever lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import PackedModelError
from quantkit.formats import output
from quantkit.formats.output import as_json, check_output, output_folder, write_files
from quantkit.formats.output.journal import Journal
from quantkit.formats.safetensors.writer import SafetensorsWriter

NOWHERE = Path("/nowhere")


def fill(folder: Path, text: str = "old") -> Path:
    """Write into a folder what `convert` would: a manifest that lists every file."""
    folder.mkdir(exist_ok=True)
    files = write_files(folder, {"config.json": text.encode()})
    (folder / "model.safetensors").write_text(text)
    (folder / "quantkit.json").write_bytes(as_json({"quantkit_version": "0", "files": files}))
    return folder


def write(
    target: Path, text: str = "new", *, force: bool = False, meanwhile: Callable[[], object] = lambda: None
) -> None:
    with output_folder(target, force=force) as folder:
        fill(folder, text)
        meanwhile()


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.name != "quantkit.json"}


def model(text: str) -> dict[str, str]:
    return dict.fromkeys(("config.json", "model.safetensors"), text)


@pytest.fixture(params=["one system call", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to exchange folders: as this system has it, and as one that knows no renameat2."""

    def unknown(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    way: str = request.param
    if way == "two renames":
        monkeypatch.setattr(output, "_rename_exchange", unknown)
    return way


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
    for path, message in [("", "holds 'file'"), ("file", "is a file"), ("file/out", "is not a folder")]:
        with pytest.raises(PackedModelError, match=message):
            check_output(tmp_path / path, force=True, source=NOWHERE)


@pytest.mark.parametrize("manifest", ["quantkit.json", "dequantized.json"])
def test_force_replaces_what_quantkit_wrote(tmp_path: Path, manifest: str) -> None:
    fill(tmp_path)
    (tmp_path / "quantkit.json").rename(tmp_path / manifest)
    (tmp_path / "model.safetensors").write_text("damaged")
    check_output(tmp_path, force=True, source=NOWHERE)


def test_a_journal_that_a_killed_process_left_is_quantkits_own(tmp_path: Path) -> None:
    """It is removed when the folder has its name already."""
    fill(tmp_path / "out")
    Journal(tmp_path / "out", "key")
    check_output(tmp_path / "out", force=True, source=NOWHERE)
    write(tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == model("new")


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a thesis": (lambda folder: (folder / "thesis.tex").write_text("precious"), "thesis.tex"),
    "a hidden file": (lambda folder: (folder / ".git").write_text("gitdir: x"), ".git"),
    "a folder": (lambda folder: (folder / "drafts").mkdir(), "drafts"),
    "a folder of a listed name": (replaced("config.json", Path.mkdir), "config.json"),
    "another checkpoint": (lambda folder: (folder / "quantkit.json").unlink(), "config.json"),
    "a manifest of somebody else's": (lambda folder: (folder / "quantkit.json").write_text("{}"), "config.json"),
    "a manifest that is no object": (lambda folder: (folder / "quantkit.json").write_text("[1]"), "config.json"),
    "a manifest that is no JSON": (lambda folder: (folder / "quantkit.json").write_bytes(b"\xff"), "config.json"),
    "a manifest that nests deeply": (lambda folder: (folder / "quantkit.json").write_text("[" * 9**6), "config.json"),
    "a pipe": (replaced("quantkit.json", os.mkfifo), "config.json"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_force_replaces_nothing_else(tmp_path: Path, stranger: str) -> None:
    spoil, name = STRANGERS[stranger]
    spoil(fill(tmp_path / "out"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PackedModelError, match=f"out: holds '{name}', which quantkit did not write"):
        check_output(tmp_path / "out", force=True, source=NOWHERE)
    with pytest.raises(PackedModelError, match="left as it is"):
        write(tmp_path / "out", force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mount_point_cannot_be_renamed() -> None:
    with pytest.raises(PackedModelError, match="/proc: is a mount point"):
        check_output(Path("/proc"), force=True, source=NOWHERE)


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    for path in (source, tmp_path, tmp_path / "link"):
        with pytest.raises(PackedModelError, match="holds the source"):
            check_output(path, force=True, source=source)
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


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff\xfe"), "-rf", "a b*", "模型"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    for text in ("old", "new"):
        write(tmp_path / name, text, force=True)
    assert os.listdir(tmp_path) == [name]
    assert contents(tmp_path / name) == model("new")


def test_the_old_folder_stands_until_the_new_one_is_complete(tmp_path: Path, exchange: str) -> None:
    target = fill(tmp_path / "out", "old")
    seen = []
    write(target, "new", force=True, meanwhile=lambda: seen.append(contents(target)))
    assert seen == [model("old")]
    assert contents(target) == model("new")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    (tmp_path / "out").mkdir()
    for target in (tmp_path / "out", tmp_path / "new/below/out"):
        with pytest.raises(error):
            write(target, meanwhile=fail)
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


# --- what appears at the target meanwhile ---------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a model"])
def test_files_that_appear_meanwhile_are_kept(tmp_path: Path, exchange: str, before: str, force: bool) -> None:
    target = tmp_path / "out"
    if before != "nothing":
        target.mkdir()
    if before == "a model":
        fill(target)

    def annotate() -> None:
        target.mkdir(exist_ok=True)
        (target / "notes.txt").write_text("precious")

    with pytest.raises(PackedModelError, match=r"out: .*left as it is"):
        write(target, force=force, meanwhile=annotate)
    assert contents(target) == (model("old") if before == "a model" else {}) | {"notes.txt": "precious"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_takes_the_name_is_kept(tmp_path: Path) -> None:
    with pytest.raises(PackedModelError, match="left as it is"):
        write(tmp_path / "out", force=True, meanwhile=lambda: (tmp_path / "out").write_text("precious"))
    assert (tmp_path / "out").read_text() == "precious"


def test_the_last_moment(tmp_path: Path, exchange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is written into the old folder just before it is exchanged."""
    target, original = fill(tmp_path / "out"), output._exchange

    def late(new: Path, at: Path) -> Path:
        (target / "notes.txt").write_text("precious")
        monkeypatch.setattr(output, "_exchange", original)
        return original(new, at)

    monkeypatch.setattr(output, "_exchange", late)
    with pytest.raises(PackedModelError, match=r"holds 'notes\.txt'.*left as it is"):
        write(target, force=True)
    assert contents(target) == model("old") | {"notes.txt": "precious"}
    assert os.listdir(tmp_path) == ["out"]


def test_whoever_is_first_wins(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(PackedModelError, match="left as it is"):  # the slow one's folder is locked, so not removed
        write(target, "slow", meanwhile=lambda: write(target, "fast"))
    assert contents(target) == model("fast")
    assert os.listdir(tmp_path) == ["out"]


# --- processes that are killed, and those that come after them ------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from quantkit.formats import output

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def no_exchange(a, b):
    raise OSError("not known here")

def two_renames(new, target):
    output._rename_exchange = no_exchange
    rename, renames = Path.rename, []
    def rename_once(*paths):
        renames.append(paths)
        return die() if renames[1:] else rename(*paths)
    Path.rename = rename_once
    return exchange(new, target)

exchange = output._exchange
target, moment = Path(sys.argv[1]), sys.argv[2]
with output.output_folder(target, force=True) as folder:
    for file in target.iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b"old", b"new"))
    if moment == "while writing":
        die()
    if moment == "before the exchange":
        output._exchange = die
    if moment == "after the exchange":
        output._exchange = lambda new, target: die(exchange(new, target))
    if moment == "after the exchange, with a stranger":
        output._exchange = lambda new, target: die((target / "notes.txt").write_text("precious"), exchange(new, target))
    if moment == "between two renames":
        output._exchange = two_renames
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("while writing", "old"),
        ("before the exchange", "old"),
        ("after the exchange", "new"),
        ("between two renames", None),
    ],
)
def test_a_kill_at_any_moment(tmp_path: Path, moment: str, left: str | None) -> None:
    target = fill(tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", KILLED, target, moment], timeout=60)
    assert done.returncode == -signal.SIGKILL
    if left is None:
        assert not target.exists()
    else:
        assert contents(target) == model(left)
    with pytest.raises(RuntimeError), output_folder(target):  # a writer that fails cleans up all the same
        raise RuntimeError
    assert os.listdir(tmp_path) == ["out"]
    assert contents(target) == model(left or "old")


def test_a_kill_when_somebody_wrote_into_the_old_folder_at_the_last_moment(tmp_path: Path) -> None:
    target = fill(tmp_path / "out")
    moment = "after the exchange, with a stranger"
    done = subprocess.run([sys.executable, "-c", KILLED, target, moment], timeout=60)
    assert done.returncode == -signal.SIGKILL
    write(target, "newer", force=True)
    assert contents(target) == model("newer")
    (left,) = set(os.listdir(tmp_path)) - {"out"}
    assert contents(tmp_path / left) == model("old") | {"notes.txt": "precious"}


WRITE_AND_WAIT = """
import sys, time
from quantkit.formats.output import output_folder
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
    with output_folder(tmp_path / "oxt2") as folder:  # ... nor of any other
        assert left in os.listdir(tmp_path)
    with output_folder(target) as folder:
        (folder / "a").write_text("1")
    assert sorted(os.listdir(tmp_path)) == ["o.t", "oxt", "oxt2"]


def test_a_folder_swept_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, original = tmp_path / "out", output.lock
    swept = []

    def slow_lock(folder: Path, mode: int, stack: ExitStack) -> bool:
        monkeypatch.setattr(output, "lock", original)
        with ExitStack() as other:
            output._left_behind(target, "", other)  # another process, between our mkdir and our lock
        swept.append(not folder.exists())
        return original(folder, mode, stack)

    monkeypatch.setattr(output, "lock", slow_lock)
    write(target)
    assert swept == [True]
    assert contents(target) == model("new")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_locked_by_its_remover_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is removing the folder while we wait for its lock."""
    original = output.lock

    def slow_lock(folder: Path, mode: int, stack: ExitStack) -> bool:
        monkeypatch.setattr(output, "lock", original)
        sweeper = os.open(folder, os.O_RDONLY)
        fcntl.flock(sweeper, fcntl.LOCK_EX)

        def sweep() -> None:
            folder.rmdir()
            os.close(sweeper)

        threading.Timer(0.1, sweep).start()
        return original(folder, mode, stack)

    monkeypatch.setattr(output, "lock", slow_lock)
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


REPLACE_OFTEN = """
import sys
from pathlib import Path
from quantkit.formats.output import as_json, output_folder
for turn in range(25):
    with output_folder(sys.argv[1], force=True) as folder:
        (folder / "quantkit.json").write_bytes(as_json({"quantkit_version": "0", "files": {}}))
"""


def test_many_writers_and_a_reader(tmp_path: Path) -> None:
    target = fill(tmp_path / "out")
    writers = [subprocess.Popen([sys.executable, "-c", REPLACE_OFTEN, target]) for _ in range(3)]
    while any(writer.poll() is None for writer in writers):
        assert target.is_dir()  # at all times
    assert [writer.returncode for writer in writers] == [0, 0, 0]
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


def test_json_of_any_text_is_ascii() -> None:
    content = {"名": "\ud800 \u2028 \x1b[31m"}
    assert json.loads(as_json(content).decode("ascii")) == content
