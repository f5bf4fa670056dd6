"""Metadata of GGUF files: the config that they amount to, and what is refused; tensors under the program's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tiny_gguf_families
from quantkit import formats
from quantkit.engine.binding import architecture_of, bind
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.gguf.config import llama3_factors
from quantkit.models.gguf.metadata import Metadata, shortest
from quantkit.models.gguf.tables import DIALECTS
from quantkit.models.registry import FAMILIES
from tiny_gguf import ARRAY, BOOL, CONFIG, F32, TEXT, U32, Changes, weights, write


def config_of(path: Path) -> dict[str, Any]:
    source = dict(architecture_of(formats.open(path)).source)
    json.dumps(source)
    return source


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def test_config(file: Path) -> None:
    config = config_of(write(file))
    for field in CONFIG.keys() - {"architectures", "hidden_act", "bos_token_id", "eos_token_id"}:
        assert config[field] == CONFIG[field], field
    assert config["head_dim"] == 16
    untied = bind(formats.open(write(file, tensors=weights(tie_word_embeddings=False))))
    assert untied.architecture.source["tie_word_embeddings"] is False
    assert untied.weights.tensor("lm_head.weight").shape == (tiny.VOCAB_SIZE, 64)


def test_names_and_order_of_rows(file: Path) -> None:
    values = weights(attention_bias=True)
    bound = bind(formats.open(write(file, tensors=values)))
    assert bound.architecture.source["attention_bias"] is True
    assert sorted(bound.weights.names) == sorted(values)
    for name, expected in values.items():
        for copy in (False, True):
            np.testing.assert_array_equal(bound.weights.tensor(name, copy=copy).data, expected)


def test_numbers_are_those_that_were_meant() -> None:
    assert shortest(float(np.float32(1e-5))) == 1e-5
    assert shortest(float(np.float32(500000.0))) == 500000.0
    assert shortest(1e300) == 1e300


LINEAR: Changes = {"llama.rope.scaling.type": ("linear", TEXT), "llama.rope.scaling.factor": (4.0, F32)}
YARN: Changes = {
    "llama.rope.scaling.type": ("yarn", TEXT),
    "llama.rope.scaling.factor": (4.0, F32),
    "llama.rope.scaling.original_context_length": (64, U32),
    "llama.rope.scaling.yarn_beta_fast": (16.0, F32),
}


def test_rope_scaling(file: Path) -> None:
    assert config_of(write(file))["rope_scaling"] is None
    assert config_of(write(file, LINEAR))["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config_of(write(file, {"llama.rope.scale_linear": (2.0, F32)}))["rope_scaling"]["factor"] == 2.0
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0}
    assert config_of(write(file, YARN))["rope_scaling"] == yarn


# Of Llama 3.2 1B (theta 500000, head size 64), computed by transformers: base frequency / scaled frequency.
LLAMA32_FACTORS = {0: 1.0, 14: 1.0, 15: 1.6513, 16: 3.2923, 17: 9.6667, 18: 32.0, 31: 32.0}


def test_llama3_factors() -> None:
    factors = llama3_factors(500000.0, 64, 32.0)
    assert factors.shape == (32,)
    for index, expected in LLAMA32_FACTORS.items():
        assert factors[index] == pytest.approx(expected, abs=2e-4), index


def test_rope_scaling_by_factors(file: Path) -> None:
    theta: Changes = {"llama.rope.freq_base": (500000.0, F32)}
    factors = llama3_factors(500000.0, 16, 8.0).astype(np.float32)
    source = formats.open(write(file, theta, weights() | {"rope_freqs.weight": factors}))
    assert architecture_of(source).source["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not bind(source).weights.unused
    ones = np.ones(8, np.float32)
    assert config_of(write(file, theta, weights() | {"rope_freqs.weight": ones}))["rope_scaling"] is None
    factors[3] *= np.float32(1.1)
    scaling = config_of(write(file, theta, weights() | {"rope_freqs.weight": factors}))["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert scaling["attention_factor"] == 1.0
    assert scaling["short_factor"] == scaling["long_factor"] == [shortest(factor) for factor in factors.tolist()]
    with pytest.raises(CheckpointError, match="has 3 numbers for 8 pairs"):
        config_of(write(file, theta, weights() | {"rope_freqs.weight": factors[:3]}))


def test_biases_of_queries_keys_and_values_alone(file: Path) -> None:
    """Qwen's weights under Llama's name, as llama.cpp loads them."""
    values = {name: array for name, array in weights(attention_bias=True).items() if not name.endswith("o_proj.bias")}
    selection = bind(formats.open(write(file, tensors=values))).weights
    assert not selection.tensor("model.layers.0.self_attn.o_proj.bias").data.any()
    name = "model.layers.0.self_attn.q_proj.bias"
    np.testing.assert_array_equal(selection.tensor(name).data, values[name])


def test_a_weight_of_a_layer_that_llama_does_not_have(file: Path) -> None:
    write(file, tensors=weights() | {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    with pytest.raises(CheckpointError, match=r"does not use tensor 'blk\.0\.attn_q_norm\.weight'"):
        bind(formats.open(file))


def test_a_missing_tensor_has_the_file_s_name(file: Path) -> None:
    values = weights()
    del values["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor 'blk\.1\.ffn_up\.weight' of shape \(160, 64\)"):
        bind(formats.open(write(file, tensors=values)))


REFUSED: dict[str, tuple[Changes, type[Exception], str]] = {
    "experts without tensors": (
        {"llama.expert_count": (8, U32), "llama.expert_used_count": (2, U32)},
        CheckpointError,
        "has no tensor 'blk.0.ffn_gate_inp.weight'",
    ),
    "partial rotary": ({"llama.rope.dimension_count": (8, U32)}, UnsupportedError, "rope.dimension_count differs"),
    "other values": ({"llama.attention.value_length": (8, U32)}, UnsupportedError, "attention.value_length differs"),
    "no heads": ({"llama.attention.head_count": (0, U32)}, CheckpointError, "gives 0 heads"),
    "heads of each layer": ({"llama.attention.head_count": ([4, 2], ARRAY)}, UnsupportedError, "from layer to layer"),
    "missing key": ({"llama.block_count": None}, CheckpointError, "has no llama.block_count"),
    "wrong type": ({"llama.block_count": ("two", TEXT)}, CheckpointError, "'two', not of type int"),
    "absurd": ({"llama.block_count": (10**9, U32)}, CheckpointError, "gives 1000000000 layers, and the file holds"),
    "unknown rope": ({"llama.rope.scaling.type": ("new", TEXT)}, UnsupportedError, "has rope scaling 'new'"),
    "a cap": ({"llama.attn_logit_softcapping": (50.0, F32)}, UnsupportedError, "attn_logit_softcapping is 50.0, which"),
    "not causal": ({"llama.attention.causal": (False, BOOL)}, UnsupportedError, "attention.causal is False, which"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, file: Path) -> None:
    changes, error, message = REFUSED[name]
    write(file, changes)
    with pytest.raises(error, match=message) as caught:
        bind(formats.open(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_numbers_of_layers() -> None:
    values = {"general.architecture": "x", "one": np.ones(1, np.float32), "two": np.array([0.1, 2], np.float32), "n": 3}
    metadata = Metadata(values, {}, lambda name: np.zeros(0))
    assert metadata.decimals("one", 3) == [1.0, 1.0, 1.0]
    assert metadata.decimals("two", 2) == [0.1, 2.0]
    assert metadata.decimals("none", 2) is None
    for key, layers in (("two", 3), ("n", 1), ("general.architecture", 1)):
        with pytest.raises(CheckpointError, match=rf"its {key} is .*, not a number for each of {layers} layers"):
            metadata.decimals(key, layers)


@pytest.mark.parametrize("heads", [[0, 0, 0, 2], [0, 0, 2, 0], [2, 0, 0, 2], [0, 2, 2, 0]])
def test_layers_that_do_not_recur(heads: list[int], file: Path) -> None:
    """Jamba's config says every how many layers attention comes: what it cannot say is refused, not guessed."""
    tiny_gguf_families.write(file, "jamba", {"attention.head_count_kv": heads})
    with pytest.raises((CheckpointError, UnsupportedError)) as caught:
        bind(formats.open(file))
    assert ("not every so many of them" in str(caught.value)) == (heads == [0, 2, 2, 0])


def test_tensors_that_metadata_hold(file: Path) -> None:
    weights = bind(formats.open(tiny_gguf_families.write(file, "apertus"))).weights
    said = json.loads(tiny_gguf_families.FILE.read_text())["apertus"]["beside"]
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        for layer in range(2):
            number = weights.tensor(f"model.layers.{layer}.mlp.act_fn.{name}").data
            np.testing.assert_array_equal(number.ravel(), np.float32(said[f"xielu.{name}"][layer]))


def test_refuses_other_architectures(file: Path) -> None:
    with pytest.raises(UnsupportedError, match="has architecture 'bert'; read from GGUF files are afmoe, "):
        bind(formats.open(write(file, architecture="bert")))


def test_every_dialect_is_of_a_family() -> None:
    for architecture, dialects in DIALECTS.items():
        assert list(dialects)[-1] == "", architecture
        assert all(dialect.model_type in FAMILIES for dialect in dialects.values())
