"""Curves that hold their value from change to change, in every logger of a Trainer.

TensorBoard smooths curves at 0.6 as it opens, over points and not over steps, and keeps one point for each
step. So it gets a point at each of the `NUM_POINTS` optimizer steps from a change on, after which 0.6**11, or
0.4 %, of the jump is left; the other loggers get one. Nothing is written in a steady state after that. At the
start it gets as many, because it leaves values that few points have out of its charts ("ignore outliers").
A curve that a scheduler moves gets at least `NUM_MOVING` points over the run: smoothed, it lags 0.5 % of it.
"""

import math
from collections.abc import Callable, Collection, Mapping

from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.reports.loggers import tensorboards, write_metrics

__all__ = ["NUM_POINTS", "StepCurves"]

NUM_POINTS = 11
NUM_MOVING = 300  # of the 1000 that TensorBoard loads

Values = Mapping[str, float]


class StepCurves:
    """Some curves, written where they change. Processes other than the first write nothing.

    Args:
        read: Returns the values of the next step, for curves that may also move between two changes.
        is_whole: Write all of them where one changes, for loggers that show rows.
    """

    def __init__(self, read: Callable[[], Values] | None = None, *, is_whole: bool = False) -> None:
        self._read = read
        self._is_whole = is_whole
        self._now: dict[str, float] = {}  # in force from the coming step on
        self._shown: dict[str, float] = {}  # the last point of each
        self._steps: dict[str, int] = {}  # of the last point of each
        self._missing: dict[str, int] = {}  # for how many more steps TensorBoard needs points
        self._last_step = -1  # that has all of them
        self._ended: set[str] = set()
        self._is_followed = False
        self._period = 1  # steps between two points of a curve that moves

    def begin(self, trainer: TrainerLike, values: Values, optimizer_step: int) -> None:
        """The first points of a fit."""
        self._now, self._shown, self._steps, self._missing = {}, {}, {}, {}
        self._is_followed, self._ended = False, set()
        self._period = _period(trainer)
        self._write(trainer, values, optimizer_step)
        self._settle(trainer, values, optimizer_step)

    def change(
        self,
        trainer: TrainerLike,
        values: Values,
        optimizer_step: int,
        *,
        also: Values | None = None,
        ended: Values | None = None,
    ) -> None:
        """A step in each curve that has another value now; the others are left as they are.

        Args:
            trainer: Its loggers get the points.
            values: Key to number, of all curves; a curve that is missing ends.
            optimizer_step: The first step with these values.
            also: Numbers of this step alone.
            ended: The last values of curves that end.
        """
        self._close(trainer, values, ended or {}, optimizer_step - 1)
        changed = {k: v for k, v in values.items() if self._is_whole or self._shown.get(k) != v}
        if self._read is None:
            held = {key for key in changed if self._steps.get(key, optimizer_step) < optimizer_step - 1}
            before = {key: self._shown[key] for key in held}
            self._write(trainer, before, optimizer_step - 1)  # or the curve would be a slope
        self._write(trainer, changed, optimizer_step, also)
        self._now = dict(values)
        self._settle(trainer, changed, optimizer_step)

    def _close(self, trainer: TrainerLike, values: Values, ended: Values, last_step: int) -> None:
        """End the curves that have no value any more, and begin a gap before those that have one again."""
        ending = self._shown.keys() - values.keys()
        last = {key: ended[key] for key in ending & ended.keys() if self._steps[key] < last_step}
        self._write(trainer, last, last_step)
        if trainer.is_global_zero:
            gaps = dict.fromkeys(self._ended & values.keys(), math.nan)  # or a line would bridge them
            write_metrics(tensorboards(trainer.loggers), gaps, last_step)
        self._ended = (self._ended | ending) - values.keys()
        for key in ending:
            del self._shown[key], self._steps[key]

    def sample(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """A point for each curve that has moved since its last one."""
        if self._read is not None:
            moved = {key: value for key, value in self._read().items() if self._shown.get(key) != value}
            self._write(trainer, moved, optimizer_step)
            self._settle(trainer, moved, optimizer_step)

    def end(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """The last points, so that every curve reaches the end of the run."""
        values = self._shown if self._read is None else self._read()
        last = {key: value for key, value in values.items() if self._steps.get(key, -1) < optimizer_step}
        self._write(trainer, last, optimizer_step)
        self._missing = {}

    def _settle(self, trainer: TrainerLike, keys: Collection[str], optimizer_step: int) -> None:
        if not (trainer.is_global_zero and keys and tensorboards(trainer.loggers)):
            return
        self._missing.update(dict.fromkeys(keys, NUM_POINTS))
        self._last_step = optimizer_step - 1
        if not self._is_followed:
            self._is_followed = True
            Engine.of(trainer).follow_steps(self._after_batch)

    def _after_batch(self, trainer: TrainerLike) -> bool:
        """Write the points of the step that has just been done; returns whether others have to follow."""
        step = trainer_clock.moment(trainer).optimizer_step - 1
        if step > self._last_step:  # not in the middle of a window of accumulation
            self._last_step = step
            asked = self._missing if step % self._period else self._now
            due = {key: self._now[key] for key in asked if self._is_due(key, step)}
            write_metrics(tensorboards(trainer.loggers), due, step)
            self._shown.update(due)
            self._steps.update(dict.fromkeys(due, step))
            self._missing = {key: left - 1 for key, left in self._missing.items() if left > 1}
        before = self._now
        if self._read is not None:
            self._now = dict(self._read())
        self._is_followed = bool(self._missing) or self._now != before  # a scheduler moves it
        return self._is_followed

    def _is_due(self, key: str, step: int) -> bool:
        """Whether TensorBoard needs a point of a curve that it has none of at this step."""
        has_moved = key in self._missing or self._shown.get(key) != self._now.get(key)
        return key in self._now and self._steps.get(key, -1) < step and has_moved

    def _write(
        self, trainer: TrainerLike, values: Values, optimizer_step: int, also: Values | None = None
    ) -> None:
        if trainer.is_global_zero:
            write_metrics(trainer.loggers, {**values, **(also or {})}, optimizer_step)
        self._now.update(values)
        self._shown.update(values)
        self._steps.update(dict.fromkeys(values, optimizer_step))


def _period(trainer: TrainerLike) -> int:
    """Steps between two points of a curve that moves; as the Trainer logs, where it has no known end."""
    as_logged = getattr(trainer, "log_every_n_steps", 0) or 50  # Lightning does not declare it
    last = trainer_clock.certain_end(trainer, is_manual=False)
    return as_logged if last is None else max(1, min(as_logged, last.optimizer_step // NUM_MOVING))
