"""The figures of a text: right where they can be worked out by hand, and over unequal batches."""

import math

import pytest
import torch
from torch.nn import functional as F

from lighter_freezers.evaluation.text_likelihood import TextLikelihood


def test_a_uniform_guess_costs_the_bits_of_its_choices() -> None:
    """Four tokens cost two bits each: six of them over eight bytes of text are 1.5 bits per byte."""
    likelihood = TextLikelihood()
    likelihood.update(torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, 1]]), torch.tensor([3, 5]))
    figures = likelihood.compute()

    assert figures["loss"].item() == pytest.approx(math.log(4))
    assert figures["perplexity"].item() == pytest.approx(4)
    assert figures["bits_per_byte"].item() == pytest.approx(6 * 2 / 8)


def test_a_surer_guess_costs_fewer_bits() -> None:
    """Three quarters and one quarter: log2(4/3) and 2 bits, over two bytes."""
    logits = torch.tensor([[[3.0, 1.0], [3.0, 1.0]]]).log()
    likelihood = TextLikelihood()
    likelihood.update(logits, torch.tensor([[0, 1]]), torch.tensor([2]))

    expected = (math.log2(4 / 3) + 2) / 2
    assert likelihood.compute()["bits_per_byte"].item() == pytest.approx(expected)


def test_unequal_batches_count_by_their_tokens() -> None:
    """Seven rows and one row are as eight rows at once; a mean of batch means would not be."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 5, 11, generator=generator)
    targets = torch.randint(11, (8, 5), generator=generator)
    num_bytes = torch.randint(5, 20, (8,), generator=generator)
    whole, parts = TextLikelihood(), TextLikelihood()
    whole.update(logits, targets, num_bytes)
    for rows in (slice(0, 7), slice(7, 8)):
        parts.update(logits[rows], targets[rows], num_bytes[rows])

    for name, figure in whole.compute().items():
        assert parts.compute()[name].item() == pytest.approx(figure.item(), rel=1e-6)


def test_targets_without_a_loss_are_not_counted() -> None:
    """Neither their nats nor their number: the loss is the mean over the others."""
    logits = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6)[None].clone()
    targets[:, 2:] = F.cross_entropy.__defaults__[2]
    likelihood = TextLikelihood()
    likelihood.update(logits, targets, torch.tensor([2]))

    expected = F.cross_entropy(logits[0, :2], targets[0, :2])
    assert likelihood.compute()["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    """A sum of thousands of nats in bfloat16 would stop growing at 256."""
    likelihood = TextLikelihood()
    likelihood.update(
        torch.zeros(8, 128, 16, dtype=torch.bfloat16),
        torch.zeros(8, 128, dtype=torch.long),
        torch.full((8,), 128),
    )

    assert likelihood.compute()["bits_per_byte"].item() == pytest.approx(4, rel=1e-4)


def test_it_can_be_reset_in_inference_mode() -> None:
    """`trainer.validate` runs in it, and a fit with the same module comes after."""
    likelihood = TextLikelihood()
    batch = (torch.zeros(1, 2, 4), torch.tensor([[0, 1]]), torch.tensor([2]))
    with torch.inference_mode():
        likelihood.update(*batch)
        likelihood.reset()
    likelihood.update(*batch)

    assert likelihood.compute()["bits_per_byte"].item() == pytest.approx(2)
