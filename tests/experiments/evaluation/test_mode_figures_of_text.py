"""The figures of a text: right where they can be worked out by hand, and over unequal batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lighter_freezers.experiments.evaluation.mode_figures import TextLikelihood

IGNORED = -1


def likelihood_of(logits: Tensor, targets: list[list[int]], num_bytes: list[int]) -> TextLikelihood:
    """The figures of one batch."""
    likelihood = TextLikelihood(IGNORED)
    likelihood.update(logits, {"targets": torch.tensor(targets), "num_bytes": torch.tensor(num_bytes)})
    return likelihood


def test_a_uniform_guess_costs_the_bits_of_its_choices() -> None:
    """Four tokens cost two bits each: six of them over eight bytes of text are 1.5 bits per byte."""
    figures = likelihood_of(torch.zeros(2, 3, 4), [[0, 1, 2], [3, 0, 1]], [3, 5]).compute()

    assert figures["loss"].item() == pytest.approx(math.log(4))
    assert figures["perplexity"].item() == pytest.approx(4)
    assert figures["bits_per_byte"].item() == pytest.approx(6 * 2 / 8)


def test_a_batch_without_its_bytes_has_no_bits_per_byte() -> None:
    """Loss and perplexity are those of all batches; bits over a part of the bytes would be wrong."""
    likelihood = likelihood_of(torch.zeros(2, 3, 4), [[0, 1, 2], [3, 0, 1]], [3, 5])
    likelihood.update(torch.zeros(1, 3, 4), {"targets": torch.tensor([[0, 1, 2]])})
    figures = likelihood.compute()

    assert set(figures) == {"loss", "perplexity"}
    assert figures["perplexity"].item() == pytest.approx(4)


def test_a_surer_guess_costs_fewer_bits() -> None:
    """Three quarters and one quarter: log2(4/3) and 2 bits, over two bytes."""
    logits = torch.tensor([[[3.0, 1.0], [3.0, 1.0]]]).log()
    figures = likelihood_of(logits, [[0, 1]], [2]).compute()

    assert figures["bits_per_byte"].item() == pytest.approx((math.log2(4 / 3) + 2) / 2)


def test_unequal_batches_count_by_their_tokens() -> None:
    """Seven rows and one row are as eight rows at once; a mean of batch means would not be."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 5, 11, generator=generator)
    batch = {
        "targets": torch.randint(11, (8, 5), generator=generator),
        "num_bytes": torch.randint(5, 20, (8,), generator=generator),
    }
    whole, parts = TextLikelihood(IGNORED), TextLikelihood(IGNORED)
    whole.update(logits, batch)
    for rows in (slice(0, 7), slice(7, 8)):
        parts.update(logits[rows], {key: value[rows] for key, value in batch.items()})

    for name, figure in whole.compute().items():
        assert parts.compute()[name].item() == pytest.approx(figure.item(), rel=1e-6)


@pytest.mark.parametrize("is_masked", [False, True])
def test_targets_without_a_loss_are_not_counted(is_masked: bool) -> None:
    """Neither their nats nor their number, whether by the target or by the padding mask."""
    logits = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6)[None].clone()
    batch = {"targets": targets, "num_bytes": torch.tensor([2])}
    if is_masked:
        batch["attention_mask"] = torch.arange(6)[None] < 2
    else:
        targets[:, 2:] = IGNORED
    likelihood = TextLikelihood(IGNORED)
    likelihood.update(logits, batch)

    expected = F.cross_entropy(logits[0, :2], targets[0, :2])
    assert likelihood.compute()["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    """A sum of thousands of nats in bfloat16 would stop growing at 256."""
    likelihood = likelihood_of(torch.zeros(8, 128, 16, dtype=torch.bfloat16), [[0] * 128] * 8, [128] * 8)

    assert likelihood.compute()["bits_per_byte"].item() == pytest.approx(4, rel=1e-4)


def test_it_can_be_reset_in_inference_mode() -> None:
    """`trainer.validate` runs in it, and a fit with the same module comes after."""
    likelihood = TextLikelihood(IGNORED)
    batch = {"targets": torch.tensor([[0, 1]]), "num_bytes": torch.tensor([2])}
    with torch.inference_mode():
        likelihood.update(torch.zeros(1, 2, 4), batch)
        likelihood.reset()
    likelihood.update(torch.zeros(1, 2, 4), batch)

    assert likelihood.compute()["bits_per_byte"].item() == pytest.approx(2)
