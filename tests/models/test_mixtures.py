"""Mixtures of experts that cannot be: each is refused before anything is packed or computed."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.decoder import Router
from quantkit.models.recorder import Recorder
from quantkit.models.registry import read


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
