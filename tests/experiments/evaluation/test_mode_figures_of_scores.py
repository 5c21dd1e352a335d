"""The figures of a scorer: against numpy, over unequal batches, and where nothing varies."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lighter_freezers.experiments.evaluation.mode_figures import ScoreFigures


def pairs(num_sequences: int = 40, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Targets around 0.7, and scores that go along with them."""
    generator = torch.Generator().manual_seed(0)
    targets = 0.7 + spread * torch.rand(num_sequences, generator=generator)
    scores = targets + 0.5 * spread * (torch.rand(num_sequences, generator=generator) - 0.4)
    return scores, targets


def figures_of(scores: Tensor, targets: Tensor, *sizes: int) -> dict[str, float]:
    """Those of the sequences in batches of these sizes; in one if none is given."""
    figures = ScoreFigures()
    for part, truth in zip(
        scores.split(sizes or len(scores)), targets.split(sizes or len(scores)), strict=True
    ):
        figures.update(part, {"targets": truth})
    return {name: float(value) for name, value in figures.compute().items()}


def by_hand(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """In double precision, all sequences at once."""
    guess, truth = scores.double().numpy(), targets.double().numpy()
    mse = float(((guess - truth) ** 2).mean())
    r2 = 1 - mse / float(truth.var())
    return {"loss": mse, "mse": mse, "r2": r2, "pearson": float(np.corrcoef(guess, truth)[0, 1])}


@pytest.mark.parametrize("sizes", [(), (39, 1), (1, 1, 38), (7, 11, 22)])
def test_they_are_those_of_all_sequences_at_once(sizes: tuple[int, ...]) -> None:
    """Worked out by numpy, however the sequences come in batches."""
    assert figures_of(*pairs(), *sizes) == pytest.approx(by_hand(*pairs()), rel=1e-5)


def test_a_small_spread_around_a_large_mean_is_seen() -> None:
    """A sum of squares in single precision would have lost it."""
    scores, targets = pairs(1000, spread=1e-3)

    assert figures_of(scores, targets, *[10] * 100) == pytest.approx(by_hand(scores, targets), rel=1e-2)


def test_somebody_who_says_the_mean_explains_nothing() -> None:
    """R2 is 0, and a worse predictor has less."""
    _, targets = pairs()
    mean = targets.mean().expand_as(targets)

    assert figures_of(mean, targets)["r2"] == pytest.approx(0, abs=1e-5)
    assert figures_of(1 - targets, targets)["r2"] < -1
    assert figures_of(1 - targets, targets)["pearson"] == pytest.approx(-1)


@pytest.mark.parametrize("num_sequences", [1, 5, 300])
def test_targets_that_do_not_vary_give_zero(num_sequences: int) -> None:
    """No NaN, no infinity and no warning; 0.3 has no exact mean in floating point."""
    targets = torch.full((num_sequences,), 0.3)
    scores = torch.linspace(0.1, 0.6, num_sequences)
    found = figures_of(scores, targets, *[1] * num_sequences)

    assert found["r2"] == found["pearson"] == 0
    assert found["mse"] == pytest.approx(float((scores - targets).square().mean()), rel=1e-5)


def test_scores_that_do_not_vary_have_no_correlation() -> None:
    """As a [CLS] that sees only itself gives them."""
    _, targets = pairs()

    assert figures_of(torch.full_like(targets, 0.6), targets, *[8] * 5)["pearson"] == 0


def test_without_a_sequence_they_are_zero() -> None:
    """The mean of nothing is no NaN here."""
    figures = ScoreFigures()
    figures.update(torch.zeros(0), {"targets": torch.zeros(0)})

    assert {float(value) for value in figures.compute().values()} == {0.0}


def test_half_precision_scores_are_compared_in_single_precision() -> None:
    """Whatever autocast makes of them."""
    scores, targets = pairs()
    halves = scores.bfloat16()

    assert figures_of(halves, targets) == pytest.approx(by_hand(halves.float(), targets), rel=1e-5)


def test_it_can_be_reset_in_inference_mode() -> None:
    """`trainer.validate` runs in it, and a fit with the same module comes after."""
    scores, targets = pairs()
    figures = ScoreFigures()
    with torch.inference_mode():
        figures.update(1 - scores, {"targets": targets})
        figures.reset()
    figures.update(scores, {"targets": targets})

    assert figures.compute()["mse"].item() == pytest.approx(by_hand(scores, targets)["mse"], rel=1e-5)
