"""From a packed folder back to 16-bit weights: what other tools read is what the packed model computes with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import quantkit.quantization.encode
import tiny
import tiny_gguf_families
from golden import generate as golden
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import PackedModelError
from quantkit.formats.packed import PackedModel
from quantkit.formats.safetensors.file import SafetensorsFile
from quantkit.models.registry import read
from quantkit.quantization.conversion import convert
from quantkit.quantization.dequantization import dequantize
from quantkit_kernels import blocks


def packed_folder(folder: Path, case: str = "llama", dtype: str = "BF16") -> Path:
    source = golden.checkpoint(folder / "source", case, dtype=dtype)
    convert(source, folder / "packed")
    return folder / "packed"


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    rounded: NDArray[np.float64] = np.ldexp(np.rint(mantissa * 256), exponent - 8)
    return rounded.astype(np.float32)


STACKED = {"qwen3_5_moe_text"}
"""Families whose published checkpoints have experts in stacks, where transformers saves each by itself."""
ROUND = {"F16": lambda values: values.astype(np.float16).astype(np.float32), "BF16": round_to_bf16}


@pytest.mark.parametrize("dtype", ROUND)
@pytest.mark.parametrize("case", [*tiny.FAMILIES, "llama_awkward_sizes"])
def test_weights_are_the_packed_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str, dtype: str) -> None:
    monkeypatch.setattr(quantkit.quantization.encode, "STRIPE_WEIGHTS", 1000)  # several stripes a tensor
    packed = PackedModel(packed_folder(tmp_path, case, dtype))
    dequantize(packed.path, tmp_path / "out")
    file = SafetensorsFile(tmp_path / "out/model.safetensors")
    shapes = {name: entry.shape for name, entry in file.header.items()}
    assert case in STACKED or shapes == golden.shapes(case)  # and no padding, which llama.cpp's converter would refuse
    assert {entry.dtype for entry in file.header.values()} == {dtype}
    found = bind(formats.open(tmp_path / "out")).weights
    for name in packed.names:
        wanted, out = packed.tensor(name), found.tensor(name)
        weights = blocks.dequantize(wanted.kind, wanted.data, wanted.row_scales, wanted.shape)
        np.testing.assert_array_equal(blocks.dequantize(out.kind, out.data, None, out.shape), ROUND[dtype](weights))


def test_the_folder_is_a_checkpoint(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    dequantize(packed, tmp_path / "out")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "out"))
    assert after == before
    assert set(os.listdir(tmp_path / "out")) == {*os.listdir(tmp_path / "source"), "dequantized.json"}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    checkpoint = formats.open(tmp_path / "out")
    assert checkpoint.check(read(checkpoint.config).record().tensors) == []


@pytest.mark.parametrize(
    ("stored", "fields", "expected"),
    [
        ("BF16", {"torch_dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        ("F16", {"dtype": "float16"}, {"dtype": "float16"}),
        ("F32", {"dtype": "float32"}, {"dtype": "float16"}),
        # Saved in 32 bits, but trained in bf16.
        ("F32", {"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        # The config decides what other tools compute in; where it names no 16-bit type, the tensors do.
        ("BF16", {"dtype": "float16"}, {"dtype": "float16"}),
        ("BF16", {"dtype": "float32"}, {"dtype": "bfloat16"}),
        ("BF16", {"dtype": "auto"}, {"dtype": "bfloat16"}),
        ("BF16", {"dtype": ["bfloat16"]}, {"dtype": "bfloat16"}),
        ("BF16", {}, {"dtype": "bfloat16"}),
        ("F16", {}, {"dtype": "float16"}),
        (
            "BF16",
            dict.fromkeys(["torch_dtype", "dtype"], "bfloat16"),
            dict.fromkeys(["torch_dtype", "dtype"], "bfloat16"),
        ),
    ],
)
def test_the_type_is_the_sources(tmp_path: Path, stored: str, fields: dict[str, Any], expected: dict[str, str]) -> None:
    source = tiny.checkpoint(tmp_path / "source", dtype=stored)
    config = json.loads((source / "config.json").read_text())
    del config["torch_dtype"]
    (source / "config.json").write_text(json.dumps(config | fields))
    convert(source, tmp_path / "packed")
    assert dequantize(tmp_path / "packed", tmp_path / "out") in expected.values()
    assert json.loads((tmp_path / "out/config.json").read_text()) == config | expected
    kinds = {formats.open(tmp_path / "out").spec(name).kind for name in tiny.shapes(config)}
    assert kinds == {{"float16": "f16", "bfloat16": "bf16"}[dtype] for dtype in expected.values()}


@pytest.mark.parametrize(("case", "dtype"), [("llama", "float16"), ("gemma2", "bfloat16"), ("gemma3_text", "bfloat16")])
def test_of_a_gguf_file_the_model_says_it(case: str, dtype: str, tmp_path: Path) -> None:
    """Gemma's activations pass f16's range, whatever type a file keeps its weights in."""
    convert(tiny_gguf_families.write(tmp_path / "model.gguf", case), tmp_path / "packed")
    assert dequantize(tmp_path / "packed", tmp_path / "out") == dtype
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float16"), ("gemma3_text", "bfloat16")])
def test_of_32_bits_the_model_says_it(family: str, dtype: str, tmp_path: Path) -> None:
    source = golden.checkpoint(tmp_path / "source", family)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    convert(source, tmp_path / "packed")
    assert dequantize(tmp_path / "packed", tmp_path / "out") == dtype


def test_a_packed_folder_that_does_not_know_its_source(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    config = json.loads((packed / "config.json").read_text())
    del config["torch_dtype"]
    (packed / "config.json").write_text(json.dumps(config))
    manifest = json.loads((packed / "quantkit.json").read_text())
    for about in ({}, {"source": "x"}, {"source": {"dtype": 1}}, {"source": {"dtype": "float8"}}):
        (packed / "quantkit.json").write_text(json.dumps({**manifest, "source": None} | about))
        assert dequantize(packed, tmp_path / "out", force=True) == "float16"


def test_packing_again_loses_next_to_nothing(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    dequantize(packed, tmp_path / "out")
    assert max(convert(tmp_path / "out", tmp_path / "again", "int8").errors.values()) < 1e-4


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [("float16", -1e5, r" 1e\+05.*float16's 65504"), ("bfloat16", 3.4e38, r" 3\.4e\+38.*bfloat16's 3\.3895e\+38")],
)
def test_weights_beyond_the_range_are_refused(tmp_path: Path, dtype: str, value: float, words: str) -> None:
    source = tiny.checkpoint(tmp_path / "source", dtype="F32")
    config = json.loads((source / "config.json").read_text()) | {"torch_dtype": dtype}
    (source / "config.json").write_text(json.dumps(config))
    file = source / "model.safetensors"
    tensors = {name: ("F32", array.copy()) for name, array in load_file(file).items()}
    tensors["model.norm.weight"][1][3] = value
    tiny.write_safetensors(file, tensors)
    convert(source, tmp_path / "packed")
    with pytest.raises(PackedModelError, match=rf"model\.norm\.weight.*{words}"):
        dequantize(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_beyond_fp16_are_written_as_bf16(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "gemma3_text")
    file = SafetensorsFile(source / "model.safetensors")
    tensors = {name: (file.header[name].dtype, file.array(name).copy()) for name in file.header}
    tensors["model.norm.weight"][1][3] = 0x47C8  # 102,400
    tiny.write_safetensors(source / "model.safetensors", tensors)
    convert(source, tmp_path / "packed")
    dequantize(tmp_path / "packed", tmp_path / "out")
    assert SafetensorsFile(tmp_path / "out/model.safetensors").array("model.norm.weight")[3] == 0x47C8


def test_what_is_refused(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for model, output, words in [
        (tmp_path / "source", tmp_path / "out", "not a packed model"),
        (packed, packed, "name another output"),
        (packed, tmp_path / "source", "--force"),
    ]:
        with pytest.raises(PackedModelError, match=words):
            dequantize(model, output)
    with pytest.raises(PackedModelError, match="source itself"):
        dequantize(packed, packed, force=True)
    with pytest.raises(PackedModelError, match="quantkit did not write"):
        dequantize(packed, tmp_path / "source", force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_what_dequantize_or_convert_wrote(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    convert(tmp_path / "source", tmp_path / "out", "int8")
    dequantize(packed, tmp_path / "out", force=True)
    dequantize(packed, tmp_path / "out", force=True)
    assert formats.open(tmp_path / "out").spec("model.norm.weight").kind == "bf16"
    convert(tmp_path / "source", tmp_path / "out", force=True)
    assert PackedModel(tmp_path / "out").manifest["options"]["quantize"] == "mixed"


@pytest.mark.live
@pytest.mark.parametrize("dtype", ROUND)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_transformers_reads_it(tmp_path: Path, family: str, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    packed = PackedModel(packed_folder(tmp_path, family, dtype))
    dequantize(packed.path, tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    torch_dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    assert model.dtype == torch_dtype
    parameters = dict(model.named_parameters())
    shared = [name for name in packed.names if packed.spec(name).kind.startswith("int") and name in parameters]
    name = min(shared, key=lambda name: packed.spec(name).kind)  # int4, where not all such are fused
    tensor = packed.tensor(name)
    wanted = blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape)
    assert torch.equal(parameters[name].detach(), torch.from_numpy(wanted).to(torch_dtype))
