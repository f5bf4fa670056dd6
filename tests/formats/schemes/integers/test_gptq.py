"""GPTQ: typed words, all widths, both versions of zeros, columns in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.integers.gptq import BITS, Gptq
from scheme_writers import WRITERS, Written, gptq
from stored_parts import Stored, decoded

CONFIG = WRITERS["gptq"].config
GROUP = 32


def test_typed_words() -> None:
    eight = np.full((1, 8), 0x76543210, np.int32)  # each of eight rows has the codes 0 to 7
    zeros, scales = np.array([[0x76543210]], np.int32), np.full((1, 8), 0.5, np.float16)
    stored: Stored = {".qweight": ("I32", eight), ".qzeros": ("I32", zeros), ".scales": ("F16", scales)}
    numbers = decoded(Gptq(), stored)
    assert numbers.tolist() == [[(code - zero - 1) / 2 for code in range(8)] for zero in range(8)]
    assert decoded(Gptq(0), stored)[0].tolist() == [code / 2 for code in range(8)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("less", [0, 1])
@pytest.mark.parametrize("in_order", [True, False])
def test_every_width(bits: int, less: int, in_order: bool) -> None:
    random = np.random.default_rng(bits)
    weight = random.standard_normal((64, 96)).astype(np.float32)
    groups = np.arange(96, dtype=np.int32) // GROUP
    parts, expected = gptq("", weight, bits=bits, less=less, groups=groups if in_order else random.permutation(groups))
    np.testing.assert_array_equal(decoded(Gptq(less), parts), expected)
    np.testing.assert_array_equal(decoded(Gptq(less), parts, wanted=slice(8, 33)), expected[8:33])
    if in_order:
        np.testing.assert_array_equal(
            decoded(Gptq(less), {name: parts[name] for name in parts if name != ".g_idx"}), expected
        )


@pytest.mark.parametrize(("variant", "keeps"), [("gptq", "_proj"), ("gptq by activation", "")])
def test_a_checkpoint(tmp_path: Path, variant: str, keeps: str) -> None:
    """Where columns are of groups in no order, no 32 of them share a scale."""
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS[variant]), keeps=keeps)


def test_modules_may_differ_in_bits(tmp_path: Path) -> None:
    def mixed(module: str, weight: NDArray[np.float32]) -> Written:
        return gptq(module, weight, bits=8 if "down" in module else 4)

    dynamic = {"+:.*down_proj.*": {"bits": 8, "group_size": 64}, "-:lm_head": {}}
    folders = quantized.checkpoints(tmp_path, mixed, {**CONFIG, "dynamic": dynamic})
    quantized.assert_equal(*folders, keeps="(?<!down)_proj")


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"bits": 5}, "5 bits"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"format": "gptq_p"}, "gptq_p"),
        ({"dynamic": {"+:.*": {"bits": 6}}}, "dynamic: '.*': 6 bits"),
        ({"dynamic": {"+:.*": {"format": "gptq_v2"}}}, "dynamic: .*gptq_v2"),
    ],
)
def test_what_is_not_known_is_refused(spoiled: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"quantization_config: .*{message}"):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


def test_a_group_that_is_not_there() -> None:
    parts, _ = gptq("", np.eye(8, 32, dtype=np.float32), less=0)
    with pytest.raises(ValueError, match="group 7"):
        decoded(Gptq(), {**parts, ".g_idx": ("I32", np.full(32, 7, np.int32))})


@pytest.mark.live
@pytest.mark.parametrize(("library", "form"), [("qlinear_torch_zp", "gptq"), ("qlinear_torch", "gptq_v2")])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_auto_round_packs(library: str, form: str, bits: int) -> None:
    import importlib

    import torch

    qlinear = importlib.import_module(f"auto_round_extension.torch.{library}")
    random = np.random.default_rng(bits)
    weight = torch.from_numpy(random.standard_normal((64, 128), np.float32))
    scales = torch.from_numpy(random.uniform(0.01, 0.02, (64, 4)).astype(np.float32))
    zeros = torch.from_numpy(random.integers(1, 2**bits, (64, 4)).astype(np.float32))
    layer = torch.nn.Linear(128, 64, bias=False)
    layer.weight.data = weight
    packed = qlinear.QuantLinear(bits, 32, 128, 64, False)
    packed.device = "cpu"
    packed.pack(layer, scales, zeros, None, "cpu")
    stored: Stored = {
        ".qweight": ("I32", packed.qweight.numpy()),
        ".qzeros": ("I32", packed.qzeros.numpy()),
        ".scales": ("F16", packed.scales.numpy()),
    }
    scheme = scheme_of({"quantization_config": {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}})
    assert isinstance(scheme, Gptq)
    half = scales.half().float().numpy().repeat(32, 1)
    wide = zeros.numpy().repeat(32, 1)
    codes = np.rint(weight.numpy() / scales.numpy().repeat(32, 1) + wide).clip(0, 2**bits - 1)
    np.testing.assert_array_equal(decoded(scheme, stored), (codes - wide) * half)
