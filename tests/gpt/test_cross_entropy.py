"""The means against torch's and against sums by hand, also where nothing has a target."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lighter_freezers.gpt.cross_entropy import (
    balanced_weights,
    mean_cross_entropy,
    soft_cross_entropy,
    weighted_cross_entropy,
)
from tests.gpt.networks import ignored

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.0])


def case(num_ignored: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, generator=generator).requires_grad_()
    targets = torch.randint(4, (10,), generator=generator)
    targets[:num_ignored] = ignored()
    return logits, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_that_of_torch_to_the_last_bit(dtype: torch.dtype) -> None:
    """Loss and gradients."""
    logits, targets = case()
    logits = logits.detach().to(dtype).requires_grad_()
    ours = mean_cross_entropy(logits, targets, ignored())
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = F.cross_entropy(logits, targets)

    assert torch.equal(ours, theirs)
    assert torch.equal(gradient, torch.autograd.grad(theirs, logits)[0])


def test_weights_are_those_of_torch() -> None:
    """A weighted mean, not a mean of weighted losses."""
    logits, targets = case()
    ours = weighted_cross_entropy(logits, targets, WEIGHTS, ignored())

    assert torch.allclose(ours, F.cross_entropy(logits, targets, WEIGHTS))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_one_hot_soft_targets_are_classes(weights: Tensor | None) -> None:
    """With weights and without; rows of zeros are ignored positions."""
    logits, targets = case()
    soft = F.one_hot(targets.clamp_min(0), 4).float()
    soft[:3] = 0

    assert torch.allclose(
        soft_cross_entropy(logits, soft, weights), F.cross_entropy(logits, targets, weights)
    )


def test_soft_targets_by_hand() -> None:
    """Two classes of logits ln 3 and 0 have probabilities 3/4 and 1/4."""
    logits, soft = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[0.5, 0.5]])
    expected = -0.5 * torch.tensor(0.75).log() - 0.5 * torch.tensor(0.25).log()

    assert torch.allclose(soft_cross_entropy(logits, soft, None), expected)


@pytest.mark.parametrize("ignore_index", [ignored(), 0])
@pytest.mark.parametrize("kind", ["mean", "weighted", "balanced", "soft", "soft weighted"])
def test_without_a_target_the_loss_is_zero_and_so_are_its_gradients(kind: str, ignore_index: int) -> None:
    """Not NaN: one empty batch must not end a run."""
    logits, _ = case()
    targets, soft = torch.full((10,), ignore_index), torch.zeros(10, 4)
    loss = {
        "mean": lambda: mean_cross_entropy(logits, targets, ignore_index),
        "weighted": lambda: weighted_cross_entropy(logits, targets, WEIGHTS, ignore_index),
        "balanced": lambda: weighted_cross_entropy(
            logits, targets, balanced_weights(targets, 4, ignore_index), ignore_index
        ),
        "soft": lambda: soft_cross_entropy(logits, soft, None),
        "soft weighted": lambda: soft_cross_entropy(logits, soft, WEIGHTS),
    }[kind]()
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_batch_of_classes_without_weight_has_loss_zero() -> None:
    """0 / 0 once more."""
    logits, _ = case()

    assert weighted_cross_entropy(logits, torch.full((10,), 3), WEIGHTS, ignored()).item() == 0


def test_balanced_weights_by_hand() -> None:
    """N / (K count): five of seven count; class 2 is absent."""
    targets = torch.tensor([0, 0, 0, 1, 1, ignored(), ignored()])
    expected = torch.tensor([5 / (3 * 3), 5 / (3 * 2), 0.0])
    soft = F.one_hot(targets.clamp_min(0), 3).float()
    soft[5:] = 0

    assert torch.allclose(balanced_weights(targets, 3, ignored()), expected)
    assert torch.allclose(balanced_weights(soft, 3, ignored()), expected)
