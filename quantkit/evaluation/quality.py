"""How well models predict a text, and how far they are from a reference: perplexity and Kullback-Leibler divergence.

Defined as llama.cpp's `llama-perplexity` defines them, so the numbers can be put side by side: the text is cut into
windows of `context` tokens, each is read from its beginning, and the predictions in its second half are scored
(`scores.py`). Nothing here knows files, tokenizers or how a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantkit.evaluation import estimates
from quantkit.evaluation.estimates import Divergence, Estimate
from quantkit.evaluation.scores import Pair, Scores, score

if TYPE_CHECKING:
    from quantkit.engine.model import Model


@dataclass(frozen=True)
class Evaluation:
    """What `perplexity` finds for a model.

    Attributes
    ----------
    perplexity : Estimate
        exp(mean negative log-likelihood).
    tokens : int
        Tokens scored.
    windows, context : int
        Windows read, and tokens in each.
    divergence : Divergence or None
        Comparison with the reference, when there was one.
    """

    perplexity: Estimate
    tokens: int
    windows: int
    context: int
    divergence: Divergence | None = None


def perplexity(
    model: Model,
    tokens: Sequence[int],
    context: int = 512,
    chunks: int | None = None,
    *,
    bos_token_id: int | None = None,
    reference: Model | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Evaluation:
    """Measure how well a model predicts a text, as llama.cpp's `llama-perplexity` does.

    Parameters
    ----------
    model : Model
        The model to measure.
    tokens : sequence of int
        The whole text's tokens; what is left after the last full window is ignored. llama-perplexity reads the spelling
        of a special token as ordinary text: so does `tokenizer.encode(text, split_special_tokens=True)`.
    context : int
        Tokens of a window, 8 or more. Its first `context // 2` predictions are not scored, and nor is the last.
    chunks : int, optional
        Windows to read; None or -1 reads all.
    bos_token_id : int, optional
        Replaces the first token of each window. Give it if and only if the tokenizer puts it before every text.
    reference : Model, optional
        Read the same windows with this model as well, and compare.
    progress : callable, optional
        Called after each window with (windows done, windows in all, perplexity so far).

    Raises
    ------
    GenerationError
        When the text is shorter than a window.
    OptionError
        When `context` is too small or more than a model holds, `chunks` makes no sense, or the vocabularies differ.

    References
    ----------
    llama.cpp, `tools/perplexity`: log-likelihoods, standard errors and the statistics of `--kl-divergence`.
    """
    return compare([model], tokens, context, chunks, bos_token_id=bos_token_id, reference=reference, progress=progress)[
        0
    ]


def compare(
    models: Sequence[Model],
    tokens: Sequence[int],
    context: int = 512,
    chunks: int | None = None,
    *,
    bos_token_id: int | None = None,
    reference: Model | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Evaluation]:
    """Measure several models as `perplexity` does; they take turns with each window, the reference reads it once.

    `progress` is told the perplexity of the last model.
    """
    first = 0 if reference is None else 1
    everyone = [*models] if reference is None else [reference, *models]
    pairs = [Pair(0, place) for place in range(1, len(everyone))] if first else []
    scores = score(everyone, pairs, tokens, context, chunks, bos_token_id=bos_token_id, progress=progress)
    found = [divergence(scores, number) for number in range(len(pairs))]
    return [evaluation(scores, place, *found[place - first :][:1]) for place in range(first, len(everyone))]


def evaluation(scores: Scores, model: int, found: Divergence | None = None) -> Evaluation:
    """Return the figures of the model of some place, and its divergence if that was found."""
    losses = scores.losses[model]
    return Evaluation(estimates.perplexity(losses), losses.size, scores.windows, scores.context, found)


def divergence(scores: Scores, number: int) -> Divergence:
    """Return the figures of the pair of some number."""
    reference, model = scores.pairs[number]
    same_top = (scores.tops[model] == scores.tops[reference]).astype(np.float64)
    return Divergence.of(scores.losses[model], scores.losses[reference], scores.kl[number], same_top)
