"""Several loss modifiers as one loss: which apply in a mode, how they compose, and when they are off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from lighter_freezers._log import log
from lighter_freezers.arguments import checked, choice
from lighter_freezers.gpt.losses.modifier import (
    MODES,
    SCORE_MODES,
    LossModifier,
    ScoreModifier,
    SequenceWeightModifier,
)
from lighter_freezers.gpt.losses.supervised_tokens import SupervisedTokens
from lighter_freezers.gpt.losses.token_modifiers import TargetSmoothingModifier

__all__ = ["LossModifierPipeline"]


class LossModifierPipeline:
    """A loss made of cross-entropy or squared error and any number of modifiers.

    For tokens (`language_model`, `token_classifier`), in this order whatever the order of the list:

    1. Each position i with a target gets its cross-entropy `c_i`, smoothed if there is a
       `TargetSmoothingModifier`. With class weights w it is `sum(-w_j y_j ln p_j)`, and the position counts
       as `a_i = w(target)`; without, `a_i = 1`.
    2. The weights that `EntropyModifier` and `MaskRatioModifier` give to its sequence s are multiplied: W_s.
    3. If there is such a modifier, `loss = sum_i W_s/n_s c_i / sum_i 1/n_s a_i`, where n_s is the number of
       targets of the sequence: without class weights the mean over sequences of W_s times the sequence's mean
       loss. If there is none, `loss = sum_i c_i / sum_i a_i`, torch's weighted mean over positions.

    For scores (`sequence_scorer`): the mean squared error times the factors of `SequenceVarianceModifier` and
    `SequenceCorrelationModifier`.

    A modifier that does not apply in a mode is skipped; one log line states it, the first time.
    Weights and factors are constants for the gradient. The loss is computed in float32. A batch without any
    target has loss 0.

    | where | which |
    |---|---|
    | `language_model`, `token_classifier` | entropy, target smoothing, mask ratio |
    | `sequence_scorer` | sequence variance, sequence correlation |

    Args:
        modifiers: At most one of each kind.

    Raises:
        TypeError: Something in the list is not a loss modifier.
        ValueError: Two are of the same kind.

    Example:
        ```yaml
        loss_modifiers:
          _target_: lighter_freezers.gpt.losses.LossModifierPipeline
          modifiers:
            - _target_: lighter_freezers.gpt.losses.TargetSmoothingModifier
              factor: 0.1
            - _target_: lighter_freezers.gpt.losses.EntropyModifier
        ```
    """

    @checked
    def __init__(self, modifiers: Sequence[LossModifier] = ()) -> None:
        self._modifiers = _checked(modifiers)
        self._is_disabled = False
        self._announced: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether there is no modifier at all."""
        return not self._modifiers

    def get_enabled_modifier_names(self, mode: str | None = None) -> list[str]:
        """The class names of the modifiers.

        Args:
            mode: Only those that apply in this mode. None for all.
        """
        modifiers = self._modifiers if mode is None else self._acting(mode)
        return [type(modifier).__name__ for modifier in modifiers]

    def is_active(self, mode: str) -> bool:
        """Whether any modifier applies in this mode now; if not, the plain loss is the same and cheaper.

        Args:
            mode: `language_model`, `token_classifier` or `sequence_scorer`.
        """
        if self._is_disabled or self.is_empty:
            return False
        return bool(self._acting(mode))

    @contextmanager
    def temporarily_disabled(self) -> Iterator[None]:
        """Return plain losses, and update no metrics, in a `with` block, as in validation."""
        before, self._is_disabled = self._is_disabled, True
        try:
            yield
        finally:
            self._is_disabled = before

    def token_loss(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        mode: str,
        ignore_index: int,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch of token predictions, as defined in the class.

        Args:
            logits: (B, T, K), or (T, K) for one sequence.
            targets: Classes (B, T), or soft targets (B, T, K) whose ignored rows sum to 0.
            mode: `language_model` or `token_classifier`.
            ignore_index: The target that marks positions without a loss.
            class_weights: (K). None means 1 for each class.

        Returns:
            A scalar in nats, float32.

        Raises:
            ValueError: The shapes do not fit, or the mode is unknown.
        """
        tokens = SupervisedTokens.of(logits, targets, ignore_index)
        modifiers = self._acting(mode) if self.is_active(mode) else ()
        smoothers = [modifier for modifier in modifiers if isinstance(modifier, TargetSmoothingModifier)]
        smoothing = smoothers[0].smoothing(tokens) if smoothers else None
        costs, masses = tokens.costs(class_weights, smoothing), tokens.masses(class_weights)  # (B, T) each
        weighers = [modifier for modifier in modifiers if isinstance(modifier, SequenceWeightModifier)]
        if not weighers:
            return _ratio(costs.sum(), masses.sum())
        product = torch.stack([modifier.sequence_weights(tokens) for modifier in weighers]).prod(dim=0)  # (B)
        shares = 1 / tokens.is_supervised.sum(dim=1).clamp_min(1)  # 1 / n_s, (B)
        return _ratio((shares * product * costs.sum(dim=1)).sum(), (shares * masses.sum(dim=1)).sum())

    def score_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch of scores, as defined in the class.

        Args:
            scores: (B) in (0, 1).
            targets: (B) in [0, 1].

        Returns:
            A scalar, float32.
        """
        scores, targets = scores.float(), targets.float()
        loss = F.mse_loss(scores, targets)
        if not self.is_active(SCORE_MODES[0]):
            return loss
        for modifier in self._acting(SCORE_MODES[0]):
            if isinstance(modifier, ScoreModifier):
                loss = loss * modifier.factor(scores.detach(), targets)
        return loss

    def get_all_metrics(self) -> dict[str, Tensor]:
        """`Class.metric` -> its mean over the batches since the last reset, on the device."""
        return {
            f"{type(modifier).__name__}.{key}": value
            for modifier in self._modifiers
            for key, value in modifier.get_metrics().items()
        }

    def reset_all_metrics(self) -> None:
        """Reset the metrics of all modifiers."""
        for modifier in self._modifiers:
            modifier.reset_metrics()

    def _acting(self, mode: str) -> tuple[LossModifier, ...]:
        mode = choice("mode", mode, MODES)  # a plain string, also for an enum
        acting = tuple(modifier for modifier in self._modifiers if mode in modifier.modes)
        if mode not in self._announced:
            self._announced.add(mode)
            self._announce(mode, acting)
        return acting

    def _announce(self, mode: str, acting: Sequence[LossModifier]) -> None:
        is_other = distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
        if self.is_empty or is_other:
            return
        used = ", ".join(type(modifier).__name__ for modifier in acting) or "none"
        left_out = [type(modifier).__name__ for modifier in self._modifiers if modifier not in acting]
        rest = f"; skipped, as they do not apply in this mode: {', '.join(left_out)}" if left_out else ""
        log.info("loss modifiers in mode %s: %s%s", mode, used, rest)


def _ratio(total: Tensor, mass: Tensor) -> Tensor:
    """A ratio that is 0, not NaN, where nothing is supervised."""
    return total / torch.where(mass > 0, mass, 1.0)


def _checked(modifiers: Sequence[LossModifier]) -> tuple[LossModifier, ...]:
    for modifier in modifiers:
        if not isinstance(modifier, LossModifier):
            raise TypeError(
                f"modifiers: {modifier!r} is not a loss modifier. Those of lighter_freezers.gpt.losses are "
                "EntropyModifier, TargetSmoothingModifier, MaskRatioModifier, SequenceVarianceModifier "
                "and SequenceCorrelationModifier."
            )
    names = [type(modifier).__name__ for modifier in modifiers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is in the list twice. Keep one.")
    return tuple(modifiers)
