"""The figures of a classifier: by hand, against torchmetrics, and over unequal batches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from lighter_freezers.experiments.evaluation.mode_figures import TokenFigures

IGNORED = -1
NUM_CLASSES = 4


def sure_of(classes: list[list[int]]) -> Tensor:
    """Logits that give one class a probability of a half: (B, T, 3)."""
    chances = F.one_hot(torch.tensor(classes), 3) * 0.25 + 0.25
    return chances.log()


def random_batch(num_rows: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and targets of which a fifth does not count; class 3 hardly ever comes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, 6, NUM_CLASSES, generator=generator)
    targets = torch.randint(-1, NUM_CLASSES, (num_rows, 6), generator=generator)
    return logits, {"targets": targets}


def figures_of(logits: Tensor, batch: dict[str, Tensor], **options: Any) -> dict[str, float]:
    figures = TokenFigures(logits.shape[-1], IGNORED, **options)
    figures.update(logits, batch)
    return {name: float(value) for name, value in figures.compute().items()}


def test_they_are_those_worked_out_by_hand() -> None:
    """Six targets, four of them met: 2 of 3, 1 of 2 and 1 of 1; classes 1 and 2 are named in vain once."""
    targets = torch.tensor([[0, 0, 0, 1], [1, 2, IGNORED, IGNORED]])
    found = figures_of(sure_of([[0, 0, 1, 1], [2, 2, 0, 1]]), {"targets": targets})

    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1/0"] == pytest.approx(2 * 2 / (3 + 2))
    assert found["f1/1"] == pytest.approx(2 * 1 / (2 + 2))
    assert found["f1/2"] == pytest.approx(2 * 1 / (1 + 2))
    assert found["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert found["loss"] == pytest.approx((4 * math.log(2) + 2 * math.log(4)) / 6)


def test_they_are_those_of_torchmetrics() -> None:
    """Accuracy and F1 of random predictions, a fifth of them without a target."""
    logits, batch = random_batch()
    found = figures_of(logits, batch)
    flat = logits.flatten(0, 1).argmax(-1), batch["targets"].flatten()
    options = {"num_classes": NUM_CLASSES, "ignore_index": IGNORED}

    assert found["accuracy"] == pytest.approx(float(multiclass_accuracy(*flat, average="micro", **options)))
    assert found["macro_f1"] == pytest.approx(float(multiclass_f1_score(*flat, average="macro", **options)))
    one_by_one = multiclass_f1_score(*flat, average="none", **options)
    assert [found[f"f1/{index}"] for index in range(NUM_CLASSES)] == pytest.approx(one_by_one.tolist())


def test_a_class_that_nobody_saw_has_no_part_in_the_mean() -> None:
    """Its own F1 is 0; the mean is over the two that occur or are predicted."""
    found = figures_of(sure_of([[0, 0, 1]]), {"targets": torch.tensor([[0, 0, 0]])})

    assert found["f1/2"] == 0
    assert found["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)


@pytest.mark.parametrize("weights", [None, "balanced", (1.0, 2.0, 0.5, 4.0)])
def test_the_loss_is_the_weighted_mean_over_all_positions(weights: Any) -> None:
    """Torch's, with the class weights of the model; `balanced` from the counts of the whole data set."""
    logits, batch = random_batch()
    flat, targets = logits.flatten(0, 1), batch["targets"].flatten()
    if weights == "balanced":
        counts = torch.bincount(targets[targets >= 0], minlength=NUM_CLASSES)
        by_hand = counts.sum() / (NUM_CLASSES * counts)
    else:
        by_hand = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(flat, targets, by_hand, ignore_index=IGNORED)

    assert figures_of(logits, batch, class_weights=weights)["loss"] == pytest.approx(float(expected))


@pytest.mark.parametrize("weights", [None, "balanced", (1.0, 2.0, 0.5, 4.0)])
def test_unequal_batches_count_by_their_positions(weights: Any) -> None:
    """Seven rows and one row are as eight rows at once, the balanced loss too."""
    logits, batch = random_batch()
    parts = TokenFigures(NUM_CLASSES, IGNORED, weights)
    for rows in (slice(0, 7), slice(7, 8)):
        parts.update(logits[rows], {"targets": batch["targets"][rows]})

    found = {name: float(value) for name, value in parts.compute().items()}
    assert found == pytest.approx(figures_of(logits, batch, class_weights=weights))


def test_one_hot_soft_targets_are_as_hard_ones() -> None:
    """Rows of zeros do not count."""
    logits, batch = random_batch()
    is_valid = batch["targets"] != IGNORED
    soft = F.one_hot(batch["targets"].clamp(min=0), NUM_CLASSES).float() * is_valid[:, :, None]

    assert figures_of(logits, {"targets": soft}) == pytest.approx(figures_of(logits, batch))


def test_the_loss_of_soft_targets_is_that_of_torch() -> None:
    """Torch takes probabilities too; a target counts as its largest class."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, NUM_CLASSES, generator=generator)
    soft = torch.randn(2, 3, NUM_CLASSES, generator=generator).softmax(-1)
    found = figures_of(logits, {"targets": soft})
    expected = F.cross_entropy(logits.flatten(0, 1), soft.flatten(0, 1))

    assert found["loss"] == pytest.approx(float(expected))
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == soft.argmax(-1)).float().mean()))


@pytest.mark.parametrize("is_soft", [False, True])
def test_padding_does_not_count(is_soft: bool) -> None:
    """Whatever its targets are, the mask says that it is padding."""
    logits, batch = random_batch(2)
    targets = batch["targets"].clamp(min=0)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    known = targets.masked_fill(~mask, IGNORED)
    given = F.one_hot(targets, NUM_CLASSES).float() if is_soft else targets

    expected = figures_of(logits, {"targets": known})
    assert figures_of(logits, {"targets": given, "attention_mask": mask}) == pytest.approx(expected)


def test_no_target_at_all_gives_zeros() -> None:
    """As the model's own loss does, and no NaN."""
    found = figures_of(sure_of([[0, 1]]), {"targets": torch.tensor([[IGNORED, IGNORED]])})

    assert set(found.values()) == {0.0}


def test_an_ignored_class_can_still_be_predicted_in_vain() -> None:
    """With ignore_index 0 its targets do not count, and to predict it elsewhere is an error all the same."""
    figures = TokenFigures(3, ignore_index=0)
    figures.update(sure_of([[0, 0, 1]]), {"targets": torch.tensor([[0, 1, 1]])})
    found = {name: float(value) for name, value in figures.compute().items()}

    assert found["accuracy"] == pytest.approx(1 / 2)
    assert found["f1/0"] == 0
    assert found["macro_f1"] == pytest.approx((0 + 2 / 3) / 2)


def test_it_can_be_reset_in_inference_mode() -> None:
    """`trainer.validate` runs in it, and a fit with the same module comes after."""
    logits, batch = random_batch()
    figures = TokenFigures(NUM_CLASSES, IGNORED)
    with torch.inference_mode():
        figures.update(logits, batch)
        figures.reset()
    figures.update(logits, batch)

    found = {name: float(value) for name, value in figures.compute().items()}
    assert found == pytest.approx(figures_of(logits, batch))
