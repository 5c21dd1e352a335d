"""The callback that measures what a step of each phase costs, for `lighter-freezers report`."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from lighter_freezers import arguments
from lighter_freezers._lightning import Callback
from lighter_freezers._log import log
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.transition import Transition
from lighter_freezers.planning.phase_meter import FILE, PhaseMeter
from lighter_freezers.reports.harmless import Harmless
from lighter_freezers.reports.whole_files import write_json

__all__ = ["PhaseRecorder"]


class PhaseRecorder(Callback):
    """Measure the cost of a step in each phase of a run, and write it next to the run's other files.

    A phase here is the time between two changes of what trains. Its first step is traced: its floating-point
    operations, gradients, optimizer state and saved activations are counted. The second is a warm-up and not
    measured. The next ones are timed, and beside a `PrefixCache` as many of those that it serves; after them
    nothing is measured until the next change. No number is read from a GPU before a phase has ended.

    | call | what is measured |
    |---|---|
    | `PhaseRecorder()` | in each phase one step is traced, up to 50 are timed |
    | `PhaseRecorder(num_timed=5)` | the same with up to 5 |
    | `PhaseRecorder(num_timed=0)` | counts and bytes only |

    Times are GPU times, or without a GPU the CPU time of the process, so that other load on the machine does
    not count. The file is `freeze_report.json` in the folder of the Trainer's logger, or in
    `default_root_dir` if there is no logger; it is written at the end of each phase.

    Args:
        num_timed: Maximum number of optimizer steps to time in each phase.

    Raises:
        TypeError: `num_timed` is not a whole number.
        RuntimeError: The Trainer has two PhaseRecorders.

    Runs on: `setup`, the transitions that the package's other callbacks make, on_train_end; the batches of
    the first steps of a phase.

    Saves: nothing. A resumed run writes its own report, which starts where the run resumed.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.Freezer
              name_starts_with: [network.encoder]
              until_step: 500
            - _target_: lighter_freezers.PhaseRecorder
        ```
    """

    def __init__(self, num_timed: int = 50) -> None:
        self._num_timed = arguments.at_least("num_timed", num_timed)
        self._meter = PhaseMeter(self._num_timed)
        self._file: Path | None = None
        self._harmless = Harmless("PhaseRecorder")

    def setup(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Register with the engine for the transitions of this fit."""
        engine = Engine.of(trainer)
        if stage != "fit":
            return
        if sum(isinstance(callback, PhaseRecorder) for callback in callbacks_of(trainer)) > 1:
            raise RuntimeError(
                "The Trainer has more than one PhaseRecorder, and both would write the same file."
            )
        engine.add_listener(self)
        self._meter = PhaseMeter(self._num_timed, waits_for_served=True)
        self._harmless.begin()
        folder = trainer.log_dir  # a collective call, so every rank makes it
        self._file = Path(folder) / FILE if folder and trainer.is_global_zero else None

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Start the next phase; called by the engine, between two optimizer steps."""
        self._meter.begin(pl_module, transition)
        self._write({})
        self._listen()

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """End the last phase, and write the report."""
        self._meter.end()
        self._write({"num_steps": trainer_clock.moment(trainer).optimizer_step})
        self._stop_listening()
        if self._file is not None and not callbacks_of_kind(callbacks_of(trainer), "ResultsSummary"):
            log.info("what each phase cost: lighter-freezers report %s", self._file.parent)

    def on_exception(self, trainer: TrainerLike, pl_module: nn.Module, exception: BaseException) -> None:
        """Keep what is measured so far."""
        self._meter.break_off()
        self._stop_listening()

    def _listen(self) -> None:
        self.on_train_batch_start = self._start_batch
        self.on_before_optimizer_step = self._see_gradients
        self.on_train_batch_end = self._end_batch

    def _stop_listening(self) -> None:
        self.on_train_batch_start = self.on_before_optimizer_step = self.on_train_batch_end = None

    def _start_batch(self, trainer: TrainerLike, pl_module: nn.Module, batch: object, batch_idx: int) -> None:
        self._meter.start_batch(trainer, pl_module, batch, batch_idx)

    def _see_gradients(self, trainer: TrainerLike, pl_module: nn.Module, optimizer: Optimizer) -> None:
        self._meter.see_gradients(pl_module)

    def _end_batch(
        self, trainer: TrainerLike, pl_module: nn.Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._meter.end_batch(trainer, batch_idx)
        if self._meter.has_enough:
            self._stop_listening()

    def _write(self, more: Mapping[str, object]) -> None:
        if self._file is None or not self._meter.records:
            return
        file, phases = self._file, [record.as_dict() for record in self._meter.records]
        self._harmless(lambda: write_json(file, {"phases": phases, **more}))
