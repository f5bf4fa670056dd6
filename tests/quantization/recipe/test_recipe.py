"""Which tensor becomes which kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest

import tiny
from quantkit.errors import OptionError
from quantkit.models import registry
from quantkit.quantization.recipe import RECIPES, Override, Recipe, choose
from quantkit.tensor import Role, TensorSpec

Tensors = Mapping[str, TensorSpec]


def kinds_of(tensors: Tensors, quantize: str = "int4", overrides: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    recipe = Recipe(quantize).with_overrides(overrides)
    return {name: choice.kind for name, choice in choose(tensors, recipe).items()}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return registry.read(tiny.config_of("llama", attention_bias=True)).record().tensors


def test_linear_layers_become_int4_and_heads_int8(tensors: Tensors) -> None:
    kinds = kinds_of(tensors)
    assert kinds.keys() == tensors.keys()
    assert kinds["model.layers.1.mlp.down_proj.weight"] == "int4"
    assert kinds["model.embed_tokens.weight"] == "int8"
    assert kinds["lm_head.weight"] == "int8"
    assert kinds["model.norm.weight"] == "f32"
    assert kinds["model.layers.0.self_attn.q_proj.bias"] == "f32"


@pytest.mark.parametrize("kind", ["int4", "int5", "int6", "int8"])
def test_linear_layers_become_what_is_asked_for(tensors: Tensors, kind: str) -> None:
    found = kinds_of(tensors, kind)
    assert {found[name] for name, spec in tensors.items() if spec.role == "linear"} == {kind}
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == "int8"


def test_a_tied_head_is_the_embedding() -> None:
    kinds = kinds_of(registry.read(tiny.config_of("qwen3")).record().tensors)
    assert kinds["model.embed_tokens.weight"] == "int8"
    assert "lm_head.weight" not in kinds


def test_learned_positions_keep_16_bits() -> None:
    tensors = registry.read(tiny.config_of("gpt2")).record().tensors
    for recipe in ("int4", "int5", "int6", "int8"):
        kinds = kinds_of(tensors, recipe)
        assert (kinds["transformer.wte.weight"], kinds["transformer.wpe.weight"]) == ("int8", "f16")


def test_the_last_override_that_matches_decides(tensors: Tensors) -> None:
    kinds = kinds_of(tensors, "int4", [(r"layers\.0\.", "int8"), (r"layers\.0\.mlp", "bf16"), (r"^lm_head", "f16")])
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == "int8"
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "bf16"
    assert kinds["model.layers.1.mlp.up_proj.weight"] == "int4"
    assert kinds["lm_head.weight"] == "f16"


def test_norms_and_biases_stay(tensors: Tensors) -> None:
    kinds = kinds_of(tensors, "int4", [("", "f16")])
    assert {kinds[name] for name, spec in tensors.items() if spec.role in ("norm", "bias")} == {"f32"}
    assert {kinds[name] for name, spec in tensors.items() if spec.role not in ("norm", "bias")} == {"f16"}


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("int3", [], ["'int3'", "int4", "int8"]),
        ("int4", [("mlp", "q4_0")], ["mlp=q4_0", "'q4_0'", "bf16"]),
        ("int4", [("mlp(", "int8")], ["'mlp('", "regular expression"]),
        ("int4", [("experts", "int8")], ["'experts'", "no matrix"]),
        ("int4", [("layernorm", "f16")], ["'layernorm'", "no matrix"]),
    ],
)
def test_bad_options_are_named(
    tensors: Tensors, recipe: str, overrides: list[tuple[str, str]], words: list[str]
) -> None:
    with pytest.raises(OptionError) as caught:
        kinds_of(tensors, recipe, overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("wrong", [["down_proj=int8"], {"down_proj": "int8"}, [("down_proj",)], [("down_proj", 8)]])
def test_overrides_are_pairs(wrong: Any) -> None:
    message = r"overrides: .*down_proj.* is no pair of a regular expression and a kind"
    with pytest.raises(OptionError, match=message):
        Recipe("int4", wrong)
    with pytest.raises(OptionError, match=message):
        Recipe("int4").with_overrides(wrong)


@pytest.mark.parametrize("wrong", [None, 4, {"quantize": "int8"}])
def test_what_is_asked_for_is_a_text(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"quantize: .* is not one of int4, int5, int6, int8, mixed"):
        Recipe(wrong)


def test_each_kind_has_a_reason(tensors: Tensors) -> None:
    choices = choose(tensors, Recipe("int8", (Override("down_proj", "f16"),)))
    reasons = {name: choice.reason for name, choice in choices.items()}
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "linear layer: int8 is asked for"
    assert reasons["model.layers.0.mlp.down_proj.weight"] == "override down_proj=f16"
    assert reasons["lm_head.weight"].startswith("head: every token's logits come from it")
    assert reasons["model.norm.weight"].startswith("norm: ")
    roles = set(get_args(Role)) - {"unknown"}
    assert all(
        recipe.keys() == roles and all(choice.reason for choice in recipe.values()) for recipe in RECIPES.values()
    )


def test_overrides_of_a_call_come_after_those_of_a_recipe() -> None:
    recipe = Recipe("int8", (Override("mlp", "f16"),)).with_overrides([("up_proj", "bf16")])
    assert recipe.options == {"quantize": "int8", "overrides": [["mlp", "f16"], ["up_proj", "bf16"]]}
