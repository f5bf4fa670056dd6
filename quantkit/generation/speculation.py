"""Drafts for speculative decoding from the text itself: what came after these words the last time they were there.

A draft is a guess of the next tokens; the model checks all of it in one pass, which costs little more than a pass of
one token where reading the weights is what takes the time. `stream.py` runs the passes and keeps what the sampler
would have chosen anyway, so drafts change the speed of a text and never the text. There is no second model: drafts are
copied from an earlier place with the same last tokens (prompt lookup decoding, Saxena 2023), which helps where answers
repeat their prompt (edits, summaries, quotations) or themselves.

How much to draft follows from three things that are learnt on the way: how often such copies have been right
(`Acceptance`, which also learns from guesses that were not drafted), how long passes take (`PassTimes`), and what
drafts have cost so far, beyond which none is made (`Speculation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantkit.generation.options import is_whole, require

NGRAM_SIZES = (8, 4, 2)
"""How many last tokens are looked up, longest first. Single tokens say too little about what follows."""

FIRST_RATES = (0.0, 0.3, 0.4, 0.6, 0.8, 0.8)
"""Share of guesses taken to be right before any was checked, by the bits of the number of tokens that matched."""
FIRST_GUESSES, LAST_GUESSES = 3, 12
"""What a rate weighs against the next guess: as many guesses at first, and at most."""

FIRST_COSTS = ((2, 1.3), (9, 2.3))
"""Passes of some tokens and what they take, in passes of one token, before any was timed."""
FIRST_WEIGHT = 0.25
"""What each of `FIRST_COSTS` weighs against a pass that was timed just now."""
FADING = 0.98
"""What a timed pass weighs after another one."""
SINGLE_STEP = 1 / 8
"""How far a pass of one token moves their mean."""
LONGEST_SURPRISE = 2.0
"""A pass counts as this much longer than expected at most: others use the machine too."""

WORTHWHILE = 1.05
"""A draft must promise so many tokens in the time of one."""
LOSS_ALLOWED, LOSS_SHARE = 3.0, 0.02
"""What drafts may have cost, on balance, when another is made: passes of one token, and a share of all passes."""


class NgramIndex:
    """A growing text, and the earlier place that agrees best with its end; constant time per token.

    It follows a place as long as it goes on like the text, and looks for another where the end has stood before, the
    latest such place, when that is the longer agreement.

    Attributes
    ----------
    matched : int
        Tokens before the place that are known to agree with the text's last ones; 0 when there is no such place.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._place = 0
        self._places: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in NGRAM_SIZES}
        self.matched = 0
        for token in tokens:
            self.add(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        tokens = self._tokens
        agrees = self.matched > 0 and tokens[self._place] == token
        tokens.append(token)
        self.matched, self._place = (self.matched + 1, self._place + 1) if agrees else (0, 0)
        for size, places in self._places.items():
            if len(tokens) < size:
                continue
            ngram = tuple(tokens[-size:])
            place = places.get(ngram)
            places[ngram] = len(tokens)
            if place is not None and self.matched < size:
                self.matched, self._place = size, place

    def continuation(self, count: int) -> list[int]:
        """Return what the text goes on with if it repeats that place; a place close to the end is repeated over."""
        if not self.matched:
            return []
        period = len(self._tokens) - self._place
        return [self._tokens[self._place + i % period] for i in range(count)]


class Acceptance:
    """How likely the next token of a continuation is right, by how many tokens matched before it."""

    def __init__(self) -> None:
        self._rates = list(FIRST_RATES)
        self._weights = [FIRST_GUESSES] * len(FIRST_RATES)

    def rate(self, matched: int) -> float:
        """Return the share of late guesses that were right after so many matching tokens."""
        return self._rates[self._row(matched)]

    def learn(self, matched: int, right: bool) -> None:
        """Take notice of a guess."""
        row = self._row(matched)
        self._weights[row] = min(self._weights[row] + 1, LAST_GUESSES)
        self._rates[row] += (right - self._rates[row]) / self._weights[row]

    def _row(self, matched: int) -> int:
        return min(matched.bit_length(), len(self._rates) - 1)


class PassTimes:
    """How long passes take: of one token in seconds, of more as a multiple of that, on a line through what was timed.

    Attributes
    ----------
    single : float
        Seconds of a pass of one token, a mean of the late ones; 0 before the first.
    """

    def __init__(self) -> None:
        self.single = 0.0
        self._singles = 0
        self._sums = [0.0] * 5

    def learn(self, tokens: int, seconds: float) -> None:
        """Take notice of a pass of so many tokens."""
        self._sums = [FADING * value for value in self._sums]
        if tokens == 1:
            self._singles += 1
            expected = self.single or seconds
            surprise = min(seconds, LONGEST_SURPRISE * expected) - expected
            self.single = expected + surprise * max(1 / self._singles, SINGLE_STEP)
        elif self.single:
            cost = min(seconds / self.single, LONGEST_SURPRISE * self.cost(tokens))
            self._sums = _added(self._sums, tokens, cost, 1.0)

    def cost(self, tokens: int) -> float:
        """Return how many passes of one token a pass of `tokens` takes as long as."""
        base, slope = self.line()
        return 1.0 if tokens == 1 else base + slope * tokens

    def line(self) -> tuple[float, float]:
        """Return base and slope of the cost of passes of 2 tokens and more: weighted least squares, with the first."""
        sums = self._sums
        for tokens, cost in FIRST_COSTS:
            sums = _added(sums, tokens, cost, FIRST_WEIGHT)
        weight, x, y, xx, xy = sums
        slope = max(0.0, (weight * xy - x * y) / (weight * xx - x * x))
        return (y - slope * x) / weight, slope


def _added(sums: list[float], x: float, y: float, weight: float) -> list[float]:
    return [total + weight * term for total, term in zip(sums, (1.0, x, y, x * x, x * y), strict=True)]


class Speculation:
    """What to draft next.

    Parameters
    ----------
    longest : int
        Tokens of a draft at most; 0 never drafts.

    Attributes
    ----------
    drafted : int
        Tokens drafted so far.
    longest : int
        As given.

    Raises
    ------
    OptionError
        When `longest` is no whole number from 0 up.
    """

    def __init__(self, longest: int) -> None:
        expected = "a whole number from 0 (no drafts) up: the tokens of the longest draft"
        require(is_whole(longest) and longest >= 0, "speculate", longest, expected)
        self.drafted = 0
        self.longest = longest
        self._index = NgramIndex()
        self._acceptance, self._times = Acceptance(), PassTimes()
        self._several = False  # whether the last pass was of more than one token
        self._passes, self._loss = 0.0, 0.0  # all passes, and the loss by drafts, in passes of one token

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return a guess of the next tokens, `most` at most; empty where it is not expected to save time.

        `tokens` is the text so far. It begins with what the last call was given: what came after is learnt from.
        """
        if not self.longest:
            return []
        self._read(tokens)
        length = self._best_length(min(most, self.longest))
        self.drafted += length
        return self._index.continuation(length)

    def passed(self, tokens: int, seconds: float) -> None:
        """Take notice of how long the last pass took, of `tokens` in all.

        More than one are a draft, or what a draft has cost later: a model with recurrent layers computes once more what
        was right in a draft that was not right to its end.
        """
        if not self.longest:
            return
        self._times.learn(tokens, seconds)
        self._several = tokens > 1
        if self._times.single:
            self._passes += seconds / self._times.single
            if self._several:
                self._loss += seconds / self._times.single

    def _read(self, tokens: Sequence[int]) -> None:
        index = self._index
        prompt = not len(index)
        if self._several:
            self._loss -= len(tokens) - len(index)
        for token in tokens[len(index) :]:
            if index.matched and not prompt:
                self._acceptance.learn(index.matched, index.continuation(1) == [token])
            index.add(token)

    def _best_length(self, most: int) -> int:
        """Length of draft that promises the most tokens for the time, if any is worthwhile."""
        matched = self._index.matched
        if not (matched and self._times.single and self._loss <= LOSS_ALLOWED + LOSS_SHARE * self._passes):
            return 0
        base, slope = self._times.line()
        best, best_gain = 0, WORTHWHILE
        expected = reached = 1.0
        for length in range(1, most + 1):
            reached *= self._acceptance.rate(matched + length - 1)
            expected += reached
            gain = expected / (base + slope * (length + 1))
            if gain > best_gain:
                best, best_gain = length, gain
        return best
