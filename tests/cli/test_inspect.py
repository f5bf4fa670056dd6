"""`quantkit inspect`: tensors, kinds, sizes and errors of packed and unpacked models."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

import tiny
import tiny_gguf
from invocation import Invoke

SHAPES = tiny.shapes(tiny.config_of("llama"))


def test_json_of_a_packed_model(invoke: Invoke, packed: Path) -> None:
    result = invoke("inspect", packed, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    rows = {row["name"]: row for row in found["tensors"]}
    assert {name: tuple(row["shape"]) for name, row in rows.items()} == SHAPES
    kinds = {name: row["kind"] for name, row in rows.items()}
    assert kinds["model.embed_tokens.weight"] == kinds["lm_head.weight"] == "int6"
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "int4"
    assert kinds["model.norm.weight"] == "f32"
    assert 0 < rows["model.layers.0.mlp.up_proj.weight"]["relative_error"] < 0.05
    assert {kind: of["tensors"] for kind, of in found["kinds"].items()} == {"int6": 5, "int5": 7, "int4": 4, "f32": 5}
    assert found["nbytes"] == sum(row["nbytes"] for row in rows.values())
    assert found["nbytes"] <= sum(file.stat().st_size for file in packed.glob("*.safetensors"))


def test_tables_of_a_packed_model(invoke: Invoke, packed: Path) -> None:
    lines = invoke("inspect", packed).stdout.splitlines()
    assert lines[0].split() == ["tensor", "kind", "shape", "size", "error"]
    assert any(line.split()[:3] == ["model.layers.0.mlp.up_proj.weight", "int4", "160x64"] for line in lines)
    assert lines[-1].split()[:2] == ["all", str(len(SHAPES))]


def test_how_a_packed_model_was_made(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    args = ("-q", "int8", "--override", r"layers\.0\.=f16")
    assert invoke("convert", checkpoint, "-o", tmp_path / "out", *args).exit_code == 0
    found = json.loads(invoke("inspect", tmp_path / "out", "--json").stdout)
    assert found["options"] == {"quantize": "int8", "overrides": [[r"layers\.0\.", "f16"]]}
    assert found["source"] == {"name": "tiny-llama", "dtype": "bfloat16"}
    lines = invoke("inspect", tmp_path / "out").stdout.splitlines()
    assert r"made by quantkit convert tiny-llama -q int8 --override 'layers\.0\.=f16'" in lines
    assert not any(line.startswith("made by") for line in invoke("inspect", checkpoint).stdout.splitlines())


@pytest.mark.parametrize("options", [{"quantize": "q9"}, {"overrides": [1]}, {"a": {"b": "\x1b[31m\n"}}, "text"])
def test_options_of_another_version(invoke: Invoke, packed: Path, tmp_path: Path, options: object) -> None:
    shutil.copytree(packed, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/quantkit.json").read_text()) | {"options": options}
    (tmp_path / "out/quantkit.json").write_text(json.dumps(manifest))
    result = invoke("inspect", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len([line for line in result.stdout.splitlines() if line.startswith("made by ")]) == 1
    assert "\x1b" not in result.stdout


def test_where_codes_come_from(invoke: Invoke, tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    said = invoke("convert", file, "-o", tmp_path / "packed", "-q", "int4").stdout.splitlines()
    assert f"the source's codes: kept in 100.00% of {math.prod(SHAPES['model.embed_tokens.weight']):,} weights" in said
    lines = [line.split() for line in invoke("inspect", tmp_path / "packed").stdout.splitlines()]
    assert lines[0][-2:] == ["error", "codes"]
    sources = {line[0]: line[-1] for line in lines if line}
    assert sources["model.embed_tokens.weight"] == "kept"
    assert not {"kept", "searched"} & {sources["model.layers.0.mlp.up_proj.weight"], sources["model.norm.weight"]}


def test_a_checkpoint_is_inspected_as_it_is(invoke: Invoke, checkpoint: Path) -> None:
    found = json.loads(invoke("inspect", checkpoint, "--json").stdout)
    assert found["bits_per_weight"] == 16
    assert found["nbytes"] == 2 * sum(math.prod(shape) for shape in SHAPES.values())
    assert found["kinds"].keys() == {"bf16"}


def test_a_tensor_of_a_strange_type_hides_no_other(invoke: Invoke, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path)
    values: dict[str, tuple[str, NDArray[Any]]] = {
        "a.weight": ("F8_E4M3FNUZ", np.ones(4, np.uint8)),
        "b.weight": ("BF16", np.ones(4, np.uint16)),
    }
    tiny.write_safetensors(folder / "model.safetensors", values)
    result = invoke("inspect", folder, "--json")
    assert [row["name"] for row in json.loads(result.stdout)["tensors"]] == ["b.weight"]
    assert "tensor 'a.weight' has dtype F8_E4M3FNUZ" in result.stderr
