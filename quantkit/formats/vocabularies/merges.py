"""SentencePiece's scores as merges: the same pieces by BPE, which the `tokenizers` library knows.

SentencePiece joins the two neighbours whose union has the highest score, the leftmost first, until no union is a piece.
BPE joins the two neighbours that stand first in a list. The list that says the same has every way to join two pieces
to a third, in the order of the third one's score.
"""

from __future__ import annotations

from collections.abc import Sequence


def merges_of_scores(texts: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return every pair of tokens whose union is a token, the highest score first.

    Parameters
    ----------
    texts : sequence of str
        The tokens by id, each once.
    scores : sequence of float
        As many.
    """
    numbers = {text: number for number, text in enumerate(texts)}
    merges: list[tuple[str, str]] = []
    for number in sorted(range(len(texts)), key=lambda number: -scores[number]):
        text = texts[number]
        pairs = ((text[:at], text[at:]) for at in range(1, len(text)))
        found = [pair for pair in pairs if pair[0] in numbers and pair[1] in numbers]
        merges += sorted(found, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
    return merges
