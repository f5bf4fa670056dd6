"""Windows are read once by each model; any models are compared; no more logits are kept than that needs."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from bigram import BigramModel
from quantkit.evaluation.scores import Pair, score

VOCAB_SIZE = 40
TEXT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 1_050).tolist()


def random_model(seed: int) -> BigramModel:
    table = np.random.default_rng(seed).normal(size=(VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)
    return BigramModel(table, 512)


def log_softmax(model: BigramModel) -> Any:
    wide = model.table.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def test_losses_tops_and_divergences_of_any_pairs() -> None:
    models = [random_model(seed) for seed in range(4)]
    pairs = [Pair(0, 1), Pair(0, 2), Pair(2, 3), Pair(0, 3)]
    scores = score(models, pairs, TEXT, 64, 5)
    assert [len(model.sequences) for model in models] == [5] * 4
    windows = [TEXT[start : start + 64] for start in range(0, 320, 64)]
    last = [token for window in windows for token in window[32:63]]
    targets = [token for window in windows for token in window[33:]]
    rows = [log_softmax(model)[last] for model in models]
    np.testing.assert_allclose(scores.losses, [-each[np.arange(len(last)), targets] for each in rows], rtol=1e-5)
    np.testing.assert_array_equal(scores.tops, [each.argmax(1) for each in rows])
    expected = [(np.exp(rows[p]) * (rows[p] - rows[q])).sum(1) for p, q in pairs]
    np.testing.assert_allclose(scores.kl, expected, rtol=1e-5, atol=1e-7)
    assert (scores.windows, scores.context, scores.pairs) == (5, 64, pairs)


def test_no_more_logits_are_kept_than_pairs_need(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def forward(self: BigramModel, *args: Any, **options: Any) -> Any:
        nonlocal most
        logits = plain(self, *args, **options)
        alive.append(weakref.ref(logits))
        if options:
            most = max(most, sum(logits() is not None for logits in alive))
        return logits

    plain = BigramModel.forward
    monkeypatch.setattr(BigramModel, "forward", forward)
    score([random_model(seed) for seed in range(9)], [Pair(0, model) for model in range(1, 9)], TEXT, 256, 2)
    assert most == 2
