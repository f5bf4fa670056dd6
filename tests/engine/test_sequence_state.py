"""States of recurrent layers: same bits however a text was cut, shared, taken back or computed anew."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from quantkit.engine.model import Model
from recurrent_model import STATE_BYTES, recurrent_model

TOKENS = [int(x) for x in np.random.default_rng(3).integers(4, tiny.VOCAB_SIZE, 83)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def model(request: pytest.FixtureRequest) -> Model:
    return recurrent_model(request.param)


def test_states_have_one_size(model: Model) -> None:
    assert model.state_bytes == STATE_BYTES
    with model.new_sequence() as sequence:
        assert sequence.nbytes == 0
        for count in (1, 80):
            model.forward([(sequence, TOKENS[:count])])
            assert sequence.nbytes == model.cache_shape.nbytes(sequence.length) + model.state_bytes


def test_same_bits_in_any_chunks_and_in_company(model: Model) -> None:
    whole = model(TOKENS)
    others = [model.new_sequence() for _ in range(3)]
    with model.new_sequence() as sequence:
        done = 0
        for count in (1, 1, 2, 33, 40, 1, 5):
            batch = [(other, TOKENS[: 1 + place]) for place, other in enumerate(others)]
            batch.insert(done % 4, (sequence, TOKENS[done : done + count]))
            rows = model.forward(batch, every=True, chunk=7)
            before = sum(len(ids) for _, ids in batch[: done % 4])
            assert rows[before : before + count].tobytes() == whole[done : done + count].tobytes()
            done += count


@pytest.mark.parametrize("keep", [None, 0, 1, 20, 64, 82, 83])
@pytest.mark.parametrize("length", [0, 1, 20, 22, 63, 64, 83])
def test_tokens_that_were_taken_back_leave_no_trace(model: Model, keep: int | None, length: int) -> None:
    expected = model([*TOKENS, 5])
    with model.new_sequence() as sequence:
        if keep is not None:
            sequence.keep_state(keep)
        for _ in range(2):
            if sequence.length < length:
                model.forward([(sequence, TOKENS[sequence.length : length])])
            model.forward([(sequence, TOKENS[::-1])])
            sequence.truncate(length)
            assert sequence.length == length
            nearest = keep if keep is not None and keep <= length else 0
            assert sequence.behind == length - nearest
            rest = [*TOKENS[length:], 5]
            assert model.forward([(sequence, rest)], every=True, chunk=50).tobytes() == expected[length:].tobytes()
            assert sequence.behind == 0
            sequence.truncate(length)


def test_a_state_is_kept_in_place_of_the_one_before(model: Model) -> None:
    expected = model(TOKENS)
    with model.new_sequence() as sequence:
        model.forward([(sequence, TOKENS[:10])])
        behind = 0
        for right in (0, 3, 1, 4, 4, 2, 0, 3):  # of four drafted tokens
            begin = sequence.length
            draft = TOKENS[begin + 1 : begin + 1 + right] + [7] * (4 - right)
            sequence.keep_state(begin + 1)
            assert sequence.behind == behind
            rows = model.forward([(sequence, [TOKENS[begin], *draft])], every=True)
            assert rows[: right + 1].tobytes() == expected[begin : begin + right + 1].tobytes()
            sequence.truncate(begin + 1 + right)
            behind = right if right < 4 else 0
        assert sequence.nbytes == model.cache_shape.nbytes(40) + 2 * model.state_bytes


def test_a_state_is_not_kept_where_a_text_has_been(model: Model) -> None:
    with model.new_sequence() as sequence:
        model.forward([(sequence, TOKENS[:9])])
        with pytest.raises(ValueError, match="of 9 tokens is past 8"):
            sequence.keep_state(8)


def test_memory_of_a_closed_sequence_is_used_again_and_leaves_no_trace(model: Model) -> None:
    expected = model(TOKENS[:20]).tobytes()
    with model.new_sequence() as sequence:
        sequence.keep_state(3)
        model.forward([(sequence, TOKENS[::-1])])
    with model.new_sequence() as sequence:
        for _ in range(2):
            assert model.forward([(sequence, TOKENS[:20])], every=True).tobytes() == expected
            sequence.close()
