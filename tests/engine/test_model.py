"""The engine: equal to the float64 reference, and to itself, bit for bit, however the work is cut."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import reference
import tiny
from memory_source import MemorySource
from quantkit import formats
from quantkit.engine.model import Model
from quantkit.errors import GenerationError, OptionError
from quantkit.models import registry
from quantkit.models.program import Program
from quantkit.models.recorder import Recorder
from quantkit.quantization.encode import quantize
from quantkit.tensor import Tensor

RECIPES = {
    "int4": {"embedding": "int8", "linear": "int4", "head": "int8"},
    "int5": {"embedding": "int5", "linear": "int5", "head": "int5"},
    "int6": {"embedding": "int6", "linear": "int6", "head": "int6"},
    "int8": {"embedding": "int4", "linear": "int8", "head": "int4"},
    "float": {},
}
TOKENS = [int(x) for x in np.random.default_rng(3).integers(4, tiny.VOCAB_SIZE, 83)]


Case = tuple[Program, MemorySource]
Sources = dict[tuple[str, str], Case]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Two architectures, one with awkward sizes, in every recipe -> {(family, recipe): (program, source)}."""
    made: Sources = {}
    awkward = {"hidden_size": 72, "intermediate_size": 100, "head_dim": 18}
    cases: dict[str, dict[str, Any]] = {"llama": awkward, "gemma3_text": {}}
    for family, overrides in cases.items():
        folder = tiny.checkpoint(tmp_path_factory.mktemp(family), family, dtype="BF16", **overrides)
        checkpoint = formats.open(folder)
        program = registry.read(checkpoint.config).record()
        for recipe, kinds in RECIPES.items():
            tensors = {
                name: quantize(checkpoint.tensor(name), kinds.get(spec.role, "f32"))[0]
                for name, spec in program.tensors.items()
            }
            made[family, recipe] = program, MemorySource(tensors, checkpoint.config)
    return made


@pytest.fixture(params=[("llama", recipe) for recipe in RECIPES] + [("gemma3_text", "int4")], ids="-".join)
def case(request: pytest.FixtureRequest, sources: Sources) -> Case:
    return sources[request.param]


def make(case: Case, threads: int = 2, **options: Any) -> Model:
    program, source = case
    return Model(program, source, context_length=256, threads=threads, **options)


def test_logits_are_those_of_the_reference(case: Case) -> None:
    program, source = case
    expected = reference.logits(program, source, TOKENS, quantize_activations=True)
    packed = any(tensor.kind.startswith("int") for tensor in source.tensors.values())
    # Where activations are rounded to int8, one that falls to the other side of a half moves the logits a little.
    tolerance = 0.05 if packed else 1e-4
    difference = np.abs(make(case, kv_kind="f32")(TOKENS) - expected)
    assert difference.max() <= tolerance * max(1.0, np.abs(expected).max())
    assert difference.mean() <= tolerance / 5 * max(1.0, np.abs(expected).max())


def recorded(attentions: Iterable[tuple[int, int, int]]) -> Case:
    """A program of attention layers -> (program, source); `attentions` are (heads, kv_heads, head_dim)."""
    ops = Recorder()
    x = ops.embed("embed", tiny.VOCAB_SIZE, 48)
    for number, (heads, kv_heads, head_dim) in enumerate(attentions):
        sizes = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        q, k, v = (ops.linear(x, f"{number}.{name}", size) for name, size in sizes.items())
        seen = ops.attention(q, ops.store_kv(k, v, head_dim=head_dim), scale=head_dim**-0.5)
        x = ops.add(x, ops.linear(seen, f"{number}.o", 48))
    ops.linear(ops.select(x), "head", tiny.VOCAB_SIZE)
    program = ops.program()
    tensors = {name: Tensor("f32", spec.shape, tiny.weight(name, spec.shape)) for name, spec in program.tensors.items()}
    return program, MemorySource(tensors)


@pytest.mark.parametrize("kv_kind", ["f32", "int16", "int8"])
@pytest.mark.parametrize(
    "attentions",
    [
        [(4, 2, 16), (6, 1, 40), (4, 4, 8)],
        [(2, 1, 40), (8, 4, 16)],
        [(2, 2, 8), (2, 2, 96)],
        [],
    ],
    ids=str,
)
def test_layers_may_differ_in_heads_and_head_sizes(attentions: list[tuple[int, int, int]], kv_kind: str) -> None:
    program, source = recorded(attentions)
    model = make((program, source), kv_kind=kv_kind)
    logits = model(TOKENS)
    expected = reference.logits(program, source, TOKENS)
    assert np.abs(logits - expected).max() <= KV_ERROR[kv_kind] * np.abs(expected).max()
    with model.new_sequence() as sequence:
        steps = [model.forward([(sequence, [token])]) for token in TOKENS]
    assert np.concatenate(steps).tobytes() == logits.tobytes()


KV_ERROR = {"f32": 1e-5, "int16": 2e-3, "int8": 0.05}


@pytest.mark.parametrize("kv_kind", ["f32", "int16", "int8"])
@pytest.mark.parametrize("name", ["1.k.weight", "1.v.weight"])
def test_a_cache_holds_numbers_of_any_size(kv_kind: str, name: str) -> None:
    program, source = recorded([(4, 2, 16), (4, 2, 16)])
    weight, norm = source.tensors[name], np.float32(2**20)
    source.tensors[name] = Tensor("f32", weight.shape, weight.data * norm)
    if name == "1.k.weight":  # scores stay as they are
        query = source.tensors["1.q.weight"]
        source.tensors["1.q.weight"] = Tensor("f32", query.shape, query.data / norm)
    expected = reference.logits(program, source, TOKENS)
    logits = make((program, source), kv_kind=kv_kind)(TOKENS)
    assert np.abs(logits - expected).max() <= KV_ERROR[kv_kind] * np.abs(expected).max()


def test_same_bits_for_any_number_of_threads(case: Case) -> None:
    one, *others = (make(case, threads)(TOKENS).tobytes() for threads in (1, 2, 3))
    assert others == [one, one]


def test_same_bits_for_any_chunks(case: Case) -> None:
    model = make(case)
    whole = model(TOKENS)
    for chunk in (1, 7, 64):
        with model.new_sequence() as sequence:
            assert model.forward([(sequence, TOKENS)], every=True, chunk=chunk).tobytes() == whole.tobytes()
    with model.new_sequence() as sequence:
        parts = [model.forward([(sequence, TOKENS[:50])], every=True)]
        parts += [model.forward([(sequence, [token])]) for token in TOKENS[50:]]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_same_bits_in_company(case: Case) -> None:
    model = make(case)
    alone = model(TOKENS)
    texts = [TOKENS[::-1], TOKENS, TOKENS[5:70]]
    sequences = [model.new_sequence() for _ in texts]
    # Different lengths before, together in one batch after: prompt pieces and single tokens mixed.
    model.forward([(sequences[1], TOKENS[:30])])
    model.forward([(sequences[0], texts[0][:3]), (sequences[2], texts[2][:64])])
    rest = [(sequences[0], texts[0][3:]), (sequences[1], TOKENS[30:]), (sequences[2], texts[2][64:])]
    logits = model.forward(rest, every=True)
    start = len(rest[0][1])
    assert logits[start : start + len(TOKENS) - 30].tobytes() == alone[30:].tobytes()
    last = model.forward([(sequence, [TOKENS[0]]) for sequence in sequences])
    with model.new_sequence() as sequence:
        assert last[1].tobytes() == model.forward([(sequence, [*TOKENS, TOKENS[0]])])[0].tobytes()


@pytest.mark.parametrize("length", [0, 1, 20, 63, 64, 65, 83])
def test_tokens_that_were_taken_back_leave_no_trace(case: Case, length: int) -> None:
    model = make(case)
    expected = model(TOKENS)
    with model.new_sequence() as sequence:
        model.forward([(sequence, [*TOKENS[:length], *TOKENS[::-1]])])
        sequence.truncate(length)
        assert sequence.length == length
        if length < len(TOKENS):
            assert model.forward([(sequence, TOKENS[length:])], every=True).tobytes() == expected[length:].tobytes()
        last = model.forward([(sequence, TOKENS[:1])])
    with model.new_sequence() as sequence:
        assert model.forward([(sequence, [*TOKENS, TOKENS[0]])]).tobytes() == last.tobytes()


def test_a_sequence_is_not_cut_beyond_its_ends(sources: Sources) -> None:
    with make(sources["llama", "int4"]).new_sequence() as sequence:
        for length in (-1, 1):
            with pytest.raises(ValueError, match=f"0 tokens cannot be cut to {length}"):
                sequence.truncate(length)


def test_memory_of_a_closed_sequence_is_used_again_and_leaves_no_trace(sources: Sources) -> None:
    model = make(sources["llama", "int4"])
    first = model(TOKENS)
    model(TOKENS[::-1])
    assert model(TOKENS).tobytes() == first.tobytes()


def test_concurrent_callers_wait_for_each_other(sources: Sources) -> None:
    model = make(sources["llama", "int4"])
    alone = model(TOKENS).tobytes()
    results = [b""] * 4

    def call(number: int) -> None:
        results[number] = model(TOKENS).tobytes()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * 4


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "empty"),
        ([0, tiny.VOCAB_SIZE], "320 is outside the vocabulary of 320"),
        ([-1], "-1 is outside"),
        ([0.5], "whole numbers"),
        ([[1]], "whole numbers"),
        ([1, 2**70], "1180591620717411303424 is outside"),
        ([1] * 248, "257 tokens do not fit the context of 256"),
    ],
)
def test_bad_tokens_are_refused_and_change_nothing(sources: Sources, tokens: list[Any], message: str) -> None:
    model = make(sources["llama", "int4"])
    with model.new_sequence() as sequence:
        model.forward([(sequence, TOKENS[:9])])
        with pytest.raises(GenerationError, match=message):
            model.forward([(model.new_sequence(), [1]), (sequence, tokens)])
        assert sequence.length == 9
        after = model.forward([(sequence, TOKENS[9:])], every=True)
    assert after.tobytes() == model(TOKENS)[9:].tobytes()


def test_logits_stay_as_long_as_they_are_held(sources: Sources) -> None:
    model = make(sources["llama", "int4"])
    with model.new_sequence() as sequence:
        rows = [model.forward([(sequence, [token])])[0] for token in TOKENS]
    assert np.array(rows).tobytes() == model(TOKENS).tobytes()


@pytest.mark.parametrize("given", [tuple, np.array, lambda tokens: np.array(tokens, np.uint16), iter], ids=range(4))
def test_tokens_of_any_kind_of_sequence(sources: Sources, given: Callable[[list[int]], Any]) -> None:
    model = make(sources["llama", "int4"])
    assert model(given(TOKENS)).tobytes() == model(TOKENS).tobytes()


def test_a_sequence_stands_in_a_batch_once(sources: Sources) -> None:
    model = make(sources["llama", "int4"])
    sequence = model.new_sequence()
    with pytest.raises(GenerationError, match="twice"):
        model.forward([(sequence, [1]), (sequence, [2])])


def test_a_context_has_no_more_positions_than_the_model_learned() -> None:
    ops = Recorder()
    x = ops.add(ops.embed("embed", 16, 8), ops.embed_positions("positions", 10, 8, offset=2))
    ops.linear(ops.select(x), "head", 16)
    program = ops.program()
    tensors = {name: Tensor("f32", spec.shape, tiny.weight(name, spec.shape)) for name, spec in program.tensors.items()}
    source = MemorySource(tensors)
    with pytest.raises(OptionError, match="context: 11 is more than the 10 positions that the model has learned"):
        Model(program, source, context_length=11, threads=1)
    model = Model(program, source, context_length=10, threads=1)
    assert model.bytes_per_token == tensors["head.weight"].nbytes
    expected = reference.logits(program, source, range(10))
    np.testing.assert_allclose(model(range(10)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"threads": 0}, {"kv_kind": "int3"}], ids=["threads", "kv_kind"])
def test_unknown_options_are_refused(sources: Sources, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options)).split("_")[0]):
        make(sources["llama", "int4"], **options)


def test_threads_end_with_their_model(sources: Sources) -> None:
    gc.collect()
    before = threading.active_count()
    model = make(sources["llama", "int4"], threads=3)
    model([1])
    assert threading.active_count() == before + 2
    del model
    gc.collect()
    assert threading.active_count() == before


def test_step_times_cover_every_step_and_change_no_bit(case: Case) -> None:
    program, source = case
    model = Model(program, source, context_length=128, threads=2)
    try:
        expected = model(TOKENS)
        with model.time_steps() as times:
            assert np.array_equal(model(TOKENS), expected)
            once = times.copy()
            model(TOKENS)
        model(TOKENS)
    finally:
        model.close()
    assert times.shape == (2, len(model.plan.steps) + 1, 2)
    assert (once >= 0).all()
    fused_with_last = [False, *(step.fused > 1 for step in model.plan.steps)]
    assert ((once[..., 1].sum(axis=0) > 0)[:-1] != fused_with_last[:-1]).all()
    assert (once[:, -1, 1] == 0).all()
    assert times.sum() > once.sum()


def test_a_sequence_of_another_model_is_refused(sources: Sources) -> None:
    one, other = make(sources["llama", "int8"]), make(sources["llama", "int8"])
    stranger: Any = object()
    with other.new_sequence() as sequence, pytest.raises(GenerationError, match="no sequence of this model"):
        one.forward([(sequence, [5])])
    with pytest.raises(GenerationError, match="no sequence of this model"):
        one.forward([(stranger, [5])])


def test_a_closed_model_says_so(sources: Sources) -> None:
    model = make(sources["llama", "int8"])
    sequence = model.new_sequence()
    model.close()
    model.close()
    with pytest.raises(GenerationError, match="the model is closed"):
        model.forward([(sequence, [5])])


def test_a_model_is_closed_behind_a_with_statement(sources: Sources) -> None:
    with make(sources["llama", "int8"]) as model:
        model([5])
    with pytest.raises(GenerationError, match="the model is closed"):
        model([5])


def test_many_threads_share_a_model_and_its_sequences(sources: Sources) -> None:
    """Each thread has a text of its own; one sequence is used by all of them at once."""
    model = make(sources["llama", "int8"])
    expected = model(TOKENS[:20])
    shared = model.new_sequence()
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not np.array_equal(model(TOKENS[:20]), expected):
                wrong.append(number)
            model.forward([(shared, [number + 1])])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert shared.length == 6 * 20


def test_pages_are_never_handed_out_twice(sources: Sources) -> None:
    """Sequences of many threads grow and close at the same time; each keeps its own tokens."""
    model = make(sources["llama", "int8"])
    texts = [[number + 1] * 130 for number in range(4)]
    expected = [model(text)[-1] for text in texts]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            with model.new_sequence() as sequence:
                for begin in range(0, 130, 65):
                    logits = model.forward([(sequence, texts[number][begin : begin + 65])])
            if not np.array_equal(logits[0], expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
