"""Stop strings: where a text ends although its tokens would go on.

Tokens that end a text are the tokenizer's; this module sees text alone, piece by piece as it is generated.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.generation.options import require


class StopStrings:
    """Cuts a growing text before the first stop string; holds back what may turn out to begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        texts = isinstance(stops, Sequence) and all(isinstance(stop, str) and stop for stop in stops)
        require(texts, "stop", stops, "a text or several, none of them empty: that would end every text at once")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Return what of the text so far is final now."""
        if self.found:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        # The one that is complete first counts, as if the text came character by character.
        spans = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        self.found = bool(spans)
        end = min(spans)[1] if spans else len(held) - self._partial(held)
        self._held = "" if self.found else held[end:]
        return held[:end]

    def finish(self) -> str:
        """Return what was held back, now that the text has ended."""
        held, self._held = self._held, ""
        return held

    def _partial(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max(map(len, self._stops)) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((size for size in ends if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
