"""Small codes and floats, typed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.formats.schemes.packing import block_of, codes_of, e4m3, floats, nibbles_of, spread, stream_of


def test_codes_in_words_begin_with_the_lowest_bits() -> None:
    words = np.array([[0x76543210, -0x01234568]], np.int32)  # the second is 0xFEDCBA98
    assert codes_of(words, 4).tolist() == [list(range(16))]
    assert codes_of(words[:, :1], 8).tolist() == [[0x10, 0x32, 0x54, 0x76]]
    assert codes_of(np.array([0b11_10_01_00], np.int32), 2).tolist() == [0, 1, 2, 3] + [0] * 12
    assert codes_of(np.array([0o7654321076], np.uint32), 3).tolist() == [6, 7, 0, 1, 2, 3, 4, 5, 6, 7]


def test_codes_in_an_order_of_their_own() -> None:
    assert codes_of(np.array([0x75316420], np.uint32), 4, order=(0, 2, 4, 6, 1, 3, 5, 7)).tolist() == list(range(8))


def test_a_code_may_lie_in_two_words() -> None:
    numbers = [1, 2, 3, 4, 5, 6, 7, 0] * 4
    stream = sum(number << 3 * place for place, number in enumerate(numbers))
    words = np.array([stream >> 32 * place & 0xFFFFFFFF for place in range(3)], np.uint32)
    assert stream_of(words, 3).tolist() == numbers


def test_nibbles() -> None:
    assert nibbles_of(np.array([[0x21, 0x43]], np.uint8)).tolist() == [[1, 2, 3, 4]]


def test_floats_of_eight_bits() -> None:
    numbers = e4m3()
    typed = {0x00: 0.0, 0x01: 2.0**-9, 0x07: 7 * 2.0**-9, 0x08: 2.0**-6, 0x39: 1.125, 0x7E: 448.0, 0xB8: -1.0}
    assert {code: numbers[code] for code in typed} == typed
    assert np.isnan(numbers[[0x7F, 0xFF]]).all()
    assert np.isfinite(np.delete(numbers, [0x7F, 0xFF])).all()


@pytest.mark.live
def test_floats_of_eight_bits_are_those_of_torch() -> None:
    import torch

    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3(), theirs)


def test_scales() -> None:
    assert floats(np.array([0x3F80, 0xC000], np.uint16)).tolist() == [1.0, -2.0]
    assert floats(np.array([127, 120], np.uint8)).tolist() == [1.0, 2.0**-7]
    assert floats(np.array([0.5], np.float16)).dtype == np.float32
    scales = np.array([[1, 2], [3, 4]], np.float32)
    assert spread(scales, (3, 3), (2, 2)).tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]
    assert spread(scales, (2, 3), (2, 2), 1).tolist() == [[1, 1, 2], [3, 3, 4]]
    assert block_of((4, 6), (2, 3)) == (2, 2)
    for shape in ((2, 0), (3, 3), (2,)):
        with pytest.raises(ValueError, match="do not fit"):
            block_of((4, 6), shape)
