"""The modifiers for scores against arithmetic in plain Python floats."""

import math
from statistics import fmean, pvariance
from typing import Any

import pytest
import torch

from lighter_freezers.gpt.losses import (
    EntropyModifier,
    LossModifierPipeline,
    SequenceCorrelationModifier,
    SequenceVarianceModifier,
)

SCORES = [0.5, 0.45, 0.6, 0.55]
TARGETS = [0.1, 0.9, 0.8, 0.3]
MSE = fmean((s - t) ** 2 for s, t in zip(SCORES, TARGETS, strict=True))


def loss_of(*modifiers: Any, scores: Any = SCORES, targets: Any = TARGETS) -> float:
    pipeline = LossModifierPipeline(modifiers)
    return pipeline.score_loss(torch.tensor(scores), torch.tensor(targets)).item()


def variance_factor(scale: float = 2.0, alpha: float = 1.5) -> float:
    ratio = pvariance(TARGETS) / pvariance(SCORES)
    return 1 + (scale - 1) * (1 - math.exp(-alpha * (ratio - 1)))


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = fmean(a), fmean(b)
    covariance = fmean((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(pvariance(a) * pvariance(b))


def parabola(c: float, alpha: float) -> float:
    root = math.sqrt(alpha)
    return (alpha - 2 * root + 1) / 2 * c * c + (1 - alpha) / 2 * c + root


def test_scores_that_vary_too_little_cost_more() -> None:
    """The factor by hand, for two shapes of it."""
    assert loss_of(SequenceVarianceModifier()) == pytest.approx(MSE * variance_factor(), rel=1e-5)
    gentle = SequenceVarianceModifier(scale=5.0, alpha=0.02)
    assert loss_of(gentle) == pytest.approx(MSE * variance_factor(5.0, 0.02), rel=1e-5)
    assert gentle.get_metrics()["variance_ratio"].item() == pytest.approx(
        pvariance(TARGETS) / pvariance(SCORES), rel=1e-5
    )


def test_scores_that_vary_enough_cost_nothing_more() -> None:
    """A ratio below 1 gives factor 1."""
    assert loss_of(SequenceVarianceModifier(), scores=TARGETS, targets=SCORES) == pytest.approx(MSE)


def test_scores_that_do_not_follow_the_targets_cost_more() -> None:
    """The parabola at the correlation, by hand."""
    c = pearson(SCORES, TARGETS)
    for alpha in (4.0, 9.0):
        modifier = SequenceCorrelationModifier(alpha=alpha)
        assert loss_of(modifier) == pytest.approx(MSE * parabola(c, alpha), rel=1e-5)
        assert modifier.get_metrics()["correlation"].item() == pytest.approx(c, rel=1e-4)


@pytest.mark.parametrize(
    ("scores", "factor"), [([0.2, 0.4, 0.6], 1.0), ([0.6, 0.4, 0.2], 4.0), ([0.5] * 3, 2.0)]
)
def test_the_factor_of_correlation_has_three_fixed_points(scores: list[float], factor: float) -> None:
    """1 for c = 1, alpha for c = -1, and its root for c = 0, as for constant scores."""
    modifier = SequenceCorrelationModifier(alpha=4.0)
    loss_of(modifier, scores=scores, targets=[0.1, 0.5, 0.9])

    assert modifier.get_metrics()["factor"].item() == pytest.approx(factor, rel=1e-4)


def test_factors_multiply() -> None:
    """Both at once, in either order."""
    expected = MSE * variance_factor() * parabola(pearson(SCORES, TARGETS), 4.0)
    modifiers = [SequenceVarianceModifier(), SequenceCorrelationModifier()]

    assert loss_of(*modifiers) == pytest.approx(expected, rel=1e-5)
    assert loss_of(*reversed(modifiers)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("scores", "targets"), [([0.3], [0.7]), ([0.3, 0.6], [0.5, 0.5])])
def test_a_batch_without_variance_has_factor_one(scores: list[float], targets: list[float]) -> None:
    """One sequence, or equal targets: there is nothing to compare with, and nothing becomes NaN."""
    plain = loss_of(scores=scores, targets=targets)

    assert (
        loss_of(SequenceVarianceModifier(), SequenceCorrelationModifier(), scores=scores, targets=targets)
        == plain
    )


def test_the_gradient_is_the_factor_times_that_of_the_plain_loss() -> None:
    """The factors are constants for it."""
    scores, targets = torch.tensor(SCORES, requires_grad=True), torch.tensor(TARGETS)
    pipeline = LossModifierPipeline([SequenceVarianceModifier(), SequenceCorrelationModifier()])
    factor = variance_factor() * parabola(pearson(SCORES, TARGETS), 4.0)
    (gradient,) = torch.autograd.grad(pipeline.score_loss(scores, targets), scores)
    expected = [factor * 2 * (s - t) / 4 for s, t in zip(SCORES, TARGETS, strict=True)]

    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_low_precision_is_computed_in_float32() -> None:
    """The scores are rounded by bfloat16, the rest is not."""
    scores = torch.tensor(SCORES, dtype=torch.bfloat16)
    rounded = scores.float().tolist()
    loss = LossModifierPipeline([SequenceCorrelationModifier()]).score_loss(scores, torch.tensor(TARGETS))
    mse = fmean((s - t) ** 2 for s, t in zip(rounded, TARGETS, strict=True))

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(mse * parabola(pearson(rounded, TARGETS), 4.0), rel=1e-5)


def test_a_token_modifier_leaves_scores_alone() -> None:
    """Entropy has no meaning for them."""
    assert loss_of(EntropyModifier()) == pytest.approx(MSE)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SequenceVarianceModifier(scale=1.0), "scale must be above 1"),
        (lambda: SequenceVarianceModifier(alpha=0), "alpha must be above 0"),
        (lambda: SequenceCorrelationModifier(alpha=16), "at most 9. Got 16"),
        (lambda: SequenceCorrelationModifier(alpha=1), "above 1"),
    ],
)
def test_a_bad_argument_is_named(build: Any, message: str) -> None:
    """Before any training."""
    with pytest.raises(ValueError, match=message):
        build()


def test_the_largest_alpha_keeps_the_factor_falling() -> None:
    """Up to 9 a better correlation never costs more; at 16 it would."""

    def falls(alpha: float) -> bool:
        factors = [parabola(c / 100, alpha) for c in range(-100, 101)]
        return factors == sorted(factors, reverse=True)

    assert falls(4.0)
    assert falls(9.0)
    assert not falls(16.0)
