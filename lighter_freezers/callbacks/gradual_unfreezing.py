"""The GradualUnfreezing callback: the head trains first, then the blocks thaw one after another."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from lighter_freezers import arguments
from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.early_stopping import early_end, say_unmet
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.engine.engine import Engine, EngineCallback
from lighter_freezers.engine.rule_arguments import parse_terms
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.stages import Best, StageClock
from lighter_freezers.engine.terms import CutGradient, FrozenMode, OptimizerState
from lighter_freezers.engine.trainer_clock import certain_end, end_in_words
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.triggers import Schedule
from lighter_freezers.layers.said import Said, anatomy_said
from lighter_freezers.layers.stage_list import parse_restore_best, read_stages
from lighter_freezers.layers.stage_plan import StagePlan
from lighter_freezers.layers.thaw_order import Direction, layers_of
from lighter_freezers.layers.thaw_pace import parse_pace
from lighter_freezers.layers.thaw_plan import ExplicitStage, ThawPlan
from lighter_freezers.selection.name_summary import first_few

__all__ = ["GradualUnfreezing"]


class GradualUnfreezing(EngineCallback):
    """Thaw a model block by block while it trains, as ULMFiT does; the head trains from the first step.

    | call | what happens |
    |---|---|
    | `GradualUnfreezing(every_n_epochs=1)` | epoch 0: head; each later epoch one more block, from the top |
    | `GradualUnfreezing(every_n_steps=500, layers_per_stage=2)` | two more blocks every 500 steps |
    | `GradualUnfreezing(total_epochs=10)` | half of the blocks halfway, all of them in the tenth epoch |
    | `GradualUnfreezing(plateau={"monitor": "val/loss", "patience": 2})` | one more at each plateau |
    | `GradualUnfreezing(every_n_epochs=1, lr_decay=2.6)` | a block has its upper neighbour's rate / 2.6 |
    | `GradualUnfreezing(stages=[{"thaw": "head", "until_epoch": 2}, {"thaw": "*"}])` | head; then all |

    Blocks, head and embeddings are found by the structure of the model. An encoder-decoder is one stack, with
    the decoder on top. The final norm, and an embedding that is tied to the head, thaw with the head. If
    nothing in the head can train, as with LoRA in the blocks only, the first stage includes blocks. What the
    user has frozen stays frozen. Beside a Freezer, a parameter is frozen while either of them holds it.

    Args:
        every_n_epochs: Epochs between stages, or a share of the run such as `10%`.
        every_n_steps: Optimizer steps between stages, or a share of the run.
        total_epochs: Distribute the blocks evenly: all of them train from epoch `total_epochs - 1` on,
            counted from 0. Blocks thaw in the same epochs as with `GradualUnfreezer`.
        plateau: One more stage each time a logged metric has not improved for `patience` consecutive checks:
            `{monitor: val/loss, patience: 2, min_delta: 0.0, mode: min}`. It is checked after each validation
            and at the end of each epoch, as the mean over all ranks; a new stage resets the count, but not
            the best value.
        direction: `top-down` from the block below the head downwards, `bottom-up` from the first block
            upwards. The head trains from the first step in either.
        layers_per_stage: Blocks that thaw together. Not with `total_epochs`.
        unfreeze_embeddings: When the embeddings thaw: `last` for the stage in which the last block thaws,
            `never`, or a stage number; 0 trains them from the first step.
        lr_decay: A layer's rate is the LR scheduler's rate divided by this to the power of the number of
            layers above it: 1 for the head, 2.6 for the top block, 2.6 * 2.6 for the next. At least 1; 2.6 in
            the paper. None leaves the rates unchanged.
        warmup_steps: Optimizer steps over which the rate of thawed layers rises linearly from zero.
        blocks: Paths of the modules that are the blocks, in order, or patterns such as `encoder.*`. None to
            find them. As in `anatomy_of`, this and the next two override detection, and are checked.
        head: Paths of the modules that form the head.
        embeddings: Paths of the embeddings.
        tower: Of a model of several towers, such as a CLIP, the one that thaws block by block, as
            `lighter-freezers layers` names it; nothing else is held, and another callback may thaw the other
            tower at another pace. None thaws all towers side by side.
        stages: Instead of a pace, the stages one by one, each a mapping: `thaw` and `freeze` (names of
            parameters, paths of modules or patterns; one or a list of them), `until_step`, `until_epoch` and
            `until_metric` as for a Freezer (whichever comes first ends the stage; none in the last),
            `until_early_stopping: true` (the stage ends where EarlyStopping would end the run for lack of
            progress; in the last stage it ends the run),
            `unfreeze_lr`, `unfreeze_lr_factor` (a number, a mapping from names to numbers, or two numbers for
            the lowest and the highest layer), `unfreeze_lr_growth`, `unfreeze_weight_decay` and
            `warmup_steps` for what thaws, `frozen_norms` for what is held, `desc` for you; `optimizer` and
            `scheduler` that replace those of the run, `{_target_: torch.optim.SGD, lr: 0.01}`, with
            `optimizer_state: carry` for its state and `earlier: keep` for the rates of what trained before.
            What no stage has thawed yet is frozen.
        schedule: Instead of `stages`, the path of a YAML file with `stages`, as `lighter-freezers schedule`
            writes it.
        best: Whether the value that a plateau or EarlyStopping has to beat is that of the stages before
            (`keep`), or begins anew in each stage (`reset`); only with stages.
        restore_best: Begin each stage with the best weights of the stage before, with stages only: true for
            the metric of EarlyStopping, or
            `{monitor: val/loss, mode: min, optimizer_state: keep, at_end: false}`. With `optimizer_state:
            restore` the optimizers' state goes back too; with `at_end: true` the module has the best weights
            of all stages when the run has ended, and `stages/best.ckpt` has them.
        optimizer: The optimizer to which missing parameters are added if a run has several and the layer's
            neighbours do not decide: its index, its class, or a module that only it trains.
        optimizer_state: The optimizer state of layers that have not thawed yet: `keep` it,
            `reset` it when the hold begins, or `free` it and remove the parameter from its group until it
            thaws.
        frozen_mode: `eval` puts layers that have not thawed yet into inference mode, with dropout, stochastic
            depth and norms; `train` leaves them as they are.
        allow_untested: Warn of a strategy that this package does not know, instead of refusing it.
        cut_gradient: `auto` ends the backward pass above a frozen prefix of blocks if only an embedding tied
            to the head would use the gradient; `never` keeps the gradient of such an embedding.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: No argument or several set when stages start; in `setup`, the model has no blocks.

    Runs on: `setup`, and `on_train_start` to warn about stages after the last step; the Trainer's engine does
    everything else, at `on_train_batch_start` between two optimizer steps.

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

    _left_out: tuple[str, ...] = ()  # blocks that it leaves frozen

    _plan: ThawPlan | StagePlan

    @checked
    def __init__(
        self,
        every_n_epochs: int | str | None = None,
        every_n_steps: int | str | None = None,
        *,
        total_epochs: int | None = None,
        plateau: Mapping[str, object] | None = None,
        direction: Direction = "top-down",
        layers_per_stage: int = 1,
        unfreeze_embeddings: int | Literal["last", "never"] = "last",
        lr_decay: float | None = None,
        warmup_steps: int = 0,
        optimizer: int | str | None = None,
        optimizer_state: OptimizerState = "keep",
        cut_gradient: CutGradient = "auto",
        blocks: Sequence[str] | None = None,
        head: Sequence[str] = (),
        embeddings: Sequence[str] = (),
        stages: Sequence[Mapping[str, object]] | None = None,
        schedule: str | os.PathLike[str] | None = None,
        best: Best = "keep",
        restore_best: bool | Mapping[str, object] = False,
        frozen_mode: FrozenMode = "train",
        allow_untested: bool = False,
        tower: str | None = None,
    ) -> None:
        super().__init__()
        self.allow_untested = allow_untested
        self._beginnings: list[tuple[Schedule, str]] = []  # when a layer thaws, and its name in the log
        self._said: Said = {"blocks": blocks, "head": head, "embeddings": embeddings, "tower": tower}
        terms = parse_terms(optimizer_state, cut_gradient, frozen_mode=frozen_mode)
        which = arguments.index_or_name("optimizer", optimizer)
        if stages is not None or schedule is not None:
            implicit = {
                "every_n_epochs": every_n_epochs,
                "every_n_steps": every_n_steps,
                "total_epochs": total_epochs,
                "plateau": plateau,
                "direction": direction != "top-down",
                "layers_per_stage": layers_per_stage != 1,
                "unfreeze_embeddings": unfreeze_embeddings != "last",
                "lr_decay": lr_decay,
                "warmup_steps": warmup_steps,
                **self._said,
            }
            self._plan = StagePlan(
                read_stages(stages, schedule, implicit),
                which,
                terms,
                arguments.choice("best", best, ("keep", "reset")),
                parse_restore_best(restore_best),
            )
            return
        if restore_best is not False:
            raise ValueError("restore_best needs stages or schedule: `lighter-freezers schedule` writes one.")
        self._plan = ThawPlan(
            parse_pace(every_n_epochs, every_n_steps, total_epochs, plateau),
            arguments.choice("direction", direction, ("top-down", "bottom-up")),
            layers_per_stage,
            unfreeze_embeddings,
            lr_decay,
            arguments.count("warmup_steps", warmup_steps) or 0,
            which,
            terms,
        )

    def actions(self) -> list[Action]:
        """What counts the stages, where they are given one by one."""
        return [self._plan.clock()] if isinstance(self._plan, StagePlan) else []

    def _clock(self, trainer: TrainerLike) -> StageClock | None:
        """The one of this fit; kept by the engine alone, so that the callback can be pickled after it."""
        is_explicit = isinstance(self._plan, StagePlan)
        clocks = [each for each in Engine.of(trainer).actions if isinstance(each, StageClock)]
        return clocks[0] if is_explicit and clocks else None

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """The rules that hold each stage until it starts: one per stage, or one per layer with `lr_decay`."""
        if isinstance(self._plan, StagePlan):
            return self._plan.rules(model)
        layers = layers_of(model, self._said)
        self._beginnings, self._left_out = self._plan.beginnings(layers), layers.left_out
        return self._plan.rules(layers)

    def explicit_stages(self, model: nn.Module) -> list[ExplicitStage]:
        """The stages of a pace one by one, for `lighter-freezers schedule`."""
        assert isinstance(self._plan, ThawPlan)
        return self._plan.explicit(layers_of(model, self._said))

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Let the first forward pass check the order of the blocks; warn of what never thaws or begins."""
        is_explicit = isinstance(self._plan, StagePlan)
        if self._plan.depends_on_order:
            check_order(pl_module, anatomy_said(pl_module, self._said))
        if trainer.is_global_zero:
            self._warn_of_early_stopping(trainer)
        if self._left_out and trainer.is_global_zero:
            self._warn_of_left_out()
        last = certain_end(trainer, is_manual=not pl_module.automatic_optimization)
        if last is None or not trainer.is_global_zero:
            return
        shares = Engine.of(trainer).shares
        late = [
            title
            for hold, title in self._beginnings
            if hold != Schedule() and shares.resolved(hold).is_active(last)
        ]
        if clock := self._clock(trainer):
            clock.resolve(shares)
            late = [f"stage {stage + 1}" for stage in clock.never_begun(last)]
        if late:
            log.warning(
                "%r: %s would %s after the run has ended, %s. Train longer, or thaw more at a time",
                self,
                first_few(late),
                "begin" if is_explicit else "thaw",
                end_in_words(last),
            )

    def _warn_of_early_stopping(self, trainer: TrainerLike) -> None:
        why = early_end(trainer, self._plan.plateaus, self._plan.longest_stage)
        if why is not None:
            log.warning(
                "%r: %s: later stages then never begin. Give it more patience, or stages with "
                "until_early_stopping: true",
                self,
                why,
            )

    def _warn_of_left_out(self) -> None:
        log.warning(
            "%r will not thaw %s: frozen by hand before the run (requires_grad=False), which it leaves "
            "alone. Remove that line: the schedule alone freezes them when it should",
            self,
            first_few(self._left_out),
        )

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Say where the last stage did not begin: the run was stopped, or a condition was never met."""
        if clock := self._clock(trainer):
            has_left, on_metric = clock.number + 1 < clock.num_stages, bool(clock.awaits)
        else:
            ours = [each for each in Engine.of(trainer).active_rules if each.title == str(self._plan)]
            left = [each for each in ours if each.hold.is_active and not each.rule.is_static]
            has_left, on_metric = bool(left), any(each.monitors for each in left)
        if has_left:
            way_out = "With stages, until_early_stopping: true lets it end the stage instead of the run"
            say_unmet(trainer, str(self), "its last stage", way_out, on_metric=on_metric)

    def __repr__(self) -> str:
        return str(self._plan)
