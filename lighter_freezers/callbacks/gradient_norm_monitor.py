"""The callback that measures gradient norms, and writes them to files and loggers. It changes nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lighter_freezers import arguments
from lighter_freezers._lightning import Callback
from lighter_freezers._log import log
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.gradients.changed_layers import changed_layers
from lighter_freezers.reports.gradients.files import NormFiles, free_name, local_folder
from lighter_freezers.reports.gradients.hooks import scale_of, share_clipping
from lighter_freezers.reports.gradients.norms import GradientNorms, NormPlan
from lighter_freezers.reports.gradients.recent_losses import RecentLosses
from lighter_freezers.reports.loggers import write_metrics
from lighter_freezers.selection.names import closest_names

__all__ = ["GradientNormMonitor"]

VAL_LOSSES = ("val/loss", "val_loss")
DEFAULT_PERIOD = 50  # where the Trainer logs nothing


class GradientNormMonitor(Callback):
    """Measure the gradient norms of embeddings, attention, MLPs and head, together and block by block.

    | call | what it does |
    |---|---|
    | `GradientNormMonitor()` | a row whenever the Trainer logs, in its log folder |
    | `GradientNormMonitor(every_n_steps=1)` | a row for each optimizer step |
    | `GradientNormMonitor(per_layer=False)` | the groups only |
    | `GradientNormMonitor(dirpath="norms", name="run7")` | `norms/run7.group_norms.csv` and so on |

    Measured are L2 norms of the gradients an optimizer step is about to use: accumulated, unscaled, reduced
    over ranks, and not yet clipped. A measurement reads the host once. Where the Trainer clips by norm, both
    use the same pass over the gradients.

    A cell is empty where nothing had a gradient: a frozen layer, or a kind of layer that the model lacks.
    Step N is the gradient of the step after N others, so a row stands at the step at which what a schedule
    did is first felt.

    Runs on: setup, the transitions that the package's other callbacks make, on_before_optimizer_step,
    on_train_batch_end, on_validation_end, on_save_checkpoint, on_train_end, on_exception.

    Logs: `gradient_norm/<group>` and, with `per_layer`, `gradient_norm/<group>.<block>`.

    Writes: `<name>.group_norms.csv`, `<name>.layer_norms.csv`, `<name>.summary.json`, and for the plots
    `<name>.losses.csv` and `<name>.transitions.csv`. A row is in the file before the next step begins.

    Saves: where its files are. A resumed run goes on with their rows; rows past the step of its checkpoint
    are dropped.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next. None for the Trainer's
            `log_every_n_steps`.
        per_layer: Also block by block.
        dirpath: Folder of the files. None for the Trainer's log folder.
        name: What the names of the files begin with; two monitors of one Trainer need two. A run that finds
            files of another one there takes `<name>-v1`, and so on.
        save_format: `json` writes `<name>.gradient_norms.json`, too, at each checkpoint and at the end.
        val_loss: The logged metric in the losses' `val_loss`. None for `val/loss` or `val_loss`, whichever
            there is.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.
        RuntimeError: In `setup`, the strategy keeps no gradients that could be measured.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.GradientNormMonitor
              every_n_steps: 10
        ```
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        per_layer: bool = True,
        dirpath: str | None = None,
        name: str = "gradient_analysis",
        save_format: Literal["csv", "json"] = "csv",
        val_loss: str | None = None,
    ) -> None:
        self.every_n_steps = arguments.count("every_n_steps", every_n_steps)
        if self.every_n_steps == 0:
            raise ValueError("every_n_steps must be at least 1. Got 0. Remove it to measure nothing.")
        self.per_layer = arguments.flag("per_layer", per_layer)
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.name = _file_name(name)
        self.save_format = arguments.choice("save_format", save_format, ("csv", "json"))
        self.val_loss = val_loss
        self._period = 0
        self._plan: NormPlan | None = None  # of the fit that runs now
        self._files: NormFiles | None = None  # on the first rank
        self._source: str | None = None  # of the files that this run, or the one it resumes, writes
        self._losses = RecentLosses()
        self._measured_step = -1

    @property
    def state_key(self) -> str:
        """The same whatever the other arguments: they may change at a resume, the files go on."""
        return f"GradientNormMonitor[{self.name}]"

    @property
    def norms_file(self) -> Path | None:
        """The file of the group norms of the run; None before it began, and on all ranks but the first."""
        return None if self._source is None else Path(self._source + NormFiles.first)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be measured, and listen to the changes of this fit."""
        if stage != "fit":
            return
        _refuse_unsupported_strategy(trainer.strategy)
        Engine.of(trainer).add_listener(self)

    def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
        """Begin the files, or note a change; called by the engine on every rank."""
        if transition.is_initial:
            self._start(trainer, pl_module, transition.optimizer_step)
        elif transition.is_reshaped:
            self._plan = NormPlan(pl_module)
        if self._files is not None:
            self._note(self._files, pl_module, transition)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure, if it is time, or have it done while the Trainer clips."""
        step = trainer_clock.moment(trainer).optimizer_step
        if step % self._period or step == self._measured_step or self._plan is None:
            return
        self._measured_step = step
        losses = self._losses.take(trainer)

        def clip(optimizer: Any, max_norm: float) -> None:
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

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keep the loss of a batch, unread."""
        self._losses.note(trainer, outputs)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the validation loss."""
        if trainer.sanity_checking or self._plan is None:
            return
        logged = trainer_clock.metrics(trainer)
        names = VAL_LOSSES if self.val_loss is None else (self.val_loss,)
        value = next((logged[name] for name in names if name in logged), None)
        if value is None and self.val_loss is not None:
            raise RuntimeError(
                f"GradientNormMonitor: nobody logged val_loss='{self.val_loss}' in validation. Closest: "
                f"{', '.join(closest_names(self.val_loss, logged, 3)) or 'nothing is logged'}."
            )
        if value is not None:
            mean = trainer_clock.reduced(trainer, value)
            if self._files is not None:
                self._files.write_losses(trainer_clock.moment(trainer).optimizer_step, None, mean)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the summary so far."""
        self._write_summaries()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the losses since the last row, and the summary."""
        losses = self._losses.take(trainer)
        if self._files is not None and losses:
            self._files.write_losses(trainer_clock.moment(trainer).optimizer_step, losses[0].item(), None)
        self._finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the summary of what there is."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """Where the files are, in plain types."""
        return {"files": self._source}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Remember the files of the run that is resumed."""
        self._source = state_dict["files"]

    def _start(self, trainer: Any, pl_module: Any, step: int) -> None:
        self._plan = NormPlan(pl_module)
        self._period = self.every_n_steps or trainer.log_every_n_steps or DEFAULT_PERIOD
        self._losses, self._measured_step = RecentLosses(), -1
        log_dir = trainer.log_dir  # asked on every rank, which agree on it
        folder = local_folder(Path(log_dir or ".") if self.dirpath is None else self.dirpath)
        if trainer.is_global_zero:
            self._files = self._begin_files(folder, self._plan, step)

    def _begin_files(self, folder: Path, plan: NormPlan, step: int) -> NormFiles:
        source = Path(self._source) if self._source is not None and step > 0 else None
        if source is not None and not source.with_name(source.name + NormFiles.first).exists():
            log.warning("GradientNormMonitor: %s* is gone; its rows begin at step %d", source, step)
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

    def _write(self, trainer: Any, step: int, norms: GradientNorms) -> None:
        if self._files is None:
            return
        self._files.write_norms(step, norms)
        if norms.extras:
            self._files.write_losses(step, norms.extras[0], None)
        named = {f"gradient_norm/{group}": norm for group, norm in norms.groups.items()}
        named["gradient_norm/total"] = norms.total
        if self.per_layer:
            named |= {f"gradient_norm/{_dotted(column)}": norm for column, norm in norms.layers.items()}
        present = {key: norm for key, norm in named.items() if norm is not None}
        write_metrics(trainer.loggers, present, step)

    def _write_summaries(self) -> None:
        if self._files is not None:
            self._files.write_summary()
            if self.save_format == "json":
                self._files.write_json()

    def _finish(self) -> None:
        self._write_summaries()
        self._plan = self._files = None


def _dotted(column: str) -> str:
    """`attention.3` for `layer_3_attention`: together in TensorBoard's list, and like the names of layers."""
    _, block, kind = column.split("_")
    return f"{kind}.{block}"


def _file_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string. Got {name!r} ({type(name).__name__}).")
    if not name or Path(name).name != name:
        raise ValueError(f"name is what file names begin with, without a folder. Got {name!r}. Use dirpath.")
    return name


def _refuse_unsupported_strategy(strategy: Any) -> None:
    bases = {base.__name__ for base in type(strategy).__mro__}
    if bases & {"FSDPStrategy", "DeepSpeedStrategy"}:
        raise RuntimeError(
            f"GradientNormMonitor cannot measure under {type(strategy).__name__}: it keeps gradients in flat "
            "pieces that know no layers. Use 'ddp' or ModelParallelStrategy (FSDP2), or remove it."
        )
