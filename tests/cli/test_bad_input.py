"""Damaged, hostile and impossible input: status 1, one line that names file and cause, and nothing half-written."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import tiny
from invocation import PROGRAM, Invoke
from quantkit.formats.packed import is_packed

WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

Header = dict[str, Any]


def assert_refused(result: Result, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (1, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert "bug in quantkit" not in result.stderr
    for word in words:
        assert word in result.stderr


def edit_header(change: Callable[[Header], Any]) -> Callable[[bytes], bytes]:
    def edit(raw: bytes) -> bytes:
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + size :]

    return edit


def edit_values(name: str, value: int) -> Callable[[bytes], bytes]:
    def edit(raw: bytes) -> bytes:
        size = int.from_bytes(raw[:8], "little")
        begin = 8 + size + json.loads(raw[8 : 8 + size])[name]["data_offsets"][0]
        return raw[:begin] + value.to_bytes(2, "little") + raw[begin + 2 :]

    return edit


DAMAGED_WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty file": (lambda raw: b"", ()),
    "truncated header": (lambda raw: raw[:100], ()),
    "header length beyond the file": (lambda raw: (1 << 40).to_bytes(8, "little") + raw[8:], ()),
    "header that is not JSON": (lambda raw: raw[:8] + b"!" + raw[9:], ()),
    "truncated data": (lambda raw: raw[:-100], ()),
    "overlapping offsets": (edit_header(lambda h: h[UP].update(data_offsets=h["lm_head.weight"]["data_offsets"])), ()),
    "offsets beyond the file": (edit_header(lambda h: h[UP].update(data_offsets=[1 << 40, (1 << 40) + 20480])), ()),
    "offsets below zero": (edit_header(lambda h: h[UP].update(data_offsets=[-20480, 0])), ("-20480",)),
    "wrong shape for the config": (edit_header(lambda h: h[UP].update(shape=[64, 160])), (UP, "160")),
    "wrong dtype": (edit_header(lambda h: h[UP].update(dtype="I16")), (UP, "I16")),
    "missing tensor": (edit_header(lambda h: h.update({"other": h.pop(UP)})), (UP,)),
    "NaN": (edit_values(UP, 0x7FC0), (UP,)),
    "infinity": (edit_values(UP, 0x7F80), (UP,)),
    "NaN in a norm": (edit_values("model.norm.weight", 0x7FC0), ("model.norm.weight",)),
}


@pytest.mark.parametrize("damage", DAMAGED_WEIGHTS)
def test_damaged_weights(invoke: Invoke, tmp_path: Path, damage: str) -> None:
    folder = tiny.checkpoint(tmp_path / "source")
    edit, words = DAMAGED_WEIGHTS[damage]
    (folder / WEIGHTS).write_bytes(edit((folder / WEIGHTS).read_bytes()))
    assert_refused(invoke("convert", folder, "-o", tmp_path / "out"), str(folder), *words)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "rwkv"}, ("rwkv", "llama", "qwen3")),
        ({"model_type": ...}, ("model_type",)),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, ("spiral",)),
        ({"logits_scaling": 8.0}, ("config.json", "logits_scaling", "8.0")),
        ({"hidden_act": "mish"}, ("mish",)),
        ({"hidden_size": "64"}, ("hidden_size",)),
        ({"num_hidden_layers": 3}, ("model.layers.2",)),
        ({"quantization_config": {"quant_method": "eetq", "bits": 4}}, ("eetq",)),
    ],
)
def test_configs_that_cannot_be_run(
    invoke: Invoke, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    folder = tiny.checkpoint(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    assert_refused(invoke("convert", folder, "-o", tmp_path / "out"), *words)
    assert os.listdir(tmp_path) == ["source"]


def test_a_missing_shard(invoke: Invoke, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "source", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert_refused(invoke("convert", folder, "-o", tmp_path / "out"), "model-00002-of-00002.safetensors")
    assert os.listdir(tmp_path) == ["source"]


def test_pickles_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "source")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4" + bytes(100))
    assert_refused(invoke("convert", folder, "-o", tmp_path / "out"), "pytorch_model.bin", "safetensors")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("command", ["convert", "run", "eval"])
def test_a_tensor_that_is_left_out_is_reported_once(
    invoke: Invoke, tmp_path: Path, command: str, caplog: pytest.LogCaptureFixture, model_cache: Path
) -> None:
    folder = tiny.checkpoint(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    tensors = {
        name: ("BF16", tiny.encode_dtype(tiny.weight(name, shape), "BF16"))
        for name, shape in tiny.shapes(config).items()
    }
    tensors["adapter.weight"] = ("BF16", np.zeros((2, 2), np.uint16))
    tiny.write_safetensors(folder / WEIGHTS, tensors)
    options = {"convert": ("-o", tmp_path / "out"), "run": ("-p", "a", "-n", "1"), "eval": ("-f", "-", "-c", "8")}
    result = invoke(command, folder, *options[command], input="a text of some words")
    assert result.exit_code == 0, result.stderr
    assert caplog.text.count("the model does not use tensor 'adapter.weight'") == 1


def test_a_missing_tokenizer_stops_run_and_names_the_file(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    (tmp_path / "packed/tokenizer.json").unlink()
    assert_refused(invoke("run", tmp_path / "packed", "-p", "a"), "tokenizer.json")


def test_a_text_with_tokens_that_the_model_does_not_have(invoke: Invoke, model_cache: Path, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "source", vocab_size=100)
    result = invoke("run", folder, "-p", "é", "--ignore-chat-template")
    assert_refused_at_the_end(result, "vocabulary")


def assert_refused_at_the_end(result: Result, *words: str) -> None:
    """As `assert_refused`, after notices about packing."""
    assert (result.exit_code, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in words)


def test_an_existing_model_is_kept_without_force(
    invoke: Invoke, checkpoint: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    (out / WEIGHTS).write_text("damaged")
    assert_refused(invoke("convert", checkpoint, "-o", out), str(out), "--force")
    assert (out / WEIGHTS).read_text() == "damaged"
    assert invoke("convert", checkpoint, "-o", out, "--force").exit_code == 0
    assert invoke("verify", out).exit_code == 0


def test_a_folder_of_something_else_is_never_replaced(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    files = {"config.json": "{}", "thesis.tex": "precious"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert_refused(invoke("convert", checkpoint, "-o", tmp_path, "--force"), str(tmp_path), "quantkit did not write")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


# --- packed folders -----------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_found(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    assert invoke("verify", tmp_path / "packed").exit_code == 0
    file = tmp_path / "packed" / WEIGHTS
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert_refused(invoke("verify", tmp_path / "packed"), WEIGHTS, ".weight")


DAMAGED_FOLDERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "other format version": ("quantkit.json", lambda raw: raw.replace(b'"format_version": 1', b'"format_version": 99')),
    "manifest that is not JSON": ("quantkit.json", lambda raw: raw.rstrip()[:-10]),
    "truncated data": (WEIGHTS, lambda raw: raw[:-10]),
    "truncated header": (WEIGHTS, lambda raw: raw[:50]),
    "config that is not JSON": ("config.json", lambda raw: raw[:-10]),
}


@pytest.mark.parametrize("command", [("verify",), ("inspect",), ("bench", "-p", "4", "-n", "0"), ("run", "-p", "a")])
@pytest.mark.parametrize("damage", DAMAGED_FOLDERS)
def test_damaged_packed_folders(
    invoke: Invoke, packed: Path, tmp_path: Path, damage: str, command: tuple[str, ...]
) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    name, edit = DAMAGED_FOLDERS[damage]
    file = tmp_path / "packed" / name
    before = file.read_bytes()
    file.write_bytes(edit(before))
    assert file.read_bytes() != before
    assert_refused(invoke(command[0], tmp_path / "packed", *command[1:]), name)


def test_a_checkpoint_is_not_a_packed_folder(invoke: Invoke, checkpoint: Path) -> None:
    assert_refused(invoke("verify", checkpoint), str(checkpoint))


# --- what the system refuses ----------------------------------------------------------------------------------------


def convert_in_a_process(source: Path, out: Path, before: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "convert", source, "-o", out], capture_output=True, text=True, timeout=120, preexec_fn=before
    )


def test_a_full_disk(packed: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = convert_in_a_process(
        checkpoint, tmp_path / "out", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert str(tmp_path) in done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_folder_without_write_permission(packed: Path, checkpoint: Path, tmp_path: Path) -> None:
    def obey_permissions() -> None:  # which root does only without these capabilities
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = convert_in_a_process(checkpoint, closed / "out", obey_permissions)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert str(closed) in done.stderr
    assert "permission" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_killed_convert_leaves_nothing_that_looks_finished(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", vocab_size=40_000, hidden_size=256, intermediate_size=1024)
    process = subprocess.Popen([*PROGRAM, "convert", source, "-o", tmp_path / "out"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while os.listdir(tmp_path) == ["source"] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not any(is_packed(entry) for entry in tmp_path.iterdir())
    assert invoke("convert", source, "-o", tmp_path / "out").exit_code == 0
    assert invoke("verify", tmp_path / "out").exit_code == 0
