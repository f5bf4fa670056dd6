"""How well a model predicts a text, and how far it is from a reference: perplexity and Kullback-Leibler divergence.

Defined as llama.cpp's `llama-perplexity` defines them, so the numbers can be put side by side: the text is cut into
windows of `context` tokens, each is read from its beginning, and the predictions in its second half are scored. Memory
is bounded by a few rows of logits. Nothing here knows files, tokenizers or how a model computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import GenerationError, OptionError

if TYPE_CHECKING:
    from quantkit.engine.model import Model

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
"""Which quantiles of the divergences are reported."""

BLOCK_TOKENS = 64
"""Predictions whose logits are in memory at once, per model."""


@dataclass(frozen=True)
class Estimate:
    """A mean over the scored tokens, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from those of a reference.

    Attributes
    ----------
    reference_perplexity : Estimate
        Perplexity of the reference on the same tokens.
    perplexity_ratio : Estimate
        Perplexity of the model over that of the reference; the error takes their correlation into account.
    mean_kl : Estimate
        Mean over the tokens of KL(reference ‖ model), in nats.
    kl_quantiles : dict of float to float
        Quantile (of `QUANTILES`) -> divergence in nats.
    kl_max : float
        Greatest divergence of a token, in nats.
    same_top : Estimate
        Share of the tokens for which both think the same one likeliest, 0 to 1.
    """

    reference_perplexity: Estimate
    perplexity_ratio: Estimate
    mean_kl: Estimate
    kl_quantiles: dict[float, float]
    kl_max: float
    same_top: Estimate


@dataclass(frozen=True)
class Evaluation:
    """Result of `perplexity`.

    Attributes
    ----------
    perplexity : Estimate
        exp(mean negative log-likelihood); its error is that of the mean times the perplexity.
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
    models = [model] if reference is None else [model, reference]
    _check(models, context, chunks)
    windows = len(tokens) // context if chunks in (None, -1) else min(len(tokens) // context, chunks)
    if windows == 0:
        raise GenerationError(f"the text has {len(tokens)} tokens; a window of {context} needs at least as many")
    measured: list[NDArray[np.float64]] = []
    loss = 0.0
    for window in range(windows):
        text = list(tokens[window * context : (window + 1) * context])
        if bos_token_id is not None:
            text[0] = bos_token_id
        measured.append(_read(models, text))
        loss += float(measured[-1][:, 0].mean())
        if progress is not None:
            progress(window + 1, windows, float(np.exp(loss / (window + 1))))
    losses, *compared = np.concatenate(measured).T
    return Evaluation(
        perplexity=_exp(_mean(losses)),
        tokens=losses.size,
        windows=windows,
        context=context,
        divergence=_divergence(losses, *compared) if reference is not None else None,
    )


def _check(models: Sequence[Model], context: int, chunks: int | None) -> None:
    longest = min(model.context_length for model in models)
    if not 8 <= context <= longest:
        raise OptionError(f"context is {context}; expected 8 to {longest}, the most that the model holds")
    if chunks is not None and chunks < 1 and chunks != -1:
        raise OptionError(f"chunks is {chunks}; expected a number from 1 up, or -1 for all")
    if len({model.vocab_size for model in models}) > 1:
        sizes = " and ".join(str(model.vocab_size) for model in models)
        raise OptionError(f"the model and the reference have vocabularies of {sizes} tokens: they cannot be compared")


def _read(models: Sequence[Model], text: list[int]) -> NDArray[np.float64]:
    """Read one window with each model -> float64 `[scored tokens, 1 or 4]`, columns as `_measure` returns them."""
    first, end = len(text) // 2, len(text) - 1
    measured = []
    with ExitStack() as stack:
        sequences = [stack.enter_context(closing(model.new_sequence())) for model in models]
        for model, sequence in zip(models, sequences, strict=True):
            model.forward([(sequence, text[:first])])
        for start in range(first, end, BLOCK_TOKENS):
            block = text[start : min(start + BLOCK_TOKENS, end)]
            logits = [
                model.forward([(sequence, block)], every=True)
                for model, sequence in zip(models, sequences, strict=True)
            ]
            targets = text[start + 1 : start + 1 + len(block)]
            measured += [_measure(rows, target) for *rows, target in zip(*logits, targets, strict=True)]
    table = np.array(measured)
    if not np.isfinite(table).all():
        raise GenerationError("the model computed logits that are not finite: its weights are broken")
    return table


def _measure(logits: Sequence[NDArray[np.float32]], target: int) -> tuple[float, ...]:
    """Loss of one prediction; with a reference also its loss, KL(reference ‖ model), and whether both agree."""
    logprobs, *others = [_log_softmax(row) for row in logits]
    loss = -float(logprobs[target])
    if not others:
        return (loss,)
    reference = others[0]
    kl = float((np.exp(reference) * (reference - logprobs)).sum())  # not @: BLAS threads would fight the engine's
    return loss, -float(reference[target]), kl, float(logprobs.argmax() == reference.argmax())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(np.exp(shifted).sum())


def _divergence(
    losses: NDArray[np.float64],
    reference_losses: NDArray[np.float64],
    kl: NDArray[np.float64],
    same_top: NDArray[np.float64],
) -> Divergence:
    return Divergence(
        reference_perplexity=_exp(_mean(reference_losses)),
        perplexity_ratio=_exp(_mean(losses - reference_losses)),
        mean_kl=_mean(kl),
        kl_quantiles=dict(zip(QUANTILES, np.quantile(kl, QUANTILES).tolist(), strict=True)),
        kl_max=float(kl.max()),
        same_top=_mean(same_top),
    )


def _mean(values: NDArray[np.float64]) -> Estimate:
    """Mean of the values, and its standard error: the square root of (their variance / (n - 1))."""
    return Estimate(float(values.mean()), math.sqrt(values.var() / (values.size - 1)))


def _exp(estimate: Estimate) -> Estimate:
    value = float(np.exp(estimate.value))
    return Estimate(value, value * estimate.error)
