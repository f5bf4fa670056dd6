"""MXFP4: bytes typed by hand, all bytes against transformers, and a checkpoint of gpt-oss as it is published."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import stored_parts
import tiny
from golden.generate import shapes, token_ids, transformers_logits
from quantkit import formats
from quantkit.errors import CheckpointError
from quantkit.formats.mapped import Entry
from quantkit.formats.packed import PackedModel
from quantkit.formats.schemes.floats.mxfp4 import Mxfp4
from quantkit.formats.schemes.scheme import Part
from quantkit.generation.loading import load_model
from quantkit.quantization.conversion import convert
from quantkit.quantization.dequantization import dequantize
from quantkit_kernels.blocks import dequantize as numbers_of

QUANTIZED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
Tensors = dict[str, tuple[str, NDArray[Any]]]


def stored(blocks: NDArray[np.uint8], scales: NDArray[np.uint8], name: str = "") -> Tensors:
    return {f"{name}_blocks": ("U8", blocks), f"{name}_scales": ("U8", scales)}


def decoded(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The rows of one matrix."""
    bits = stored_parts.decoded(Mxfp4(), stored(blocks[np.newaxis], scales[np.newaxis]))[0]
    return numbers_of("bf16", bits, None, bits.shape).T


def test_bytes_typed_by_hand() -> None:
    # fmt: off
    blocks = np.array(
        [
            [  # a scale of 127 is 1, the lower four bits come first
                0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE,
                0x02, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0F,
            ],
            [0x21] * 16,  # times 2 ** -3
        ],
        np.uint8,
    )
    expected = [
        [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6,
         1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -6, 0],
        [0.0625, 0.125] * 16,
    ]
    # fmt: on
    numbers = decoded(blocks[np.newaxis], np.array([[127, 124]], np.uint8))
    np.testing.assert_array_equal(numbers, np.array(expected).reshape(1, 64))
    assert np.signbit(numbers[0, 8])


def test_the_smallest_and_the_largest_scales() -> None:
    blocks = np.full((1, 4, 16), 0x71, np.uint8)
    numbers = decoded(blocks, np.array([[0, 1, 252, 255]], np.uint8)).reshape(4, 16, 2)
    np.testing.assert_array_equal(numbers[0, 0], [2.0**-128, 6 * 2.0**-127])
    np.testing.assert_array_equal(numbers[1, 0], [2.0**-127, 6 * 2.0**-126])
    np.testing.assert_array_equal(numbers[2, 0], [2.0**124, 6 * 2.0**125])
    assert np.isnan(numbers[3]).all()


@pytest.mark.live
def test_all_bytes_are_what_transformers_makes_of_them() -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = np.arange(256, dtype=np.uint8).repeat(16).reshape(1, 256, 1, 16)
    for scale in range(1, 254):
        scales = np.full((1, 256, 1), scale, np.uint8)
        theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
        ours = stored_parts.decoded(Mxfp4(), stored(blocks, scales))
        np.testing.assert_array_equal(ours.view(np.int16), theirs.view(torch.int16).numpy())


def gpt_oss(folder: Path, spoil: Callable[[Tensors], Any] = lambda tensors: None) -> tuple[Path, Path]:
    """The same checkpoint twice: with its experts in MXFP4, as published, and in bf16."""
    plain: Tensors = {}
    quantized: Tensors = {}
    for name, shape in shapes("gpt_oss").items():
        if "experts" in name and not name.endswith("bias"):
            experts, columns, rows = shape
            random = np.random.default_rng(list(name.encode()))
            blocks = random.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8)
            scales = random.integers(119, 124, (experts, rows, columns // 32), np.uint8)
            parts = stored(blocks, scales, name)
            quantized |= parts
            plain[name] = ("BF16", stored_parts.decoded(Mxfp4(), parts))
        else:
            plain[name] = quantized[name] = ("BF16", tiny.encode_dtype(tiny.weight(name, shape), "BF16"))
    spoil(quantized)
    tiny.checkpoint(folder / "plain", "gpt_oss", tensors={})
    tiny.checkpoint(folder / "quantized", "gpt_oss", tensors={}, quantization_config=QUANTIZED)
    tiny.write_safetensors(folder / "plain" / "model.safetensors", plain)
    tiny.write_safetensors(folder / "quantized" / "model.safetensors", quantized)
    return folder / "plain", folder / "quantized"


def test_it_is_the_checkpoint_that_was_never_quantized(tmp_path: Path) -> None:
    sources = gpt_oss(tmp_path)
    plain, quantized = map(formats.open, sources)
    assert plain.config == quantized.config
    assert set(plain.names) == set(quantized.names)
    for name in plain.names:
        assert plain.spec(name) == quantized.spec(name)
        for copy in (False, True):
            np.testing.assert_array_equal(plain.tensor(name).data, quantized.tensor(name, copy=copy).data)
    assert quantized.nbytes < plain.nbytes
    packed = []
    for source in sources:
        assert convert(source, tmp_path / f"{source.name}-packed").unused == ()
        packed.append(PackedModel(tmp_path / f"{source.name}-packed"))
    assert packed[0].config == packed[1].config
    assert packed[0].manifest["tensors"] == packed[1].manifest["tensors"]


def test_unpacked_it_says_nothing_of_a_quantization(tmp_path: Path) -> None:
    plain, quantized = gpt_oss(tmp_path)
    convert(quantized, tmp_path / "packed")
    dequantize(tmp_path / "packed", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(formats.open(tmp_path / "out").names) == set(formats.open(plain).names)


@pytest.mark.live
def test_the_model_answers_as_in_transformers(tmp_path: Path) -> None:
    _, quantized = gpt_oss(tmp_path)
    model = load_model(quantized, kv_dtype="f32", threads=2)
    prompt = token_ids(tiny.VOCAB_SIZE)
    np.testing.assert_allclose(model(prompt), transformers_logits(quantized, prompt), atol=1e-4, rtol=0)
    model.close()


def test_one_expert_is_read_alone() -> None:
    read: list[slice] = []

    def part(shape: tuple[int, ...]) -> Part:
        def entries(wanted: slice) -> NDArray[np.uint8]:
            read.append(wanted)
            return np.zeros(shape, np.uint8)[wanted]

        return Part("", Entry("U8", shape, 0, 0), entries)

    assert Mxfp4().decode([part((9, 6, 2, 16)), part((9, 6, 2))], slice(4, 5)).shape == (1, 64, 6)
    assert read == [slice(4, 5)] * 2


GATES = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda it: it.pop(f"{GATES}_scales"), rf"has no tensor '{GATES}_scales'"),
        (lambda it: it.pop(f"{GATES}_blocks"), rf"has no tensor '{GATES}_blocks'"),
        (
            lambda it: it.update({f"{GATES}_scales": ("U8", it[f"{GATES}_scales"][1][:3])}),
            rf"tensor '{GATES}' cannot be decoded: blocks of shape \(4, 192, 2, 16\) do not fit scales of shape "
            r"\(3, 192, 2\)",
        ),
        (
            lambda it: it.update({f"{GATES}_scales": ("F32", it[f"{GATES}_scales"][1].astype(np.float32))}),
            rf"tensor '{GATES}' cannot be decoded: its blocks are U8 and its scales F32, not U8",
        ),
        (
            lambda it: it.update(
                {f"{GATES}{end}": ("U8", it[f"{GATES}{end}"][1][:3]) for end in ("_blocks", "_scales")}
            ),
            rf"tensor '{GATES}' has shape \(3, 64, 192\), its configuration asks for \(4, 64, 192\)",
        ),
    ],
)
def test_parts_that_do_not_fit(spoil: Callable[[Tensors], Any], message: str, tmp_path: Path) -> None:
    _, quantized = gpt_oss(tmp_path, spoil)
    with pytest.raises(CheckpointError, match=f"^{quantized}.*{message}"):
        convert(quantized, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    _, quantized = gpt_oss(tmp_path)
    names = {f"{GATES}{end}": "model-2.safetensors" for end in ("_blocks", "_scales")}
    source = formats.open(quantized)
    names |= {name: "model-1.safetensors" for name in source.names if name != GATES}
    (quantized / "model.safetensors").rename(quantized / "model-1.safetensors")
    (quantized / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors: is missing, with tensor .*; finish the download"):
        convert(quantized, tmp_path / "out")


def test_a_scale_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[f"{GATES}_scales"][1][2, 3, 1] = 255

    _, quantized = gpt_oss(tmp_path, spoil)
    with pytest.raises(CheckpointError, match=r"experts\.2\.up_proj\.weight' holds NaN or infinity"):
        convert(quantized, tmp_path / "out")


def test_every_code_is_one_of_two_signs_and_eight_sizes() -> None:
    blocks = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    numbers = decoded(blocks, np.full((1, 16), 127, np.uint8)).reshape(256, 2)
    sizes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    for (high, low), (first, second) in zip(itertools.product(range(16), range(16)), numbers, strict=True):
        assert abs(first) == sizes[low & 7]
        assert abs(second) == sizes[high & 7]
        assert np.signbit(first) == (low > 7)
        assert np.signbit(second) == (high > 7)
