"""How each scheme stores a matrix, and the numbers that it then stands for: slow and plain, the schemes' counterpart.

Each function takes the name of a module and its weight `[rows, columns]`, and returns the tensors that the module is
stored as, by what follows its name, beside the numbers in f32. `WRITERS` has them all, with what config.json says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.schemes.integers.awq import ORDER
from quantkit.formats.schemes.packing import E2M1, e4m3, e8m0
from stored_parts import Stored

Weights = NDArray[np.float32]
Codes = NDArray[np.uint8]
Written = tuple[Stored, Weights]
Encode = Callable[[str, Weights], Written]


class Writer(NamedTuple):
    """A scheme's writer, and what config.json says under `field`."""

    encode: Encode
    config: Mapping[str, Any]
    field: str = "quantization_config"


def text(said: str) -> tuple[str, Codes]:
    """A text as a tensor."""
    return "U8", np.frombuffer(said.encode(), np.uint8)


def words_of(codes: Codes, bits: int) -> NDArray[np.int32]:
    """Codes along the last axis -> one stream of bits, in words."""
    stream = (codes[..., np.newaxis] >> np.arange(bits, dtype=np.uint8) & 1).reshape(*codes.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little").view(np.int32)


def nearest(numbers: Weights, table: Weights) -> Codes:
    """The code of the nearest number of a table, of each number."""
    finite = np.nan_to_num(table, nan=np.inf)
    order = np.argsort(finite, kind="stable")
    place = np.searchsorted(finite[order], numbers).clip(1, len(table) - 1)
    upper = np.abs(finite[order][place] - numbers) < np.abs(finite[order][place - 1] - numbers)
    codes: Codes = order[place - ~upper].astype(np.uint8)
    return codes


def asymmetric(groups: Weights, bits: int, least: int = 0) -> tuple[NDArray[np.float16], Weights, Weights]:
    """Scales, zeros of at least `least`, and codes of groups along the last axis."""
    scales = ((groups.max(-1) - groups.min(-1)) / (2**bits - 1)).astype(np.float16)
    zeros = np.rint(-groups.min(-1) / scales.astype(np.float32)).clip(least, 2**bits - 1)
    codes = np.rint(groups / scales.astype(np.float32)[..., None] + zeros[..., None]).clip(0, 2**bits - 1)
    return scales, zeros, codes


def gptq(
    module: str, weight: Weights, *, bits: int = 4, less: int = 1, groups: NDArray[np.int32] | None = None
) -> Written:
    """Groups of 32 columns, or those that `groups` says; stored zeros are less by `less`."""
    of_columns = np.arange(weight.shape[1], dtype=np.int32) // 32 if groups is None else groups
    order = np.argsort(of_columns, kind="stable")
    grouped = weight[:, order].reshape(len(weight), len(np.unique(of_columns)), -1)
    scales, zeros, _ = asymmetric(grouped, bits, less)
    wide = scales.astype(np.float32)[:, of_columns], zeros[:, of_columns]
    codes = np.rint(weight / wide[0] + wide[1]).clip(0, 2**bits - 1)
    parts: dict[str, tuple[str, NDArray[Any]]] = {
        ".qweight": ("I32", np.ascontiguousarray(words_of(codes.astype(np.uint8), bits).T)),
        ".qzeros": ("I32", words_of((zeros.T - less).astype(np.uint8), bits)),
        ".scales": ("F16", np.ascontiguousarray(scales.T)),
        ".g_idx": ("I32", of_columns),
    }
    return parts, (codes.astype(np.float32) - wide[1]) * wide[0]


def gptq_by_activation(module: str, weight: Weights) -> Written:
    """Columns are of groups in no order (`desc_act`)."""
    groups = np.arange(weight.shape[1], dtype=np.int32) // 32
    return gptq(module, weight, groups=np.random.default_rng(0).permutation(groups))


def awq(module: str, weight: Weights) -> Written:
    """Groups of 32 columns."""
    scales, zeros, codes = asymmetric(weight.reshape(len(weight), -1, 32), 4)

    def eights(rows: NDArray[Any]) -> NDArray[np.int32]:
        return words_of(np.ascontiguousarray(rows.T).astype(np.uint8).reshape(rows.shape[1], -1, 8)[..., ORDER], 4)[
            ..., 0
        ]

    parts: Stored = {
        ".qweight": ("I32", eights(codes.reshape(weight.shape))),
        ".qzeros": ("I32", eights(zeros)),
        ".scales": ("F16", np.ascontiguousarray(scales.T)),
    }
    numbers = (codes - zeros[..., None]).astype(np.float32) * scales[..., None].astype(np.float32)
    return parts, numbers.reshape(weight.shape)


def awq_gemv(module: str, weight: Weights) -> Written:
    """Groups of 32 columns, as many as fill words by fours."""
    scales, zeros, codes = asymmetric(weight.reshape(len(weight), -1, 32), 4)
    filling = [(0, 0), (0, -scales.shape[1] % 32)]
    parts: Stored = {
        ".qweight": ("I32", words_of(codes.astype(np.uint8).reshape(weight.shape), 4)),
        ".qzeros": ("I32", words_of(np.pad(zeros.astype(np.uint8), filling), 4)),
        ".scales": ("F16", np.pad(scales, filling)),
    }
    numbers = (codes - zeros[..., None]).astype(np.float32) * scales[..., None].astype(np.float32)
    return parts, numbers.reshape(weight.shape)


def awq_gemv_fast(module: str, weight: Weights) -> Written:
    """Groups of 32 columns; the steps of AutoAWQ's `pack_intweight`, one after the other."""
    rows, columns = weight.shape
    scales, zeros, codes = asymmetric(weight.reshape(rows, -1, 32), 4)
    packed = codes.astype(np.uint16).reshape(rows, columns // 32, 4, 4, 2).transpose(0, 1, 3, 2, 4)
    packed = packed.reshape(rows, columns // 32, 4, 4, 2).transpose(0, 1, 2, 4, 3).reshape(rows, columns)
    packed = packed.reshape(rows // 4, 4, columns // 64, 64).transpose(0, 2, 1, 3)
    packed = packed.reshape(rows // 4, columns // 64, 64, 4)
    words = packed[..., 0] | packed[..., 1] << 4 | packed[..., 2] << 8 | packed[..., 3] << 12
    filling = [(0, -scales.shape[1] % 32), (0, 0)]
    added = -(scales * zeros.astype(np.float32)).astype(np.float16)
    parts: Stored = {
        ".qweight": ("I16", words.astype(np.uint16).reshape(rows // 4, columns).view(np.int16)),
        ".qzeros": ("F16", np.pad(added.T, filling)),
        ".scales": ("F16", np.pad(scales.T, filling)),
    }
    numbers = codes.astype(np.float32) * scales[..., None].astype(np.float32) + added[..., None].astype(np.float32)
    return parts, numbers.reshape(weight.shape)


def hqq(module: str, weight: Weights) -> Written:
    """Groups of 64 numbers, whose zeros are floats."""
    groups = weight.reshape(-1, 64)
    scales = ((groups.max(1) - groups.min(1)) / 15).astype(np.float16)[:, None]
    zeros = (-groups.min(1)[:, None] / scales).astype(np.float16)
    codes = np.rint(groups / scales.astype(np.float32) + zeros).clip(0, 15).astype(np.uint8)
    half = len(codes) // 2
    parts: Stored = {
        ".W_q": ("U8", codes[:half] << 4 | codes[half:]),
        ".packing": text("4bit_u8"),
        ".shape": ("I64", np.array(weight.shape)),
        ".scale": ("F16", scales),
        ".zero": ("F16", zeros),
        ".stores_quant_config": ("U8", np.array(1, np.uint8)),
    }
    numbers = (codes - zeros.astype(np.float32)) * scales.astype(np.float32)
    return parts, numbers.reshape(weight.shape)


def compressed(module: str, weight: Weights, *, bits: int = 4) -> Written:
    """compressed-tensors: integers of a few bits in groups of 32, with zeros."""
    scales, zeros, codes = asymmetric(weight.reshape(len(weight), -1, 32), bits)
    whole = np.pad(zeros.T.astype(np.uint8), [(0, 0), (0, -len(zeros) % (32 // bits))])
    parts: Stored = {
        ".weight_packed": ("I32", words_of(codes.astype(np.uint8).reshape(weight.shape), bits)),
        ".weight_scale": ("F16", scales),
        ".weight_zero_point": ("I32", np.ascontiguousarray(words_of(whole, bits).T)),
        ".weight_shape": ("I64", np.array(weight.shape, np.int64)),
    }
    numbers = (codes - zeros[..., None]).astype(np.float32) * scales[..., None].astype(np.float32)
    return parts, numbers.reshape(weight.shape)


def compressed_rows(module: str, weight: Weights) -> Written:
    """compressed-tensors: a byte for each number, a scale for each row."""
    scales = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    codes = np.rint(weight / scales).astype(np.int8)
    return {".weight": ("I8", codes), ".weight_scale": ("F32", scales)}, codes * scales


def fp8(module: str, weight: Weights) -> Written:
    """Blocks of 128 rows and columns, which share the largest factor of all."""
    scales = np.full([-(-side // 128) for side in weight.shape], np.abs(weight).max() / 448, np.float32)
    codes = nearest(weight / scales[0, 0], e4m3())
    parts: Stored = {".weight": ("F8_E4M3", codes), ".weight_scale_inv": ("F32", scales)}
    return parts, e4m3()[codes] * scales[0, 0]


def fp8_rows(module: str, weight: Weights) -> Written:
    """A factor for each row, as `fbgemm_fp8` has it."""
    scales = np.abs(weight).max(1, keepdims=True) / np.float32(448)
    codes = nearest(weight / scales, e4m3())
    return {".weight": ("F8_E4M3", codes), ".weight_scale": ("F32", scales)}, e4m3()[codes] * scales


def nvfp4(module: str, weight: Weights) -> Written:
    """ModelOpt's: groups of 16, whose scales are floats of 8 bits times a factor of the matrix."""
    table, groups = np.array(E2M1, np.float32), weight.reshape(len(weight), -1, 16)
    second = np.abs(weight).max() / np.float32(6 * 448)
    scales = nearest(np.maximum(np.abs(groups).max(-1) / (6 * second), 2**-9), e4m3())
    of_groups = (e4m3()[scales] * second)[..., None]
    codes = nearest(groups / of_groups, table)
    pairs = codes.reshape(len(weight), -1, 2)
    parts: Stored = {
        ".weight": ("U8", pairs[..., 0] | pairs[..., 1] << 4),
        ".weight_scale": ("F8_E4M3", scales),
        ".weight_scale_2": ("F32", np.array(second)),
        ".input_scale": ("F32", np.array(second)),
    }
    return parts, (table[codes] * of_groups).reshape(weight.shape)


def mxfp4(module: str, weight: Weights) -> Written:
    """gpt-oss's: a stack of one matrix, transposed where it is decoded."""
    table, groups = np.array(E2M1, np.float32), weight.reshape(1, len(weight), -1, 32)
    scales = (np.ceil(np.log2(np.abs(groups).max(-1) / 6)) + 127).astype(np.uint8)
    codes = nearest(groups / e8m0()[scales][..., None], table)
    parts: Stored = {"_blocks": ("U8", codes[..., ::2] | codes[..., 1::2] << 4), "_scales": ("U8", scales)}
    numbers = (table[codes] * e8m0()[scales][..., None]).reshape(1, *weight.shape)
    return parts, numbers.swapaxes(1, 2)


def mlx(module: str, weight: Weights, *, bits: int = 4) -> Written:
    """Groups of 64 columns."""
    largest = (1 << bits) - 1
    groups = weight.reshape(len(weight), -1, 64)
    biases = groups.min(-1).astype(np.float16)
    scales = ((groups.max(-1) - biases) / largest).astype(np.float16)
    codes = np.rint((groups - biases[..., None]) / scales[..., None]).clip(0, largest)
    parts: Stored = {
        ".weight": ("U32", words_of(codes.astype(np.uint8).reshape(weight.shape), bits).view(np.uint32)),
        ".scales": ("F16", scales),
        ".biases": ("F16", biases),
    }
    wide = scales[..., None].astype(np.float32), biases[..., None].astype(np.float32)
    return parts, (codes.astype(np.float32) * wide[0] + wide[1]).reshape(weight.shape)


def mlx_mxfp4(module: str, weight: Weights) -> Written:
    """Groups of 32 columns, whose scales are powers of two."""
    table, groups = np.array(E2M1, np.float32), weight.reshape(len(weight), -1, 32)
    scales = (np.ceil(np.log2(np.abs(groups).max(-1) / 6)) + 127).astype(np.uint8)
    codes = nearest(groups / e8m0()[scales][..., None], table)
    words = words_of(codes.reshape(weight.shape), 4).view(np.uint32)
    numbers = table[codes] * e8m0()[scales][..., None]
    return {".weight": ("U32", words), ".scales": ("U8", scales)}, numbers.reshape(weight.shape)


def bnb(module: str, weight: Weights, *, nested: bool = False) -> Written:
    """bitsandbytes: four bits in blocks of 64 of the stream, and a table that is not even."""
    table = np.sort(np.random.default_rng(0).uniform(-1, 1, 16)).astype(np.float32)
    blocks = weight.reshape(-1, 64)
    factors = np.abs(blocks).max(1)
    said: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": weight.shape}
    parts: dict[str, tuple[str, NDArray[Any]]] = {
        ".weight.absmax": ("F32", factors),
        ".weight.quant_map": ("F32", table),
    }
    if nested:
        steps, largest = np.linspace(-1, 1, 256, dtype=np.float32), np.abs(factors - factors.mean()).max()
        stored = nearest((factors - factors.mean()) / largest, steps)
        parts |= {
            ".weight.absmax": ("U8", stored),
            ".weight.nested_absmax": ("F32", np.full(-(-len(stored) // 256), largest)),
            ".weight.nested_quant_map": ("F32", steps),
        }
        said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(factors.mean())}
        factors = steps[stored] * largest + factors.mean()
    codes = nearest(blocks / factors[:, None], table).reshape(-1)
    parts[".weight"] = ("U8", (codes[::2] << 4 | codes[1::2])[:, None])
    parts[".weight.quant_state.bitsandbytes__nf4"] = text(json.dumps(said))
    return parts, (table[codes].reshape(blocks.shape) * factors[:, None]).reshape(weight.shape)


def bnb_bytes(module: str, weight: Weights) -> Written:
    """bitsandbytes: LLM.int8()."""
    largest = np.abs(weight).max(1)
    codes = np.rint(weight / largest[:, None] * 127).astype(np.int8)
    rows = np.array(0, np.uint8)
    parts: Stored = {".weight": ("I8", codes), ".SCB": ("F32", largest), ".weight_format": ("U8", rows)}
    return parts, codes * largest[:, None] * np.float32(1 / 127)


def bitnet(module: str, weight: Weights) -> Written:
    """Ternary numbers, times the mean of all magnitudes."""
    scale = np.abs(weight).mean(dtype=np.float32)
    ternary = np.rint(weight / scale).clip(-1, 1)
    quarters = (ternary + 1).astype(np.uint8).reshape(4, -1, weight.shape[1])
    packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return {".weight": ("U8", packed), ".weight_scale": ("F32", scale.reshape(1))}, ternary * scale


def torchao(module: str, weight: Weights) -> Written:
    """A byte for each number, a scale and a zero for each row."""
    scales = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    codes = np.rint(weight / scales).astype(np.int8)
    parts: Stored = {
        "._weight_qdata": ("I8", codes),
        "._weight_scale": ("F32", scales),
        "._weight_zero_point": ("I8", np.zeros_like(scales, np.int8)),
    }
    return parts, codes * scales


_INT4 = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}
_INT8 = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
_COMPRESSED = {"quant_method": "compressed-tensors"}

WRITERS: Mapping[str, Writer] = {
    "awq": Writer(awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "awq gemv": Writer(awq_gemv, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}),
    "awq gemv_fast": Writer(
        awq_gemv_fast, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv_fast"}
    ),
    "bitnet": Writer(
        bitnet, {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    ),
    "bnb": Writer(bnb, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "bnb nested": Writer(partial(bnb, nested=True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bnb bytes": Writer(bnb_bytes, {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}),
    "compressed-tensors": Writer(
        compressed, _COMPRESSED | {"format": "pack-quantized", "config_groups": {"group_0": _INT4}}
    ),
    "compressed-tensors rows": Writer(
        compressed_rows, _COMPRESSED | {"format": "int-quantized", "config_groups": {"group_0": _INT8}}
    ),
    "fp8": Writer(fp8, {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
    "fp8 rows": Writer(fp8_rows, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "gptq": Writer(gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
    "gptq by activation": Writer(
        gptq_by_activation, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
    ),
    "hqq": Writer(
        hqq,
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}, "skip_modules": ["lm_head"]},
    ),
    "mlx": Writer(mlx, {"bits": 4, "group_size": 64}, "quantization"),
    "mlx of five bits": Writer(partial(mlx, bits=5), {"bits": 5, "group_size": 64}, "quantization"),
    "mlx of six bits": Writer(partial(mlx, bits=6), {"bits": 6, "group_size": 64}, "quantization"),
    "mlx mxfp4": Writer(mlx_mxfp4, {"bits": 4, "group_size": 32, "mode": "mxfp4"}, "quantization"),
    "modelopt": Writer(nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}),
    "mxfp4": Writer(mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
    "torchao": Writer(
        torchao, {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
    ),
}
"""Of each scheme, and its variants that are stored otherwise."""
