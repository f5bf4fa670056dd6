"""Figures of an evaluation with their standard errors, from the numbers of each scored token.

They are those of llama.cpp's `llama-perplexity`, under the same definitions; tokens count as independent of each other.
`quality.py` reads the text and measures each token, printing is the command line's, drawing `divergence_plot.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""A number for each scored token: float64 `[tokens]`."""

QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
"""Which quantiles are reported."""


@dataclass(frozen=True)
class Estimate:
    """A figure, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from those of a reference, on the same tokens.

    Attributes
    ----------
    reference_perplexity : Estimate
        Perplexity of the reference.
    perplexity_ratio, perplexity_difference : Estimate
        Perplexity of the model over that of the reference, and less that of the reference; the errors take their
        correlation into account.
    log_perplexity_ratio : Estimate
        Mean difference of their losses, in nats.
    correlation : float
        Of the losses of both, -1 to 1.
    mean_kl : Estimate
        Mean of KL(reference ‖ model), in nats.
    kl_quantiles : dict of float to Estimate
        Quantile (of `QUANTILES`) -> divergence in nats.
    kl_min, kl_max : float
        Least and greatest divergence of a token, in nats. f32 arithmetic may make it a little less than 0.
    mean_dp, rms_dp : Estimate
        Mean, and root of the mean square, of Δp: the probability that the model gives the right token less that which
        the reference gives it, -1 to 1.
    dp_quantiles : dict of float to Estimate
        Quantile -> Δp.
    dp_min, dp_max : float
        Least and greatest Δp of a token.
    same_top : Estimate
        Share of the tokens for which both think the same one likeliest, 0 to 1.
    """

    reference_perplexity: Estimate
    perplexity_ratio: Estimate
    perplexity_difference: Estimate
    log_perplexity_ratio: Estimate
    correlation: float
    mean_kl: Estimate
    kl_quantiles: dict[float, Estimate]
    kl_min: float
    kl_max: float
    mean_dp: Estimate
    rms_dp: Estimate
    dp_quantiles: dict[float, Estimate]
    dp_min: float
    dp_max: float
    same_top: Estimate

    @classmethod
    def of(cls, losses: Values, reference_losses: Values, kl: Values, same_top: Values) -> Divergence:
        """Compute the figures from the losses of both, their divergence in nats, and whether their top tokens agree."""
        difference = losses - reference_losses
        dp = np.exp(-losses) - np.exp(-reference_losses)
        return cls(
            reference_perplexity=perplexity(reference_losses),
            perplexity_ratio=_exp(mean(difference)),
            perplexity_difference=_perplexity_difference(losses, reference_losses),
            log_perplexity_ratio=mean(difference),
            correlation=_correlation(losses, reference_losses),
            mean_kl=mean(kl),
            kl_quantiles=_quantiles(kl),
            kl_min=float(kl.min()),
            kl_max=float(kl.max()),
            mean_dp=mean(dp),
            rms_dp=_root(mean(dp * dp)),
            dp_quantiles=_quantiles(dp),
            dp_min=float(dp.min()),
            dp_max=float(dp.max()),
            same_top=mean(same_top),
        )


def mean(values: Values) -> Estimate:
    """Mean of the values; its error is the square root of (their variance / (n - 1))."""
    return Estimate(float(values.mean()), math.sqrt(values.var() / (values.size - 1)))


def perplexity(losses: Values) -> Estimate:
    """exp(mean loss); its error is that of the mean times the perplexity."""
    return _exp(mean(losses))


def _exp(estimate: Estimate) -> Estimate:
    value = math.exp(estimate.value)
    return Estimate(value, value * estimate.error)


def _root(estimate: Estimate) -> Estimate:
    value = math.sqrt(estimate.value)
    return Estimate(value, 0.5 / value * estimate.error if value else 0.0)


def _perplexity_difference(losses: Values, reference_losses: Values) -> Estimate:
    """The error is that of the mean of what both perplexities change with a token's losses."""
    value, reference = math.exp(losses.mean()), math.exp(reference_losses.mean())
    return Estimate(value - reference, mean(value * losses - reference * reference_losses).error)


def _correlation(a: Values, b: Values) -> float:
    """Pearson's; 1 where one of them is the same for all tokens."""
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread else 1.0


def _quantiles(values: Values) -> dict[float, Estimate]:
    return {share: quantile(values, share) for share in QUANTILES}


def quantile(values: Values, share: float) -> Estimate:
    """Return a quantile, interpolated between the values beside it.

    Its error is half the distance between the quantiles at one standard error of the share (Woodruff, 1952).
    """
    step = math.sqrt(share * (1 - share) / values.size)
    low, value, high = np.quantile(values, np.clip((share - step, share, share + step), 0, 1)).tolist()
    return Estimate(value, (high - low) / 2)
