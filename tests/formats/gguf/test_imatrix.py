"""Importance files of llama.cpp: as its tools write them in either form, and hostile bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.formats.gguf.imatrix import Sums, imatrix_bytes, read_imatrix

SUMS = {
    "blk.0.attn_q.weight": Sums(np.arange(40.0)[None], np.array([8.0])),
    "blk.0.ffn_up_exps.weight": Sums(np.arange(120.0).reshape(3, 40), np.array([5.0, 0.0, 2.0])),
}
TYPED = (
    b"\x02\x00\x00\x00"  # two entries
    b"\x03\x00\x00\x00abc\x02\x00\x00\x00\x02\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x00\x40"  # 2 calls: 1, 2
    b"\x01\x00\x00\x00d\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x40\x40"  # 1 call: 3
    b"\x07\x00\x00\x00\x04\x00\x00\x00text"  # 7 chunks
)
"""An older file, by hand."""


def written(path: Path) -> Path:
    """What `llama-imatrix` writes, by llama.cpp's own package."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in SUMS.items():
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        writer.add_tensor(f"{name}.counts", counts.astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_of_llama_cpp_are_read(tmp_path: Path) -> None:
    found = read_imatrix(written(tmp_path / "imatrix.gguf"))
    assert found.keys() == SUMS.keys()
    for name, (sums, counts) in SUMS.items():
        np.testing.assert_array_equal(found[name].sums, sums)
        np.testing.assert_array_equal(found[name].counts, counts)


def test_older_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(TYPED)
    found = read_imatrix(tmp_path / "imatrix.dat")
    assert {name: (sums.tolist(), counts.tolist()) for name, (sums, counts) in found.items()} == {
        "abc": ([[1, 2]], [2]),
        "d": ([[3]], [1]),
    }


def test_what_is_written_is_read_by_llama_cpps_package(tmp_path: Path) -> None:
    file = tmp_path / "imatrix.gguf"
    file.write_bytes(b"".join(imatrix_bytes(SUMS, "some text", 3, 512)))
    reader = gguf.GGUFReader(file)
    fields = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["some text"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, (sums, counts) in SUMS.items():
        np.testing.assert_array_equal(tensors[f"{name}.in_sum2"].data, sums)
        assert tensors[f"{name}.in_sum2"].shape.tolist() == [40, len(sums)]
        assert tensors[f"{name}.counts"].shape.tolist() == [1, len(counts)]
    assert read_imatrix(file).keys() == SUMS.keys()


@pytest.mark.parametrize(
    ("bytes_", "cause"),
    [
        (b"", "no importance file"),
        (b"\0\0\0\0", "it has no sums"),
        (b"\xff\xff\xff\x7f" * 4, "do not end within the file"),
        (TYPED[:-20], "do not end within the file"),
        (TYPED[:4] + b"\xff\xff\xff\xff" + TYPED[8:], "do not end within the file"),
        (TYPED.replace(b"\x80\x3f", b"\x80\xff"), "negative, infinite or NaN"),
        (TYPED.replace(b"\x80\x3f", b"\xc0\x7f"), "negative, infinite or NaN"),
        (struct.pack("<iiciii", 1, 1, b"a", 1, 0, 0), "0 values"),
        (struct.pack("<iiciif", 1, 1, b"a", -1, 1, 1.0), "of -1 calls"),
    ],
)
def test_damage_is_told(tmp_path: Path, bytes_: bytes, cause: str) -> None:
    (tmp_path / "imatrix.dat").write_bytes(bytes_)
    with pytest.raises(CheckpointError, match=cause):
        read_imatrix(tmp_path / "imatrix.dat")


def test_missing_files_and_sums_without_counts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_imatrix(tmp_path / "imatrix.gguf")
    file = written(tmp_path / "imatrix.gguf")
    file.write_bytes(file.read_bytes().replace(b"attn_q.weight.counts", b"attn_q.weight.cuonts"))
    with pytest.raises(CheckpointError, match=r"attn_q.weight.counts.*missing"):
        read_imatrix(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), old=st.booleans())
def test_hostile_bytes_are_refused_or_read(tmp_path: Path, data: st.DataObject, old: bool) -> None:
    bytes_ = bytearray(TYPED if old else b"".join(imatrix_bytes(SUMS, "text", 3, 512)))
    for place in data.draw(st.lists(st.integers(0, min(len(bytes_), 500) - 1), max_size=4)):
        bytes_[place] = data.draw(st.integers(0, 255))
    del bytes_[data.draw(st.integers(0, len(bytes_))) :]
    (tmp_path / "file").write_bytes(bytes_)
    try:
        found = read_imatrix(tmp_path / "file")
    except QuantkitError:
        return
    for sums, counts in found.values():
        assert sums.ndim == 2
        assert np.isfinite(sums).all()
        assert counts.min() >= 0
