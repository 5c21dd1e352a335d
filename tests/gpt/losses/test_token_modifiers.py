"""The modifiers for tokens against arithmetic in plain Python floats, and against torch where it can."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lighter_freezers.gpt.losses import (
    EntropyModifier,
    LossModifierPipeline,
    MaskRatioModifier,
    TargetSmoothingModifier,
)

IGNORED = -7  # any number will do
LOGITS = [
    [[2.0, 0.5, -1.0, 0.0], [0.1, 0.2, 0.3, 0.4], [3.0, 2.9, -4.0, -4.0]],
    [[-1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 5.0, 1.0, 0.5]],
    [[0.3, -0.3, 0.9, 1.2], [4.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 2.0]],
]
TARGETS = [[0, 2, 1], [3, IGNORED, IGNORED], [IGNORED, 1, 3]]
CLASS_WEIGHTS = [0.5, 2.0, 1.0, 3.0]
Row = Sequence[float]


def softmax(row: Row) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def supervised() -> list[tuple[int, Row, int]]:
    """Sequence, logits and target of each position that has one."""
    return [
        (s, LOGITS[s][t], target)
        for s, row in enumerate(TARGETS)
        for t, target in enumerate(row)
        if target != IGNORED
    ]


def nll(row: Row, target: int) -> float:
    return -math.log(softmax(row)[target])


def wrong_class_entropy(row: Row, target: int) -> float:
    """Between 0 and 1, of the probabilities without the target's."""
    wrong = [p for j, p in enumerate(softmax(row)) if j != target]
    q = [p / sum(wrong) for p in wrong]
    return -sum(p * math.log(p) for p in q) / math.log(len(q))


def mean_of_sequences(weights: Row, position_loss: Any = nll) -> float:
    """The mean over sequences of weight times mean loss."""
    losses = []
    for s in range(3):
        own = [position_loss(row, target) for seq, row, target in supervised() if seq == s]
        losses.append(weights[s] * sum(own) / len(own))
    return sum(losses) / 3


def entropy_weights(exponent: float = 1.0, threshold: float = 0.0) -> list[float]:
    raw = []
    for s in range(3):
        own = [wrong_class_entropy(row, target) for seq, row, target in supervised() if seq == s]
        raw.append((1 / max(sum(own) / len(own), threshold)) ** exponent)
    return [3 * w / sum(raw) for w in raw]


MASK_RATIO_WEIGHTS = [1.0, (1 / 3) ** -0.5, (2 / 3) ** -0.5]


def loss_of(*modifiers: Any, mode: str = "token_classifier", **options: Any) -> float:
    pipeline = LossModifierPipeline(modifiers)
    logits, targets = torch.tensor(LOGITS), torch.tensor(TARGETS)
    return pipeline.token_loss(logits, targets, mode=mode, ignore_index=IGNORED, **options).item()


def test_entropy_weighs_sequences_by_hand() -> None:
    """The weights have mean 1, and the surest wrong sequence the largest."""
    weights = entropy_weights()

    assert loss_of(EntropyModifier()) == pytest.approx(mean_of_sequences(weights), rel=1e-5)
    assert len({round(w, 3) for w in weights}) == 3


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_the_weight_of_entropy_is_an_exponent(weight: float) -> None:
    """It has an effect, unlike a factor that a division by the mean takes out again."""
    expected = mean_of_sequences(entropy_weights(exponent=weight))

    assert loss_of(EntropyModifier(weight=weight)) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - loss_of(EntropyModifier())) > 1e-3


def test_a_threshold_keeps_low_entropies_apart_no_longer() -> None:
    """All below it count the same."""
    expected = mean_of_sequences(entropy_weights(threshold=0.9))

    assert loss_of(EntropyModifier(threshold=0.9)) == pytest.approx(expected, rel=1e-5)
    assert loss_of(EntropyModifier(threshold=1.0)) == pytest.approx(mean_of_sequences([1, 1, 1]), rel=1e-5)


def test_the_weight_of_a_sequence_has_a_limit() -> None:
    """One likely wrong class has entropy 0: 1000 before the mean is made 1, whatever eps is."""
    logits = torch.tensor([[[0.0, 5.0, -40.0, -40.0]], [[0.0, 0.0, 0.0, 0.0]]])
    modifier = EntropyModifier()
    LossModifierPipeline([modifier]).token_loss(
        logits, torch.tensor([[0], [0]]), mode="language_model", ignore_index=IGNORED
    )

    assert modifier.get_metrics()["largest_weight"].item() == pytest.approx(2 * 1000 / 1001)


def test_entropy_counts_the_wrong_classes_above_eps_only() -> None:
    """Two likely wrong classes of three are even: entropy 1 of ln 2, not of ln 3."""
    logits = torch.tensor([[[5.0, 1.0, 1.0, -30.0]], [[0.0, 5.0, 3.0, 1.0]]])
    targets = torch.tensor([[0], [0]])
    q = softmax([5.0, 3.0, 1.0])
    second = -sum(p * math.log(p) for p in q) / math.log(3)
    modifier = EntropyModifier(eps=1e-8)
    pipeline = LossModifierPipeline([modifier])
    loss = pipeline.token_loss(logits, targets, mode="language_model", ignore_index=IGNORED)
    first_weight = 2 / (1 + 1 / second)
    losses = [nll([5.0, 1.0, 1.0, -30.0], 0), nll([0.0, 5.0, 3.0, 1.0], 0)]
    expected = (first_weight * losses[0] + (2 - first_weight) * losses[1]) / 2

    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert modifier.get_metrics()["entropy"].item() == pytest.approx((1 + second) / 2, rel=1e-5)


def test_entropy_is_exact_where_the_target_is_nearly_certain() -> None:
    """What is left of 1 - p(target) in float32 would be nothing."""
    logits = torch.tensor([[[60.0, 0.0, 0.0, 0.0]], [[60.0, 2.0, 0.0, 0.0]]])
    modifier = EntropyModifier()
    LossModifierPipeline([modifier]).token_loss(
        logits, torch.tensor([[0], [0]]), mode="language_model", ignore_index=IGNORED
    )
    q = softmax([2.0, 0.0, 0.0])
    second = -sum(p * math.log(p) for p in q) / math.log(3)

    assert modifier.get_metrics()["entropy"].item() == pytest.approx((1 + second) / 2, rel=1e-5)


def test_entropy_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary is looked at a few rows at a time."""
    whole = loss_of(EntropyModifier())
    monkeypatch.setattr("lighter_freezers.gpt.losses.token_modifiers._CHUNK", 9)

    assert loss_of(EntropyModifier()) == pytest.approx(whole, rel=1e-6)


def test_entropy_says_once_that_it_does_nothing_with_two_classes() -> None:
    """One wrong class has no entropy, so all weights are 1."""
    pipeline = LossModifierPipeline([EntropyModifier()])
    logits, targets = torch.randn(3, 2, 2), torch.zeros(3, 2, dtype=torch.long)
    with pytest.warns(UserWarning, match="no effect with two classes"):
        first = pipeline.token_loss(logits, targets, mode="token_classifier", ignore_index=IGNORED)
    second = pipeline.token_loss(logits, targets, mode="token_classifier", ignore_index=IGNORED)

    assert (
        first.item() == second.item() == pytest.approx(F.cross_entropy(logits.view(-1, 2), targets.view(-1)))
    )


def test_mask_ratio_weighs_sequences_by_hand() -> None:
    """Three, one and two of three positions have a target."""
    expected = mean_of_sequences(MASK_RATIO_WEIGHTS)

    assert loss_of(MaskRatioModifier()) == pytest.approx(expected, rel=1e-5)


def test_mask_ratio_weights_have_limits() -> None:
    """The powers are 1, 9 and 2.25; the limits are 2 and 4."""
    modifier = MaskRatioModifier(power=2.0, min_weight=2.0, max_weight=4.0)

    assert loss_of(modifier) == pytest.approx(mean_of_sequences([2.0, 4.0, 2.25]), rel=1e-5)


def smoothed(row: Row, target: int, factor: float = 0.2, weights: Row = (1, 1, 1, 1)) -> float:
    p = softmax(row)
    y = [1 - factor if j == target else factor / 3 for j in range(4)]
    return -sum(w * share * math.log(q) for w, share, q in zip(weights, y, p, strict=True))


def test_target_smoothing_by_hand_and_as_torch_has_it() -> None:
    """Torch's label smoothing is the same with K / (K - 1) times the factor."""
    losses = [smoothed(row, target) for _, row, target in supervised()]
    torchs = F.cross_entropy(
        torch.tensor(LOGITS).view(-1, 4),
        torch.tensor(TARGETS).view(-1),
        ignore_index=IGNORED,
        label_smoothing=0.2 * 4 / 3,
    )
    loss = loss_of(TargetSmoothingModifier(factor=0.2))

    assert loss == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert loss == pytest.approx(torchs.item(), rel=1e-5)


def test_target_smoothing_keeps_class_weights_as_torch_does() -> None:
    """By hand, and against torch with both arguments."""
    weights = torch.tensor(CLASS_WEIGHTS)
    total = sum(smoothed(row, target, weights=CLASS_WEIGHTS) for _, row, target in supervised())
    mass = sum(CLASS_WEIGHTS[target] for _, _, target in supervised())
    torchs = F.cross_entropy(
        torch.tensor(LOGITS).view(-1, 4),
        torch.tensor(TARGETS).view(-1),
        weight=weights,
        ignore_index=IGNORED,
        label_smoothing=0.2 * 4 / 3,
    )
    loss = loss_of(TargetSmoothingModifier(factor=0.2), class_weights=weights)

    assert loss == pytest.approx(total / mass, rel=1e-5)
    assert loss == pytest.approx(torchs.item(), rel=1e-5)


@pytest.mark.parametrize(
    "modifier",
    [
        TargetSmoothingModifier(0.2, special_tokens=[1, 3]),
        TargetSmoothingModifier(0.2, special_tokens="1, 3"),
        TargetSmoothingModifier(0.2, special_tokens=[1], padding_token=3),
    ],
)
def test_special_tokens_and_padding_stay_sharp(modifier: TargetSmoothingModifier) -> None:
    """Of the six targets two are smoothed, and the metric counts them."""
    losses = [
        smoothed(row, target) if target in (0, 2) else nll(row, target) for _, row, target in supervised()
    ]

    assert loss_of(modifier) == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert modifier.get_metrics()["smoothed"].item() == pytest.approx(2 / 6)


def test_padding_may_be_smoothed_like_the_rest() -> None:
    """`exclude_padding: false`."""
    modifier = TargetSmoothingModifier(0.2, exclude_padding=False, padding_token=3)

    assert loss_of(modifier) == loss_of(TargetSmoothingModifier(0.2))


def test_no_smoothing_is_cross_entropy() -> None:
    """A factor of 0."""
    assert loss_of(TargetSmoothingModifier(0.0)) == pytest.approx(loss_of(), rel=1e-6)


def test_modifiers_compose_by_hand() -> None:
    """Weights multiply, and weigh the smoothed losses; the order of the list is irrelevant."""
    weights = [e * m for e, m in zip(entropy_weights(), MASK_RATIO_WEIGHTS, strict=True)]
    expected = mean_of_sequences(weights, smoothed)
    modifiers = [EntropyModifier(), TargetSmoothingModifier(0.2), MaskRatioModifier()]

    assert loss_of(*modifiers) == pytest.approx(expected, rel=1e-5)
    assert loss_of(*reversed(modifiers)) == pytest.approx(expected, rel=1e-5)
    pairs = [modifiers[:2], modifiers[1:], modifiers[::2]]
    assert len({round(loss_of(*some), 4) for some in (*pairs, modifiers)}) == 4


def test_class_weights_weigh_positions_beside_the_sequence_weights() -> None:
    """`sum W/n c / sum 1/n a` by hand."""
    num_targets = [3, 1, 2]
    total, mass = 0.0, 0.0
    for s, row, target in supervised():
        total += MASK_RATIO_WEIGHTS[s] / num_targets[s] * CLASS_WEIGHTS[target] * nll(row, target)
        mass += CLASS_WEIGHTS[target] / num_targets[s]
    loss = loss_of(MaskRatioModifier(), class_weights=torch.tensor(CLASS_WEIGHTS))

    assert loss == pytest.approx(total / mass, rel=1e-5)


SOFT = [[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.25, 0.25]]


def soft_loss(*modifiers: Any, **options: Any) -> float:
    pipeline = LossModifierPipeline(modifiers)
    logits, targets = torch.tensor(LOGITS[:1]), torch.tensor([SOFT])
    return pipeline.token_loss(
        logits, targets, mode="token_classifier", ignore_index=IGNORED, **options
    ).item()


def test_soft_targets_by_hand() -> None:
    """A row that sums to 0 is ignored; smoothing and class weights work as for hard targets."""
    rows = [(LOGITS[0][t], SOFT[t]) for t in (0, 2)]

    def cost(row: Row, y: Row, weights: Row = (1, 1, 1, 1)) -> float:
        return -sum(w * s * math.log(p) for w, s, p in zip(weights, y, softmax(row), strict=True))

    plain = sum(cost(row, y) for row, y in rows) / 2
    smooth = sum(cost(row, [0.8 * s + 0.2 * (1 - s) / 3 for s in y]) for row, y in rows) / 2
    mass = sum(w * s for _, y in rows for w, s in zip(CLASS_WEIGHTS, y, strict=True))
    weighted = sum(cost(row, y, CLASS_WEIGHTS) for row, y in rows) / mass

    assert soft_loss() == pytest.approx(plain, rel=1e-5)
    assert soft_loss(TargetSmoothingModifier(0.2)) == pytest.approx(smooth, rel=1e-5)
    assert soft_loss(class_weights=torch.tensor(CLASS_WEIGHTS)) == pytest.approx(weighted, rel=1e-5)
    ratio = (2 / 3) ** -0.5
    assert soft_loss(EntropyModifier(), MaskRatioModifier()) == pytest.approx(ratio * plain, rel=1e-5)


@pytest.mark.parametrize(
    "modifiers", [[], [EntropyModifier(), TargetSmoothingModifier(), MaskRatioModifier()]]
)
@pytest.mark.parametrize("weights", [None, torch.tensor(CLASS_WEIGHTS)])
def test_a_certain_soft_target_is_a_hard_one(modifiers: list[Any], weights: torch.Tensor | None) -> None:
    """One-hot rows, and rows of zeros where the target is ignored."""
    pipeline = LossModifierPipeline(modifiers)
    hard, logits = torch.tensor(TARGETS), torch.tensor(LOGITS)
    soft = F.one_hot(hard.clamp_min(0), 4) * (hard != IGNORED).unsqueeze(-1)
    options: dict[str, Any] = {"mode": "token_classifier", "ignore_index": IGNORED, "class_weights": weights}

    torch.testing.assert_close(
        pipeline.token_loss(logits, soft.float(), **options), pipeline.token_loss(logits, hard, **options)
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: EntropyModifier(weight=0), ValueError, "EntropyModifier.weight must be above 0"),
        (lambda: EntropyModifier(threshold=2), ValueError, "between 0 and 1"),
        (lambda: EntropyModifier(eps="1e-8"), TypeError, "YAML reads 5e-5 as a string"),
        (lambda: TargetSmoothingModifier(factor=1.0), ValueError, "nothing of the target is left"),
        (lambda: TargetSmoothingModifier(special_tokens="<eos>"), ValueError, 'numbers such as "1,2"'),
        (lambda: TargetSmoothingModifier(special_tokens=[1.5]), TypeError, "whole numbers"),
        (lambda: TargetSmoothingModifier(exclude_padding="no"), TypeError, "true or false"),
        (lambda: MaskRatioModifier(power=-1), ValueError, "power must be above 0"),
        (lambda: MaskRatioModifier(min_weight=2.0, max_weight=1.0), ValueError, "Exchange them"),
    ],
)
def test_a_bad_argument_is_named(build: Any, error: type[Exception], message: str) -> None:
    """Before any training."""
    with pytest.raises(error, match=message):
        build()
