"""Gemma 3n: layers of different sizes, which of them are sparse, and configs that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.models.program import Program
from quantkit.models.registry import read


def record(**overrides: Any) -> Program:
    return read(tiny.config_of("gemma3n_text", **overrides)).record()


def test_layers_have_sizes_of_their_own() -> None:
    def sizes(program: Program) -> list[int]:
        return [program.tensors[f"model.layers.{layer}.mlp.up_proj.weight"].shape[0] for layer in range(4)]

    assert sizes(record()) == [160, 128, 160, 160]
    assert sizes(record(intermediate_size=96)) == [96] * 4


def test_gates_of_sparse_layers_keep_what_stands_out() -> None:
    def factors(**overrides: Any) -> list[float]:
        operations = record(**overrides).operations
        return [round(each.parameters["factor"], 4) for each in operations if each.name == "sparsify"]

    assert factors() == [1.6449, 0.0]
    assert factors(activation_sparsity_pattern=None) == []
    many = {"activation_sparsity_pattern": None, "intermediate_size": 32, "layer_types": ..., "num_hidden_layers": 15}
    assert factors(**many) == [1.6449] * 10


def test_coefficients_of_streams_are_kept_as_routers_are() -> None:
    roles = {name: spec.role for name, spec in record().tensors.items() if ".altup." in name and "norm" not in name}
    assert {role for name, role in roles.items() if "scale" not in name} == {"router"}


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"intermediate_size": [160] * 3}, CheckpointError, r"intermediate_size is .*, or one for each of 4 layers"),
        ({"intermediate_size": [160, 0, 1, 1]}, CheckpointError, "intermediate_size is"),
        (
            {"activation_sparsity_pattern": [0.5]},
            CheckpointError,
            "activation_sparsity_pattern is .*, not a share",
        ),
        ({"activation_sparsity_pattern": [0.5, 1.0, 0, 0]}, CheckpointError, "activation_sparsity_pattern is"),
        ({"altup_active_idx": 1}, UnsupportedError, "altup_active_idx is not 0"),
        ({"altup_active_idx": 3}, CheckpointError, "altup_active_idx is 3 of 3 altup_num_inputs"),
        ({"num_kv_shared_layers": 4}, UnsupportedError, "num_kv_shared_layers is 4 of 4 layers"),
        ({"num_kv_shared_layers": 3}, CheckpointError, "layer 1 has no earlier layer of its kind"),
    ],
)
def test_configs_that_are_refused(overrides: dict[str, Any], error: type[QuantkitError], message: str) -> None:
    with pytest.raises(error, match=rf"^config\.json: .*{message}"):
        record(**overrides)
