"""bitsandbytes: typed bytes, what the library itself stores and decodes, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
import tiny
from quantkit import formats
from quantkit.errors import CheckpointError
from quantkit.formats.safetensors.file import SafetensorsFile
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.bnb import Bnb
from scheme_writers import WRITERS, bnb_bytes, text
from stored_parts import Stored, decoded

STATE = ".weight.quant_state.bitsandbytes__nf4"


def state(**fields: Any) -> tuple[str, NDArray[np.uint8]]:
    """JSON as the library stores it."""
    return text(json.dumps(fields))


def typed() -> dict[str, tuple[str, NDArray[Any]]]:
    """Six numbers in blocks of four; the number of a code is its square."""
    return {
        ".weight": ("U8", np.array([[0x12], [0x34], [0x56]], np.uint8)),
        ".weight.quant_map": ("F32", np.square(np.arange(16, dtype=np.float32))),
        ".weight.absmax": ("F32", np.array([1, 0.5], np.float32)),
        STATE: state(quant_type="nf4", blocksize=4, dtype="bfloat16", shape=[2, 3]),
    }


def nested() -> dict[str, tuple[str, NDArray[Any]]]:
    """The same, with factors that are codes of tenths, times 2, plus 0.5."""
    said = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    return typed() | {
        ".weight.absmax": ("U8", np.array([5, 10], np.uint8)),
        ".weight.nested_quant_map": ("F32", np.arange(256, dtype=np.float32) / 10),
        ".weight.nested_absmax": ("F32", np.array([2], np.float32)),
        STATE: state(quant_type="nf4", blocksize=4, dtype="bfloat16", shape=[2, 3], **said),
    }


def test_typed_bytes() -> None:
    assert decoded(Bnb(), typed()).tolist() == [[1, 4, 9], [16, 12.5, 18]]
    assert decoded(Bnb(), typed(), wanted=slice(1, 2)).tolist() == [[16, 12.5, 18]]
    assert decoded(Bnb(), nested()).tolist() == [[1.5, 6, 13.5], [24, 62.5, 90]]
    bytes_, largest = np.array([[127, -127], [1, 0]], np.int8), np.array([2, 127], np.float32)
    rows: Stored = {".weight": ("I8", bytes_), ".SCB": ("F32", largest)}
    assert decoded(Bnb(), rows).tolist() == [[2, -2], [1, 0]]


def test_codes_may_be_stored_as_other_numbers() -> None:
    whole = typed() | {
        STATE: state(blocksize=4, shape=[2, 4]),
        ".weight": ("U8", np.arange(4, dtype=np.uint8)[:, None]),
    }
    for dtype, numpy in (("BF16", np.uint16), ("F16", np.float16), ("F32", np.float32), ("I8", np.int8)):
        seen = {**whole, ".weight": (dtype, whole[".weight"][1].reshape(-1).view(numpy).reshape(-1, 1))}
        np.testing.assert_array_equal(decoded(Bnb(), seen), decoded(Bnb(), whole))
        np.testing.assert_array_equal(decoded(Bnb(), seen, wanted=slice(1, 2)), decoded(Bnb(), whole)[1:])


@pytest.mark.parametrize(("variant", "keeps"), [("bnb", ""), ("bnb nested", ""), ("bnb bytes", "_proj")])
def test_a_checkpoint(tmp_path: Path, variant: str, keeps: str) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS[variant]), keeps=keeps, kind="int8")


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({STATE: ("U8", np.frombuffer(b"{", np.uint8))}, "its quant_state: is not JSON"),
        ({STATE: state(blocksize=4, shape=[2, -3])}, r"says shape \[2, -3\]"),
        ({STATE: state(blocksize=4, shape=[10**9, 10**9])}, "its codes are U8 of shape"),
        ({STATE: state(blocksize="4", shape=[2, 3])}, "blocks of"),
        ({STATE: state(blocksize=2, shape=[2, 3])}, r"absmax' is F32 of shape \(2,\), not F32 of \(3,\)"),
        ({STATE: ("U8", np.zeros(100_000, np.uint8))}, "is no text"),
        ({".weight.quant_map": ("F32", np.zeros(15, np.float32))}, "quant_map"),
        ({".weight.absmax": ("U8", np.zeros(2, np.uint8))}, "absmax"),
        ({".weight": ("I32", np.zeros((3, 1), np.int32))}, "its codes are I32"),
    ],
)
def test_parts_that_do_not_fit(spoiled: Stored, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(Bnb(), {**typed(), **spoiled})


@pytest.mark.parametrize("spoiled", [state(blocksize=4, shape=[2, 3], nested_blocksize=0, nested_offset=1)])
def test_nested_parts_that_do_not_fit(spoiled: tuple[str, NDArray[Any]]) -> None:
    with pytest.raises(ValueError, match="blocks of"):
        decoded(Bnb(), nested() | {STATE: spoiled})


def test_bytes_in_tiles_are_refused() -> None:
    parts, _ = bnb_bytes("", np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="weight_format is not 0"):
        decoded(Bnb(), {**parts, ".weight_format": ("U8", np.array(2, np.uint8))})


@pytest.mark.parametrize("lost", [".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, lost: str) -> None:
    _, folder = quantized.checkpoints(tmp_path, *WRITERS["bnb"])
    file = SafetensorsFile(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {each: (file.header[each].dtype, np.array(file.array(each))) for each in file.header}
    del tensors[name + lost]
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"has no tensor '{name}{lost}'"):
        formats.open(folder).tensor(name)


@pytest.mark.live
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", [32, 64, 1024])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_four_bits_are_what_the_library_makes_of_them(
    double: bool, quant_type: str, blocksize: int, dtype: str
) -> None:
    import torch
    from bitsandbytes import functional

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 2048), np.float32)).to(getattr(torch, dtype))
    codes, state = functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=double, quant_type=quant_type
    )
    parts = {f".weight.{name}": part for name, part in state.as_dict(packed=True).items()} | {".weight": codes}
    stored = {name: ("U8" if part.dtype == torch.uint8 else "F32", part.numpy()) for name, part in parts.items()}
    ours = torch.from_numpy(decoded(Bnb(), stored)).to(weight.dtype)
    assert torch.equal(ours, functional.dequantize_4bit(codes, state))


@pytest.mark.live
@pytest.mark.parametrize("shape", [(96, 80), (5, 7)])
def test_blocks_do_not_end_with_rows(shape: tuple[int, int]) -> None:
    import torch
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute  # that of the CPU has its blocks in rows

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    parts = {f".weight.{name}": part.numpy() for name, part in state.as_dict(packed=True).items()}
    stored = {name: ("U8" if part.dtype == np.uint8 else "F32", part) for name, part in parts.items()}
    stored[".weight"] = ("U8", codes.numpy())
    theirs = _dequantize_4bit_compute(codes.reshape(-1), state.absmax, state.code, 64, shape, torch.float32)
    np.testing.assert_array_equal(decoded(Bnb(), stored), theirs.numpy())
    np.testing.assert_array_equal(decoded(Bnb(), stored, wanted=slice(3, 5)), theirs.numpy()[3:5])


@pytest.mark.live
def test_eight_bits_are_what_the_library_makes_of_them() -> None:
    import torch
    from bitsandbytes import functional

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((96, 80), np.float32)).half()
    codes, largest, _ = functional.int8_vectorwise_quant(weight)
    stored: Stored = {".weight": ("I8", codes.numpy()), ".SCB": ("F32", largest.numpy())}
    np.testing.assert_array_equal(decoded(Bnb(), stored), functional.int8_vectorwise_dequant(codes, largest).numpy())


def test_old_checkpoints_do_not_name_it() -> None:
    assert isinstance(scheme_of({"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 6.0}}), Bnb)
