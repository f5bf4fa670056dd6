"""Tiny checkpoints that are quantized, and the same decoded: a scheme must read one as if it were the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tiny
from quantkit import formats
from quantkit.formats.packed import PackedModel
from quantkit.quantization.conversion import convert
from scheme_writers import Encode

SHAPES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}


def checkpoints(
    folder: Path, encode: Encode, config: Mapping[str, Any], field: str = "quantization_config"
) -> tuple[Path, Path]:
    """Write a Llama with its linear layers quantized, and decoded; returns both folders."""
    plain, quantized = folder / "plain", folder / "quantized"
    tiny.checkpoint(plain, "llama", tensors={}, **SHAPES)
    tiny.checkpoint(quantized, "llama", tensors={}, **(SHAPES | {field: config}))
    decoded: dict[str, tuple[str, NDArray[Any]]] = {}
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, shape in tiny.shapes(json.loads((plain / "config.json").read_text())).items():
        weight = tiny.weight(name, shape)
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            parts, numbers = encode(module, weight)
            stored |= {module + end: part for end, part in parts.items()}
            decoded[name] = ("F32", numbers)
        else:
            decoded[name] = stored[name] = ("F32", weight)
    tiny.write_safetensors(plain / "model.safetensors", decoded)
    tiny.write_safetensors(quantized / "model.safetensors", stored)
    return plain, quantized


def assert_equal(plain: Path, quantized: Path) -> None:
    """Assert that both hold the same numbers, whole or in rows, and are packed to the same bytes."""
    ours, theirs = formats.open(quantized), formats.open(plain)
    for name in theirs.names:
        assert ours.spec(name) == theirs.spec(name)
        for copy in (False, True):
            np.testing.assert_array_equal(ours.tensor(name, copy=copy).data, theirs.tensor(name).data, err_msg=name)
        rows = slice(3, 7)
        np.testing.assert_array_equal(ours.entries(name, rows), theirs.tensor(name).data[rows], err_msg=name)
    assert set(ours.names) == set(theirs.names)
    for source in (plain, quantized):
        convert(source, source.with_suffix(".packed"))
    manifests = [PackedModel(source.with_suffix(".packed")).manifest["tensors"] for source in (plain, quantized)]
    assert manifests[0] == manifests[1]
