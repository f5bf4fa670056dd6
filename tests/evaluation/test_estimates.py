"""Figures and their errors against llama-perplexity's sums, and against repeated samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.evaluation.estimates import QUANTILES, Divergence, Estimate, Values, quantile

TOKENS = 3_000


def sample(seed: int = 0) -> tuple[Values, Values, Values, Values]:
    """Losses of a model and of its reference, which are close to each other; divergences; whether both agree."""
    random = np.random.default_rng(seed)
    reference_losses = random.exponential(2.5, TOKENS)
    losses = np.abs(reference_losses + 0.2 * random.standard_normal(TOKENS))
    return losses, reference_losses, random.exponential(0.05, TOKENS), (random.random(TOKENS) < 0.8).astype(np.float64)


class Sums:
    """What llama-perplexity keeps of two numbers of each token, in the words of its `kl_divergence`."""

    def __init__(self, a: Values, b: Values) -> None:
        self.count, self.a, self.b = len(a), float(sum(a)), float(sum(b))
        self.aa, self.ab = float(sum(a * a)), float(sum(a * b))

    def mean_and_uncertainty(self) -> tuple[float, float]:
        mean = self.a / self.count
        return mean, math.sqrt((self.aa / self.count - mean * mean) / (self.count - 1))

    def covariance(self) -> float:
        return (self.ab / self.count - self.a / self.count * self.b / self.count) / (self.count - 1)


def check(found: Estimate, value: float, error: float) -> None:
    assert (found.value, found.error) == pytest.approx((value, error), rel=1e-9)


def test_figures_are_those_of_llama_perplexity() -> None:
    losses, reference_losses, kl, same_top = sample()
    found = Divergence.of(losses, reference_losses, kl, same_top)
    log_ppl, log_error = Sums(losses, reference_losses).mean_and_uncertainty()
    log_base, base_error = Sums(reference_losses, losses).mean_and_uncertainty()
    covariance = Sums(losses, reference_losses).covariance()
    ppl, base = math.exp(log_ppl), math.exp(log_base)
    check(found.reference_perplexity, base, base * base_error)
    ratio_error = math.sqrt(log_error**2 + base_error**2 - 2 * covariance)
    check(found.log_perplexity_ratio, log_ppl - log_base, ratio_error)
    check(found.perplexity_ratio, ppl / base, ppl / base * ratio_error)
    difference_error = math.sqrt((ppl * log_error) ** 2 + (base * base_error) ** 2 - 2 * ppl * base * covariance)
    check(found.perplexity_difference, ppl - base, difference_error)
    assert found.correlation == pytest.approx(covariance / (log_error * base_error))
    check(found.mean_kl, *Sums(kl, kl).mean_and_uncertainty())

    dp = np.exp(-losses) - np.exp(-reference_losses)
    check(found.mean_dp, *Sums(dp, dp).mean_and_uncertainty())
    mean_square, error = Sums(dp * dp, dp).mean_and_uncertainty()
    check(found.rms_dp, math.sqrt(mean_square), 0.5 / math.sqrt(mean_square) * error)
    share = float(same_top.sum()) / TOKENS
    check(found.same_top, share, math.sqrt(share * (1 - share) / (TOKENS - 1)))
    assert (found.kl_min, found.kl_max) == (kl.min(), kl.max())
    assert (found.dp_min, found.dp_max) == (dp.min(), dp.max())
    assert tuple(found.kl_quantiles) == tuple(found.dp_quantiles) == QUANTILES


def test_quantiles_are_interpolated() -> None:
    values = sample()[2]
    ranked = sorted(values.tolist())
    for share in QUANTILES:
        at = share * (len(ranked) - 1)
        low, part = int(at), at - int(at)
        expected = (1 - part) * ranked[low] + part * ranked[low + 1]
        assert quantile(values, share).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_errors_of_quantiles_are_how_samples_spread(share: float) -> None:
    samples = [quantile(sample(seed)[2], share) for seed in range(200)]
    spread = np.std([each.value for each in samples])
    assert np.mean([each.error for each in samples]) == pytest.approx(spread, rel=0.2)


def test_models_that_do_not_differ() -> None:
    losses, _, kl, _ = sample()
    found = Divergence.of(losses, losses, np.zeros_like(kl), np.ones_like(kl))
    for figure in (found.mean_kl, found.rms_dp, found.mean_dp, found.log_perplexity_ratio, found.perplexity_difference):
        assert figure == Estimate(0, 0)
    assert (found.same_top, found.perplexity_ratio) == (Estimate(1, 0), Estimate(1, 0))
    assert found.correlation == pytest.approx(1)


def test_estimates_read_as_value_and_error() -> None:
    assert str(Estimate(17.64321, 0.1234)) == "17.6432 ± 0.1234"
