"""The callback that summarizes a run in one JSON file: config, losses, gradient norms, cost and scores."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lighter_freezers._lightning import Callback, LightningModule
from lighter_freezers._log import log
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.training_loss import loss_of, mean_loss
from lighter_freezers.engine.transition import Transition
from lighter_freezers.planning.closing import closing_lines
from lighter_freezers.planning.config_errors import unused_variables
from lighter_freezers.reports.harmless import Harmless
from lighter_freezers.reports.loggers import tensorboard_folders
from lighter_freezers.reports.results_file import versions, write_results
from lighter_freezers.reports.whole_files import naming, write_json
from lighter_freezers.selection.element_counts import num_elements, num_trainable
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["ResultsSummary"]

FILE = "results_summary.json"
LEFT = "minutes_left"  # in the progress bar only
NUM_LAST = 10  # batches in `final_train_loss`


class ResultsSummary(Callback):
    """Write `results_summary.json` to the run's folder when training ends, and again when a test ends.

    The end of training also logs in a few lines what the loss did, what was frozen when, which share of the
    backward work that saved, where the picture is, and which commands show more.

    | key of the file | what |
    |---|---|
    | `config` | the config from which `lighter` built the run, or the module's `hparams` |
    | `optimizer_steps`, `epochs` | length of the training |
    | `train_loss`, `final_train_loss` | mean over all batches of this fit; over the last ten |
    | `first_train_loss` | that of the first batch of this fit |
    | `train_seconds` | wall time of the training loop, validation included |
    | `parameters` | elements of the model, at the end |
    | `trainable_parameters`, `final_trainable_parameters` | those that train, in the first step; at the end |
    | `metrics` | the last value of every metric logged in the fit |
    | `gradient_stats` | the content of each `*.summary.json` that `GradientNormMonitor` wrote |
    | `evaluation` | metrics that `lighter test` logged, without the prefix `test/` |
    | `versions` | versions of Python and packages |

    The folder is the Trainer's log folder, `version_N` of a logger. A second fit there writes
    `results_summary_1.json`. A test adds its metrics to the existing file: set the version of the test's
    logger to that of the run (`trainer::logger::version=0`). Compare runs with `lighter-freezers compare`.

    The progress bar shows `minutes_left` of a run of several epochs, at each `log_every_n_steps`-th batch.
    The share of the backward work is known where a `PhaseRecorder` has counted it.

    Runs on: setup, the transitions that the package's other callbacks make, on_train_start,
    on_before_backward, on_train_batch_end (which keeps the loss on the device), on_train_epoch_end,
    on_fit_end, on_test_end.

    Saves: nothing; after a resume, losses and seconds only cover the time since the resume.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.ResultsSummary
        ```
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._losses: list[torch.Tensor] = []
        self._first: torch.Tensor | None = None
        self._period = 50  # batches between two values in the bar
        self._first_batch = (0.0, 0.0)  # when it had ended, and the share of the run that was done then
        self._names = NameSummary([])
        self._changes: list[tuple[int, str]] = []  # optimizer step, what changed
        self._total: torch.Tensor | None = None  # sum of the earlier losses
        self._num_batches, self._window = 0, 1
        self._sizes: dict[str, int] = {}
        self._path: Path | None = None  # of this process's fit
        self._harmless = Harmless("ResultsSummary")

    def setup(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Register with the engine for the transitions of this fit."""
        engine = Engine.of(trainer)  # in every stage: a checkpoint may hold its state
        if stage == "fit":
            for sentence in unused_variables(_config(pl_module)) if trainer.is_global_zero else ():
                log.warning(sentence)
            self._changes = []
            self._started = time.monotonic()
            self._harmless.begin()
            self._sizes = {}
            self._losses, self._total, self._num_batches, self._path = [], None, 0, None
            self._first = None
            engine.add_listener(self)

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Note what changed; called by the engine, between two optimizer steps."""
        if transition.is_initial or transition.is_reshaped:
            self._names = NameSummary(list(canonical_parameters(pl_module)))
        said = transition.in_words(self._names, is_certain=True)
        self._changes += [(transition.optimizer_step, each) for each in said]

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Start the clock; a run without a step has none of these hooks."""
        self._started = time.monotonic()
        self._period = getattr(trainer, "log_every_n_steps", 0) or 50  # Lightning does not declare it

    def on_before_backward(self, trainer: TrainerLike, pl_module: nn.Module, loss: object) -> None:
        """Note by what Lightning has divided the loss."""
        self._window = trainer_clock.window_length(trainer)

    def on_train_batch_end(
        self, trainer: TrainerLike, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Keep the loss of a batch; now and then add the kept ones to one sum, on the device."""
        if not self._sizes:
            self._sizes["trainable_parameters"] = num_trainable(pl_module.parameters())
            epoch_share = (batch_idx + 1) / trainer.num_training_batches
            self._first_batch = time.monotonic(), trainer_clock.share_done(trainer, epoch_share)
        if (batch_idx + 1) % self._period == 0:
            self._show_time_left(trainer, pl_module, (batch_idx + 1) / trainer.num_training_batches)
        loss = loss_of(outputs, self._window)
        if loss is None:
            return
        self._losses.append(loss)
        self._first = loss if self._first is None else self._first
        self._num_batches += 1
        if len(self._losses) > 100 * NUM_LAST:
            early, self._losses = self._losses[:-NUM_LAST], self._losses[-NUM_LAST:]
            total = torch.stack(early).float().sum()
            self._total = total if self._total is None else self._total + total

    def on_train_epoch_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Show the minutes left in the bar."""
        self._show_time_left(trainer, pl_module, 1.0, is_epoch_end=True)

    def _show_time_left(
        self,
        trainer: TrainerLike,
        pl_module: LightningModule,
        epoch_share: float,
        *,
        is_epoch_end: bool = False,
    ) -> None:
        """In the bar, unless the run ends with its first epoch, of which Lightning's shows as much."""
        began, done_then = self._first_batch
        done = trainer_clock.share_done(trainer, epoch_share)
        if done_then < done < trainer_clock.moment(trainer).epoch + epoch_share:
            left = (time.monotonic() - began) / 60 * max(0.0, 1 - done) / (done - done_then)
            pl_module.log(LEFT, left, prog_bar=True, logger=False, sync_dist=is_epoch_end)

    def on_fit_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Count what trains, before all holds are released, and write the file; on the first rank only."""
        self._sizes["parameters"] = num_elements(pl_module.parameters())
        self._sizes["final_trainable_parameters"] = num_trainable(pl_module.parameters())
        losses = self._mean_losses(trainer)
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        moment = trainer_clock.moment(trainer)
        results = {
            "config": _config(pl_module),
            "optimizer_steps": moment.optimizer_step,
            "epochs": moment.epoch,
            **losses,
            "train_seconds": round(time.monotonic() - self._started, 3),
            **self._sizes,
            "metrics": _logged(trainer),
            "gradient_stats": _gradient_stats(folder),
        }
        self._path = self._harmless(lambda: write_results(folder, results, FILE))
        self._harmless(lambda: self._close(trainer, folder, losses))

    def on_test_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Add the figures of a test to the file of the run."""
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        path = self._path or folder / FILE
        scores = {name.partition("/")[2] or name: value for name, value in _logged(trainer).items()}

        def write() -> None:
            known = _read(path) if path.exists() else {"config": _config(pl_module)}
            write_json(path, {**known, "evaluation": scores, "versions": versions()})

        self._harmless(write)

    def _close(self, trainer: TrainerLike, folder: Path, losses: Mapping[str, float | None]) -> None:
        """Log the last lines of the run."""
        first, last = losses["first_train_loss"], losses["final_train_loss"]
        num_last = min(NUM_LAST, self._num_batches)
        said = (
            []
            if first is None
            else [("loss", f"from {first:.4g} (first batch) to {last:.4g} (last {num_last})")]
        )
        figures = [(name, f"{value:.4g}") for name, value in _logged(trainer).items() if name[:3] == "val"]
        has_picture = callbacks_of_kind(callbacks_of(trainer), "FreezeStateLogger")
        folders = tensorboard_folders(trainer.loggers) if has_picture else []
        lines = closing_lines(
            folder,
            [*said, *figures[:1]],
            self._changes,
            [f"tensorboard --logdir {each}" for each in folders],
            self._sizes["parameters"],
        )
        steps, seconds = trainer_clock.moment(trainer).optimizer_step, time.monotonic() - self._started
        log.info("The run: %d optimizer steps in %.0f s\n%s", steps, seconds, "\n".join(lines))

    def _mean_losses(self, trainer: TrainerLike) -> dict[str, float | None]:
        """The mean over all batches and over the last ones; each is read from the device once."""
        if not self._losses or self._first is None:
            return {"train_loss": None, "first_train_loss": None, "final_train_loss": None}
        total = torch.stack(self._losses).float().sum() + (0.0 if self._total is None else self._total)
        return {
            "train_loss": float(mean_loss(trainer, [total / self._num_batches])),
            "first_train_loss": float(mean_loss(trainer, [self._first])),
            "final_train_loss": float(mean_loss(trainer, self._losses[-NUM_LAST:])),
        }


def _folder(trainer: TrainerLike) -> Path:
    """The folder of the run, the same on all ranks."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _config(pl_module: LightningModule) -> object:
    """The config that `lighter` keeps in the module's hyperparameters; without it all hyperparameters."""
    known = dict(pl_module.hparams)
    return known.get("config", known)


def _logged(trainer: TrainerLike) -> dict[str, float]:
    metrics = trainer_clock.metrics(trainer).items()
    return {name: float(value) for name, value in metrics if name != LEFT}


def _gradient_stats(folder: Path) -> dict[str, object]:
    stats: dict[str, object] = {}
    for file in sorted(folder.glob("*.summary.json")):
        try:
            stats[file.name.removesuffix(".summary.json")] = _read(file)
        except (OSError, ValueError) as error:
            log.warning("ResultsSummary leaves out gradient norms: %s", error)
    return stats


def _read(file: Path) -> dict[str, object]:
    with naming(file, "a summary of a run"):
        return dict(json.loads(file.read_text(encoding="utf-8")))
