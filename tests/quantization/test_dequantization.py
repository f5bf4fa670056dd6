"""From a packed folder back to fp16: what other tools read is what the packed model computes with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import quantkit.quantization.encode
import tiny
from quantkit.errors import PackedModelError
from quantkit.formats import open_checkpoint
from quantkit.formats.packed import open_packed
from quantkit.models.registry import read
from quantkit.quantization.conversion import convert
from quantkit.quantization.dequantization import dequantize
from quantkit_kernels import blocks


def packed_folder(folder: Path, family: str = "llama", **options: Any) -> Path:
    source = tiny.checkpoint(folder / "source", family, **options)
    convert(source, folder / "packed")
    return folder / "packed"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weights_are_the_packed_ones_in_fp16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str) -> None:
    monkeypatch.setattr(quantkit.quantization.encode, "STRIPE_WEIGHTS", 1000)  # several stripes a tensor
    packed = open_packed(packed_folder(tmp_path, family, hidden_size=72))
    dequantize(packed.path, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == set(packed.names)  # and no padding, which llama.cpp's converter would refuse
    for name in packed.names:
        tensor = packed.tensor(name)
        wanted = blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape).astype(np.float16)
        assert found[name].dtype == np.float16
        np.testing.assert_array_equal(found[name], wanted)


def test_the_folder_is_a_checkpoint(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    dequantize(packed, tmp_path / "out")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "out"))
    assert after == before | {"torch_dtype": "float16"}
    assert set(os.listdir(tmp_path / "out")) == {*os.listdir(tmp_path / "source"), "dequantized.json"}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.check(read(checkpoint.config).record().tensors) == []


def test_the_dtype_is_spelt_as_the_config_spells_it(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = config.pop("torch_dtype")
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "packed")
    dequantize(tmp_path / "packed", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["dtype"], "torch_dtype" in config) == ("float16", False)


def test_packing_again_loses_next_to_nothing(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path)
    dequantize(packed, tmp_path / "out")
    assert max(convert(tmp_path / "out", tmp_path / "again", "int8").errors.values()) < 1e-4


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", dtype="F32")
    file = source / "model.safetensors"
    tensors = {name: ("F32", array.copy()) for name, array in load_file(file).items()}
    tensors["model.norm.weight"][1][3] = -1e5
    tiny.write_safetensors(file, tensors)
    convert(source, tmp_path / "packed")
    with pytest.raises(PackedModelError, match=r"model\.norm\.weight.* 1e\+05.*65504"):
        dequantize(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    assert open_checkpoint(tmp_path / "out").header("model.norm.weight").kind == "f16"
    convert(tmp_path / "source", tmp_path / "out", force=True)
    assert open_packed(tmp_path / "out").manifest["options"]["quantize"] == "int4"


@pytest.mark.live
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_transformers_reads_it(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    packed = open_packed(packed_folder(tmp_path, family))
    dequantize(packed.path, tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert model.dtype == torch.float16
    tensor = packed.tensor("model.layers.0.mlp.up_proj.weight")
    wanted = blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape).astype(np.float16)
    found = model.get_parameter("model.layers.0.mlp.up_proj.weight").detach().numpy()
    np.testing.assert_array_equal(found, wanted)
