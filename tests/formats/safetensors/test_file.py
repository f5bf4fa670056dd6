"""One safetensors file: what the official library writes is read exactly, and nothing damaged gets through."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from quantkit.errors import CheckpointError, PackedModelError
from quantkit.formats.safetensors.file import BITS, NUMPY, SafetensorsFile


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file's bytes: `header` is JSON text or something to dump; `length` overrides the true header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, dtype: str = "U8", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_official_library_writes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
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
    path.write_bytes(
        raw({"a": entry(0, 1), "b": entry(1, 9, "F32", [2])}, b"\x01" + np.array([3, 4], np.float32).tobytes())
    )
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


DAMAGED = {
    "empty file": (b"", "is empty"),
    "seven bytes": (b"1234567", "header does not fit"),
    "header beyond the file": (raw({}, length=1000), "header does not fit"),
    "absurd header length": (raw({}, length=2**64 - 1), "header does not fit"),
    "a GGUF file": (b"GGUF" + bytes(100), "is a GGUF file"),
    "a pickle": (b"PK\3\4" + bytes(100), "is a pickle"),
    "a web page": (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "not JSON": (raw(b"{nope}"), "its header is damaged"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "its header is damaged"),
    "half a surrogate pair": (
        raw(b'{"\\ud800": %s}' % json.dumps(entry(0, 1)).encode(), b"x"),
        "its header is damaged",
    ),
    "deeply nested": (raw(b"[" * 200_000), "its header is damaged"),
    "more values than memory": (raw(b'{"w": [' + b"1," * 3_000_000 + b"1]}"), "holds more than 2000000 values"),
    "huge integer": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "its header is damaged"),
    "a list": (raw([]), "its header is damaged"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "its header is damaged"),
    "entry is a list": (raw({"w": []}), "its header is damaged"),
    "missing offsets": (raw({"w": {"dtype": "U8", "shape": []}}), "missing field `data_offsets`"),
    "negative dimension": (raw({"w": entry(0, 1, shape=[-1])}, b"x"), "integer `-1`"),
    "boolean dimension": (raw({"w": entry(0, 1, shape=[True])}, b"x"), "boolean `true`"),
    "float offset": (raw({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1.0]}}, b"x"), "floating point `1.0`"),
    "unknown dtype": (raw({"w": entry(0, 1, "Q4")}, b"x"), "unknown variant `Q4`"),
    "shape against bytes": (raw({"w": entry(0, 8, "F32", [3])}, bytes(8)), "invalid shape"),
    "half a byte": (raw({"w": entry(0, 2, "F4", [3])}, bytes(2)), "byte boundary"),
    "reversed offsets": (raw({"w": entry(1, 0, shape=[1])}, b"x"), "invalid offset for tensor `w`"),
    "overflowing shape": (raw({"w": entry(0, 0, shape=[2, 2**62, 2**62])}), "overflow"),
    "overlap": (raw({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "invalid offset for tensor `b`"),
    "hole": (raw({"a": entry(0, 4), "b": entry(5, 6)}, bytes(6)), "invalid offset for tensor `b`"),
    "hole at the start": (raw({"a": entry(1, 4)}, bytes(4)), "invalid offset for tensor `a`"),
    "offsets beyond the file": (raw({"a": entry(0, 10)}, bytes(9)), "is truncated"),
    "bytes after the end": (raw({"a": entry(0, 4)}, bytes(9)), "bytes after its last tensor"),
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


@pytest.mark.parametrize(
    ("content", "filling"),
    [('{"w": [%s1]}', "1,"), ('{"__metadata__": {%s"": ""}}', '"":"",'), ('{"__metadata__": {"": "%s"}}', "x")],
)
def test_a_huge_header_takes_little_memory(content: str, filling: str, tmp_path: Path) -> None:
    """Parsed, 99 MB of JSON may become 25 times as much."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw((content % (filling * (98_000_000 // len(filling)))).encode()))
    code = (
        "import resource, sys; from quantkit.errors import CheckpointError;"
        "from quantkit.formats.safetensors.file import SafetensorsFile;"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: SafetensorsFile(sys.argv[1])\n"
        "except CheckpointError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500_000  # KB


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no such file"):
        SafetensorsFile(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        SafetensorsFile(tmp_path)


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_only_tensors_of_a_strange_dtype_are_unreadable(dtype: str, tmp_path: Path) -> None:
    """Every dtype that the library knows may stand in a file; its neighbours are read all the same."""
    size = BITS[dtype]  # bytes of 8 elements
    header = {"a": entry(0, 2, "F16", [1]), "w": entry(2, 2 + size, dtype, [8]), "z": entry(2 + size, 4 + size)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header, bytes(range(4 + size))))
    file = SafetensorsFile(path)
    assert file.array("a").tobytes() == b"\0\1"
    assert file.array("z").tobytes() == bytes([2 + size, 3 + size])
    assert file.header["w"][:2] == (dtype, (8,))
    if dtype in NUMPY:
        assert file.array("w").tobytes() == bytes(range(2, 2 + size))
    else:
        with pytest.raises(CheckpointError, match=f"'w' has dtype {dtype}"):
            file.array("w")


def test_the_library_knows_no_other_dtype(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"w": entry(0, 1, "nothing")}, b"x"))
    with pytest.raises(SafetensorError) as error:
        safe_open(path, "np")
    assert set(re.findall(r"`(\w+)`", str(error.value))) == {"nothing", *BITS}


def test_a_missing_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({}))
    with pytest.raises(CheckpointError, match="has no tensor 'v'"):
        SafetensorsFile(path).array("v")


@pytest.mark.parametrize("shape", [[1] * 100, [0, 2**63]])
def test_a_shape_that_numpy_does_not_have(shape: list[int], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    size = 4 * math.prod(shape)
    path.write_bytes(raw({"w": entry(0, size, "F32", shape)}, bytes(size)))
    file = SafetensorsFile(path)
    for copy in (False, True):
        with pytest.raises(CheckpointError, match="'w' has the impossible shape"):
            file.array("w", copy=copy)


def test_a_file_that_is_truncated_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"w": entry(0, 100_000)}, bytes(100_000)))
    file = SafetensorsFile(path)
    os.truncate(path, 50_000)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: was truncated while it was read"):
        file.array("w", copy=True)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: has changed its size"):
        file.array("w")


@pytest.mark.parametrize("special", ["fifo", "device", "socket"])
def test_what_is_no_regular_file_is_never_opened(special: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if special == "fifo":
        os.mkfifo(path)  # opening it would wait for a writer
    elif special == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
            server.bind(path.name)  # by a short name: there is a limit
    with pytest.raises(CheckpointError, match=r"x\.safetensors: is not a regular file"):
        SafetensorsFile(path)


def compare_with_the_library(path: Path) -> None:
    """What the library opens is opened and read the same; what it refuses is refused, with a CheckpointError."""
    try:
        theirs: Any = safe_open(path, "np")
    except SafetensorError:
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
        return
    ours = SafetensorsFile(path)
    assert set(ours.header) == set(theirs.keys())
    assert ours.metadata == (theirs.metadata() or {})
    for name, found in ours.header.items():
        piece = theirs.get_slice(name)
        assert (found.dtype, list(found.shape)) == (piece.get_dtype(), piece.get_shape())
        if found.dtype in ("F32", "F16", "U8"):
            assert ours.array(name).tobytes() == theirs.get_tensor(name).tobytes()
            assert ours.array(name, copy=True).tobytes() == theirs.get_tensor(name).tobytes()


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
sizes = st.integers(-1, 40)
shapes = st.lists(st.integers(0, 5), max_size=3)
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
    compare_with_the_library(path)


@fuzz
@given(header=st.dictionaries(st.text(max_size=4), entries | json_values, max_size=4), data=st.binary(max_size=60))
def test_any_header(header: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header, data))
    compare_with_the_library(path)


@fuzz
@given(
    tensors=st.lists(st.tuples(st.sampled_from(["U8", "F16", "F32", "BF16", "F4", "I64"]), shapes), max_size=6),
    order=st.randoms(use_true_random=False),
    extra=st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=1),
    metadata=st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    padding=st.sampled_from([b"", b" ", b"\n\t "]),
)
def test_any_sound_file(
    tensors: list[tuple[str, list[int]]],
    order: Any,
    extra: dict[str, Any],
    metadata: Any,
    padding: bytes,
    tmp_path: Path,
) -> None:
    """Entries in any order, empty tensors, unaligned ones, unknown keys, blanks around the header."""
    header, end = [], 0
    for number, (dtype, shape) in enumerate(tensors):
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        header.append((f"t{number}", {**extra, **entry(begin, end, dtype, shape)}))
    order.shuffle(header)
    content = dict(header) | ({} if metadata is None else {"__metadata__": metadata})
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        raw(padding + json.dumps(content).encode() + padding, bytes(range(end % 256)) + bytes(end - end % 256))
    )
    compare_with_the_library(path)


@fuzz
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_flipped_and_cut_bytes(position: int, value: int, cut: int, tmp_path: Path) -> None:
    content = bytearray(
        raw({"a": entry(0, 8, "F32", [2]), "b": entry(8, 12, "BF16", [2, 1]), "c": entry(12, 15)}, bytes(range(15)))
    )
    content[position % len(content)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: len(content) - cut % len(content)])
    compare_with_the_library(path)
