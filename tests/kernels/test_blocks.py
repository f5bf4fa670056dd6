"""The packed format, byte by byte: blocks typed by hand, and packing undone by unpacking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit_kernels import blocks

INT4_BLOCK = bytes.fromhex(
    "40 51 62 73  f0 f1 f2 f3  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  1f 2e 3d 4c"
    "c8 d9 ea fb  f4 f5 f6 f7  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  5b 6a 79 88"
    "40 51 62 73  f8 f9 fa fb  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  97 a6 b5 c4"
    "c8 d9 ea fb  fc fd fe ff  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  d3 e2 f1 00"
    "02 01 00 00 00 00 00 ff"  # scales
    "81 03 00 00 00 00 00 7f"  # mins: -127, 3, 0 ..., 127
)
INT4_CODES = {
    0: [*range(16), *range(16)],
    1: [0, 1, 2, 3, *[15] * 4, 4, 5, 6, 7, *[15] * 4, 8, 9, 10, 11, *[15] * 4, 12, 13, 14, 15, *[15] * 4],
    7: [15, 14, 13, 12, 1, 2, 3, 4, 11, 10, 9, 8, 5, 6, 7, 8, 7, 6, 5, 4, 9, 10, 11, 12, 3, 2, 1, 0, 13, 14, 15, 0],
}
"""Row -> its 32 codes; the other rows are zero."""

FIFTH_BITS = {0: "00 00 00 00", 1: "ff fe 01 80", 7: "00 55 aa 10"}
"""Row -> the fifth bits of its codes: four bytes, each of whose bits is of one half chunk."""
INT5_BLOCK = (
    INT4_BLOCK[:128]
    + b"".join(bytes.fromhex(FIFTH_BITS.get(row, "00 00 00 00")) for row in range(8))
    + INT4_BLOCK[128:]
)
HIGH_BITS = {1: ("07 80 00 00", "01 00 00 c0"), 7: ("00 00 00 00", "00 00 08 00")}
"""Row -> the high bits of its codes in each plane: in a byte the pairs of four half chunks."""
INT6_BLOCK = (
    INT4_BLOCK[:128]
    + b"".join(bytes.fromhex(HIGH_BITS.get(row, ("00 00 00 00",) * 2)[plane]) for plane in (0, 1) for row in range(8))
    + INT4_BLOCK[128:]
)

INT8_BLOCK = b"".join(
    bytes([4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3]) + bytes(4 * 6) + bytes([0x81, 0x7F, 0xFF, c]) for c in range(8)
) + bytes([1, 0, 0, 0, 0, 0, 0, 255])


def test_int4_bytes() -> None:
    codes = np.zeros((8, 32), np.uint8)
    for row, numbers in INT4_CODES.items():
        codes[row] = numbers
    scales = np.array([[2], [1], [0], [0], [0], [0], [0], [255]], np.uint8)
    mins = np.array([[-127], [3], [0], [0], [0], [0], [0], [127]], np.int8)
    block = blocks.pack("int4", codes, scales, mins)
    assert block.shape == (1, 1, 144)
    assert block.tobytes() == INT4_BLOCK
    for found, expected in zip(blocks.unpack("int4", block), (codes, scales, mins), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_int4_values() -> None:
    data = np.frombuffer(INT4_BLOCK, np.uint8).reshape(1, 1, 144)
    row_scales = np.array([[[0.5, 2, 1, 1, 1, 1, 1, 0.25], [0.125, 10, 1, 1, 1, 1, 1, -1]]], np.float32)
    weights = blocks.dequantize("int4", data, row_scales, (8, 32))
    assert weights[0, :4].tolist() == [0.5 * 2 * code + 0.125 * -127 for code in (0, 1, 2, 3)]
    assert weights[1].tolist() == [2 * code + 30 for code in INT4_CODES[1]]
    assert not weights[2:7].any()
    assert weights[7].tolist() == [0.25 * 255 * code - 127 for code in INT4_CODES[7]]


def test_int5_bytes_and_values() -> None:
    codes = np.zeros((8, 32), np.uint8)
    for row, numbers in INT4_CODES.items():
        codes[row] = numbers
    codes[1, 0::4] += 16  # byte 0: all bits
    codes[1, 5::4] += 16  # byte 1: all but that of the first half chunk
    codes[1, 2] += 16  # byte 2: that of the first alone
    codes[1, 31] += 16  # byte 3: that of the last alone
    codes[7, 1::8] += 16
    codes[7, 6::8] += 16
    codes[7, 19] += 16
    scales = np.array([[2], [1], [0], [0], [0], [0], [0], [255]], np.uint8)
    mins = np.array([[-127], [3], [0], [0], [0], [0], [0], [127]], np.int8)
    block = blocks.pack("int5", codes, scales, mins)
    assert block.shape == (1, 1, 176)
    assert block.tobytes() == INT5_BLOCK
    for found, expected in zip(blocks.unpack("int5", block), (codes, scales, mins), strict=True):
        np.testing.assert_array_equal(found, expected)
    row_scales = np.array([[[0.5, 2, 1, 1, 1, 1, 1, 0.25], [0.125, 10, 1, 1, 1, 1, 1, -1]]], np.float32)
    weights = blocks.dequantize("int5", block, row_scales, (8, 32))
    assert weights[1].tolist() == [2.0 * code + 30 for code in codes[1].tolist()]
    assert weights[7].tolist() == [0.25 * 255 * code - 127 for code in codes[7].tolist()]


def test_int6_bytes_and_values() -> None:
    codes = np.zeros((8, 32), np.uint8)
    for row, numbers in INT4_CODES.items():
        codes[row] = numbers
    for row, column, high in ((1, 0, 3), (1, 4, 1), (1, 13, 2), (1, 16, 1), (1, 31, 3), (7, 22, 2)):
        codes[row, column] += 16 * high
    scales = np.array([[2], [1], [0], [0], [0], [0], [0], [255]], np.uint8)
    mins = np.array([[-127], [3], [0], [0], [0], [0], [0], [127]], np.int8)
    block = blocks.pack("int6", codes, scales, mins)
    assert block.shape == (1, 1, 208)
    assert block.tobytes() == INT6_BLOCK
    for found, expected in zip(blocks.unpack("int6", block), (codes, scales, mins), strict=True):
        np.testing.assert_array_equal(found, expected)
    row_scales = np.array([[[0.5, 2, 1, 1, 1, 1, 1, 0.25], [0.125, 10, 1, 1, 1, 1, 1, -1]]], np.float32)
    weights = blocks.dequantize("int6", block, row_scales, (8, 32))
    assert weights[1].tolist() == [2.0 * code + 30 for code in codes[1].tolist()]
    assert weights[7].tolist() == [0.25 * 255 * code - 127 for code in codes[7].tolist()]


def test_int8_bytes_and_values() -> None:
    codes = np.zeros((8, 32), np.int8)
    codes[0] = range(32)
    codes[7] = np.array([[-127, 127, -1, c] for c in range(8)]).ravel()
    scales = np.array([[1], [0], [0], [0], [0], [0], [0], [255]], np.uint8)
    block = blocks.pack("int8", codes, scales)
    assert block.shape == (1, 1, 264)
    assert block.tobytes() == INT8_BLOCK
    *parts, mins = blocks.unpack("int8", block)
    assert mins is None
    for found, expected in zip(parts, (codes, scales), strict=True):
        np.testing.assert_array_equal(found, expected)
    weights = blocks.dequantize("int8", block, np.array([[[2, 1, 1, 1, 1, 1, 1, 0.5]]], np.float32), (8, 32))
    assert weights[0].tolist() == [2.0 * k for k in range(32)]
    assert weights[7, :5].tolist() == [-127 * 127.5, 127 * 127.5, -127.5, 0, -127 * 127.5]


def test_blocks_lie_row_tile_by_row_tile() -> None:
    codes = np.zeros((9, 33), np.uint8)
    codes[0, 0], codes[0, 32], codes[8, 0], codes[8, 32] = 1, 2, 3, 4
    zeros = np.zeros((9, 2), np.uint8)
    assert blocks.pack("int4", codes, zeros, zeros.view(np.int8))[..., 0].tolist() == [[1, 2], [3, 4]]
    assert blocks.pack("int8", codes.view(np.int8), zeros)[..., 0].tolist() == [[1, 2], [3, 4]]


def test_plain_kinds() -> None:
    bf16 = np.array([[0x3F80, 0xC000, 0x7F7F]], np.uint16)
    assert blocks.dequantize("bf16", bf16, None, (1, 3)).tolist() == [[1.0, -2.0, float(np.float32(3.3895314e38))]]
    for kind, dtype in (("f16", np.float16), ("f32", np.float32)):
        found = blocks.dequantize(kind, np.array([0.5, -3], dtype), None, (2,))
        assert found.dtype == np.float32
        assert found.tolist() == [0.5, -3]


@settings(deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_unpacking_undoes_packing(rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tiles, groups = blocks.grid(rows, columns)
    scales = random.integers(0, 256, (rows, groups)).astype(np.uint8)
    mins = random.integers(-127, 128, (rows, groups)).astype(np.int8)
    for kind, spec in blocks.KINDS.items():
        if not spec.block_bytes:
            continue
        with_mins, dtype = kind in blocks.WITH_MINS, np.uint8 if kind in blocks.WITH_MINS else np.int8
        least = 0 if with_mins else -spec.largest_code
        codes = random.integers(least, spec.largest_code + 1, (rows, columns)).astype(dtype)
        parts = (codes, scales, mins) if with_mins else (codes, scales)
        data = blocks.pack(kind, *parts)
        assert data.flags.c_contiguous
        assert data.shape == blocks.expected_shapes(kind, (rows, columns))[0]
        found = blocks.unpack(kind, data)
        assert (found[2] is not None) == with_mins
        for ours, expected in zip(found, parts, strict=with_mins):
            assert ours is not None
            assert ours.dtype == expected.dtype
            assert ours.shape == (8 * tiles, expected.shape[1] if expected is not codes else 32 * groups)
            np.testing.assert_array_equal(ours[:rows, : expected.shape[1]], expected)
            assert not ours[rows:].any()
            assert not ours[:, expected.shape[1] :].any()


def test_sizes() -> None:
    assert (blocks.KINDS["int4"].block_bytes, blocks.KINDS["int8"].block_bytes) == (144, 264)
    assert (blocks.KINDS["int4"].bits, blocks.KINDS["int8"].bits) == (4.5, 8.25)
    assert blocks.expected_shapes("int4", (9, 33)) == ((2, 2, 144), (2, 2, 8))
    assert (blocks.KINDS["int5"].block_bytes, blocks.KINDS["int5"].bits) == (176, 5.5)
    assert blocks.expected_shapes("int5", (9, 33)) == ((2, 2, 176), (2, 2, 8))
    assert (blocks.KINDS["int6"].block_bytes, blocks.KINDS["int6"].bits) == (208, 6.5)
    assert blocks.expected_shapes("int8", (8, 32)) == ((1, 1, 264), (1, 1, 8))
    assert blocks.expected_shapes("bf16", (9, 33)) == ((9, 33), None)
    with pytest.raises(ValueError, match="matrices"):
        blocks.expected_shapes("int4", (9,))
    assert blocks.nbytes("int4", (9, 33)) == 4 * 144 + 2 * 2 * 8 * 4
    assert blocks.nbytes("int8", (8, 32)) == 264 + 8 * 4
    assert [blocks.nbytes(kind, (9, 33)) for kind in ("f32", "f16", "bf16")] == [1188, 594, 594]
