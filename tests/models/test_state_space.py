"""Families with Mamba layers: same bits however a text is cut, shared and taken back; what their configs may say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from golden.generate import checkpoint, token_ids
from quantkit import formats
from quantkit.engine.model import Model
from quantkit.errors import QuantkitError
from quantkit.generation.loading import load_model
from quantkit.models.registry import read
from quantkit.quantization.conversion import convert

FAMILIES = [
    *("mamba", "falcon_mamba", "jamba"),
    *("mamba2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h", "zamba2"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, packed."""
    folder = tmp_path_factory.mktemp(request.param)
    convert(checkpoint(folder / "source", request.param), folder / "packed")
    return folder / "packed"


def test_same_bits_in_any_chunks_in_company_and_behind_rejected_drafts(folder: Path) -> None:
    tokens = token_ids(tiny.VOCAB_SIZE, 40)
    expected = [load_and_run(folder, tokens, threads) for threads in (1, 2, 3)]
    assert expected[0] == expected[1] == expected[2]
    model = load_model(folder, threads=2)
    with model.new_sequence() as sequence, model.new_sequence() as other:
        rows = [
            model.forward([(other, tokens[:3]), (sequence, tokens[:17])], every=True, chunk=5)[3:],
            model.forward([(sequence, tokens[17:18]), (other, tokens[3:9])], every=True)[:1],
        ]
        sequence.keep_state(19)
        rows.append(model.forward([(sequence, [tokens[18], 7, 8, 9])], every=True)[:1])
        sequence.truncate(19)
        rows.append(model.forward([(sequence, tokens[19:])], every=True))
    model.close()
    assert np.concatenate(rows).tobytes() == expected[0]


def load_and_run(folder: Path, tokens: list[int], threads: int) -> bytes:
    model: Model = load_model(folder, threads=threads)
    logits = model(tokens).tobytes()
    model.close()
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_state_has_learned_keeps_its_bits(name: str, tmp_path: Path) -> None:
    source = formats.open(checkpoint(tmp_path / "source", name, dtype="F32"))
    convert(tmp_path / "source", tmp_path / "packed")
    packed = formats.open(tmp_path / "packed")
    learned = [tensor for tensor in packed.names if tensor.endswith((".A_log", ".D", ".dt_bias"))]
    assert len(learned) >= 2
    for tensor in learned:
        assert packed.tensor(tensor).data.tobytes() == source.tensor(tensor).data.tobytes()


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mamba", {"state_size": 257}, "state_size is 257, not a whole number from 1 to 256"),
        ("mamba", {"time_step_rank": "full"}, "the rank of time steps is 'full', not auto or a whole number"),
        ("jamba", {"attn_layer_offset": 8, "attn_layer_period": 8}, "attn_layer_offset 8 is not below the period, 8"),
        ("jamba", {"num_experts_per_tok": 9}, "a token goes to 9 experts"),
        ("mamba2", {"head_dim": 24}, "8 Mamba heads of 24 channels do not make 128 columns"),
        ("mamba2", {"n_groups": 3}, "8 Mamba heads do not divide into 3 groups"),
        ("mamba2", {"conv_kernel": 9}, "conv_kernel is 9"),
        ("mamba2", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        ("mamba2", {"time_step_limit": [0.5]}, "time_step_limit is [0.5], not a smallest and a largest step"),
        ("mamba2", {"time_step_limit": [1, 0.5]}, "time_step_limit is [1, 0.5]"),
        ("bamba", {"attn_layer_indices": ["all"]}, "attn_layer_indices is ['all'], not a list of layers"),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, "layer_types has 1 entries for 3 layers"),
        ("granitemoehybrid", {"layer_types": ["mamba", "conv", "mamba"]}, "layer_types has 'conv'"),
        ("granitemoehybrid", {"num_experts_per_tok": 5}, "a token goes to 5 experts, of which there are 4"),
        ("falcon_h1", {"ssm_multipliers": [1, 2]}, "ssm_multipliers is [1, 2], not a list of 5 numbers"),
        ("falcon_h1", {"mlp_multipliers": [1, "2"]}, "mlp_multipliers is [1, '2']"),
        ("zamba2", {"layers_block_type": ["attention"] * 5}, "layer_types has 'attention'"),
        ("zamba2", {"use_long_context": True}, "use_long_context is True"),
        ("nemotron_h", {"hybrid_override_pattern": "MX-"}, "layer_types has 'X'"),
        ("nemotron_h", {"num_experts_per_tok": 4}, "a token goes to 4 experts in 1 of 2 groups"),
    ],
)
def test_bad_configs_are_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantkitError) as caught:
        read(tiny.config_of(name, **overrides)).record()
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("limits", [None, [], [0, math.inf], [0.0, {"__float__": "Infinity"}]])
def test_steps_without_limits(limits: list[Any] | None) -> None:
    program = read(tiny.config_of("mamba2", time_step_limit=limits)).record()
    found = {
        (step.parameters["dt_min"], step.parameters["dt_max"]) for step in program.operations if step.name == "ssd"
    }
    assert found == {(0.0, math.inf)}


def test_steps_with_limits() -> None:
    program = read(tiny.config_of("mamba2", time_step_limit=[0.001, 0.1])).record()
    assert {step.parameters["dt_max"] for step in program.operations if step.name == "ssd"} == {0.1}
