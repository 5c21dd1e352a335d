"""The callback that measures gradient norms and writes them to files and loggers. Training is unaffected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from lighter_freezers import arguments
from lighter_freezers._lightning import Callback, LightningModule
from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.trainer_strategies import refuse_flat_gradients
from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.gradients.changed_layers import changed_layers
from lighter_freezers.reports.gradients.files import NormFiles, free_name, local_folder
from lighter_freezers.reports.gradients.hooks import scale_of, share_clipping
from lighter_freezers.reports.gradients.norms import GradientNorms, NormPlan
from lighter_freezers.reports.gradients.recent_losses import RecentLosses
from lighter_freezers.reports.harmless import Harmless
from lighter_freezers.reports.loggers import write_metrics
from lighter_freezers.selection.names import closest_names

__all__ = ["GradientNormMonitor"]

VAL_LOSSES = ("val/loss", "val_loss")
DEFAULT_PERIOD = 50  # where the Trainer logs nothing


class GradientNormMonitor(Callback):
    """Measure the gradient norms of embeddings, attention, MLPs and head, in total and per block.

    | call | what it does |
    |---|---|
    | `GradientNormMonitor()` | a row whenever the Trainer logs, in its log folder |
    | `GradientNormMonitor(every_n_steps=1)` | a row for each optimizer step |
    | `GradientNormMonitor(per_layer=False)` | the groups only |
    | `GradientNormMonitor(dirpath="norms", name="run7")` | `norms/run7.group_norms.csv` and so on |

    It measures L2 norms of the gradients that an optimizer step is about to use: after accumulation,
    unscaling and reduction over ranks, but before clipping. A measurement reads the device once. If the
    Trainer clips by norm, measuring and clipping share one pass over the gradients.

    A cell is empty where nothing had a gradient: for a frozen layer, or a kind of layer that the model does
    not have. Row N holds the gradient of the step after N completed steps, so it is the first row that
    reflects a change made at step N.

    Runs on: setup, the transitions that the package's other callbacks make, on_before_backward,
    on_before_optimizer_step, on_train_batch_end, on_validation_end, on_save_checkpoint, on_train_end,
    on_exception.

    Logs: `gradient_norm/<group>` and, with `per_layer`, `gradient_norm/<group>.<block>`; of more than 24
    groups `gradient_norm/<block>`.

    Writes: `<name>.group_norms.csv`, `<name>.layer_norms.csv`, `<name>.summary.json`, and for the plots
    `<name>.losses.csv` and `<name>.transitions.csv`. A row is in the file before the next step starts.

    Saves: the location of its files. A resumed run continues them; rows after the step of its checkpoint are
    dropped.

    Args:
        every_n_steps: Optimizer steps between measurements. None for the Trainer's `log_every_n_steps`.
        per_layer: Whether to measure each block as well.
        dirpath: Folder of the files. None for the Trainer's log folder.
        name: Prefix of the file names; two monitors of one Trainer need different ones. A run that finds
            files of another run there uses `<name>-v1`, and so on.
        save_format: `json` also writes `<name>.gradient_norms.json`, at each checkpoint and at the end.
        val_loss: The logged metric for the column `val_loss` of the losses. None for `val/loss` or
            `val_loss`, whichever is logged.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.
        RuntimeError: In `setup`, the strategy keeps no gradients that can be measured.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.GradientNormMonitor
              every_n_steps: 10
        ```
    """

    @checked
    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        per_layer: bool = True,
        dirpath: str | os.PathLike[str] | None = None,
        name: str = "gradient_analysis",
        save_format: Literal["csv", "json"] = "csv",
        val_loss: str | None = None,
    ) -> None:
        self.every_n_steps = arguments.count("every_n_steps", every_n_steps)
        if self.every_n_steps == 0:
            raise ValueError("every_n_steps must be at least 1. Got 0. Remove it to measure nothing.")
        self.per_layer = per_layer
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.name = _file_name(name)
        self.save_format = arguments.choice("save_format", save_format, ("csv", "json"))
        self.val_loss = val_loss
        self._has_warned = False
        self._period = 0
        self._plan: NormPlan | None = None  # of the current fit
        self._files: NormFiles | None = None  # on the first rank
        self._source: str | None = None  # of the files that this run, or the one it resumes, writes
        self._losses = RecentLosses()
        self._measured_step = -1
        self._harmless = Harmless("GradientNormMonitor")

    @property
    def state_key(self) -> str:
        """Depends on `name` alone, so a resumed run with other arguments still appends to the same files."""
        return f"GradientNormMonitor[{self.name}]"

    @property
    def norms_file(self) -> Path | None:
        """The file of the run's group norms; None before training, and on all ranks but the first."""
        return None if self._source is None else Path(self._source + NormFiles.first)

    def setup(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Refuse what cannot be measured, and register with the engine for the transitions of this fit."""
        if stage == "fit":
            refuse_flat_gradients(trainer.strategy, "GradientNormMonitor")
        engine = Engine.of(trainer)  # in every stage, or a later callback would insert it ahead of itself
        if stage == "fit":
            engine.add_listener(self)

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Open the files, or record a transition; called by the engine on every rank."""
        if transition.is_initial:
            self._start(trainer, pl_module, transition.optimizer_step)
        elif transition.is_reshaped:
            self._plan = NormPlan(pl_module)
        self._save(lambda files: self._note(files, pl_module, transition))

    def on_before_backward(self, trainer: TrainerLike, pl_module: nn.Module, loss: object) -> None:
        """Note by what Lightning has divided the loss."""
        self._losses.window = trainer_clock.window_length(trainer)

    def on_before_optimizer_step(
        self, trainer: TrainerLike, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure, if a row is due, or prepare to measure while the Trainer clips."""
        step = trainer_clock.moment(trainer).optimizer_step
        if step % self._period or step == self._measured_step or self._plan is None:
            return
        self._measured_step = step
        losses = self._losses.take(trainer)

        def clip(optimizer: Optimizer, max_norm: float) -> None:
            plugin = trainer.precision_plugin
            norms = plan.clip(plugin.main_params(optimizer), max_norm, losses)
            if norms is None:
                norms = plan.measure(losses)
                plugin.clip_grad_by_norm(optimizer, max_norm)
            self._write(trainer, step, norms)

        plan = self._plan
        if share_clipping(trainer, pl_module, clip):
            return
        if self._files is not None or plan.is_sharded:
            scale = scale_of(trainer, optimizer)
            norms = plan.measure([*losses, *scale])
            self._write(trainer, step, norms.unscaled() if scale else norms)

    def on_train_batch_end(
        self, trainer: TrainerLike, pl_module: nn.Module, outputs: object, *_: object
    ) -> None:
        """Keep the loss of a batch on the device."""
        self._losses.note(trainer, outputs)

    def on_validation_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Write the validation loss."""
        if trainer.sanity_checking or self._plan is None:
            return
        logged = trainer_clock.metrics(trainer)
        names = VAL_LOSSES if self.val_loss is None else (self.val_loss,)
        value = next((logged[name] for name in names if name in logged), None)
        if value is None and not self._has_warned:
            self._has_warned = True
            log.warning(
                "GradientNormMonitor finds no validation loss (%s): val_loss stays empty. Name the "
                "metric: val_loss=... Closest: %s. Logged: %s",
                " or ".join(names),
                ", ".join(closest_names(names[0], logged, 3)) or "none",
                ", ".join(logged) or "nothing",
            )
        if value is not None:
            mean = trainer_clock.reduced(trainer, value)
            self._write_losses(trainer_clock.moment(trainer).optimizer_step, None, mean)

    def on_save_checkpoint(
        self, trainer: TrainerLike, pl_module: nn.Module, checkpoint: dict[str, object]
    ) -> None:
        """Write the summary so far."""
        self._write_summaries()

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Write the losses since the last row, and the summary."""
        losses = self._losses.take(trainer)
        if losses:
            self._write_losses(trainer_clock.moment(trainer).optimizer_step, losses[0].item(), None)
        self._finish()

    def on_exception(self, trainer: TrainerLike, pl_module: nn.Module, exception: BaseException) -> None:
        """Write the summary of the rows so far."""
        self._finish()

    def state_dict(self) -> dict[str, object]:
        """Where the files are, in plain types."""
        return {"files": self._source}

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Restore the location of the files from the checkpoint."""
        self._source = state_dict["files"]

    def _start(self, trainer: TrainerLike, pl_module: nn.Module, step: int) -> None:
        self._plan = NormPlan(pl_module)
        self._period = self.every_n_steps or getattr(trainer, "log_every_n_steps", 0) or DEFAULT_PERIOD
        self._losses, self._measured_step = RecentLosses(), -1
        log_dir = trainer.log_dir  # a collective call, so every rank makes it
        folder = local_folder(Path(log_dir or ".") if self.dirpath is None else self.dirpath)
        self._harmless.begin()
        plan = self._plan
        if trainer.is_global_zero:
            self._files = self._harmless(lambda: self._begin_files(folder, plan, step))

    def _begin_files(self, folder: Path, plan: NormPlan, step: int) -> NormFiles:
        source = Path(self._source) if self._source is not None and step > 0 else None
        if source is not None and not source.with_name(source.name + NormFiles.first).exists():
            log.warning("GradientNormMonitor: %s* is missing; its rows start at step %d", source, step)
            source = None
        is_same_place = source is not None and source.parent == folder
        name = source.name if source and is_same_place else free_name(folder, self.name, NormFiles.first)
        files = NormFiles(folder, name, plan.groups, plan.layers if self.per_layer else ())
        files.begin(source, step)
        self._source = str(folder / name)
        return files

    def _note(self, files: NormFiles, model: nn.Module, transition: Transition) -> None:
        frozen, thawed = changed_layers(model, transition)
        is_news = not transition.is_initial or (transition.optimizer_step == 0 and transition.holders)
        if is_news and (frozen or thawed or transition.notes):
            step, holders, notes = transition.optimizer_step, transition.holders, transition.notes
            files.write_transition(step, frozen, thawed, holders, notes)

    def _write(self, trainer: TrainerLike, step: int, norms: GradientNorms) -> None:
        if self._files is None:
            return
        self._save(lambda files: files.write_norms(step, norms))
        if norms.extras:
            self._write_losses(step, norms.extras[0], None)
        write_metrics(trainer.loggers, norms.metrics(self.per_layer), step)

    def _write_losses(self, step: int, train: float | None, val: float | None) -> None:
        self._save(lambda files: files.write_losses(step, train, val))

    def _write_summaries(self) -> None:
        self._save(NormFiles.write_summary)
        if self.save_format == "json":
            self._save(NormFiles.write_json)

    def _save(self, write: Callable[[NormFiles], object]) -> None:
        """Let the files of the first rank write; a full disk does not end the run."""
        if (files := self._files) is not None:
            self._harmless(lambda: write(files))

    def _finish(self) -> None:
        self._write_summaries()
        self._plan = self._files = None


def _file_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string. Got {name!r} ({type(name).__name__}).")
    if not name or Path(name).name != name:
        raise ValueError(f"name is a prefix of file names, without a folder. Got {name!r}. Use dirpath.")
    return name
