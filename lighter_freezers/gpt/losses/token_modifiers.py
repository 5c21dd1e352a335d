"""The modifiers for tokens: weights of sequences, and smoothing of targets.

Shapes: B sequences, T positions, K classes.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lighter_freezers.arguments import flag, fraction, positive
from lighter_freezers.gpt.losses.modifier import TOKEN_MODES, LossModifier, SequenceWeightModifier
from lighter_freezers.gpt.losses.supervised_tokens import SupervisedTokens

__all__ = ["EntropyModifier", "MaskRatioModifier", "TargetSmoothingModifier"]

_LARGEST_WEIGHT = 1000.0  # before the weights are scaled to mean 1
_CHUNK = 2**22  # probabilities processed at a time, so that a large vocabulary needs no second copy


class EntropyModifier(SequenceWeightModifier):
    r"""Gives more weight to sequences in which the model is confident in a wrong class.

    Let q be the probabilities of a position without its target, normalised to sum 1, and n the number of
    classes with q above `eps`. Then

        H = -sum(q ln q) / ln(n)        in [0, 1]; 0 if n is below 2
        w_s = 1 / (max(mean H of sequence s, threshold) + eps), at most 1000
        weight of sequence s = w_s^weight, divided by the mean over the batch

    So a low entropy among the wrong classes, a confident error, gives a large weight. The mean weight is 1,
    and no gradient flows through the weights.

    The formula is the one of the multi-mode GPT's loss modifiers, except that its `weight` was a factor which
    the division by the mean removed again: here it is an exponent. 1 gives the original weights, smaller
    values bring them closer to 1, larger ones spread them.

    It has no effect with two classes, where there is one wrong class and every H is 0 (it warns once), and in
    a batch of one sequence. Weights are relative to this process's batch.

    Metrics: `entropy` (mean H), `largest_weight`.

    Args:
        weight: The exponent, above 0.
        threshold: Entropies below it count as this much; in [0, 1].
        eps: Classes with a smaller probability are not counted; above 0, far below 1.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.
    """

    def __init__(self, weight: float = 1.0, threshold: float = 0.0, eps: float = 1.0e-8) -> None:
        super().__init__()
        self.weight = positive("EntropyModifier.weight", weight)
        self.threshold = fraction("EntropyModifier.threshold", threshold)
        self.eps = positive("EntropyModifier.eps", eps)
        self._has_warned = False

    @torch.no_grad()
    def sequence_weights(self, tokens: SupervisedTokens) -> Tensor:
        """Weights (B) whose mean over the sequences with a target is 1."""
        self._warn_of_two_classes(tokens)
        mask = tokens.is_supervised.float()  # (B, T)
        num_targets = mask.sum(dim=1)  # (B)
        has_targets = num_targets > 0
        by_sequence = (self._entropies(tokens) * mask).sum(dim=1) / num_targets.clamp_min(1)  # (B)
        raw = (1 / (by_sequence.clamp_min(self.threshold) + self.eps)).clamp_max(_LARGEST_WEIGHT)
        raised = (self.weight * raw.log()).masked_fill(~has_targets, -torch.inf)
        weights = raised.softmax(dim=0).masked_fill(~has_targets, 0.0) * has_targets.sum()  # (B)
        self._note(entropy=by_sequence.sum() / has_targets.sum().clamp_min(1), largest_weight=weights.amax())
        return weights

    def _entropies(self, tokens: SupervisedTokens) -> Tensor:
        num_classes = tokens.log_probabilities.shape[-1]
        rows = max(1, _CHUNK // num_classes)
        flat = tokens.log_probabilities.detach().flatten(0, 1)  # (B T, K)
        chunks = zip(torch.split(flat, rows), torch.split(tokens.labels.flatten(), rows), strict=True)
        return torch.cat([self._entropy(*chunk) for chunk in chunks]).view_as(tokens.labels)

    def _entropy(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """The entropy of the wrong classes: (N, K), (N) -> (N) in [0, 1]."""
        wrong = log_probabilities.scatter(1, labels.unsqueeze(1), -torch.inf)  # (N, K)
        q = wrong.softmax(dim=1)  # 1 - p(target) would cancel where p(target) is close to 1
        counts = q > self.eps
        entropy = torch.special.entr(q).masked_fill(~counts, 0.0).sum(dim=1)  # (N)
        num = counts.sum(dim=1)
        return torch.where(num > 1, entropy / num.clamp_min(2).log(), 0.0).clamp(0.0, 1.0)

    def _warn_of_two_classes(self, tokens: SupervisedTokens) -> None:
        if tokens.log_probabilities.shape[-1] > 2 or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            "EntropyModifier has no effect with two classes: a single wrong class has no entropy. Remove it.",
            stacklevel=4,
        )


class MaskRatioModifier(SequenceWeightModifier):
    """Gives more weight to sequences the fewer of their positions have a target.

        r = positions with a target / T, padding included
        weight = min(max((r + eps)^-power, min_weight), max_weight)

    The weights are not divided by their mean, so they raise the loss overall. The formula is the one of
    the multi-mode GPT's loss modifiers.

    Metrics: `mask_ratio` and `weight`, means over the sequences with a target.

    Args:
        power: How fast the weight falls with r, above 0.
        min_weight: The smallest weight, above 0.
        max_weight: The largest, at least `min_weight`.
        eps: Above 0.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.
    """

    def __init__(
        self, power: float = 0.5, min_weight: float = 0.1, max_weight: float = 10.0, eps: float = 1.0e-8
    ) -> None:
        super().__init__()
        self.power = positive("MaskRatioModifier.power", power)
        self.min_weight = positive("MaskRatioModifier.min_weight", min_weight)
        self.max_weight = positive("MaskRatioModifier.max_weight", max_weight)
        self.eps = positive("MaskRatioModifier.eps", eps)
        if self.max_weight < self.min_weight:
            raise ValueError(
                f"MaskRatioModifier.max_weight={max_weight} is less than min_weight={min_weight}. "
                "Exchange them."
            )

    @torch.no_grad()
    def sequence_weights(self, tokens: SupervisedTokens) -> Tensor:
        """Weights (B)."""
        ratios = tokens.is_supervised.float().mean(dim=1)  # (B)
        weights = (ratios + self.eps).pow(-self.power).clamp(self.min_weight, self.max_weight)
        has_targets = (ratios > 0).float()
        num = has_targets.sum().clamp_min(1)
        self._note(mask_ratio=ratios.sum() / num, weight=(weights * has_targets).sum() / num)
        return weights


class TargetSmoothingModifier(LossModifier):
    """Spreads part of each target evenly over the other classes, so that no target is 1.

        y(target) = 1 - factor, y(any other class) = factor / (K - 1)

    Where torch's `label_smoothing` s spreads over all K classes, the target included, this is the same as
    `s = factor K / (K - 1)`. With class weights w a position costs `sum(-w_j y_j ln p_j)` and counts as
    w(target) in the mean, as in torch. A soft target y becomes `(1 - factor) y + factor (1 - y) / (K - 1)`.

    Metrics: `smoothed`, the share of the positions with a target that are smoothed.

    Args:
        factor: The share that is spread, in [0, 1).
        special_tokens: Targets that are not smoothed, such as separators: numbers, or a text such as "1,2".
        exclude_padding: Whether `padding_token` is not smoothed either.
        padding_token: The target of padding. None if padding has no loss at all, as with the model's
            `ignore_index`: such positions are never smoothed.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `factor` is out of range, or `special_tokens` is not a list of numbers.
    """

    modes = TOKEN_MODES

    def __init__(
        self,
        factor: float = 0.1,
        special_tokens: Sequence[int] | str = (),
        exclude_padding: bool = True,
        padding_token: int | None = None,
    ) -> None:
        super().__init__()
        self.factor = fraction("TargetSmoothingModifier.factor", factor)
        if self.factor == 1:
            raise ValueError("TargetSmoothingModifier.factor must be below 1: nothing of the target is left.")
        self.special_tokens = _token_numbers(special_tokens)
        is_padding_sharp = flag("TargetSmoothingModifier.exclude_padding", exclude_padding)
        if padding_token is not None and is_padding_sharp:
            self.special_tokens = (*self.special_tokens, *_token_numbers((padding_token,)))

    @torch.no_grad()
    def smoothing(self, tokens: SupervisedTokens) -> Tensor:
        """The share of each target that moves to the other classes, (B, T)."""
        shares = tokens.is_supervised.float() * self.factor
        for token in self.special_tokens:  # few; a tensor of them would have to be copied to the device
            shares = shares.masked_fill(tokens.labels == token, 0.0)
        num = tokens.is_supervised.sum().clamp_min(1)
        self._note(smoothed=(shares > 0).sum() / num)
        return shares


def _token_numbers(tokens: object) -> tuple[int, ...]:
    """Token numbers from a list, or from a text such as "1,2"."""
    if isinstance(tokens, str):
        parts = [part.strip() for part in tokens.split(",") if part.strip()]
        if not all(part.lstrip("-").isdigit() for part in parts):
            raise ValueError(f'special_tokens must be numbers such as "1,2". Got {tokens!r}.')
        return tuple(int(part) for part in parts)
    if (
        isinstance(tokens, bytes)
        or not isinstance(tokens, Sequence)
        or any(isinstance(t, bool) or not isinstance(t, int) for t in tokens)
    ):
        raise TypeError(f"special_tokens and padding_token must be whole numbers. Got {tokens!r}.")
    return tuple(tokens)
