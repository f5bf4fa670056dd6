"""Safetensors files are what the official library reads."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from quantkit.formats.safetensors.file import SafetensorsFile
from quantkit.formats.safetensors.writer import ALIGNMENT, PADDING, SafetensorsWriter

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}


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
def test_the_official_library_reads_what_is_written(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], alignment: int, random: Random
) -> None:
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
        writer.write("b", [np.array([9], np.uint8)])
        writer.write("a", (np.array([[row, row]], np.uint16) for row in range(3)))
    file = SafetensorsFile(tmp_path / "x")
    assert file.array("a").tolist() == [[0, 0], [1, 1], [2, 2]]
    assert file.array("b").tolist() == [9]


def test_tensors_that_grow_in_turn(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x", {"a": ("U8", (4,)), "b": ("F32", (2, 1))}, {}) as writer:
        for row in range(2):
            writer.append("b", np.array([[row]], np.float32))
            writer.append("a", np.array([row, row], np.uint8))
        with pytest.raises(ValueError, match="a: 1 bytes too many"):
            writer.append("a", np.array([1], np.uint8))
    file = SafetensorsFile(tmp_path / "x")
    assert (file.array("a").tolist(), file.array("b").tolist()) == ([0, 0, 1, 1], [[0], [1]])


def test_bytes_by_hand(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x", {"a": ("U8", (2,))}, {"format": "pt"}) as writer:
        writer.write("a", [np.array([1, 2], np.uint8)])
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
        writer.write("a", [np.array([1], np.uint8)])
    with (
        pytest.raises(ValueError, match="a: 2 bytes are missing"),
        SafetensorsWriter(tmp_path / "y", {"a": ("U8", (4,))}, {}) as writer,
    ):
        writer.write("a", [np.array([1, 2], np.uint8)])
