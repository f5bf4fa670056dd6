"""Damaged and hostile checkpoints of every scheme: one line that names the file, or numbers; no other exception."""

from __future__ import annotations

import json
import math
import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from quantkit import formats
from quantkit.errors import QuantkitError
from quantkit.formats.safetensors.file import BITS
from quantkit.formats.schemes import SCHEMES
from scheme_writers import WRITERS, Writer
from stored_parts import Stored

MODULE, SHAPE = "model.layers.0.mlp.up_proj", (32, 128)
MAX_BYTES = 32 << 20
"""Of memory, for a file of a few kilobytes."""

NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 5, 7, 8, 16, 31, 64, 4096, 2**31, 2**53, 2**63, 10**30])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)

FIELDS = (
    *("bits", "checkpoint_format", "config_groups", "dynamic", "expert_dtype", "fmt", "format", "group_size"),
    *("linear_class", "mode", "packing_format", "quant_algo", "quant_method", "quant_type", "quantized_layers"),
    *("quantization_mode", "rotation_config", "sparsity_config", "version", "w_bit", "weight_block_size"),
)
"""What schemes read of config.json."""


def test_the_writers_are_of_all_schemes() -> None:
    written = {writer.config.get("quant_method", "mlx") for writer in WRITERS.values()}
    assert written <= set(SCHEMES)
    classes = {SCHEMES[name] for name in written}
    assert classes == set(SCHEMES.values())


def changed(said: Any, draw: st.DrawFn) -> Any:
    """JSON with one of its values, at any depth, replaced or left out."""
    if isinstance(said, dict) and said and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(said)))
        return {**said, key: changed(said[key], draw)} if draw(st.integers(0, 3)) else _without(said, key)
    return draw(JSON)


def _without(said: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name != key}


class Damaged(NamedTuple):
    """What config.json says of the quantization, and the bytes of the file of weights."""

    config: Any
    weights: bytes

    def __repr__(self) -> str:
        return f"{self.config} {self.weights[:1000]!r} and {len(self.weights)} bytes in all"


@st.composite
def damaged(draw: st.DrawFn, writer: Writer) -> Damaged:
    """A checkpoint of one matrix, with one or two things in it that are not as its writer made them."""
    weight = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    parts, _ = writer.encode(MODULE, weight)
    config: Any = dict(writer.config)
    header, data = _file(parts)
    kinds = draw(st.sets(st.sampled_from(["config", "header", "contents", "length"]), min_size=1, max_size=2))
    if "config" in kinds:
        config = draw(st.sampled_from([changed(config, draw), {**config, draw(st.sampled_from(FIELDS)): draw(JSON)}]))
    if "header" in kinds:
        header, data = draw(other_header(header, data))
    if "contents" in kinds:
        begin, end = header[draw(st.sampled_from(sorted(header)))]["data_offsets"]
        for place in draw(st.lists(st.integers(begin, end - 1), max_size=4) if begin < end else st.just([])):
            data[place] = draw(st.integers(0, 255))
    if "length" in kinds:
        data = data[: draw(st.integers(0, len(data)))]
    text = json.dumps(header).encode()
    return Damaged(config, len(text).to_bytes(8, "little") + text + bytes(data))


def _file(parts: Stored) -> tuple[dict[str, Any], bytearray]:
    header, data = {}, bytearray()
    for end, (dtype, array) in parts.items():
        stored = np.ascontiguousarray(array).tobytes()
        places = [len(data), len(data) + len(stored)]
        header[MODULE + end] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": places}
        data += stored
    return header, data


@st.composite
def other_header(draw: st.DrawFn, header: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], bytearray]:
    """A header that is well-formed, with a tensor of another dtype or shape, or name, or without it."""
    name = draw(st.sampled_from(sorted(header)))
    tensors = {each: (entry, data[slice(*entry["data_offsets"])]) for each, entry in header.items()}
    entry, stored = tensors.pop(name)
    what = draw(st.sampled_from(["lost", "named", "dtype", "shape"]))
    if what == "named":
        tensors[draw(st.sampled_from([f"{name}_", "x.weight", f"{name}.absmax", f"{name}_scale"]))] = entry, stored
    elif what != "lost":
        dtype = draw(st.sampled_from(sorted(BITS))) if what == "dtype" else entry["dtype"]
        sides = draw(st.lists(st.sampled_from([0, 1, 2, 3, 16, 32, 33, 128]), max_size=4))
        shape = sides if what == "shape" else entry["shape"]
        size = math.prod(shape) * BITS[dtype] // 8
        if size < 1 << 20:
            stored = (stored * (size // max(1, len(stored)) + 1))[:size].ljust(size, b"\0")
        tensors[name] = {"dtype": dtype, "shape": shape}, stored
    found, moved = {}, bytearray()
    for each, (entry, stored) in tensors.items():
        found[each] = {**entry, "data_offsets": [len(moved), len(moved) + len(stored)]}
        moved += stored
    return (found, moved) if found else (header, data)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_checkpoints(name: str, tmp_path: Path) -> None:
    writer = WRITERS[name]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(writer))
    def check(found: Damaged) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", writer.field: found.config}))
        (tmp_path / "model.safetensors").write_bytes(found.weights)
        read_all(tmp_path)

    check()


def read_all(folder: Path) -> None:
    """Read every tensor, whole and in part; whatever is wrong is said in one line that names the folder."""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                source = formats.open(folder)
            except QuantkitError as error:
                return check_line(error, folder)
            for name in source.names:
                try:
                    tensor = source.tensor(name, copy=True)
                    assert tensor.shape == source.spec(name).shape == tensor.data.shape
                    if tensor.shape:
                        rows = slice(tensor.shape[0] // 2, tensor.shape[0])
                        np.testing.assert_array_equal(source.entries(name, rows), tensor.data[rows])
                        source.group_scales(name, rows)
                except QuantkitError as error:
                    check_line(error, folder)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def check_line(error: QuantkitError, folder: Path) -> None:
    message = str(error)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message) < 1000
    message.encode()


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_not_damaged_is_read(name: str, tmp_path: Path) -> None:
    writer = WRITERS[name]
    weight = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    parts, numbers = writer.encode(MODULE, weight)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", writer.field: writer.config}))
    tiny.write_safetensors(tmp_path / "model.safetensors", {MODULE + end: part for end, part in parts.items()})
    source = formats.open(tmp_path)
    (tensor,) = map(source.tensor, source.names)
    assert tensor.shape == numbers.shape
    data = tensor.data if tensor.kind == "f32" else (tensor.data.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(data, numbers)
    read_all(tmp_path)
