"""Tokens that passes choose are those that the same sampler chooses from the logits, however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from memory_source import MemorySource
from quantkit.engine.model import Model
from quantkit.errors import GenerationError
from quantkit.models.recorder import Recorder
from quantkit.tensor import Tensor
from quantkit_kernels.rows.choice import BLOCK, NO_TOKEN, Chooser

GREEDY = (1.0, 1.0, 0.0, 1)
FILTERS = [GREEDY, (0.8, 1.0, 0.0, 0), (0.8, 0.9, 0.0, 0), (0.8, 0.95, 0.05, 40)]
LAST = 5
"""A token whose embedding tests change."""


def model_of(columns: int, threads: int = 2, softcap: float = 0.0, last: float = 1.0) -> Model:
    """A model whose logits depend on the last token alone: `columns` of them."""
    ops = Recorder()
    logits = ops.linear(ops.select(ops.embed("embed", tiny.VOCAB_SIZE, 32)), "head", columns)
    if softcap:
        ops.softcap(logits, softcap)
    random = np.random.default_rng(columns)
    embedding = random.standard_normal((tiny.VOCAB_SIZE, 32)).astype(np.float32)
    embedding[LAST] *= np.float32(last)
    head = np.round(random.standard_normal((columns, 32))).astype(np.float32)  # some rows are equal
    tensors = {
        "embed.weight": Tensor("f32", embedding.shape, embedding, None),
        "head.weight": Tensor("f32", head.shape, head, None),
    }
    return Model(ops.program(), MemorySource(tensors, {}), context_length=64, threads=threads)


def chosen(
    model: Model, filters: tuple[float, float, float, int], texts: list[list[int]]
) -> tuple[list[int], NDArray[np.float32]]:
    """What one pass chooses for each of some texts, and their logits."""
    sequences = [model.new_sequence() for _ in texts]
    choosers = [Chooser(*filters) for _ in texts]
    for number, (sequence, chooser) in enumerate(zip(sequences, choosers, strict=True)):
        sequence.choice = chooser
        chooser.uniform[0] = number / len(texts)
    logits = model.forward(list(zip(sequences, texts, strict=True)))
    return [chooser.token[0] for chooser in choosers], logits


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("columns", [1, 7, BLOCK, 3 * BLOCK + 5, 40 * BLOCK])
def test_a_pass_chooses_as_its_caller_would(columns: int, filters: tuple[float, float, float, int]) -> None:
    texts = [[3], [LAST, 4], [6, 7, 8], [9]]
    found = []
    for threads in (1, 2, 3):
        with_choice = model_of(columns, threads)
        tokens, logits = chosen(with_choice, filters, texts)
        assert tokens == [Chooser(*filters)(row, place / len(texts)) for place, row in enumerate(logits)]
        found.append(tokens)
        with_choice.close()
    assert found[0] == found[1] == found[2]


def test_the_choice_is_of_what_a_program_ends_with() -> None:
    model = model_of(300, softcap=0.01)
    tokens, logits = chosen(model, GREEDY, [[3], [4]])
    assert np.abs(logits).max() <= 0.01
    assert tokens == logits.argmax(axis=1).tolist()


def test_only_sequences_that_ask_get_a_token_and_by_their_last_one() -> None:
    model, chooser = model_of(300), Chooser(*GREEDY)
    asking, silent = model.new_sequence(), model.new_sequence()
    asking.choice = chooser
    logits = model.forward([(silent, [1, 2]), (asking, [3, 4, 6]), (model.new_sequence(), [8])], every=True)
    assert chooser.token[0] == int(logits[4].argmax())
    chooser.token[0] = NO_TOKEN
    model.forward([(silent, [1])])
    assert chooser.token[0] == NO_TOKEN
    asking.choice = None
    model.forward([(asking, [1])])
    assert chooser.token[0] == NO_TOKEN


def test_a_long_prompt_gets_its_token_in_the_last_pass() -> None:
    model, chooser = model_of(300), Chooser(*GREEDY)
    sequence = model.new_sequence()
    sequence.choice = chooser
    logits = model.forward([(sequence, list(range(10)))], chunk=3)
    assert chooser.token[0] == int(logits[0].argmax())


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nothing_is_chosen_from_logits_that_are_not_finite(wrong: float) -> None:
    tokens, logits = chosen(model_of(300, last=wrong), GREEDY, [[3], [LAST], [4]])
    assert tokens == [int(logits[0].argmax()), NO_TOKEN, int(logits[2].argmax())]


def test_a_chooser_may_go_from_one_vocabulary_to_another() -> None:
    chooser = Chooser(0.8, 0.95, 0.0, 0)
    for columns in (40, 700, 300):
        model = model_of(columns)
        sequence = model.new_sequence()
        sequence.choice = chooser
        chooser.uniform[0] = 0.7
        logits = model.forward([(sequence, [3])])
        assert chooser.token[0] == Chooser(0.8, 0.95, 0.0, 0)(logits[0], 0.7)


def test_sequences_that_share_a_choice_are_refused() -> None:
    model, chooser = model_of(40), Chooser(*GREEDY)
    sequences = [model.new_sequence(), model.new_sequence(), model.new_sequence()]
    for sequence in sequences[1:]:
        sequence.choice = chooser
    with pytest.raises(GenerationError, match="have the same choice"):
        model.forward([(sequence, [3]) for sequence in sequences])
    assert [sequence.length for sequence in sequences] == [0, 0, 0]
    model.forward([(sequence, [3]) for sequence in sequences[:2]])
