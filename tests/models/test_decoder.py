"""What decoders are put together from, and checkpoints that have less than their config announces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
import tiny_gguf
from quantkit.errors import CheckpointError
from quantkit.generation.loading import load_model
from quantkit.quantization.conversion import convert


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(path, threads=1, kv_dtype="f32")
    try:
        return model([3, 1, 4, 1, 5])
    finally:
        model.close()


def folder(path: Path, config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> Path:
    tiny.checkpoint(path, **config)
    tiny.write_safetensors(path / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()})
    return path


def weights(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    return {name: tiny.weight(name, shape) for name, shape in tiny.shapes(config).items()}


BIASED = {"attention_bias": True}


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_a_bias_of_the_output_that_no_layer_has_is_zero(model_type: str, tmp_path: Path) -> None:
    config = tiny.config_of(model_type, num_hidden_layers=2, **BIASED)
    tensors = weights(config)
    tensors |= {name: np.zeros_like(value) for name, value in tensors.items() if name.endswith("o_proj.bias")}
    complete = logits(folder(tmp_path / "complete", config, tensors))
    left = {name: value for name, value in tensors.items() if not name.endswith("o_proj.bias")}
    np.testing.assert_array_equal(logits(folder(tmp_path / "left", config, left)), complete)


def test_a_bias_that_only_some_layers_have_is_missing(tmp_path: Path) -> None:
    config = tiny.config_of("llama", attention_bias=True)
    tensors = weights(config)
    del tensors["model.layers.1.self_attn.o_proj.bias"]
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.layers\.1\.self_attn\.o_proj\.bias'"):
        load_model(folder(tmp_path / "model", config, tensors))


def test_a_packed_model_without_a_bias(tmp_path: Path) -> None:
    config = tiny.config_of("llama", **BIASED)
    tensors = {name: value for name, value in weights(config).items() if not name.endswith("o_proj.bias")}
    source = folder(tmp_path / "model", config, tensors)
    convert(source, tmp_path / "packed", overrides=[(".*", "f32")])
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(source))


def test_gguf_without_a_bias_of_the_output(tmp_path: Path) -> None:
    config = tiny_gguf.CONFIG | BIASED
    tensors = {name: value for name, value in weights(config).items() if not name.endswith("o_proj.bias")}
    answer = logits(tiny_gguf.write(tmp_path / "model.gguf", tensors=tensors))
    np.testing.assert_array_equal(answer, logits(folder(tmp_path / "model", config, tensors)))


def test_a_tied_matrix_may_be_named_after_the_head(tmp_path: Path) -> None:
    config = tiny.config_of("llama", tie_word_embeddings=True)
    tensors = weights(config)
    expected = logits(folder(tmp_path / "usual", config, tensors))
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    np.testing.assert_array_equal(logits(folder(tmp_path / "head", config, tensors)), expected)
