"""A packed model in steps: each adds the loss that it is named after, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantkit
import tiny
from golden import generate as golden
from quantkit.errors import OptionError
from quantkit.evaluation.parts import PARTS, open_parts

PROMPT = np.random.default_rng(0).integers(4, tiny.VOCAB_SIZE, 40).tolist()


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "lfm2"])
def test_steps(model_type: str, tmp_path: Path) -> None:
    folder = golden.checkpoint(tmp_path / "model", model_type)
    quantkit.convert(folder, tmp_path / "packed")
    quantkit.dequantize(tmp_path / "packed", tmp_path / "unpacked")
    reference, weights, cache, whole = open_parts(tmp_path / "packed", folder, threads=1, kv_dtype="int8")
    assert [each.cache_shape.kind for each in (reference, weights, cache, whole)] == ["f32", "f32", "int8", "int8"]
    np.testing.assert_array_equal(reference(PROMPT), quantkit.load_model(folder, kv_dtype="f32")(PROMPT))
    np.testing.assert_array_equal(whole(PROMPT), quantkit.load_model(tmp_path / "packed", kv_dtype="int8")(PROMPT))
    # Written as 16 bits, weights are rounded once more.
    unpacked = quantkit.load_model(tmp_path / "unpacked", kv_dtype="f32")(PROMPT)
    np.testing.assert_allclose(weights(PROMPT), unpacked, atol=0.02)
    assert weights.nbytes == 4 * sum(spec.weights for spec in weights.program.tensors.values())
    distances = {
        name: np.abs(
            [reference, weights, cache, whole][b](PROMPT) - [reference, weights, cache, whole][a](PROMPT)
        ).mean()
        for name, (a, b) in PARTS.items()
    }
    assert 0 < distances["KV cache"] < distances["activations"] < distances["weights"]


def test_what_is_not_packed_has_no_parts(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model")
    with pytest.raises(OptionError, match="model: is not packed"):
        open_parts(folder, folder)
