"""JSON of strangers: bounded in size, depth and number, always text, and always an error that names the file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import CheckpointError, PackedModelError
from quantkit.formats import json_files
from quantkit.formats.json_files import parse_object, read_file, read_object

HOSTILE = {
    "not JSON": (b"{", "is not JSON"),
    "empty": (b"", "is not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not JSON"),
    "a list": (b"[1]", "is not a JSON object"),
    "deep lists": (b'{"a": ' + b"[" * 200_000, "is nested too deeply"),
    "deep but sound": (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "is nested too deeply"),
    "deep objects": (b'{"a": ' * 500 + b"1" + b"}" * 500, "is nested too deeply"),
    "surrogate": (rb'{"a": "\ud800"}', "half of a surrogate pair"),
    "surrogate in a key": (rb'{"\udfff": 1}', "half of a surrogate pair"),
    "10^400": (b'{"a": 1' + b"0" * 400 + b"}", "holds a number of 401 digits"),
    "10^5000": (b'{"a": -1' + b"0" * 5000 + b"}", "holds a number of 5002 digits"),
    "many values": (b'{"a": [' + b"0," * 2_100_000 + b"0]}", "holds more than 2000000 values"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_object(file)
    assert str(error.value).startswith(f"{file}: ")
    with pytest.raises(PackedModelError, match=message):
        read_object(file, PackedModelError)


def test_what_real_files_hold() -> None:
    """Tokenizers say 10^30 for no limit; some files begin with a byte order mark, or hold NaN."""
    found = parse_object(b'\xef\xbb\xbf{"model_max_length": 1000000000000000019884624838656, "x": NaN}', "x")
    assert found["model_max_length"] == 1000000000000000019884624838656
    assert parse_object(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "😀"}


def test_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_BYTES", 10)
    (tmp_path / "x").write_bytes(bytes(10))
    assert read_file(tmp_path / "x") == bytes(10)
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(CheckpointError, match=r"x: is larger than 10 bytes"):
        read_file(tmp_path / "x")


@pytest.mark.parametrize("special", ["missing", "folder", "fifo", "device", "null"])
def test_what_is_no_regular_file(special: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    make: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "folder": file.mkdir,
        "fifo": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "null": lambda: None,
    }
    make[special]()
    with pytest.raises(CheckpointError, match=r"no such file|is not a regular file|is not a path"):
        read_file(Path("x\0") if special == "null" else file)


fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@fuzz
@given(content=st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_any_object_comes_back(content: dict[str, Any]) -> None:
    assert parse_object(json.dumps(content).encode(), "x") == content


@fuzz
@given(content=st.binary(max_size=100))
def test_any_bytes(content: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        json.dumps(parse_object(content, "x")).encode()
