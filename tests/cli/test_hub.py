"""Models of the hub on the command line, and the packed copies that `list` shows and `rm` removes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result

import tiny_gguf
from hub_server import Fault, HubServer
from invocation import PROGRAM, Invoke

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def model(hub: HubServer, checkpoint: Path, model_cache: Path) -> str:
    """A commit of the model, which is on the hub."""
    return hub.add(NAME, checkpoint)


def assert_refused(result: Result, *words: str, status: int = 1) -> None:
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    "args",
    [["inspect", NAME], ["bench", NAME, "-p", "8", "-n", "2", "-r", "1"], ["run", NAME, "-p", "hi", "-n", "2"]],
)
def test_commands_take_names(invoke: Invoke, hub: HubServer, args: Sequence[str]) -> None:
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    assert hub.downloads().count(WEIGHTS) == 1


def test_a_gguf_file_runs_by_its_name(invoke: Invoke, hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/gguf", {"tiny-F16.gguf": tiny_gguf.write(tmp_path / "tiny.gguf").read_bytes(), "b-Q4_0.gguf": b""})
    packed = tmp_path / "packed"
    assert invoke("convert", "org/gguf:tiny-F16.gguf", "-o", packed).exit_code == 0
    assert json.loads((packed / "quantkit.json").read_text())["source"]["name"] == "org/gguf:tiny-F16.gguf"
    for name in ("org/gguf:F16", packed):
        result = invoke("run", name, "-p", "hi", "-n", 2)
        assert result.exit_code == 0, result.stderr
    assert hub.downloads() == ["tiny-F16.gguf"]


def test_eval_takes_two_names(invoke: Invoke, hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello there, " * 99)
    result = invoke("eval", NAME, "-f", tmp_path / "text", "-c", 32, "--chunks", 1, "--reference", f"{NAME}@main")
    assert result.exit_code == 0, result.stderr
    assert "same top token        100.00%" in result.stdout


def test_a_model_is_packed_and_unpacked_by_name(invoke: Invoke, hub: HubServer, tmp_path: Path) -> None:
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    assert invoke("convert", NAME, "-o", packed).exit_code == 0
    assert json.loads((packed / "quantkit.json").read_text())["source"]["name"] == NAME
    hub.add("org/packed", packed)
    for args in (["verify", "org/packed"], ["dequantize", "org/packed", "-o", unpacked]):
        result = invoke(*args)
        assert result.exit_code == 0, result.stderr
    assert (unpacked / WEIGHTS).is_file()


def test_an_output_that_is_there_is_said_before_anything_comes(
    invoke: Invoke, hub: HubServer, packed: Path, checkpoint: Path
) -> None:
    assert_refused(invoke("convert", NAME, "-o", packed), str(packed), "exists already")
    assert hub.requests == []


def test_a_text_that_cannot_be_read_is_said_before_anything_comes(
    invoke: Invoke, hub: HubServer, tmp_path: Path
) -> None:
    for text, words in ((tmp_path / "none.txt", "No such file"), (tmp_path, "is not a regular file")):
        args = ("convert", NAME, "-o", tmp_path / "out", "--calibration", text)
        assert_refused(invoke(*args), str(text), words, status=2)
    assert hub.requests == []


def test_what_is_packed_or_not_is_known_before_anything_comes(
    invoke: Invoke, hub: HubServer, packed: Path, tmp_path: Path
) -> None:
    hub.add("org/packed", packed)
    for args in (["verify", NAME], ["dequantize", NAME, "-o", tmp_path / "out"]):
        assert_refused(invoke(*args), f"{NAME}: is not a packed model")
    assert_refused(invoke("convert", "org/packed", "-o", tmp_path / "out"), "org/packed: is packed already")
    assert WEIGHTS not in hub.downloads()


def test_faults_are_one_line(invoke: Invoke, hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/gated", {"config.json": b"{}", WEIGHTS: b""}, gated=True)
    hub.add("org/files", {"a.Q4_0.gguf": b"GGUF", "pytorch_model.bin": b""})
    faults = {
        "org/nothing": ["no such file or folder, and there is no such model on", "HF_TOKEN"],
        "org/gated": ["accept its terms at", "hf auth login"],
        f"{NAME}@v9": ["no revision 'v9'"],
        f"{NAME}:Q4_0": ["no GGUF file"],
        "org/files": ["org/files:a.Q4_0.gguf (0.0 MB)"],
        "org/files:Q8_0": ["org/files:a.Q4_0.gguf (0.0 MB)"],
        f"./{NAME}": ["no such file"],
        "a/b/c": ["no such file"],
    }
    for name, words in faults.items():
        for args in (["convert", name, "-o", tmp_path / "out"], ["run", name, "-p", "hi"], ["inspect", name]):
            assert_refused(invoke(*args), *words)
    assert not (tmp_path / "out").exists()


def size_of(file: Path) -> int:
    """Bytes of a file; 0 if it has just got its final name."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def test_an_interrupt_is_clean_and_the_next_start_goes_on(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    hub.faults[WEIGHTS] = [Fault(after=200_000, hang=60)]
    command: list[str | Path] = [*PROGRAM, "convert", NAME, "-o", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while sum(map(size_of, tmp_path.rglob("*.incomplete"))) < 200_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")
    hub.requests.clear()
    subprocess.run(command, check=True, capture_output=True)
    assert [headers["range"] for _, path, headers in hub.requests if path.startswith("/cdn/")] == ["bytes=200000-"]


def test_the_next_process_needs_no_hub(
    hub: HubServer, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What huggingface_hub's variables say holds for processes that read them at their start."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    run = [*PROGRAM, "run", NAME, "-p", "hi", "-n", "4", "--temp", "0"]
    first = subprocess.run(run, check=True, capture_output=True, text=True)
    assert (tmp_path / "elsewhere/models--org--tiny").is_dir()
    assert hub.requests[0][2]["authorization"] == f"Bearer {hub.TOKEN}"
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == first.stdout
    shutil.rmtree(tmp_path / "elsewhere")
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == first.stdout
    assert hub.requests == []


def test_packed_models_are_listed_and_removed(
    invoke: Invoke, model: str, checkpoint: Path, model_cache: Path, tmp_path: Path
) -> None:
    listed = invoke("list")
    assert listed.stdout == f"0 packed models, 0 B, in {model_cache}\n"
    assert f"downloads from the hub are in {tmp_path / 'hf/hub'}; `hf cache`" in listed.stderr
    assert json.loads(invoke("list", "--json").stdout) == []
    for name in (checkpoint, NAME):
        assert invoke("run", name, "-p", "hi", "-n", 2).exit_code == 0
    lines = invoke("list").stdout.splitlines()
    assert lines[0].split() == ["name", "source", "kind", "size", "last", "used"]
    assert f"hub, commit {model[:8]}" in next(line for line in lines if line.startswith(f"{NAME} "))
    assert lines[-1].startswith("2 packed models, ")
    (first, second) = json.loads(invoke("list", "--json").stdout)
    assert {first["name"], second["name"]} == {NAME, str(checkpoint)}
    assert first.keys() == {"name", "source", "kind", "complete", "nbytes", "used", "path"}
    assert_refused(invoke("rm", "org/nothing"), "org/nothing: no packed model", "quantkit list", status=2)
    assert_refused(invoke("rm"), "--all", status=2)
    assert_refused(invoke("rm", NAME, "--all"), "--all", status=2)
    assert invoke("rm", NAME).stdout.startswith(f"{NAME}: removed, ")
    assert invoke("list").stdout.splitlines()[-1].startswith("1 packed model, ")
    assert invoke("rm", "--all").exit_code == 0
    assert invoke("list").stdout == f"0 packed models, 0 B, in {model_cache}\n"
