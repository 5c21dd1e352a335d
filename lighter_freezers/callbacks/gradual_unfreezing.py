"""The GradualUnfreezing callback: the head trains first, then one layer after another joins it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from lighter_freezers import arguments
from lighter_freezers._log import log
from lighter_freezers.engine.effects.learning_rates import LearningRateRequest
from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.triggers import Moment, Schedule
from lighter_freezers.layers.thaw_order import Direction, Layer, Layers, cut_into_stages, layers_of
from lighter_freezers.layers.thaw_pace import Pace, parse_pace
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["GradualUnfreezing"]


class GradualUnfreezing(EngineCallback):
    """Thaw a model block by block while it trains, as ULMFiT does; the head trains from the first step.

    | call | what happens |
    |---|---|
    | `GradualUnfreezing(every_n_epochs=1)` | epoch 0: head; each later epoch one block more, from the top |
    | `GradualUnfreezing(every_n_steps=500, layers_per_stage=2)` | two blocks more every 500 steps |
    | `GradualUnfreezing(total_epochs=10)` | half of the blocks halfway, all of them in the tenth epoch |
    | `GradualUnfreezing(plateau={"monitor": "val/loss", "patience": 2})` | one more at each plateau |
    | `GradualUnfreezing(every_n_epochs=1, lr_decay=2.6)` | a block has its upper neighbour's rate / 2.6 |

    Blocks, head and embeddings are found by the structure of the model. An encoder-decoder is one stack, with
    the decoder on top. The final norm, and an embedding that is tied to the head, go with the head. Where
    nothing in the head can train, as with LoRA in the blocks only, the first stage has blocks too. What the
    user has frozen stays frozen, and a Freezer beside it composes: what either holds is frozen.

    Args:
        every_n_epochs: Epochs from one stage to the next.
        every_n_steps: Optimizer steps from one stage to the next.
        total_epochs: Share the blocks out evenly: all of them train from epoch `total_epochs - 1` on, counted
            from 0. Blocks thaw in the same epochs as with `GradualUnfreezer`.
        plateau: A stage more each time a logged metric has not improved for `patience` checks in a row:
            `{monitor: val/loss, patience: 2, min_delta: 0.0, mode: min}`. It is looked at after each
            validation and at each epoch's end, as the mean over all ranks; a stage more begins the count
            again, and what has to be beaten stays the best value of the run.
        direction: `top-down` from the block below the head downwards, `bottom-up` from the first block
            upwards. The head trains from the first step in either.
        layers_per_stage: Blocks that thaw together. Not with `total_epochs`.
        unfreeze_embeddings: `last` in the stage in which the last block thaws, `never`, or the number of a
            stage; 0 trains them from the first step.
        lr_decay: A layer trains at the LR scheduler's rate divided by this to the power of the number of
            layers above it: 1 for the head, 2.6 for the top block, 2.6 * 2.6 for the next. At least 1; 2.6 in
            the paper. None leaves the rates alone.
        warmup_steps: Optimizer steps over which the rate of what thaws rises linearly from zero.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Nothing or two arguments say when; in `setup`, the model has no blocks.

    Runs on: `setup`, and `on_train_start` to warn of stages after the last step; everything else is done by
    the Trainer's engine, at `on_train_batch_start` between two optimizer steps.

    Saves: per stage, how long its metric has not improved and the step at which it thawed.

    Logs: one line per stage, from the logger `lighter_freezers`. `FreezeStateLogger` shows it in TensorBoard.

    Paper: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification,
    https://arxiv.org/abs/1801.06146.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.GradualUnfreezing
              every_n_epochs: 1
              lr_decay: 2.6
        ```
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        *,
        total_epochs: int | None = None,
        plateau: Mapping[str, Any] | None = None,
        direction: Direction = "top-down",
        layers_per_stage: int = 1,
        unfreeze_embeddings: int | Literal["last", "never"] = "last",
        lr_decay: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self._pace = parse_pace(every_n_epochs, every_n_steps, total_epochs, plateau)
        self._direction: Direction = arguments.choice("direction", direction, ("top-down", "bottom-up"))
        self._layers_per_stage = _layers_per_stage(layers_per_stage, self._pace)
        self._embeddings = _embeddings(unfreeze_embeddings)
        self._lr_decay = _lr_decay(lr_decay, self._pace)
        self._warmup_steps = arguments.count("warmup_steps", warmup_steps) or 0
        if self._pace == Pace():
            self._refuse_idle_arguments()
        self._beginnings: list[tuple[Schedule, str]] = []  # until when a layer is held, and what it is called

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """What holds each stage until it begins: one rule for all of it, or one per layer with `lr_decay`."""
        layers = layers_of(model)
        stages = self._stages(layers)
        self._beginnings = [
            (self._pace.hold(stage)[0], layer.title) for stage, cut in enumerate(stages) for layer in cut
        ]
        rules = [rule for stage, cut in enumerate(stages) for rule in self._rules(stage, cut)]
        if self._embeddings == "never" and layers.embeddings is not None:
            rules.append(FreezeRule(repr(self), _selector([layers.embeddings]), Schedule()))
        return rules

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn of stages that begin after the last step; which step that is, is known only now."""
        last = _last_moment(trainer)
        if last is None or not (trainer.is_global_zero and pl_module.automatic_optimization):
            return
        late = [title for hold, title in self._beginnings if hold != Schedule() and hold.is_active(last)]
        if late:
            shown = ", ".join(late[:3]) + (f" and {len(late) - 3} more" if len(late) > 3 else "")
            log.warning(
                "%r: %s would thaw after the run has ended, in epoch %d at step %d. Train longer, or thaw "
                "more at a time",
                self,
                shown,
                last.epoch,
                last.optimizer_step + 1,
            )

    def _refuse_idle_arguments(self) -> None:
        """Where nothing is frozen, some arguments have no effect."""
        idle = {
            "direction": self._direction != "top-down",
            "layers_per_stage": self._layers_per_stage > 1,
            "unfreeze_embeddings": isinstance(self._embeddings, int) and self._embeddings > 0,
            "warmup_steps": self._warmup_steps > 0,
        }
        given = [name for name, is_given in idle.items() if is_given]
        if given:
            raise ValueError(
                f"{', '.join(given)} is about what thaws, but lr_decay alone freezes nothing. Remove it, or "
                "say when layers thaw: every_n_epochs, every_n_steps, total_epochs or plateau."
            )

    def _stages(self, layers: Layers) -> list[tuple[Layer, ...]]:
        total = len(layers.blocks)
        num_blocks = self._pace.num_blocks(total, self._layers_per_stage, layers.can_begin_with_head)
        embeddings = self._embeddings
        if isinstance(embeddings, str):
            return cut_into_stages(
                layers, self._direction, num_blocks, num_blocks.index(total) if embeddings == "last" else None
            )
        num_blocks += [total] * (embeddings + 1 - len(num_blocks))
        return cut_into_stages(layers, self._direction, num_blocks, embeddings)

    def _rules(self, stage: int, layers: Sequence[Layer]) -> list[FreezeRule]:
        """The rules of one stage; nothing is held of the first, but its rates may be lower."""
        layers = [layer for layer in layers if layer.names]
        groups = [[layer] for layer in layers] if self._lr_decay else [layers]
        schedule, trigger = self._pace.hold(stage)
        rules = []
        for group in groups if layers else []:
            rate = self._rate(stage, group[0].depth)
            if stage or rate:
                rules.append(
                    FreezeRule(
                        title=repr(self),
                        selector=_selector(group),
                        schedule=schedule,
                        trigger=trigger,
                        learning_rate=rate,
                        monitor_argument="plateau.monitor",
                    )
                )
        return rules

    def _rate(self, stage: int, depth: int) -> LearningRateRequest | None:
        """What is asked for a layer; None for what the LR scheduler gives it anyway."""
        factor = (self._lr_decay or 1.0) ** -depth
        warmup_steps = self._warmup_steps if stage else 0
        if factor == 1.0 and not warmup_steps:
            return None
        return LearningRateRequest(factor=factor, warmup_steps=warmup_steps)

    def __repr__(self) -> str:
        if self._pace == Pace():
            return f"GradualUnfreezing(lr_decay={self._lr_decay:g})"
        return f"GradualUnfreezing({self._direction}, {self._pace})"


def _selector(layers: Sequence[Layer]) -> ParameterSelector:
    return ParameterSelector(names=tuple(name for layer in layers for name in layer.names))


def _last_moment(trainer: Any) -> Moment | None:
    """The last step of the run and its epoch; None where the run has no end that is known."""
    num_steps, num_batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if math.isinf(num_steps):
        return None
    steps_per_epoch = (
        math.inf if math.isinf(num_batches) else math.ceil(num_batches / trainer.accumulate_grad_batches)
    )
    return Moment(num_steps - 1, int((num_steps - 1) // steps_per_epoch))


def _layers_per_stage(value: int, pace: Pace) -> int:
    number = arguments.count("layers_per_stage", value)
    if not number:
        raise ValueError(f"layers_per_stage must be at least 1. Got {value!r}.")
    if number > 1 and pace.total_epochs is not None:
        raise ValueError(
            "total_epochs shares the blocks out by itself. Remove layers_per_stage, or total_epochs."
        )
    return number


def _embeddings(value: int | str) -> int | Literal["last", "never"]:
    if isinstance(value, str):
        word: Literal["last", "never"] = arguments.choice("unfreeze_embeddings", value, ("last", "never"))
        return word
    stage = arguments.count("unfreeze_embeddings", value)
    if stage is None:
        raise TypeError("unfreeze_embeddings must be 'last', 'never' or the number of a stage. Got None.")
    return stage


def _lr_decay(value: float | None, pace: Pace) -> float | None:
    if value is None:
        if pace == Pace():
            raise ValueError(
                "Say when layers thaw: every_n_epochs, every_n_steps, total_epochs or plateau. With lr_decay "
                "alone nothing is frozen, and layers have learning rates by depth."
            )
        return None
    decay = arguments.number("lr_decay", value)
    if not 1 <= decay < math.inf:
        raise ValueError(
            f"lr_decay divides the rate once per layer: at least 1, 2.6 in the paper. Got {value}."
        )
    return decay
