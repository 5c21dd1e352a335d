"""What holds for every combination of modifiers: plain when off, detached, finite, and said once."""

import logging
from enum import Enum
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lighter_freezers.gpt.losses import (
    EntropyModifier,
    LossModifierPipeline,
    MaskRatioModifier,
    SequenceCorrelationModifier,
    SequenceVarianceModifier,
    TargetSmoothingModifier,
)
from lighter_freezers.gpt.losses.supervised_tokens import SupervisedTokens

IGNORED = 9
NAMES = [
    "EntropyModifier",
    "TargetSmoothingModifier",
    "MaskRatioModifier",
    "SequenceVarianceModifier",
    "SequenceCorrelationModifier",
]
TOKENS: dict[str, Any] = {"mode": "token_classifier", "ignore_index": IGNORED}


def all_modifiers() -> list[Any]:
    return [
        EntropyModifier(),
        TargetSmoothingModifier(),
        MaskRatioModifier(),
        SequenceVarianceModifier(),
        SequenceCorrelationModifier(),
    ]


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 4 sequences, 6 positions and 5 classes, and targets of which a third is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64) * 2
    targets = torch.randint(5, (4, 6), generator=generator)
    targets[torch.rand(4, 6, generator=generator) < 0.3] = IGNORED
    return logits.to(dtype), targets


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1])])
@pytest.mark.parametrize("modifiers", [[], [SequenceVarianceModifier()]])
def test_without_a_modifier_that_acts_it_is_cross_entropy(
    weights: torch.Tensor | None, modifiers: list[Any]
) -> None:
    """Bit for bit, also where every modifier is for another mode."""
    logits, targets = batch()
    loss = LossModifierPipeline(modifiers).token_loss(logits, targets, class_weights=weights, **TOKENS)
    plain = F.cross_entropy(logits.view(-1, 5), targets.view(-1), weight=weights, ignore_index=IGNORED)

    torch.testing.assert_close(loss, plain)


def test_a_pipeline_can_be_switched_off_and_on() -> None:
    """In the block the loss is plain and no figures are kept, also after an error; blocks may be nested."""
    logits, targets = batch()
    pipeline = LossModifierPipeline(all_modifiers())
    plain = LossModifierPipeline().token_loss(logits, targets, **TOKENS)
    with pipeline.temporarily_disabled():
        with pytest.raises(KeyError), pipeline.temporarily_disabled():
            raise KeyError
        off = pipeline.token_loss(logits, targets, **TOKENS)
        assert pipeline.score_loss(torch.tensor([0.5, 0.6]), torch.tensor([0.0, 1.0])) == F.mse_loss(
            torch.tensor([0.5, 0.6]), torch.tensor([0.0, 1.0])
        )
        assert not pipeline.is_active("token_classifier")
    assert pipeline.get_all_metrics() == {}
    on = pipeline.token_loss(logits, targets, **TOKENS)

    assert torch.equal(off, plain)
    assert not torch.equal(on, plain)
    assert pipeline.is_active("token_classifier")


def test_weights_are_constants_for_the_gradient() -> None:
    """The gradient is that of the same sum with the weights written in as numbers."""
    logits, targets = batch(torch.float32)
    logits.requires_grad_(True)
    modifiers = [EntropyModifier(), MaskRatioModifier()]
    (gradient,) = torch.autograd.grad(
        LossModifierPipeline(modifiers).token_loss(logits, targets, **TOKENS), logits
    )
    tokens = SupervisedTokens.of(logits.detach(), targets, IGNORED)
    weights = [modifier.sequence_weights(tokens) for modifier in modifiers]
    counts = (targets != IGNORED).sum(1)
    costs = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none").sum(1)
    (expected,) = torch.autograd.grad((weights[0] * weights[1] * costs / counts).mean(), logits)

    assert not any(weight.requires_grad for weight in weights)
    torch.testing.assert_close(gradient, expected)


def test_the_weights_have_no_graph() -> None:
    """What the modifiers answer, and what they keep, needs no gradient."""
    logits, targets = batch()
    logits.requires_grad_(True)
    pipeline = LossModifierPipeline(all_modifiers())
    loss = pipeline.token_loss(logits, targets, **TOKENS)
    scores = torch.rand(4, requires_grad=True)
    (loss + pipeline.score_loss(scores, torch.rand(4))).backward()

    assert not any(value.requires_grad for value in pipeline.get_all_metrics().values())
    assert logits.grad is not None
    assert torch.all(logits.grad[targets == IGNORED] == 0)
    assert scores.grad is not None


@pytest.mark.parametrize("weights", [None, torch.ones(5)])
def test_a_batch_without_targets_has_loss_zero(weights: torch.Tensor | None) -> None:
    """And gradient zero, where torch's own mean is NaN."""
    logits, _ = batch()
    logits.requires_grad_(True)
    targets = torch.full((4, 6), IGNORED)
    for modifiers in ([], all_modifiers()):
        pipeline = LossModifierPipeline(modifiers)
        loss = pipeline.token_loss(logits, targets, class_weights=weights, **TOKENS)
        (gradient,) = torch.autograd.grad(loss, logits)

        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(gradient))
        assert all(torch.isfinite(value) for value in pipeline.get_all_metrics().values())


def test_a_sequence_without_targets_changes_nothing() -> None:
    """It is as if it were not in the batch."""
    logits, targets = batch()
    longer = torch.cat((logits, torch.randn(1, 6, 5))), torch.cat((targets, torch.full((1, 6), IGNORED)))
    modifiers = all_modifiers()[:3]
    pipeline = LossModifierPipeline(modifiers)
    loss = pipeline.token_loss(logits, targets, **TOKENS)

    torch.testing.assert_close(pipeline.token_loss(*longer, **TOKENS), loss)


def test_the_number_that_means_ignored_may_be_a_class() -> None:
    """`ignore_index: 0`, as where class 0 is padding."""
    logits, targets = batch()
    as_zero = torch.where(targets == IGNORED, 0, targets.clamp_min(1))
    pipeline = LossModifierPipeline([TargetSmoothingModifier()])
    loss = pipeline.token_loss(logits, as_zero, mode="token_classifier", ignore_index=0)
    torchs = F.cross_entropy(
        logits.view(-1, 5), as_zero.view(-1), ignore_index=0, label_smoothing=0.1 * 5 / 4
    )

    torch.testing.assert_close(loss, torchs)


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(autocast: bool) -> None:
    """Of bfloat16 logits only the logits are rounded, with and without autocast."""
    logits, targets = batch(torch.bfloat16)
    logits.requires_grad_(True)
    pipeline = LossModifierPipeline(all_modifiers())
    weights = torch.tensor([0.513, 1.0, 2.0, 3.0, 0.1])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = pipeline.token_loss(logits, targets, class_weights=weights, **TOKENS)
    reference = pipeline.token_loss(logits.detach().float(), targets, class_weights=weights, **TOKENS)
    loss.backward()

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_one_sequence_may_come_without_a_batch() -> None:
    """(T, K) and (T)."""
    logits, targets = batch()
    pipeline = LossModifierPipeline(all_modifiers())

    assert torch.equal(
        pipeline.token_loss(logits[0], targets[0], **TOKENS),
        pipeline.token_loss(logits[:1], targets[:1], **TOKENS),
    )


def test_shapes_that_do_not_fit_are_named() -> None:
    """Both shapes are in the message."""
    logits, targets = batch()
    with pytest.raises(ValueError, match=r"\(4, 6, 5\) need targets \(B, T\).*Got \(4, 5\)"):
        LossModifierPipeline().token_loss(logits, targets[:, :5], **TOKENS)


class Mode(str, Enum):
    """As the GPT's own modes are: a text and an enum."""

    TOKEN_CLASSIFIER = "token_classifier"
    SEQUENCE_SCORER = "sequence_scorer"


def test_modes_filter_modifiers_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line a mode, whether it comes as an enum or as text; the last two are for scores only."""
    pipeline = LossModifierPipeline(all_modifiers())
    with caplog.at_level(logging.INFO, "lighter_freezers"):
        for _ in range(3):
            assert pipeline.is_active(Mode.TOKEN_CLASSIFIER)
            pipeline.token_loss(*batch(), **TOKENS)
            assert pipeline.is_active(Mode.SEQUENCE_SCORER)

    first, second = ", ".join(NAMES[:3]), ", ".join(NAMES[3:])
    left_out = "skipped, as they do not apply in this mode"
    assert caplog.messages == [
        f"loss modifiers in mode token_classifier: {first}; {left_out}: {second}",
        f"loss modifiers in mode sequence_scorer: {second}; {left_out}: {first}",
    ]


def test_a_pipeline_tells_whether_it_acts() -> None:
    """So that a model can take its plain path."""
    tokens_only = LossModifierPipeline([EntropyModifier()])

    assert tokens_only.is_active("language_model")
    assert not tokens_only.is_active("sequence_scorer")
    assert not LossModifierPipeline().is_active("language_model")
    assert LossModifierPipeline().is_empty
    assert not tokens_only.is_empty
    with pytest.raises(ValueError, match="mode must be one of language_model, token_classifier, sequence_sc"):
        tokens_only.is_active("regression")


def test_names_are_those_of_the_classes() -> None:
    """All, or those that apply in a mode."""
    pipeline = LossModifierPipeline([SequenceVarianceModifier(), EntropyModifier()])

    assert pipeline.get_enabled_modifier_names() == ["SequenceVarianceModifier", "EntropyModifier"]
    assert pipeline.get_enabled_modifier_names("language_model") == ["EntropyModifier"]


def test_metrics_are_means_since_the_last_reset() -> None:
    """Two batches with a third and with all of their targets: two thirds."""
    pipeline = LossModifierPipeline([MaskRatioModifier()])
    logits = torch.zeros(1, 3, 5)
    for targets in ([[0, IGNORED, IGNORED]], [[0, 1, 2]]):
        pipeline.token_loss(logits, torch.tensor(targets), **TOKENS)
    metrics = pipeline.get_all_metrics()

    assert set(metrics) == {"MaskRatioModifier.mask_ratio", "MaskRatioModifier.weight"}
    assert metrics["MaskRatioModifier.mask_ratio"].item() == pytest.approx(2 / 3)
    assert metrics["MaskRatioModifier.weight"].item() == pytest.approx((3**0.5 + 1) / 2)
    pipeline.reset_all_metrics()
    assert pipeline.get_all_metrics() == {}


def test_what_is_no_modifier_is_refused() -> None:
    """And so is the same kind twice."""
    with pytest.raises(TypeError, match="'EntropyModifier' is not a loss modifier"):
        LossModifierPipeline(["EntropyModifier"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="must be a list"):
        LossModifierPipeline(EntropyModifier())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="EntropyModifier is in the list twice"):
        LossModifierPipeline([EntropyModifier(), EntropyModifier()])
