"""The stages of a run: which one it is in, and what ends it. What trains in a stage is said by rules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.engine.actions import Action, ActionResult, StepContext
from lighter_freezers.engine.early_stopping import EARLY_STOPPING, OutOfPatience, PatienceWatch
from lighter_freezers.engine.effects.stage_optimizers import StageOptimizer, StageOptimizers
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.stage_best import BestOfStage, BestRequest
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import History, MetricTrigger, Moment, Plateau, Schedule

__all__ = ["Best", "StageClock", "StageEnd"]

Best = Literal["keep", "reset"]


@dataclass(frozen=True)
class StageEnd:
    """What ends a stage, whichever comes first; the last stage ends with the run.

    Attributes:
        schedule: Active until the step or the epoch at which it ends.
        trigger: Ends it when a metric meets a condition during the stage.
        patience: Ends it instead of the run when EarlyStopping is out of patience.
    """

    schedule: Schedule = Schedule()
    trigger: MetricTrigger | None = None
    patience: OutOfPatience | None = None

    def reason(self, moment: Moment, history: History, *, is_out_of_patience: bool) -> str | None:
        """Why the stage is over, for the log; None while it is not."""
        if is_out_of_patience:
            return f"{self.patience}"
        if history.has_fired:
            return f"{self.trigger}"
        return f"{self.schedule}" if self.schedule.has_ended(moment) else None

    def __str__(self) -> str:
        until = [str(self.schedule)] if self.schedule != Schedule() else []
        return " or ".join(until + [f"until {each}" for each in (self.trigger, self.patience) if each])


class StageClock(Action):
    """Counts the stages of one run. At the start of each step it enters what is due, before any rule.

    Args:
        title: Names it in logs and errors.
        ends: What ends each stage but the last.
        best: Whether the value that a plateau or EarlyStopping has to beat is kept in the next stage.
        restores: Which weights of the stage before a stage begins with; None for those of its last step.
        optimizers: The optimizer and LR scheduler that each stage begins with, None for those that there are.
    """

    kind = "stages"
    monitor_argument = "until_metric.monitor"

    def __init__(
        self,
        title: str,
        ends: Sequence[StageEnd],
        best: Best = "keep",
        restores: BestRequest | None = None,
        optimizers: Sequence[StageOptimizer | None] = (),
    ) -> None:
        super().__init__()
        self.title = title
        self.optimizers = StageOptimizers(title, optimizers)
        self._ends = tuple(ends)
        self._best = best
        self._history = History()
        self._is_out_of_patience = False
        self._watch: PatienceWatch | None = None
        self._kept = None if restores is None else BestOfStage(restores)
        self.ends_first = restores is not None and restores.at_end  # before others export
        self._entered: list[str] = []  # notes on the stages that began at this moment
        self._left = 0  # the stage that these began after
        self.number = 0

    @property
    def num_stages(self) -> int:
        """How many there are."""
        return len(self._ends) + 1

    @property
    def restores(self) -> bool:
        """Whether a stage begins with the best weights of the one before."""
        return self._kept is not None

    @property
    def monitors(self) -> frozenset[str]:
        """The metrics that may end this stage or a later one, and the one by which the best is told."""
        best = [self._kept.request] if self._kept else []
        triggers = [each for end in self._ends[self.number :] for each in (end.trigger, end.patience)]
        return frozenset(each.monitor for each in (*triggers, *best) if each)

    @property
    def awaits(self) -> MetricTrigger | OutOfPatience | None:
        """The condition on a metric that may end this stage."""
        return self._end.trigger or self._end.patience

    @property
    def _end(self) -> StageEnd:
        return self._ends[self.number] if self.number < len(self._ends) else StageEnd()

    def observe(self, monitor: str, value: float) -> bool:
        """Pass a value to the condition of this stage; returns whether it is met."""
        if self._kept is not None and monitor == self._kept.request.monitor:
            self._kept.observe(self.number, value)
        if monitor == EARLY_STOPPING:
            self._is_out_of_patience = self._end.patience is not None
            return self._is_out_of_patience
        trigger = self._end.trigger
        if trigger is None or trigger.monitor != monitor:
            return False
        self._history = trigger.observe(value, self._history)
        return self._history.has_fired

    def setup(self, trainer: TrainerLike, model: nn.Module, stage: str) -> None:
        """Find out which metric tells the best weights."""
        if self._kept is not None:
            self._kept.set_up(trainer)

    def begin(self, trainer: TrainerLike, model: nn.Module, wake: Callable[[], object]) -> None:
        """Before the first step of a fit, or later: watch EarlyStopping, and keep the best weights.

        Args:
            trainer: The Trainer.
            model: What trains.
            wake: Has the clock asked at the next step.

        Raises:
            RuntimeError: The Trainer has no EarlyStopping, or cannot keep the best weights.
        """

        def leave() -> None:
            self.observe(EARLY_STOPPING, 0.0)
            wake()

        if self._watch is None and any(end.patience for end in self._ends):
            self._watch = PatienceWatch(trainer, lambda: self._end.patience is not None, leave)
        if self._kept is not None:
            self._kept.begin(trainer, model)

    def enter(self, moment: Moment) -> int:
        """Enter the stages that are due; returns the number of the stage from this moment on."""
        self._left = self.number
        while self.number < len(self._ends):
            reason = self._end.reason(moment, self._history, is_out_of_patience=self._is_out_of_patience)
            if reason is None:
                break
            self._begin_next()
            brought = self.optimizers.brought_by(self.number)
            self._entered.append(f"stage {self.number + 1} of {self.num_stages} begins ({reason}){brought}")
        return self.number

    def next_step(self, moment: Moment) -> int | None:
        """The step that ends this stage at the latest."""
        return self._end.schedule.next_step(moment)

    def is_due(self, moment: Moment) -> bool:
        """Whether a stage has begun at this moment."""
        return bool(self._entered)

    def apply(self, context: StepContext) -> ActionResult:
        """Note which stages have begun, and begin with the best weights; patience is counted from 0 again."""
        notes, self._entered = self._entered, []
        if self._kept is not None:
            none = f"nothing was measured in stage {self._left + 1}, so its last weights remain"
            notes.append(self._kept.restore(context, self._left) or none)
        if self._watch is not None:
            self._watch.renew(resets_best=self._best == "reset")
        return ActionResult(notes=tuple(notes))

    def end(self, trainer: TrainerLike) -> None:
        """At the end of the run, put the best weights of all stages into the module if that was asked for."""
        if self._kept is not None and self.ends_first:
            note = self._kept.restore_best_of_all()
            if note is not None and trainer.is_global_zero:
                log.info("at the end of the run, %s", note)

    def resolve(self, shares: RunShares) -> None:
        """Put steps and epochs in place of shares of the run."""
        self._ends = shares.resolved(self._ends)

    def end_of(self, asking: str, stages: range, shares: RunShares) -> int:
        """The optimizer step before which some stages have all ended, for what needs their length.

        Raises:
            RuntimeError: It is never known; the message says why.
        """
        self.resolve(shares)
        steps = []
        for end in [*self._ends, None][stages.start : stages.stop]:
            schedule = end.schedule if end else Schedule()
            if end and schedule == Schedule():
                reason: str | None = f"a stage that is in force {end} may take any number of them"
            else:
                step, reason = shares.step_of(schedule.until_step, schedule.until_epoch)
                steps.append(step)
            if reason:
                raise RuntimeError(
                    f"{asking}: 'stage' stands for the optimizer steps to the next scheduler or optimizer; "
                    f"their number is never known: {reason}. Write a number, or give the stage until_step."
                )
        return max(steps)

    def state(self) -> dict[str, object]:
        """The stage, and what its condition has seen."""
        history = self._history
        seen = [history.best, history.num_without_progress, history.has_fired]
        best = self._kept.state() if self._kept else {}
        patience = self._is_out_of_patience
        rates = self.optimizers.state()
        return {"stage": self.number, "history": seen, "patience": patience, "best": best, "rates": rates}

    def remember(self, state: SavedState) -> None:
        """Go on in the stage in which the checkpoint was saved, or in the last one of a shorter list."""
        self.number = min(state["stage"], len(self._ends))
        self._history = History(*state["history"])
        self._is_out_of_patience = state["patience"]
        self.optimizers.remember(state.get("rates", {"step": 0, "rates": {}}))
        if self._kept is not None:
            self._kept.remember(state["best"])

    def leave(self) -> None:
        """The fit has ended: EarlyStopping is as it was."""
        super().leave()
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def never_begun(self, last: Moment) -> list[int]:
        """The stages that begin after the last step of the run for certain: no metric may begin them."""
        late = next(
            (
                stage
                for stage, end in enumerate(self._ends)
                if end.trigger is None and end.patience is None and not end.schedule.has_ended(last)
            ),
            self.num_stages,
        )
        return list(range(late + 1, self.num_stages))

    def _begin_next(self) -> None:
        before, self.number = self._end.trigger, self.number + 1
        kept, self._history, self._is_out_of_patience = self._history.best, History(), False
        now = self._end.trigger
        is_alike = isinstance(before, Plateau) and isinstance(now, Plateau) and before.mode == now.mode
        if self._best == "keep" and is_alike and before and now and before.monitor == now.monitor:
            self._history = replace(self._history, best=kept)
