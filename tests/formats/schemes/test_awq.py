"""AWQ: typed words and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.awq import Awq
from scheme_writers import WRITERS
from stored_parts import decoded

encode, CONFIG, _ = WRITERS["awq"]


def test_typed_words() -> None:
    weight = np.array([[0x75316420]], np.int32)  # one column; rows 0 to 7 have the codes 0 to 7
    zeros, scales = np.array([[0x11111111]], np.int32), np.full((1, 8), 0.5, np.float16)
    numbers = decoded(Awq(), {".qweight": ("I32", weight), ".qzeros": ("I32", zeros), ".scales": ("F16", scales)})
    assert numbers.tolist() == [[(code - 1) / 2] for code in range(8)]


def test_a_checkpoint(tmp_path: Path) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS["awq"]))


@pytest.mark.parametrize("spoiled", [{"bits": 3}, {"version": "gemv_fast"}])
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(spoiled))):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


def test_parts_that_do_not_fit() -> None:
    parts, _ = encode("", np.eye(8, 32, dtype=np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        decoded(Awq(), {**parts, ".scales": ("F16", parts[".scales"][1][:, :4])})
