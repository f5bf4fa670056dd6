"""Tiny checkpoints that are quantized, and the same decoded: a scheme must read one as if it were the other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from quantkit import formats
from quantkit.formats.packed import PackedModel
from quantkit.formats.source import ModelSource
from quantkit.quantization.conversion import convert
from quantkit_kernels import blocks
from scheme_writers import Encode

LARGEST_ERROR = {"int4": 2e-4, "int5": 2e-4, "int6": 2e-4, "int8": 1e-5}
"""Relative squared error of kept codes in tiny checkpoints."""
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


def assert_equal(plain: Path, quantized: Path, *, keeps: str = "", kind: str = "int4") -> None:
    """Assert that both hold the same numbers, whole or in rows, and that packing them loses the same.

    Of tensors in whose names the expression `keeps` is found, blocks of the kind keep the codes, and less is lost.
    """
    ours, theirs = formats.open(quantized), formats.open(plain)
    for name in theirs.names:
        assert ours.spec(name) == theirs.spec(name)
        for copy in (False, True):
            np.testing.assert_array_equal(ours.tensor(name, copy=copy).data, theirs.tensor(name).data, err_msg=name)
        rows = slice(3, 7)
        np.testing.assert_array_equal(ours.entries(name, rows), theirs.tensor(name).data[rows], err_msg=name)
    assert set(ours.names) == set(theirs.names)
    for source in (plain, quantized):
        convert(source, source.with_suffix(".packed"), kind)
    packed = PackedModel(quantized.with_suffix(".packed"))
    lost, expected = packed.manifest["tensors"], PackedModel(plain.with_suffix(".packed")).manifest["tensors"]
    for name in theirs.names:
        if keeps and re.search(keeps, name):
            assert lost[name]["kept_codes"] == 1
            assert lost[name]["relative_error"] < min(LARGEST_ERROR[kind], expected[name]["relative_error"])
            if kind in blocks.WITH_MINS:
                assert_kept(ours, packed, name)
        else:
            # Where codes are kept, so are those of int8, and inputs are measured with these.
            error, same = (each[name].get("relative_error") for each in (lost, expected))
            assert error == (pytest.approx(same, rel=0.02) if keeps and same else same)


def assert_kept(source: ModelSource, packed: PackedModel, name: str) -> None:
    """Assert that a tensor's codes are its source's, counted from the other end where a scale is negative."""
    scales, tensor = source.group_scales(name, slice(None)), source.tensor(name)
    assert scales is not None
    numbers = blocks.dequantize(tensor.kind, tensor.data, None, tensor.shape)
    steps, mins = (np.repeat(each, 32, axis=1)[:, : tensor.shape[1]] for each in (scales.scales, scales.mins))
    codes = np.rint(np.divide(numbers - mins, steps, out=np.zeros_like(numbers), where=steps != 0))
    written = packed.tensor(name)
    found, *_ = blocks.unpack(written.kind, written.data)
    largest = blocks.KINDS[written.kind].largest_code
    np.testing.assert_array_equal(
        found[: tensor.shape[0], : tensor.shape[1]], np.where(steps < 0, largest - codes, codes), err_msg=name
    )
