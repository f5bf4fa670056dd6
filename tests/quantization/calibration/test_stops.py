"""Where a program stops to be calibrated."""

from __future__ import annotations

import tiny
from quantkit.models import registry
from quantkit.models.program import Program
from quantkit.quantization.calibration.stops import stops_of


def program_of(model_type: str) -> Program:
    return registry.read(tiny.config_of(model_type)).record()


def shared_names(program: Program, roles: tuple[str, ...]) -> list[list[list[list[str]]]]:
    """Names at each stop, of each input, of each expert, without their layers' prefix."""
    wanted = [name for name, spec in program.tensors.items() if spec.role in roles]
    return [
        [[[name.split(".")[-2] for name in names] for names in shared.names] for shared in stop.shared.values()]
        for stop in stops_of(program, wanted)
    ]


def test_a_layer_has_four_stops_and_matrices_of_one_input_share_one() -> None:
    layer = [[[["q_proj", "k_proj", "v_proj"]]], [[["o_proj"]]], [[["gate_proj", "up_proj"]]], [[["down_proj"]]]]
    assert shared_names(program_of("llama"), ("linear",)) == layer * 2


def test_layers_side_by_side_share_their_input() -> None:
    first, *_ = shared_names(program_of("phi"), ("linear",))
    assert first == [[["q_proj", "k_proj", "v_proj", "up_proj"]]]


def test_experts_share_by_expert() -> None:
    program = program_of("mixtral")
    stops = stops_of(program, [name for name, spec in program.tensors.items() if spec.role == "expert"])
    gates, downs = (next(iter(stop.shared.values())) for stop in stops[:2])
    assert gates.routing is not None
    assert gates.routing == downs.routing
    assert gates.x.per_token == 1
    assert downs.x.per_token > 1
    assert [len(names) for names in gates.names] == [2] * len(gates.names)
    assert [len(names) for names in downs.names] == [1] * len(gates.names)


def test_what_an_output_is_added_to_is_known_where_nothing_else_happens_to_it() -> None:
    for model_type, added in (("llama", {"o_proj", "down_proj"}), ("gemma2", set()), ("mixtral", {"o_proj"})):
        program = program_of(model_type)
        wanted = [name for name, spec in program.tensors.items() if spec.role == "linear"]
        found = [shared.added_to for stop in stops_of(program, wanted) for shared in stop.shared.values()]
        assert {name.split(".")[-2] for each in found for name in each} == added


def test_each_weight_stops_once_though_layers_share_it() -> None:
    program = program_of("zamba2")
    wanted = [name for name, spec in program.tensors.items() if spec.role == "linear"]
    found = [name for stop in stops_of(program, wanted) for name in stop.names]
    assert sorted(found) == sorted(wanted)


def test_what_is_packed_otherwise_is_no_stop() -> None:
    assert stops_of(program_of("llama"), []) == []
