"""Models read a text window by window, and each scored token is measured: losses, likeliest tokens, divergences.

All models read a window before the next one; memory is bounded by a few rows of logits, whatever the text and the
number of models. `estimates.py` makes figures of the numbers, `quality.py` says which models are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import GenerationError, OptionError
from quantkit.evaluation.estimates import Values

if TYPE_CHECKING:
    from quantkit.engine.model import Model

Logits = NDArray[np.float32]

BLOCK_TOKENS = 64
"""Predictions whose logits are in memory at once, of a model and of those that it is compared with."""


class Pair(NamedTuple):
    """A model and what it is compared with, by their places among the models that read; the reference comes first."""

    reference: int
    model: int


@dataclass(frozen=True)
class Scores:
    """The numbers of each scored token.

    Attributes
    ----------
    windows, context : int
    pairs : sequence of Pair
    losses : ndarray
        float64 `[models, tokens]`: negative log-likelihoods, in nats.
    tops : ndarray
        int64 `[models, tokens]`: the likeliest tokens.
    kl : ndarray
        float64 `[pairs, tokens]`: KL(reference ‖ model), in nats.
    """

    windows: int
    context: int
    pairs: Sequence[Pair]
    losses: Values
    tops: NDArray[np.int64]
    kl: Values


def score(
    models: Sequence[Model],
    pairs: Sequence[Pair],
    tokens: Sequence[int],
    context: int = 512,
    chunks: int | None = None,
    *,
    bos_token_id: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Scores:
    """Read a text with several models, each window once, and compare pairs of them.

    Parameters
    ----------
    models : sequence of Model
    pairs : sequence of Pair
        Which models to compare. Logits of a reference are kept, one block of them, until its last model has read the
        block: a reference that all are compared with comes first.
    tokens, context, chunks, bos_token_id
        As `quantkit.perplexity` takes them; it says what is raised, too.
    progress : callable, optional
        As of `quantkit.perplexity`, for the last model.
    """
    _check(models, pairs, context, chunks)
    windows = len(tokens) // context if chunks in (None, -1) else min(len(tokens) // context, chunks)
    if windows == 0:
        raise GenerationError(f"the text has {len(tokens)} tokens; a window of {context} needs at least as many")
    found: list[Scores] = []
    loss = 0.0
    count = max(model.threads for model in models)
    with ThreadPoolExecutor(count) as pool:
        threads = _Threads(pool, count)
        for window in range(windows):
            text = list(tokens[window * context : (window + 1) * context])
            if bos_token_id is not None:
                text[0] = bos_token_id
            found.append(_read(models, pairs, text, threads))
            loss += float(found[-1].losses[-1].mean())
            if progress is not None:
                progress(window + 1, windows, float(np.exp(loss / (window + 1))))
    return _joined(found)


def _check(models: Sequence[Model], pairs: Sequence[Pair], context: int, chunks: int | None) -> None:
    longest = min(model.context_length for model in models)
    if not 8 <= context <= longest:
        raise OptionError(f"context is {context}; expected 8 to {longest}, the most that the model holds")
    if chunks is not None and chunks < 1 and chunks != -1:
        raise OptionError(f"chunks is {chunks}; expected a number from 1 up, or -1 for all")
    for pair in pairs:
        size, reference = models[pair.model].vocab_size, models[pair.reference].vocab_size
        if size != reference:
            vocabularies = f"a vocabulary of {size} tokens and its reference one of {reference}"
            raise OptionError(f"a model has {vocabularies}: they cannot be compared")


def _joined(parts: Sequence[Scores]) -> Scores:
    """Scores of parts of the text, which follow each other, as one."""
    arrays = ([getattr(part, name) for part in parts] for name in ("losses", "tops", "kl"))
    windows = sum(part.windows for part in parts)
    return Scores(windows, parts[0].context, parts[0].pairs, *(np.concatenate(rows, axis=1) for rows in arrays))


class _Threads(NamedTuple):
    """Threads that share rows of logits; kernels run at once, without Python's lock."""

    pool: ThreadPoolExecutor
    workers: int

    def map(self, function: Callable[..., float], *columns: Sequence[Any] | NDArray[Any]) -> Values:
        """Return what a function makes of the first of each column, of the second, and so on."""
        rows = len(columns[0])
        step = -(-rows // self.workers)

        def share(begin: int) -> list[float]:
            return list(map(function, *(column[begin : begin + step] for column in columns)))

        return np.concatenate(list(self.pool.map(share, range(0, rows, step))))


def _read(models: Sequence[Model], pairs: Sequence[Pair], text: list[int], threads: _Threads) -> Scores:
    """Read one window with each model."""
    first, end = len(text) // 2, len(text) - 1
    blocks = []
    with ExitStack() as stack:
        sequences = [stack.enter_context(closing(model.new_sequence())) for model in models]
        for model, sequence in zip(models, sequences, strict=True):
            model.forward([(sequence, text[:first])])
        for start in range(first, end, BLOCK_TOKENS):
            stop = min(start + BLOCK_TOKENS, end)
            block = _Block(text[start + 1 : stop + 1], threads)
            for place, (model, sequence) in enumerate(zip(models, sequences, strict=True)):
                block.measure(place, model.forward([(sequence, text[start:stop])], every=True), pairs)
            blocks.append(block.scores(len(text), pairs))
    scores = _joined(blocks)
    if not (np.isfinite(scores.losses).all() and np.isfinite(scores.kl).all()):
        raise GenerationError("a model computed logits that are not finite: its weights are broken")
    return replace(scores, windows=1)


class _Summary(NamedTuple):
    """Of a model's rows of logits: logarithms of the sums of exponentials, losses, likeliest tokens."""

    log_sums: Values
    losses: Values
    tops: NDArray[np.int64]


class _Block:
    """Some predictions of a window: the logits of references, and what was measured of each model and pair."""

    def __init__(self, targets: Sequence[int], threads: _Threads) -> None:
        self._targets, self._threads = targets, threads
        self._logits: dict[int, Logits] = {}
        self._summaries: list[_Summary] = []
        self._kl: dict[Pair, Values] = {}

    def measure(self, place: int, logits: Logits, pairs: Sequence[Pair]) -> None:
        """Take the logits of the next model, f32 `[targets, vocab_size]`, and compare them where a pair asks for it."""
        from quantkit_kernels.rows.logits import kl_divergence, log_sum_exp

        log_sums = self._threads.map(log_sum_exp, logits)
        losses = log_sums - logits[np.arange(len(logits)), self._targets]
        self._summaries.append(_Summary(log_sums, losses, logits.argmax(axis=1)))
        self._logits[place] = logits
        for pair in pairs:
            if pair.model == place:
                rows = self._logits[pair.reference], logits, self._summaries[pair.reference].log_sums, log_sums
                self._kl[pair] = self._threads.map(kl_divergence, *rows)
        waited_for = {pair.reference for pair in pairs if pair.model > place}
        self._logits = {kept: rows for kept, rows in self._logits.items() if kept in waited_for}

    def scores(self, context: int, pairs: Sequence[Pair]) -> Scores:
        """Return what was measured, of no whole window."""
        kl = np.array([self._kl[pair] for pair in pairs]).reshape(len(pairs), len(self._targets))
        losses, tops = (np.array(rows) for rows in list(zip(*self._summaries, strict=True))[1:])
        return Scores(0, context, pairs, losses, tops, kl)
