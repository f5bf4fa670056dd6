"""The recorder: what it writes down, and what it refuses."""

from __future__ import annotations

import pytest

from quantkit.models.program import Operation, Program, Value
from quantkit.models.recorder import Recorder
from quantkit.tensor import TensorSpec


def test_operations_are_recorded_in_order() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    wanted = ops.select(h)
    x = ops.linear(wanted, "up", 6, bias=True)
    program = ops.program()
    assert [operation.name for operation in program.operations] == ["embed", "select", "linear"]
    assert program.operations[2] == Operation("linear", (wanted,), x, ("up.weight", "up.bias"))
    assert (h, wanted, x) == (Value(0, 8), Value(1, 8, selected=True), Value(2, 6, selected=True))
    assert program.logits == x


def test_ids_are_those_that_every_embedding_has_rows_for() -> None:
    ops = Recorder()
    ops.linear(ops.select(ops.add(ops.embed("a", 10, 8), ops.embed("b", 7, 8))), "head", 20)
    assert ops.program().vocab_size == 7


def test_positions_are_those_that_every_table_has_rows_for() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    assert Program((), {}, (h,)).learned_positions is None
    h = ops.add(ops.embed_positions("a", 30, 8, offset=2), ops.embed_positions("b", 31, 8))
    ops.select(h)
    program = ops.program()
    assert program.learned_positions == 30
    assert program.tensors["a.weight"] == TensorSpec("a.weight", (32, 8), "positions")


@pytest.mark.parametrize("end", ["nothing", "all tokens", "cache"])
def test_a_program_ends_with_selected_logits(end: str) -> None:
    ops = Recorder()
    if end != "nothing":
        h = ops.embed("embed", 10, 8)
        ops.select(h)
        ops.linear(h, "head", 10)
    if end == "cache":
        ops.store_kv(h, h, head_dim=4)
    with pytest.raises(ValueError, match="ends with the logits of the selected tokens"):
        ops.program()


def test_tensors_have_shapes_and_roles() -> None:
    ops = Recorder()
    h = ops.rms_norm(ops.embed("embed", 10, 8), "norm", 1e-6)
    ops.linear(ops.select(ops.linear(h, "up", 6, bias=True)), "head", 10, role="head")
    assert list(ops.program().tensors.values()) == [
        TensorSpec("embed.weight", (10, 8), "embedding"),
        TensorSpec("norm.weight", (8,), "norm"),
        TensorSpec("up.weight", (6, 8), "linear"),
        TensorSpec("up.bias", (6,), "bias"),
        TensorSpec("head.weight", (10, 6), "head"),
    ]


def test_what_a_checkpoint_may_name_otherwise_or_leave_out() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8, alias="head")
    ops.linear(ops.select(h), "up", 6, bias=True, optional_bias=True)
    tensors = ops.program().tensors
    assert tensors["embed.weight"].aliases == ("head.weight",)
    assert [name for name, spec in tensors.items() if spec.optional] == ["up.bias"]


def test_norms_have_the_weights_that_a_checkpoint_has() -> None:
    ops = Recorder()
    h = ops.layer_norm(ops.embed("embed", 10, 12), None, 1e-5)
    h = ops.layer_norm(h, "bare", 1e-5)
    h = ops.layer_norm(h, "biased", 1e-5, size=4, weight_shape=(3, 4), bias=True)
    h = ops.rms_norm(ops.rms_norm(h, None, 1e-5, size=6), "own", 1e-5, size=6, weight_shape=(12,))
    ops.select(h)
    program = ops.program()
    assert [spec for name, spec in program.tensors.items() if name != "embed.weight"] == [
        TensorSpec("bare.weight", (12,), "norm"),
        TensorSpec("biased.weight", (3, 4), "norm"),
        TensorSpec("biased.bias", (3, 4), "bias"),
        TensorSpec("own.weight", (12,), "norm"),
    ]
    assert [each.parameters["weight_columns"] for each in program.operations[1:-1]] == [0, 12, 12, 0, 12]


def test_learned_numbers_of_an_activation_are_vectors() -> None:
    ops = Recorder()
    ops.select(ops.xielu(ops.embed("embed", 10, 8), "act_fn"))
    specs = list(ops.program().tensors.values())[1:]
    shapes = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
    assert specs == [TensorSpec(f"act_fn.{name}", shape, "bias") for name, shape in shapes.items()]
    assert all(spec.is_vector for spec in specs)


def test_sinks_are_a_vector_of_all_query_heads() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 12)
    k = ops.linear(h, "k", 6)
    y = ops.attention(ops.linear(h, "q", 24), ops.store_kv(k, k, head_dim=3), scale=1.0, sinks="attn.sinks")
    ops.select(y)
    assert ops.program().tensors["attn.sinks"] == TensorSpec("attn.sinks", (8,), "bias")


def test_heads_may_share_columns() -> None:
    ops = Recorder()
    h, shared = ops.embed("embed", 10, 12), ops.embed("shared", 10, 4)
    assert ops.append(h, shared).columns == 16
    assert ops.append(h, shared, parts=3).columns == 24
    for parts in (0, 5):
        with pytest.raises(ValueError, match=f"12 columns do not divide into {parts} parts"):
            ops.append(h, shared, parts=parts)


def test_scores_fall_by_a_slope_of_each_head() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    cache = ops.store_kv(h, h, head_dim=4)
    ops.select(ops.attention(h, cache, scale=1.0, slopes=(0.5, 0.25)))
    assert ops.program().operations[-2].constant == (0.5, 0.25)
    for wrong in ({"slopes": (0.5,)}, {"slopes": (0.5, 0.25), "softcap": 3.0}):
        with pytest.raises(ValueError, match="slopes do not fit 2 heads"):
            ops.attention(h, cache, scale=1.0, **wrong)


def test_values_may_be_narrower_than_keys() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 12)
    cache = ops.store_kv(h, ops.linear(h, "v", 8), head_dim=3, v_head_dim=2)
    assert (cache.kv_heads, cache.head_dim, cache.v_head_dim) == (4, 3, 2)
    assert ops.attention(ops.linear(h, "q", 24), cache, scale=1.0).columns == 16
    with pytest.raises(ValueError, match="k 12, v 8, head sizes 3, 4"):
        ops.store_kv(h, ops.linear(h, "v", 8), head_dim=3, v_head_dim=4)


def test_a_tied_head_is_one_tensor_and_stays_an_embedding() -> None:
    ops = Recorder()
    ops.linear(ops.select(ops.embed("embed", 10, 8)), "embed", 10, role="head")
    assert list(ops.program().tensors.values()) == [TensorSpec("embed.weight", (10, 8), "embedding")]


def test_selection_reaches_everything_after_it() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    wanted = ops.rms_norm(ops.select(h), "norm", 1e-6)
    assert not h.selected
    assert wanted.selected
    assert ops.linear(wanted, "head", 10).selected


def test_a_program_is_not_changed_by_its_recorder() -> None:
    ops = Recorder()
    h = ops.select(ops.embed("embed", 10, 8))
    program = ops.program()
    ops.linear(h, "head", 10)
    assert len(program.operations) == 2
    assert list(program.tensors) == ["embed.weight"]


def test_parameters_are_kept_and_read_only() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    ops.rms_norm(h, "q_norm", 1e-5, size=4, offset=1.0)
    rotation = ops.rotation((1.0, 0.5), factor=2.0)
    kv = ops.linear(h, "kv", 4)
    cache = ops.store_kv(kv, kv, head_dim=4)
    ops.select(ops.attention(ops.rope(h, rotation), cache, scale=0.5, softcap=30.0, window=7))
    norm, rotate, _, store, rope, attention, _ = ops.program().operations[1:]
    heads = {"kv_heads": 1, "head_dim": 4, "v_head_dim": 4}
    assert dict(norm.parameters) == {"eps": 1e-5, "size": 4, "weight_columns": 4, "offset": 1.0}
    assert (rotate.constant, dict(rotate.parameters)) == ((1.0, 0.5), {"factor": 2.0, "position_offset": 0})
    assert dict(rope.parameters) == {"head_dim": 4, "begin": 0, "rotary_dim": 4, "interleaved": False}
    assert dict(store.parameters) == heads
    scores = {"scale": 0.5, "softcap": 30.0, "window": 7, "chunked": False}
    assert dict(attention.parameters) == heads | {"heads_per_kv": 2} | scores
    with pytest.raises(TypeError):
        norm.parameters["eps"] = 0.0  # type: ignore[index]


def test_shapes_that_do_not_fit_are_refused() -> None:
    ops = Recorder()
    h, narrow = ops.embed("embed", 10, 8), ops.embed("narrow", 10, 6)
    with pytest.raises(ValueError, match="cannot add 8 and 6"):
        ops.add(h, narrow)
    with pytest.raises(ValueError, match="cannot multiply 8 and 6"):
        ops.multiply(h, narrow)
    with pytest.raises(ValueError, match="cannot gate 8 and 6"):
        ops.gated_clamped(h, narrow, limit=7.0)
    with pytest.raises(ValueError, match="gated_clamped: -1 is not a positive limit"):
        ops.gated_clamped(h, h, limit=-1)
    with pytest.raises(ValueError, match="no columns 3 to 9 of 8"):
        ops.slice(h, 3, 9)
    with pytest.raises(ValueError, match="softcap: 0 is not a positive limit"):
        ops.softcap(h, 0)
    with pytest.raises(ValueError, match="one row for each token of the batch"):
        ops.scale_by_position(ops.select(h), beta=0.1, period=7)
    with pytest.raises(ValueError, match="period of 0"):
        ops.scale_by_position(h, beta=0.1, period=0)
    with pytest.raises(ValueError, match="cannot gate 8 and 6"):
        ops.gated(h, narrow, "silu")
    with pytest.raises(ValueError, match="parts of 3"):
        ops.rms_norm(h, "norm", 1e-6, size=3)
    with pytest.raises(ValueError, match=r"norm: a weight of \(2, 3\) fits neither 4 nor 8"):
        ops.layer_norm(h, "norm", 1e-6, size=4, weight_shape=(2, 3))
    with pytest.raises(ValueError, match="neither weight nor bias"):
        ops.layer_norm(h, None, 1e-6, bias=True)
    with pytest.raises(ValueError, match="heads of 6"):
        ops.rope(h, ops.rotation((1.0, 0.5, 0.25)))
    with pytest.raises(ValueError, match="head of 4 columns has no 6"):
        ops.rope(h, ops.rotation((1.0, 0.5, 0.25)), head_dim=4)
    with pytest.raises(ValueError, match="heads do not fit"):
        ops.attention(h, ops.store_kv(narrow, narrow, head_dim=2), scale=1.0)
    with pytest.raises(ValueError, match="heads do not fit"):
        ops.store_kv(h, narrow, head_dim=2)
    with pytest.raises(ValueError, match="heads do not fit"):
        ops.store_kv(ops.select(h), ops.select(h), head_dim=2)
    with pytest.raises(ValueError, match="heads do not fit"):
        ops.attention(ops.select(h), ops.store_kv(h, h, head_dim=2), scale=1.0)
    with pytest.raises(ValueError, match=r"embed\.weight is used as \(10, 8\) and as \(11, 8\)"):
        ops.linear(h, "embed", 11)
    with pytest.raises(ValueError, match=r"unknown activation 'mish'"):
        ops.gated(h, h, "mish")
    with pytest.raises(ValueError, match=r"unknown activation 'mish'"):
        ops.activate(h, "mish")


def test_short_convolutions_are_those_that_there_are_kernels_for() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    assert ops.short_conv(h, "conv", 4, columns=(2, 8), bias=True).columns == 6
    assert ops._tensors["conv.weight"] == TensorSpec("conv.weight", (6, 1, 4), "channels")
    assert ops._tensors["conv.bias"] == TensorSpec("conv.bias", (6,), "bias")
    for taps in (1, 9):
        with pytest.raises(ValueError, match=f"conv: a short convolution has 2 to 8 taps, not {taps}"):
            ops.short_conv(h, "conv", taps)
    for x, columns in [(h, (2, 9)), (ops.select(h), (0, 8))]:
        with pytest.raises(ValueError, match=f"conv: there are no columns {columns[0]} to {columns[1]} of 8"):
            ops.short_conv(x, "conv", 4, columns=columns)


def test_a_scan_has_a_step_for_each_channel() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    bc = ops.linear(h, "bc", 6)
    assert ops.selective_scan(h, h, bc, "scan").columns == 8
    assert ops._tensors["scan.A_log"] == TensorSpec("scan.A_log", (8, 3), "channels")
    assert ops._tensors["scan.D"] == TensorSpec("scan.D", (8,), "bias")
    for x, dt, wrong in [(h, bc, bc), (h, h, ops.linear(h, "odd", 5)), (h, h, ops.linear(h, "wide", 514))]:
        with pytest.raises(ValueError, match="scan: 8 channels do not fit steps"):
            ops.selective_scan(x, dt, wrong, "scan")


def test_a_recurrence_has_gates_for_each_channel() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    assert ops.rg_lru(h, h, h, "lru").columns == 8
    assert ops._tensors["lru.recurrent_param"] == TensorSpec("lru.recurrent_param", (8,), "bias")
    with pytest.raises(ValueError, match="lru: gates of 6 and 8 for 8"):
        ops.rg_lru(h, ops.linear(h, "narrow", 6), h, "lru")


def test_rows_of_all_tokens_and_of_wanted_tokens_do_not_mix() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    with pytest.raises(ValueError, match="add: only some of the inputs are selected"):
        ops.add(h, ops.select(h))


def test_a_cache_is_no_value() -> None:
    ops = Recorder()
    h = ops.embed("embed", 10, 8)
    cache = ops.store_kv(h, h, head_dim=4)
    with pytest.raises(ValueError, match="rope: x is a cache"):
        ops._record("rope", (cache, h), 8, head_dim=8)
    with pytest.raises(ValueError, match="attention: cache is a value"):
        ops._record("attention", (h, h), 8)
