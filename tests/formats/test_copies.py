"""A real model in the formats that people download, made here: where decoded weights are the same, so is the text."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGML
from numpy.typing import NDArray

import quantkit
import tiny
from quantkit import formats
from quantkit.generation.stream import stream_generate
from quantkit_kernels.blocks import dequantize
from scheme_writers import WRITERS, Writer, gptq
from tiny_gguf import ARRAY, BOOL, F32, TEXT, U32, gguf_name

pytestmark = pytest.mark.real

PROMPT, TOKENS = "The three things that a traveller in the mountains needs most are", 32
HEAD = 64
"""Columns of a head of the model."""
HEADS = re.compile(r"\.[qk]_proj\.")
"""Names of tensors whose heads have their halves interleaved in GGUF."""
Weights = NDArray[np.float32]
GROUPED = {
    "gptq_v2": Writer(partial(gptq, less=0), {**WRITERS["gptq"].config, "checkpoint_format": "gptq_v2"}),
    "awq": WRITERS["awq"],
    "compressed-tensors": WRITERS["compressed-tensors"],
}
"""Schemes that store codes, scales and zeros of the same groups: their numbers are the same."""


@pytest.fixture(scope="module")
def model() -> Path:
    return Path(os.environ["QUANTKIT_TEST_MODEL"])


@pytest.fixture(scope="module")
def weights(model: Path) -> dict[str, Weights]:
    source = formats.open(model)
    tensors = ((name, source.tensor(name)) for name in source.names)
    return {name: dequantize(it.kind, it.data, it.row_scales, it.shape) for name, it in tensors}


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    """A folder for files of hundreds of megabytes, which are not kept."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def written(folder: Path, model: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]], **config: Any) -> Path:
    """A copy of a model's folder with other tensors, and more in config.json."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def copies(
    folder: Path, model: Path, weights: Mapping[str, Weights], writer: Writer
) -> tuple[Path, Mapping[str, Weights]]:
    """A copy of a model in a scheme, and the numbers of its weights."""
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    numbers = dict(weights)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            parts, numbers[name] = writer.encode(module, weight)
            stored |= {module + end: part for end, part in parts.items()}
        else:
            stored[name] = ("F32", weight)
    return written(folder, model, stored, **{writer.field: writer.config}), numbers


def plain(folder: Path, model: Path, numbers: Mapping[str, Weights]) -> Path:
    return written(folder, model, {name: ("F32", weight) for name, weight in numbers.items()})


def text_of(path: Path) -> list[int]:
    """The tokens that a model says when it always takes the likeliest."""
    model, tokenizer = quantkit.load(path, kv_dtype="f32")
    try:
        return [piece.token for piece in stream_generate(model, tokenizer, PROMPT, max_tokens=TOKENS, ignore_eos=True)]
    finally:
        model.close()


def test_schemes_that_group_columns_alike(space: Path, model: Path, weights: dict[str, Weights]) -> None:
    texts = {}
    for name, writer in GROUPED.items():
        copy, numbers = copies(space / name, model, weights, writer)
        texts[name] = text_of(copy)
    expected = text_of(plain(space / "plain", model, numbers))
    assert texts == dict.fromkeys(texts, expected)


@pytest.mark.parametrize("name", ["fp8", "bnb nested", "mlx"])
def test_schemes(name: str, space: Path, model: Path, weights: dict[str, Weights]) -> None:
    copy, numbers = copies(space / "copy", model, weights, WRITERS[name])
    assert text_of(copy) == text_of(plain(space / "plain", model, numbers))


def q4_k(weight: Weights) -> NDArray[np.uint8]:
    """Blocks of Q4_K, roughly: eight groups of 32, whose scales and mins are six bits times numbers of the block."""
    groups = weight.reshape(-1, 8, 32)
    mins = np.maximum(-groups.min(-1), 0)
    scales = (groups.max(-1) + mins) / 15
    largest = np.stack([scales.max(-1), mins.max(-1)], axis=-1)
    halves = np.where(largest, largest / 63, 1).astype(np.float16)
    of_scales, of_mins = (
        np.rint(it / half[:, None]).clip(0, 63).astype(np.uint8)
        for it, half in zip((scales, mins), halves.T.astype(np.float32), strict=True)
    )
    low, high = (slice(None), slice(4)), (slice(None), slice(4, 8))
    packed = np.hstack(
        [
            of_scales[low] | of_scales[high] >> 4 << 6,
            of_mins[low] | of_mins[high] >> 4 << 6,
            of_scales[high] & 15 | (of_mins[high] & 15) << 4,
        ]
    )
    wide = halves.astype(np.float32)[..., None] * np.stack([of_scales, of_mins], axis=1)
    steps = np.where(wide[:, 0], wide[:, 0], 1)[..., None]
    codes = np.rint((groups + wide[:, 1, :, None]) / steps).clip(0, 15).astype(np.uint8)
    pairs = codes.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    blocks: NDArray[np.uint8] = np.hstack([halves.view(np.uint8), packed, nibbles])
    return blocks.reshape(*weight.shape[:-1], -1)


def types(form: str, name: str, weight: Weights) -> GGML:
    """The type that a tensor has in a file that is named after one: rows of Q4_K are of whole blocks of 256."""
    if weight.ndim == 1:
        return GGML.F32
    if form != "Q4_K_M":
        return GGML[form]
    return GGML.Q8_0 if "embed" in name else GGML.Q5_0 if weight.shape[-1] % 256 else GGML.Q4_K


def gguf_copy(path: Path, model: Path, weights: Mapping[str, Weights], form: str) -> tuple[Path, Mapping[str, Weights]]:
    """A GGUF file of a model, as llama.cpp's converter names and orders tensors, and the numbers of its weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata(model).items():
        writer.add_key_value(key, *value)
    numbers = {}
    for name, weight in weights.items():
        kind = types(form, name, weight)
        stored = q4_k(weight) if kind is GGML.Q4_K else gguf.quantize(weight, kind)
        numbers[name] = gguf.dequantize(stored, kind).astype(np.float16 if weight.ndim == 2 else np.float32)
        halves = stored.reshape(-1, 2, HEAD // 2, stored.shape[-1]) if HEADS.search(name) else stored[None]
        stored = halves.swapaxes(1, 2).reshape(stored.shape) if HEADS.search(name) else stored
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, {name: it.astype(np.float32) for name, it in numbers.items()}


def metadata(model: Path) -> dict[str, tuple[Any, gguf.GGUFValueType]]:
    """Metadata of a Llama with a byte-level tokenizer."""
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"] | {it["content"]: it["id"] for it in tokenizer["added_tokens"]}
    special = {it["content"] for it in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [it if isinstance(it, str) else " ".join(it) for it in tokenizer["model"]["merges"]]
    return {
        "llama.block_count": (config["num_hidden_layers"], U32),
        "llama.context_length": (config["max_position_embeddings"], U32),
        "llama.embedding_length": (config["hidden_size"], U32),
        "llama.feed_forward_length": (config["intermediate_size"], U32),
        "llama.attention.head_count": (config["num_attention_heads"], U32),
        "llama.attention.head_count_kv": (config["num_key_value_heads"], U32),
        "llama.attention.layer_norm_rms_epsilon": (config["rms_norm_eps"], F32),
        "llama.rope.freq_base": (config["rope_parameters"]["rope_theta"], F32),
        "tokenizer.ggml.model": ("gpt2", TEXT),
        "tokenizer.ggml.pre": ("smollm", TEXT),
        "tokenizer.ggml.tokens": (tokens, ARRAY),
        "tokenizer.ggml.token_type": ([3 if token in special else 1 for token in tokens], ARRAY),
        "tokenizer.ggml.merges": (merges, ARRAY),
        "tokenizer.ggml.eos_token_id": (config["eos_token_id"], U32),
        "tokenizer.ggml.add_bos_token": (False, BOOL),
    }


@pytest.mark.parametrize("form", ["F16", "Q8_0", "Q4_K_M"])
def test_gguf(form: str, space: Path, model: Path, weights: dict[str, Weights]) -> None:
    copy, numbers = gguf_copy(space / f"model-{form}.gguf", model, weights, form)
    expected = model if form == "F16" else plain(space / "plain", model, numbers)
    assert text_of(copy) == text_of(expected)
