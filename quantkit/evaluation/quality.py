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
from quantkit.evaluation.estimates import Divergence, Estimate, Values
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
    models, pairs = ([model], []) if reference is None else ([reference, model], [Pair(0, 1)])
    scores = score(models, pairs, tokens, context, chunks, bos_token_id=bos_token_id, progress=progress)
    return evaluations(scores)[0]


def evaluations(scores: Scores) -> list[Evaluation]:
    """Return the figures of each pair's model, or of each model where there are no pairs."""
    if not scores.pairs:
        return [_evaluation(scores, losses) for losses in scores.losses]
    return [
        _evaluation(scores, scores.losses[pair.model], _divergence(scores, pair, kl))
        for pair, kl in zip(scores.pairs, scores.kl, strict=True)
    ]


def _evaluation(scores: Scores, losses: Values, divergence: Divergence | None = None) -> Evaluation:
    return Evaluation(estimates.perplexity(losses), losses.size, scores.windows, scores.context, divergence)


def _divergence(scores: Scores, pair: Pair, kl: Values) -> Divergence:
    same_top = (scores.tops[pair.model] == scores.tops[pair.reference]).astype(np.float64)
    return Divergence.of(scores.losses[pair.model], scores.losses[pair.reference], kl, same_top)
