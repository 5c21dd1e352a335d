"""The callback that shows what is frozen, in every logger of the Trainer. It does not freeze anything."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from lighter_freezers._lightning import Callback
from lighter_freezers._log import log
from lighter_freezers.arguments import flag
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_clock import metrics, moment
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.background import Background
from lighter_freezers.reports.loggers import tensorboard_folders, write_layout, write_text
from lighter_freezers.reports.state_charts import LayerRates, headline, share_charts, share_metrics
from lighter_freezers.reports.state_tables import (
    Census,
    ComponentState,
    changes_table,
    state_table,
    state_table_markdown,
)
from lighter_freezers.reports.step_curves import StepCurves
from lighter_freezers.reports.timeline import Timeline, TimelineState
from lighter_freezers.reports.timeline_picture import write_timeline

__all__ = ["FreezeStateLogger"]


class FreezeStateLogger(Callback):
    """Log what is frozen, at the steps where it changes, to TensorBoard and all other loggers of the Trainer.

    It has no hook that runs per step. It shows what any callback of
    this package freezes, and the LoRA ranks it sets; a flag that other code sets appears at the next change
    of the same component.

    Logged keys, by optimizer step:

    | key | what | when |
    |---|---|---|
    | `freeze/frozen_share` | share of all elements that are frozen, 0 to 1 | start, changes, end |
    | `freeze/trainable_parameters` | elements that train | the same |
    | `trainable_share/<layers>` | share of a layer or of blocks that trains, 0 to 1 | the same |
    | `freeze/trainable_rate/<layers>` | of a group that trains | and after validations, epochs |
    | `freeze/state` | a table | start, changes |
    | `freeze/timeline` | layers by steps, with LoRA ranks and the loss | checkpoints after changes, end |

    TensorBoard smooths its curves over points: it gets a point for each of the 11 steps from the start
    and from a change on, and then none until the next change.

    The table goes to TensorBoard as text and to loggers with `log_text`; the picture to TensorBoard and to
    loggers with `log_image`; MLflow and Comet get both through their clients. The others get the file
    `freeze_timeline.png` in their folder, overwritten each time.

    Runs on: setup, the transitions that the package's other callbacks make, on_validation_end,
    on_train_epoch_end, on_save_checkpoint, on_train_end.

    Saves: the timeline, so that the picture of a resumed run starts where the first run started.

    Args:
        show_table: Also print what changed as a table in the terminal, by blocks and stages.
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
        self._census = Census(nn.Module())  # of the current fit
        self._shares, self._rates = StepCurves(), StepCurves()
        self._layer_rates = LayerRates({})
        self._drawing = Background("The picture freeze/timeline")
        self._has_news = False  # whether something changed since the picture was drawn
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
        step = transition.optimizer_step
        if transition.is_initial:
            self._start(trainer, Census(pl_module), step)
            earlier, changed = [], self._census.states
        else:
            earlier = self._census.states
            changed = self._recount(pl_module, transition)
            if not changed and not transition.ranks:
                return
            self._shares.change(trainer, share_metrics(self._census.total, self._census.rows), step)
            self._layer_rates.look(trainer.optimizers)
            ended = self._layer_rates.frozen()
            self._rates.change(trainer, self._layer_rates.read(), step, ended=ended)
        self._timeline.record(step, {state.name: state.state for state in changed})
        has_new_ranks = bool(transition.ranks) and not transition.is_initial
        self._timeline.ranks.record(step, transition.ranks, is_change=has_new_ranks)
        self._has_news = True
        self._show(trainer, transition, earlier)

    def on_validation_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Note the loss, and the learning rates that have moved."""
        self._sample(trainer)

    def on_train_epoch_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Note the loss, and the learning rates that have moved."""
        self._sample(trainer)

    def on_save_checkpoint(
        self, trainer: TrainerLike, pl_module: nn.Module, checkpoint: dict[str, object]
    ) -> None:
        """Draw the timeline so far, if something has changed since it was drawn."""
        if self._has_news:
            self._draw(trainer)

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Draw the whole timeline, and end every curve at the last step."""
        if not self._timeline.steps or not trainer.is_global_zero:
            return
        last_step = moment(trainer).optimizer_step
        self._shares.end(trainer, last_step)
        self._rates.end(trainer, last_step)
        self._drawing.wait()
        if self._has_news or self._drawn_step != last_step:
            self._draw(trainer)
        self._drawing.wait()
        if callbacks_of_kind(callbacks_of(trainer), "ResultsSummary"):
            return  # which says it at the end
        for folder in tensorboard_folders(trainer.loggers):
            log.info("See what was frozen, and when: tensorboard --logdir %s", folder)

    def on_exception(self, trainer: TrainerLike, pl_module: nn.Module, exception: BaseException) -> None:
        """Let the picture under way be written, and forget the model."""
        self._leave()

    def teardown(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Forget the model."""
        self._leave()

    def state_dict(self) -> dict[str, object]:
        """The timeline, in plain types."""
        return dict(self._timeline.to_state())

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Continue the timeline of the checkpoint."""
        self._timeline = Timeline.from_state(cast(TimelineState, state_dict))

    def _start(self, trainer: TrainerLike, census: Census, step: int) -> None:
        self._census = census
        components = [state.name for state in census.states]
        if self._timeline.components != components:
            self._timeline = Timeline(components)
        if self.log_layout:
            write_layout(trainer.loggers, "freeze", share_charts(row.name for row in census.rows))
        self._shares.begin(trainer, share_metrics(census.total, census.rows), step)
        self._layer_rates = LayerRates(census.row_of)
        self._layer_rates.look(trainer.optimizers)
        self._rates = StepCurves(lambda: self._layer_rates.read())
        self._rates.begin(trainer, self._layer_rates.read(), step)

    def _recount(self, pl_module: nn.Module, transition: Transition) -> list[ComponentState]:
        """The components that differ from the last count."""
        if not transition.is_reshaped:
            return [new for _, new in self._census.recount([*transition.frozen, *transition.thawed])]
        before = {state.name: state for state in self._census.states}
        self._census = Census(pl_module)  # sizes and names have changed since they were counted
        self._layer_rates = LayerRates(self._census.row_of)
        return [state for state in self._census.states if before.get(state.name) != state]

    def _leave(self) -> None:
        self._drawing.wait()
        self._census, self._layer_rates = Census(nn.Module()), LayerRates({})
        self._shares, self._rates = StepCurves(), StepCurves()

    def _sample(self, trainer: TrainerLike) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        step = moment(trainer).optimizer_step
        self._rates.sample(trainer, step)
        self._timeline.losses.record(step, metrics(trainer))

    def _show(self, trainer: TrainerLike, transition: Transition, earlier: Sequence[ComponentState]) -> None:
        """Write the table as text, and what changed in the terminal."""
        summary, rows = headline(self._census.total, transition), self._census.rows
        text = f"`{summary}`\n\n{state_table_markdown(rows)}"  # or asterisks are emphasis
        write_text(trainer.loggers, "freeze/state", text, transition.optimizer_step, state_table(rows))
        if self.show_table:
            table = changes_table(earlier, self._census.states)
            log.info("step %d, by layers:\n%s", transition.optimizer_step, table)

    def _draw(self, trainer: TrainerLike) -> None:
        """Draw on another thread; where that still draws, the next checkpoint or the end will."""
        if not (self.log_image and trainer.loggers and self._timeline.steps):
            return
        step, timeline, loggers = moment(trainer).optimizer_step, self._timeline.copy(), trainer.loggers
        if self._drawing.start(lambda: write_timeline(loggers, "freeze/timeline", timeline, step)):
            self._has_news, self._drawn_step = False, step
