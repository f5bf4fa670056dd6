"""How likely texts are to go on in given ways: log-likelihoods of many continuations, several texts in a pass.

What a multiple choice asks of a model. Texts that begin alike are read one after the other, and the beginning once.
Tokens alone are known here; tasks and their texts are those of whoever asks, such as `quantkit.lm_eval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import GenerationError

if TYPE_CHECKING:
    from quantkit.engine.kv_cache import Sequence as Text
    from quantkit.engine.model import Model

ROWS = 64
"""Predictions whose logits are in memory at once."""
TOKENS = 1 << 14
"""Tokens of all texts that are in memory at once, unless one text has more."""


class Continuation(NamedTuple):
    """Tokens of a text, and those that may follow."""

    context: Sequence[int]
    tokens: Sequence[int]


class Likelihood(NamedTuple):
    """The sum of the log-probabilities of a continuation's tokens, and whether each is the likeliest."""

    log_likelihood: float
    greedy: bool


def log_likelihoods(
    model: Model,
    continuations: Sequence[Continuation],
    *,
    batch: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Likelihood]:
    """Return how likely each continuation is.

    Parameters
    ----------
    model : Model
    continuations : sequence of Continuation
        Contexts have at least one token. What the model cannot hold is cut from their beginning.
    batch : int
        Most texts that are read together; fewer where they have more than `TOKENS` tokens. No result depends on it.
    progress : callable
        Told how many continuations were finished since it was last called.

    Raises
    ------
    GenerationError
        When a continuation has no context, does not fit the model, or is not finite; the first two before any is read.
    """
    found = [Likelihood(0.0, True)] * len(continuations)
    windows = [_window(each, model.context_length) for each in continuations]
    order = sorted((number for number, window in enumerate(windows) if window.targets), key=lambda n: windows[n].inputs)
    together = texts_together(batch, max((len(window.inputs) for window in windows), default=0))
    share = max(1, -(-len(order) // together))
    with ExitStack() as stack:
        readers = [
            _Reader(stack.enter_context(model.new_sequence()), order[begin : begin + share])
            for begin in range(0, len(order), share)
        ]
        progress(len(found) - len(order))
        while readers := [reader for reader in readers if reader.waiting]:
            for reader in readers:
                reader.begin(windows[reader.waiting[0]])
            _read(model, readers)
            for reader in readers:
                found[reader.waiting.pop(0)] = Likelihood(reader.log_likelihood, reader.greedy)
            progress(len(readers))
    return found


def texts_together(batch: int, longest: int) -> int:
    """Return how many texts to have in memory: `batch`, or fewer where the longest is so long."""
    return min(batch, max(1, TOKENS // max(1, longest)))


class _Window(NamedTuple):
    """Tokens that are read, of which the last predict the targets."""

    inputs: list[int]
    targets: list[int]


def _window(continuation: Continuation, longest: int) -> _Window:
    context, tokens = list(continuation.context), list(continuation.tokens)
    if not context or len(tokens) > longest:
        cause = f"has {len(tokens)} tokens, the model's context holds {longest}" if context else "follows no token"
        raise GenerationError(f"a continuation {cause}")
    return _Window((context + tokens)[-longest - 1 : -1], tokens)


@dataclass
class _Reader:
    """Reads windows one after the other in one sequence, which keeps what the next one begins with as well.

    Attributes
    ----------
    waiting : list of int
        Numbers of the windows, the present one first.
    left : list of int
        Tokens of the window that are not read yet; of all from `targets` on the logits are wanted.
    """

    sequence: Text
    waiting: list[int]
    read: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    log_likelihood: float = 0.0
    greedy: bool = True

    def begin(self, window: _Window) -> None:
        """Go back to where the window differs from what was read, or to where its targets begin."""
        unscored = len(window.inputs) - len(window.targets)
        same = next(
            (n for n, (a, b) in enumerate(zip(self.read, window.inputs, strict=False)) if a != b), len(self.read)
        )
        kept = min(same, unscored)
        self.sequence.truncate(kept)
        self.sequence.keep_state(unscored)
        self.read, self.left, self.targets = window.inputs, window.inputs[kept:], list(window.targets)
        self.log_likelihood, self.greedy = 0.0, True

    def take(self, count: int) -> list[int]:
        """Return the next tokens to read."""
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def score(self, logits: NDArray[np.float32]) -> None:
        """Add the log-probabilities of the next targets; logits f32 `[count, vocab_size]`."""
        from quantkit_kernels.rows.logits import log_sum_exp

        targets, self.targets = self.targets[: len(logits)], self.targets[len(logits) :]
        for row, target in zip(logits, targets, strict=True):
            self.log_likelihood += float(row[target]) - log_sum_exp(row)
            self.greedy &= bool(row.argmax() == target)
        if not np.isfinite(self.log_likelihood):
            raise GenerationError("the model computed logits that are not finite: its weights are broken")


def _read(model: Model, readers: Sequence[_Reader]) -> None:
    """Read a window with each: first what is not scored, all together, then the rest, `ROWS` tokens in a pass."""
    unscored = [(each, each.take(len(each.left) - len(each.targets))) for each in readers]
    if batch := [(each.sequence, tokens) for each, tokens in unscored if tokens]:
        model.forward(batch)
    while any(each.left for each in readers):
        room, pieces = ROWS, []
        for each in readers:
            if tokens := each.take(room):
                pieces.append((each, tokens))
                room -= len(tokens)
        logits = model.forward([(each.sequence, tokens) for each, tokens in pieces], every=True)
        for each, tokens in pieces:
            each.score(logits[: len(tokens)])
            logits = logits[len(tokens) :]
