"""From logits to a token: samplers, and the penalties that come before them.

A sampler is any callable `logits -> token`, a logits processor any callable `(tokens, logits) -> logits`; the ones made
here follow llama.cpp's definitions and order: penalties, top-k, top-p, min-p, temperature. What a row of logits must be
read for is in `quantkit_kernels.rows.choice`; passes can do it as well (`PassSampler`). Nothing here knows a model or a
tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import GenerationError
from quantkit.generation.options import is_number, is_whole, require

if TYPE_CHECKING:
    from quantkit_kernels.rows.choice import Chooser

Logits = NDArray[np.float32]
"""Unnormalized log-probabilities of the next token: float32 `[vocab_size]`."""

Sampler = Callable[[Logits], int]
"""Chooses a token by its logits."""

LogitsProcessor = Callable[[Sequence[int], Logits], Logits]
"""Returns new logits, given all tokens so far, the prompt's included; leaves its arguments as they are."""

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Distinct tokens, and how often each is there."""

_LEAST_TEMPERATURE = 1e-5
"""Below this a division by the temperature could overflow, and the likeliest token has all probability anyway."""

_FEW_TOKENS = 4096
"""Fewer tokens than this are counted by sorting them, more with a counter for each token of the vocabulary."""

_SPARE = 256
"""More distinct tokens than a text has, for which there is room."""

_AT_ONCE = 256
"""Random numbers that are made together; they are those that would come one by one."""


def make_sampler(
    temp: float = 0.0, top_p: float = 1.0, min_p: float = 0.0, top_k: int = 0, seed: int | None = None
) -> Sampler:
    """Make a sampler.

    Parameters
    ----------
    temp : float
        Temperature. 0 (or less than 1e-5) always takes the likeliest token, the lowest id among equals, and ignores all
        the other options.
    top_p : float
        Keep the likeliest tokens that together reach this probability (Holtzman et al., 2019), `0 < top_p <= 1`.
    min_p : float
        Drop tokens less likely than this share of the likeliest one's probability (Nguyen et al., 2024), 0 to 1.
    top_k : int
        Keep this many tokens; 0 keeps all.
    seed : int or None
        Of the random numbers. The same seed and logits give the same tokens; None takes a fresh seed. A sampler carries
        its generator along: make a new one to repeat a text.

    Returns
    -------
    callable
        `logits float32 [vocab_size] -> int`. The filters see probabilities at temperature 1, one after another in the
        order top-k, top-p, min-p; the temperature applies to what is left (as in llama.cpp). It raises
        `GenerationError` when the logits are not finite.

    Raises
    ------
    OptionError
        When a value is outside of its range.
    """
    require(is_number(temp) and temp >= 0, "temp", temp, "a number from 0 (greedy) up")
    require(is_number(top_p) and 0 < top_p <= 1, "top_p", top_p, "above 0 and at most 1 (1 keeps all tokens)")
    require(is_number(min_p) and 0 <= min_p <= 1, "min_p", min_p, "from 0 (keeps all tokens) to 1")
    require(is_whole(top_k) and top_k >= 0, "top_k", top_k, "a whole number from 0 (keeps all tokens) up")
    require(seed is None or (is_whole(seed) and seed >= 0), "seed", seed, "a whole number from 0 up, or None")
    if temp < _LEAST_TEMPERATURE:
        return _Sampler((1.0, 1.0, 0.0, 1), lambda: 0.0)
    return _Sampler((temp, top_p, min_p, top_k), _Uniforms(seed))


class _Sampler:
    """What `make_sampler` makes: a way to choose, and where its random numbers come from. Threads may share one."""

    def __init__(self, filters: tuple[float, float, float, int], number: Callable[[], float]) -> None:
        self._filters, self.number, self._lock = filters, number, Lock()
        self._choose: Chooser | None = None

    def chooser(self) -> Chooser:
        """Return what chooses in the same way, with memory of its own."""
        from quantkit_kernels.rows.choice import Chooser

        return Chooser(*self._filters)

    def __call__(self, logits: Logits) -> int:
        with self._lock:
            self._choose = self._choose or self.chooser()
            return _chosen(self._choose, logits, self.number())


class PassSampler:
    """A sampler of `make_sampler` for one sequence, whose passes choose what the sampler would have chosen.

    Attributes
    ----------
    chooser : Chooser
        The sequence's `choice`.
    """

    def __init__(self, sampler: _Sampler) -> None:
        self.chooser, self._number = sampler.chooser(), sampler.number
        self._uniform, self._token = self.chooser.uniform, self.chooser.token

    @classmethod
    def of(cls, sampler: Sampler) -> PassSampler | None:
        """Return one that chooses as a sampler does, if `make_sampler` made that."""
        return cls(sampler) if isinstance(sampler, _Sampler) else None

    def expect(self) -> Chooser:
        """Let the next pass choose; returns the `chooser`."""
        self._uniform[0], self._token[0] = self._number(), -1  # none yet
        return self.chooser

    def __call__(self, logits: Logits) -> int:
        """Return the token that the pass has chosen which made these logits; if it has not, choose one."""
        token = self._token[0]
        return token if token >= 0 else _chosen(self.chooser, logits, self._uniform[0])


def expect_choice(sampler: Sampler) -> Chooser | None:
    """Let the next pass over a sequence choose what a sampler would, if it can; returns the sequence's `choice`."""
    return sampler.expect() if isinstance(sampler, PassSampler) else None


def make_logits_processors(
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    last_n: int = -1,
) -> list[LogitsProcessor]:
    """Make the penalties for tokens that were there before.

    Parameters
    ----------
    repetition_penalty : float
        Divides positive logits of such tokens and multiplies negative ones (Keskar et al., 2019); 1 is off.
    presence_penalty : float
        Is subtracted once from such a token's logit (OpenAI's definition); 0 is off.
    frequency_penalty : float
        Is subtracted for each time that the token was there; 0 is off.
    last_n : int
        How many tokens back to look, the prompt's included (llama.cpp's `--repeat-last-n`); -1 looks at all, as
        transformers does, and 0 at none.

    Returns
    -------
    list of callable
        `(tokens, logits) -> logits`; empty when everything is off.

    Raises
    ------
    OptionError
        When a value is outside of its range.
    """
    positive = is_number(repetition_penalty) and repetition_penalty > 0
    require(positive, "repetition_penalty", repetition_penalty, "a number above 0 (1 is off)")
    require(is_number(presence_penalty), "presence_penalty", presence_penalty, "a finite number (0 is off)")
    require(is_number(frequency_penalty), "frequency_penalty", frequency_penalty, "a finite number (0 is off)")
    require(is_whole(last_n) and last_n >= -1, "last_n", last_n, "a whole number from 0 up, or -1 for all tokens")
    if last_n == 0 or (repetition_penalty, presence_penalty, frequency_penalty) == (1, 0, 0):
        return []

    count = _GrowingCounts() if last_n < 0 else lambda tokens: _counted(tokens[-last_n:])

    def penalize(tokens: Sequence[int], logits: Logits) -> Logits:
        seen, counts = count(tokens)
        scores = logits[seen]
        scores = np.where(scores > 0, scores / repetition_penalty, scores * repetition_penalty)
        penalized = logits.copy()
        penalized[seen] = scores - presence_penalty - frequency_penalty * counts
        return penalized

    return [penalize]


def log_softmax(logits: Logits) -> NDArray[np.float32]:
    """Return the natural logarithms of the probabilities, float32, same shape; the sum is taken in float64."""
    shifted = logits - logits.max()
    normalizer = np.float32(math.log(np.exp(shifted).sum(dtype=np.float64)))
    return np.asarray(shifted - normalizer, np.float32)


class _GrowingCounts:
    """Counts the tokens of a text that grows from call to call: only those that are new."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._restart([])

    def __call__(self, tokens: Sequence[int]) -> Counts:
        with self._lock:
            if list(tokens[: len(self._text)]) != self._text:
                self._restart(tokens)
            for token in tokens[len(self._text) :]:
                self._add(token)
            seen, counts = self._table[:, : len(self._places)].copy()
        return seen, counts

    def _restart(self, tokens: Sequence[int]) -> None:
        seen, counts = _counted(tokens)
        self._text = list(tokens)
        self._places = {token: place for place, token in enumerate(seen.tolist())}
        self._table = np.stack([seen, counts])

    def _add(self, token: int) -> None:
        self._text.append(token)
        place = self._places.setdefault(token, len(self._places))
        if place == self._table.shape[1]:
            self._table = np.pad(self._table, ((0, 0), (0, place + _SPARE)))
        self._table[:, place] = token, self._table[1, place] + 1


def _counted(tokens: Sequence[int]) -> Counts:
    ids = np.asarray(tokens, np.int64)
    if ids.size < _FEW_TOKENS:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids)
    seen = np.flatnonzero(counts)
    return seen, counts[seen]


class _Uniforms:
    """Random numbers from 0 up and below 1, one for each call; threads may share them."""

    def __init__(self, seed: int | None) -> None:
        self._random, self._lock = np.random.default_rng(seed), Lock()
        self._next: list[float] = []
        """The last one first."""

    def __call__(self) -> float:
        while True:
            try:
                return self._next.pop()
            except IndexError:
                with self._lock:
                    if not self._next:
                        self._next += reversed(self._random.random(_AT_ONCE).tolist())


def _chosen(choose: Chooser, logits: Logits, uniform: float) -> int:
    token = choose(logits if logits.dtype == np.float32 else logits.astype(np.float32), uniform)
    if token < 0:
        greatest = float(logits.max())
        raise GenerationError(f"the greatest logit is {greatest}: the model's weights or a logits processor are broken")
    return token
