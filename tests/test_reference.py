"""The reference where no golden file reaches: activations rounded to int8 and attention's window, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from memory_source import MemorySource
from quantkit.models.recorder import Recorder
from quantkit.tensor import Tensor
from quantkit_kernels import blocks
from quantkit_kernels.interpreter.truth import quantize


def f32(values: Any) -> Tensor:
    array = np.array(values, np.float32)
    return Tensor("f32", array.shape, array)


def test_activations_are_rounded_in_groups_of_32_half_to_even() -> None:
    x = np.zeros((2, 40))
    x[0, :4] = 127, 0.5, 1.5, -2.4
    x[0, 32:34] = 0.127, 0.0034
    rounded = np.zeros((2, 40))
    rounded[0, :4] = 127, 0, 2, -2
    rounded[0, 32:34] = 0.127, 0.003
    np.testing.assert_allclose(quantize(x), rounded, rtol=1e-12)


def test_only_packed_linear_maps_round_their_inputs() -> None:
    ops = Recorder()
    ops.linear(ops.select(ops.embed("embed", 1, 2)), "head", 1)
    codes = np.zeros((8, 32), np.int8)
    codes[0, :2] = 1
    packed = Tensor(
        "int8", (1, 2), blocks.pack("int8", codes, np.ones((8, 1), np.uint8)), np.ones((1, 1, 8), np.float32)
    )
    for head, rounded, expected in [(packed, True, 127.0), (packed, False, 127.25), (f32([[1, 1]]), True, 127.25)]:
        source = MemorySource({"embed.weight": f32([[127, 0.25]]), "head.weight": head})
        assert reference.logits(ops.program(), source, [0], quantize_activations=rounded).item() == expected


def test_a_window_of_two_sees_itself_and_the_token_before() -> None:
    def answer(window: int) -> NDArray[np.float64]:
        ops = Recorder()
        values, flat = ops.embed("values", 3, 2), ops.embed("zeros", 3, 2)
        ops.select(ops.attention(flat, ops.store_kv(flat, values, head_dim=2), scale=1.0, window=window))
        values_of_tokens = f32([[3, 0], [6, 0], [12, 0]])
        source = MemorySource({"values.weight": values_of_tokens, "zeros.weight": f32(np.zeros((3, 2)))})
        return reference.logits(ops.program(), source, [0, 1, 2])[:, 0]

    np.testing.assert_allclose(answer(0), [3, 4.5, 7])
    np.testing.assert_allclose(answer(2), [3, 4.5, 9])
    np.testing.assert_allclose(answer(1), [3, 6, 12])
