"""One safetensors file: what the official library writes is read exactly, and nothing damaged gets through."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from quantkit.errors import CheckpointError, PackedModelError
from quantkit.formats.safetensors import SafetensorsFile


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file's bytes: `header` is JSON text or something to dump; `length` overrides the true header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, dtype: str = "U8", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_official_library_writes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {
        "a.weight": random.standard_normal((5, 7)).astype(np.float32),
        "b.weight": random.standard_normal((3, 2, 4)).astype(np.float16),
        "c": random.integers(0, 256, 13, dtype=np.uint8),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "np"})
    file = SafetensorsFile(path)
    assert set(file.header) == set(tensors)
    assert file.metadata == {"format": "np"}
    for name, expected in tensors.items():
        array = file.array(name)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
        assert not array.flags.writeable
        assert array.flags.aligned
        assert array.flags.c_contiguous


def test_bf16_is_bit_patterns(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"w": entry(0, 4, "BF16", [2])}, bytes([0x80, 0x3F, 0x00, 0xC0])))
    array = SafetensorsFile(path).array("w")
    assert array.dtype == np.uint16
    assert array.tolist() == [0x3F80, 0xC000]  # 1.0, -2.0


def test_unaligned_tensor_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": entry(0, 1), "b": entry(1, 9, "F32", [2])}, b"\x01" + np.float32([3, 4]).tobytes()))
    array = SafetensorsFile(path).array("b")
    assert array.tolist() == [3.0, 4.0]
    assert array.flags.aligned
    assert not array.flags.writeable


def test_header_is_in_order_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"late": entry(2, 4), "early": entry(0, 2)}, b"abcd"))
    file = SafetensorsFile(path)
    assert list(file.header) == ["early", "late"]
    assert file.array("late").tobytes() == b"cd"


def test_release_gives_pages_back(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    path = tmp_path / "x.safetensors"
    size = 64 << 20
    path.write_bytes(raw({"a": entry(0, size)}, bytes(size)))
    file = SafetensorsFile(path)
    array = file.array("a")
    array.max()
    touched = resident()
    file.release("a")
    assert touched - resident() > size // 2
    assert array.max() == 0


DAMAGED = {
    "empty file": (b"", "header does not fit"),
    "seven bytes": (b"1234567", "header does not fit"),
    "header beyond the file": (raw({}, length=1000), "header does not fit"),
    "absurd header length": (raw({}, length=2**64 - 1), "header does not fit"),
    "not JSON": (raw(b"{nope}"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "deeply nested": (raw(b"[" * 200_000), "not JSON"),
    "huge integer": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "a list": (raw([]), "not a JSON object"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "duplicate name": (
        raw(b'{"w": %s, "w": %s}' % ((json.dumps(entry(0, 1)).encode(),) * 2), b"x"),
        "names 'w' twice",
    ),
    "entry is a list": (raw({"w": []}), "'w' is malformed"),
    "missing offsets": (raw({"w": {"dtype": "U8", "shape": []}}), "'w' is malformed"),
    "negative dimension": (raw({"w": entry(0, 1, shape=[-1])}, b"x"), "malformed"),
    "boolean dimension": (raw({"w": entry(0, 1, shape=[True])}, b"x"), "malformed"),
    "float offset": (raw({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1.0]}}, b"x"), "malformed"),
    "unknown dtype": (raw({"w": entry(0, 1, "Q4")}, b"x"), "unknown dtype 'Q4'"),
    "shape against bytes": (raw({"w": entry(0, 8, "F32", [3])}, bytes(8)), "12 bytes as F32"),
    "reversed offsets": (raw({"w": entry(1, 0, shape=[1])}, b"x"), "offsets span -1"),
    "overflowing shape": (raw({"w": entry(0, 0, shape=[0, 2**62, 2**62])}), "impossible shape"),
    "too many dimensions": (raw({"w": entry(0, 1, shape=[1] * 100)}, b"x"), "impossible shape"),
    "overlap": (raw({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "'b' overlaps"),
    "hole": (raw({"a": entry(0, 4), "b": entry(5, 6)}, bytes(6)), "'b' leaves a hole"),
    "hole at the start": (raw({"a": entry(1, 4)}, bytes(4)), "'a' leaves a hole"),
    "offsets beyond the file": (raw({"a": entry(0, 10)}, bytes(9)), "is truncated"),
    "bytes after the end": (raw({"a": entry(0, 4)}, bytes(9)), "5 bytes after its last tensor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_refuses_damaged(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(PackedModelError, match=r"model\.safetensors: ") as caught:
        SafetensorsFile(path, PackedModelError)
    assert message in str(caught.value)


def test_header_length_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    with pytest.raises(CheckpointError, match="claims a header of 200000000 bytes"):
        SafetensorsFile(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: cannot be read: No such file"):
        SafetensorsFile(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        SafetensorsFile(tmp_path)


def test_array_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"w": entry(0, 8, "I64", [1])}, bytes(8)))
    file = SafetensorsFile(path)
    assert file.header["w"].dtype == "I64"
    with pytest.raises(CheckpointError, match="'w' has dtype I64"):
        file.array("w")
    with pytest.raises(CheckpointError, match="has no tensor 'v'"):
        file.array("v")


def touch_everything(path: Path) -> None:
    """Open the file and read each tensor; only CheckpointError may come out."""
    with suppress(CheckpointError):
        file = SafetensorsFile(path)
        for name in file.header:
            file.array(name).tobytes()


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
sizes = st.integers(-1, 40)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "BF16", "F32", "I64", "F4"]) | json_values,
        "shape": st.lists(sizes, max_size=3) | json_values,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | json_values,
    }
)


@fuzz
@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    touch_everything(path)


@fuzz
@given(header=st.dictionaries(st.text(max_size=4), entries | json_values, max_size=4), data=st.binary(max_size=60))
def test_any_header(header: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header, data))
    touch_everything(path)


@fuzz
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_flipped_and_cut_bytes(position: int, value: int, cut: int, tmp_path: Path) -> None:
    content = bytearray(
        raw({"a": entry(0, 8, "F32", [2]), "b": entry(8, 12, "BF16", [2, 1]), "c": entry(12, 15)}, bytes(range(15)))
    )
    content[position % len(content)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: len(content) - cut % len(content)])
    touch_everything(path)
