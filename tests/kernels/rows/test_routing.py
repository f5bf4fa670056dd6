"""Routing to experts: equal to the numpy truth; assignment tables are permutations in the order of experts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import operations, truth
from quantkit_kernels.rows import routing
from quantkit_kernels.rows.routing import Routing

TOLERANCE = 0.5


@jit(entry=True)
def route_all(logits, stride, tokens, out, experts, top_k, scoring, bias, groups, chosen_groups, normalize, factor):
    how = Routing(experts, top_k, scoring, bias, groups, chosen_groups, min(groups, 2), normalize, factor, TOLERANCE)
    for token in range(tokens):
        routing.route(logits + token * stride, out + token * stride, how)


@jit(entry=True)
def assign_all(rows, stride, tokens, experts, top_k, table):
    routing.assign(rows, stride, tokens, experts, top_k, table)


def test_places_are_those_of_the_table_of_operations() -> None:
    codes = (routing.SOFTMAX, routing.SIGMOID, routing.SOFTMAX_OF_CHOSEN, routing.SOFTMAX_OF_CLOSE)
    names = ["softmax", "sigmoid", "softmax_of_chosen", "softmax_of_close"]
    assert [operations.SCORINGS[code] for code in codes] == names


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("scoring", operations.SCORINGS)
def test_experts_and_weights_are_those_of_the_truth(scoring: str, data: st.DataObject, seed: int) -> None:
    plain = scoring == "softmax_of_close"
    groups = data.draw(st.sampled_from([1] if plain else [1, 2, 4]), "groups")
    experts = groups * data.draw(st.integers(2, 20), "experts of a group")
    chosen_groups = data.draw(st.integers(1, groups), "chosen groups")
    top_k = data.draw(st.integers(1, min(8, experts // groups * chosen_groups)), "top_k")
    normalize, factor = data.draw(st.booleans(), "normalize"), 2.5
    random = np.random.default_rng(seed)
    tokens, stride = 5, -(-max(experts, 2 * top_k) // 16) * 16
    logits = np.zeros((tokens, stride), np.float32)
    logits[:, :experts] = 4 * random.standard_normal((tokens, experts))
    bias = random.standard_normal(stride).astype(np.float32) if data.draw(st.booleans(), "bias") and not plain else None
    out = np.zeros_like(logits)
    address = 0 if bias is None else bias.ctypes.data
    code = operations.SCORINGS.index(scoring)
    route_all(
        logits.ctypes.data, 4 * stride, tokens, out.ctypes.data, experts, top_k, code, address, groups, chosen_groups,
        int(normalize), factor,
    )  # fmt: skip
    expected = truth.route(
        logits[:, :experts].astype(np.float64),
        None if bias is None else bias[:experts].astype(np.float64),
        experts=experts,
        top_k=top_k,
        scoring=scoring,
        groups=groups,
        chosen_groups=chosen_groups,
        group_best=min(groups, 2),
        normalize=normalize,
        factor=factor,
        tolerance=TOLERANCE,
    )
    assert np.array_equal(out[:, :top_k], expected[:, :top_k])
    assert not out[:, 2 * top_k :].any()  # rows of other tokens are not touched
    np.testing.assert_allclose(out[:, top_k : 2 * top_k], expected[:, top_k:], rtol=3e-6)


def test_of_equal_scores_the_first_is_chosen() -> None:
    logits, out = np.zeros(16, np.float32), np.zeros(16, np.float32)
    route_all(logits.ctypes.data, 64, 1, out.ctypes.data, 9, 3, routing.SOFTMAX, 0, 1, 1, 0, 1.0)
    assert out[:3].tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 40), experts=st.integers(1, 20), top_k=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_rows_are_sorted_by_expert_and_each_is_there_once(tokens: int, experts: int, top_k: int, seed: int) -> None:
    top_k = min(top_k, experts)
    random = np.random.default_rng(seed)
    chosen = np.array([random.permutation(experts)[:top_k] for _ in range(tokens)])
    rows = np.zeros((tokens, 16), np.float32)
    rows[:, :top_k] = chosen
    table = np.full(routing.table_bytes(experts, top_k) * tokens // 4 + 1, -1, np.int32)
    assign_all(rows.ctypes.data, 64, tokens, experts, top_k, table.ctypes.data)
    used = np.unique(chosen)
    assert table[0] == len(used)
    assert np.array_equal(table[1 : 1 + len(used)], used)
    begins = table[1 + experts : 2 + 2 * experts]
    assert np.array_equal(begins, np.searchsorted(np.sort(chosen, axis=None), np.arange(experts + 1)))
    pairs, places = np.split(table[2 + 2 * experts : 2 + 2 * experts + 2 * tokens * top_k], 2)
    assert np.array_equal(np.sort(pairs), np.arange(tokens * top_k))
    assert np.array_equal(pairs[places], np.arange(tokens * top_k))
    assert np.array_equal(chosen.reshape(-1)[pairs], np.sort(chosen, axis=None))
