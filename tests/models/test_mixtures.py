"""Mixtures of experts that cannot be: each is refused, in one line, before anything is packed or computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from golden.generate import shapes
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.generation.loading import load_model
from quantkit.models.decoder import Router
from quantkit.models.recorder import Recorder
from quantkit.models.registry import read
from quantkit.quantization.conversion import convert
from quantkit.quantization.report import Progress


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 5}),
        ("olmoe", {"num_experts": 4, "num_experts_per_tok": 5}),
        ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 5}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 5}),
        ("glm4_moe", {"n_routed_experts": 4, "num_experts_per_tok": 5}),
    ],
)
def test_more_experts_a_token_than_there_are(model_type: str, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: a token goes to 5 experts, of which there are 4$"):
        read(tiny.config_of(model_type, **config)).record()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "8 experts do not divide into 3 groups, of which a token goes to 1"),
        ({"groups": 2, "chosen_groups": 3}, "8 experts do not divide into 2 groups, of which a token goes to 3"),
        ({"groups": 4, "chosen_groups": 1}, "a token goes to 3 experts in 1 of 4 groups, of which there are 8"),
        ({"groups": 8, "chosen_groups": 8, "group_best": 2}, "a token goes to 3 experts in 8 of 8 groups"),
    ],
)
def test_groups_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: {message}"):
        Router(Recorder(), experts=8, top_k=3, **options)  # type: ignore[arg-type]


def test_a_layer_that_is_neither_dense_nor_sparse() -> None:
    config = tiny.config_of("exaone_moe", mlp_layer_types=["dense", "sparse", "other"])
    with pytest.raises(
        UnsupportedError, match=r"^config\.json: mlp_layer_types is .*, not dense or sparse for each of 3"
    ):
        read(config).record()


Tensors = dict[str, NDArray[np.float32]]
EXPERTS = "model.layers.1.block_sparse_moe"


def folder(path: Path, model_type: str, spoil: Callable[[Tensors], Any] = lambda tensors: None, **config: Any) -> Path:
    """The tiny model of a family, spoilt, or with another config than its tensors have."""
    tensors = {name: tiny.weight(name, shape) for name, shape in shapes(model_type).items()}
    spoil(tensors)
    tiny.checkpoint(path, model_type, tensors={}, **config)
    tiny.write_safetensors(path / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()})
    return path


def put(name: str, value: float) -> Callable[[Tensors], Any]:
    """A change of one number of a tensor."""
    return lambda tensors: tensors[name].__setitem__((0,) * tensors[name].ndim, value)


@pytest.mark.parametrize(
    ("model_type", "spoil", "config", "message"),
    [
        (
            "mixtral",
            lambda it: it.pop(f"{EXPERTS}.experts.2.w1.weight"),
            {},
            r"has no tensor '.*\.experts\.2\.w1\.weight'",
        ),
        ("mixtral", lambda it: None, {"num_local_experts": 6}, r"gate\.weight' has shape \(4, 64\), .* for \(6, 64\)"),
        ("mixtral", lambda it: None, {"num_local_experts": 3}, r"gate\.weight' has shape \(4, 64\), .* for \(3, 64\)"),
        (
            "mixtral",
            lambda it: it.update({f"{EXPERTS}.experts.4.w1.weight": it[f"{EXPERTS}.experts.3.w1.weight"]}),
            {},
            r"does not use tensor '.*\.experts\.4\.w1\.weight'",
        ),
        (
            "granitemoe",
            lambda it: it.update({f"{EXPERTS}.input_linear.weight": it[f"{EXPERTS}.input_linear.weight"][:3]}),
            {},
            r"input_linear\.weight' has shape \(3, 320, 64\), .* for \(4, 320, 64\)",
        ),
        (
            "mixtral",
            put(f"{EXPERTS}.gate.weight", np.nan),
            {},
            r"gate\.weight', which chooses experts, holds NaN or inf",
        ),
        (
            "gpt_oss",
            put("model.layers.0.mlp.router.bias", np.inf),
            {},
            r"router\.bias', which chooses experts, holds NaN",
        ),
        (
            "glm4_moe",
            put("model.layers.1.mlp.gate.e_score_correction_bias", np.nan),
            {},
            r"e_score_correction_bias', which chooses experts, holds NaN",
        ),
    ],
)
def test_before_any_work(
    model_type: str, spoil: Callable[[Tensors], Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = folder(tmp_path / "model", model_type, spoil, **config)
    done: list[Progress] = []
    for work in (lambda: convert(source, tmp_path / "out", progress=done.append), lambda: load_model(source)):
        with pytest.raises(CheckpointError, match=rf"^{tmp_path}/model.*{message}") as caught:
            work()
        assert "\n" not in str(caught.value)
    assert not done
    assert not (tmp_path / "out").exists()


def test_factors_of_short_and_of_long_texts_that_differ() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "short_mscale": 1.0, "long_mscale": 1.2}
    config = tiny.config_of("phimoe", rope_scaling={"type": "longrope", **factors})
    with pytest.raises(
        UnsupportedError, match=r"^config\.json: short_mscale is 1\.0 and long_mscale 1\.2; supported are"
    ):
        read(config).record()


def test_more_than_two_experts_a_token_of_phimoe() -> None:
    with pytest.raises(UnsupportedError, match=r"^config\.json: num_experts_per_tok is 3; supported is 2$"):
        read(tiny.config_of("phimoe", num_experts_per_tok=3)).record()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"num_experts_per_tok": 2}, UnsupportedError, "num_experts_per_tok is 2; supported is 1"),
        ({"layer_types": ["full_attention"] * 2}, UnsupportedError, "layer_types is .*, not chunked_attention or full"),
        (
            {"layer_types": ["sliding_attention"] * 3},
            UnsupportedError,
            "layer_types is .*, not chunked_attention or full",
        ),
        ({"no_rope_layers": [1, 2, 0]}, CheckpointError, "no_rope_layers is .*, not 0 or 1 for each of 3 layers"),
    ],
)
def test_layers_of_llama_4_that_cannot_be(config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^config\.json: {message}"):
        read(tiny.config_of("llama4_text", **config)).record()
