"""The callback that shows what is frozen, in every logger of the Trainer. It does not freeze anything."""

from collections.abc import Iterable
from typing import cast

from torch import nn

from lighter_freezers._lightning import Callback
from lighter_freezers._log import log
from lighter_freezers.arguments import flag
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_clock import moment
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike, callbacks_of
from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.loggers import (
    tensorboard_folders,
    write_image,
    write_layout,
    write_metrics,
    write_text,
)
from lighter_freezers.reports.state_charts import headline, share_charts, share_metrics
from lighter_freezers.reports.state_tables import (
    Census,
    ComponentState,
    state_table_markdown,
    state_table_rich,
)
from lighter_freezers.reports.timeline import Timeline, TimelineState, draw_timeline

__all__ = ["FreezeStateLogger"]


class FreezeStateLogger(Callback):
    """Log what is frozen, at the steps where it changes, to TensorBoard and all other loggers of the Trainer.

    Nothing is written or read in between: it has no hook that runs per step. It shows what any callback of
    this package freezes, and the LoRA ranks it sets; a flag that other code sets appears at the next change
    of the same component.

    Logged keys, by optimizer step:

    | key | what | when |
    |---|---|---|
    | `freeze/trainable_parameters` | elements that train | start, each change and the step before it, end |
    | `freeze/frozen_share` | share of all elements that are frozen, 0 to 1 | the same |
    | `freeze/components/<component>` | share of it that trains, 0 to 1 | the same, when it changes |
    | `freeze/state` | a Markdown table (TensorBoard only) | start, each change |
    | `freeze/timeline` | a picture, layers by steps, with LoRA ranks | each checkpoint, end |

    The picture goes to TensorBoard and to loggers with `log_image`; the others get the file
    `freeze_timeline.png` in their folder, overwritten each time.

    Runs on: setup, the transitions that the package's other callbacks make, on_save_checkpoint, on_train_end.

    Saves: the timeline, so that the picture of a resumed run starts where the first run started.

    Args:
        show_table: Also print the table in the terminal.
        log_image: Draw the picture.
        log_layout: Group the components into charts on TensorBoard's custom-scalars tab. A run has one
            layout: switch it off to write your own.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.Freezer
              name_starts_with: [network.encoder]
              until_step: 500
            - _target_: lighter_freezers.FreezeStateLogger
              show_table: true
        ```
    """

    def __init__(self, show_table: bool = False, *, log_image: bool = True, log_layout: bool = True) -> None:
        self.show_table = flag("show_table", show_table)
        self.log_image = flag("log_image", log_image)
        self.log_layout = flag("log_layout", log_layout)
        self._timeline = Timeline([])
        self._census: Census | None = None  # of the current fit
        self._logged_step = -1  # the last that has points
        self._drawn_step = -1

    @property
    def state_key(self) -> str:
        """The same for all arguments: they may change on a resume, and the timeline continues."""
        return "FreezeStateLogger"

    def setup(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Register with the engine for the transitions of this fit."""
        engine = Engine.of(trainer)  # in every stage: a checkpoint may hold its state
        if stage != "fit":
            return
        num_alike = sum(isinstance(callback, FreezeStateLogger) for callback in callbacks_of(trainer))
        if num_alike > 1:
            raise RuntimeError(
                f"The Trainer has {num_alike} FreezeStateLogger callbacks. One writes to all loggers. "
                "Remove the others."
            )
        engine.add_listener(self)

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Write what changed; called by the engine on every rank, once per transition."""
        if not trainer.is_global_zero:
            return
        if transition.is_initial:
            self._start(trainer, Census(pl_module), transition)
        else:
            assert self._census is not None, "the engine sends the initial transition first"
            self._change(trainer, pl_module, self._census, transition)

    def on_save_checkpoint(
        self, trainer: TrainerLike, pl_module: nn.Module, checkpoint: dict[str, object]
    ) -> None:
        """Draw the timeline so far."""
        if self._census is not None:
            self._draw(trainer)

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Draw the whole timeline, and end every curve at the last step."""
        if self._census is None:
            return
        last_step = moment(trainer).optimizer_step
        if last_step > self._logged_step:
            write_metrics(trainer.loggers, share_metrics(self._census.total, self._census.states), last_step)
        self._draw(trainer)
        self._census = None
        for folder in tensorboard_folders(trainer.loggers):
            log.info("See what was frozen, and when: tensorboard --logdir %s", folder)

    def state_dict(self) -> dict[str, object]:
        """The timeline, in plain types."""
        return dict(self._timeline.to_state())

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Continue the timeline of the checkpoint."""
        self._timeline = Timeline.from_state(cast(TimelineState, state_dict))

    def _start(self, trainer: TrainerLike, census: Census, transition: Transition) -> None:
        self._census = census
        self._drawn_step = -1
        components = [state.name for state in census.states]
        if self._timeline.components != components:
            self._timeline = Timeline(components)
        if self.log_layout:
            write_layout(trainer.loggers, "freeze", share_charts(components))
        write_metrics(trainer.loggers, share_metrics(census.total, census.states), transition.optimizer_step)
        self._show(trainer, census, census.states, transition)

    def _change(
        self, trainer: TrainerLike, pl_module: nn.Module, census: Census, transition: Transition
    ) -> None:
        total = census.total
        if transition.is_reshaped:  # sizes and names have changed since they were counted
            self._census, before = Census(pl_module), {state.name: state for state in census.states}
            census = self._census
            changes = [
                (before.get(new.name, new), new) for new in census.states if before.get(new.name) != new
            ]
        else:
            changes = census.recount([*transition.frozen, *transition.thawed])
        if not changes and not transition.ranks:
            return
        step = transition.optimizer_step
        if step - 1 > self._logged_step:  # so that the curve is a step, not a slope
            write_metrics(trainer.loggers, share_metrics(total, [old for old, _ in changes]), step - 1)
        changed = [new for _, new in changes]
        write_metrics(trainer.loggers, share_metrics(census.total, changed), step)
        self._show(trainer, census, changed, transition)

    def _show(
        self, trainer: TrainerLike, census: Census, changed: Iterable[ComponentState], transition: Transition
    ) -> None:
        """Write what accompanies the numbers: timeline, table as text, table in the terminal."""
        self._logged_step = transition.optimizer_step
        self._timeline.record(transition.optimizer_step, {state.name: state.state for state in changed})
        self._timeline.ranks.record(transition.optimizer_step, transition.ranks)
        summary = headline(census.total, transition)
        text = f"`{summary}`\n\n{state_table_markdown(census.rows)}"  # or asterisks are emphasis
        write_text(trainer.loggers, "freeze/state", text, transition.optimizer_step)
        if self.show_table:
            from rich.console import Console

            console = Console()
            console.print(summary, markup=False, highlight=False)
            console.print(state_table_rich(census.rows))

    def _draw(self, trainer: TrainerLike) -> None:
        step = moment(trainer).optimizer_step
        is_wanted = self.log_image and trainer.loggers and self._timeline.steps
        if not is_wanted or step == self._drawn_step:
            return
        write_image(trainer.loggers, "freeze/timeline", draw_timeline(self._timeline, step), step)
        self._drawn_step = step
