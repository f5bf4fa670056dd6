"""What gets one kind together."""

from __future__ import annotations

import tiny
from quantkit.models import registry
from quantkit.models.program import Program
from quantkit.quantization.allocation.units import Unit, units_of


def units(model_type: str, **fields: object) -> tuple[Program, list[Unit]]:
    program = registry.read(tiny.config_of(model_type) | fields).record()
    roles = ("linear", "expert", "embedding", "head")
    return program, units_of(program, [name for name, spec in program.tensors.items() if spec.role in roles])


def test_matrices_stand_alone_in_the_order_of_use() -> None:
    program, found = units("llama")
    names = [".".join(unit.names[0].split(".")[-2:-1]) for unit in found[:4]]
    assert names == ["embed_tokens", "q_proj", "k_proj", "v_proj"]
    assert all(len(unit.names) == 1 for unit in found)
    for unit in found:
        assert unit.names[0] in program.operations[unit.border].tensors
        assert not any(unit.names[0] in each.tensors for each in program.operations[: unit.border])


def test_a_table_that_is_the_head_too_is_one_unit() -> None:
    _, found = units("llama", tie_word_embeddings=True)
    assert [unit.names for unit in found if "embed" in unit.label] == [("model.embed_tokens.weight",)]
    assert not any("head" in unit.label for unit in found)


def test_experts_of_a_layer_are_one_unit() -> None:
    program, found = units("mixtral")
    experts = [unit for unit in found if "experts" in unit.label]
    count = sum(spec.role == "expert" for spec in program.tensors.values())
    assert sum(len(unit.names) for unit in experts) == count
    assert len(experts) == 2 * 3
    assert experts[0].label.endswith(f" and {len(experts[0].names) - 1} more")


def test_each_matrix_is_in_one_unit_though_layers_share_it() -> None:
    for model_type in ("zamba2", "jamba", "deepseek_v3", "gpt2", "qwen3_next"):
        program, found = units(model_type)
        names = [name for unit in found for name in unit.names]
        assert len(names) == len(set(names)), model_type
        assert set(names) == {
            name for name, spec in program.tensors.items() if spec.role in ("linear", "expert", "embedding", "head")
        }
