"""A model small enough to know by heart: the next token depends on the last alone. It has the engine's interface."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.kv_cache import Sequence
from quantkit.engine.model import PASS_TOKENS, Model
from quantkit.errors import GenerationError


class BigramSequence(Sequence):
    """Counts its tokens as a KV cache would, and knows whether it was closed; it has no pages."""

    def __init__(self) -> None:
        self.state = None
        self.tokens: list[int] = []
        self.closed = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        assert length <= self.length
        del self.tokens[length:]

    def keep_state(self, length: int) -> None:
        assert length >= self.length

    def close(self) -> None:
        self.closed = True


class BigramModel(Model):
    """Stands in for the engine's model; it has no program, no weights and no threads.

    Parameters
    ----------
    table : ndarray
        float32 `[vocab_size, vocab_size]`: row t holds the logits after token t.
    context_length : int
        As of the engine's model.
    """

    def __init__(self, table: NDArray[np.float32], context_length: int = 64) -> None:
        self.table = np.asarray(table, np.float32)
        self.context_length = context_length
        self.threads = 2
        self.sequences: list[BigramSequence] = []
        self.most_rows = 0

    @classmethod
    def of(cls, following: Mapping[int, int], vocab_size: int, context_length: int = 64) -> BigramModel:
        """A model that follows a chain of tokens: `following[t]` has logit 1 after t, all others 0."""
        table = np.zeros((vocab_size, vocab_size), np.float32)
        for token, successor in following.items():
            table[token, successor] = 1
        return cls(table, context_length)

    @property
    def vocab_size(self) -> int:
        return int(self.table.shape[1])

    def new_sequence(self) -> BigramSequence:
        self.sequences.append(BigramSequence())
        return self.sequences[-1]

    def forward(
        self, batch: Batch[tuple[Sequence, Batch[int]]], *, every: bool = False, chunk: int = PASS_TOKENS
    ) -> NDArray[np.float32]:
        rows: list[int] = []
        for sequence, tokens in batch:
            assert isinstance(sequence, BigramSequence)
            assert not sequence.closed
            sequence.tokens += tokens
            if sequence.length > self.context_length:
                raise GenerationError("beyond the context")
            rows += tokens if every else tokens[-1:]
        self.most_rows = max(self.most_rows, len(rows))
        return self.table[rows]
