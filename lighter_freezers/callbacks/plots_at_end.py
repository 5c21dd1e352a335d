"""The callback that plots the files of the gradient-norm monitor when a run has ended."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from lighter_freezers._extras import require
from lighter_freezers._lightning import Callback
from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of

__all__ = ["PlotsAtEnd"]


class PlotsAtEnd(Callback):
    """Plot gradient norms, layers and losses of a run when it ends, as `lighter-freezers plots` does.

    A plot that fails is a warning, not an error, because the run itself is complete by then.

    Runs on: setup, on_fit_end.

    Writes: `gradient_norms.png`, `layer_heatmap.png`, `layer_comparison.png`, `gradient_evolution.png`, all
    but the heatmap also with a logarithmic axis as `..._log.png`, `training_loss.png`,
    `experiment_comparison.png` and `experiment_summary.json`.

    Args:
        dirpath: Folder of the plots. None for `plots` beside the files of the monitor.

    Raises:
        ImportError: In `setup`, matplotlib is not installed.
        RuntimeError: In `setup`, the Trainer has no GradientNormMonitor.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.GradientNormMonitor
            - _target_: lighter_freezers.PlotsAtEnd
        ```
    """

    @checked
    def __init__(self, dirpath: str | os.PathLike[str] | None = None) -> None:
        self.dirpath = dirpath

    def setup(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Check for matplotlib and the monitor before training rather than after it."""
        Engine.of(trainer)  # the engine is inserted after the first callback of ours with a `setup`
        if stage != "fit":
            return
        require("PlotsAtEnd", "matplotlib")
        if not any(hasattr(callback, "norms_file") for callback in callbacks_of(trainer)):
            raise RuntimeError(
                "PlotsAtEnd plots the files of GradientNormMonitor, but the Trainer has none. Add "
                "lighter_freezers.GradientNormMonitor to its callbacks."
            )

    def on_fit_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Draw the plots, on the first rank."""
        if not trainer.is_global_zero:
            return
        for file in _files(trainer):
            folder = Path(self.dirpath) if self.dirpath is not None else file.parent / "plots"
            try:
                self._draw(file, folder)
            except Exception as error:  # the run has its result, whatever a plot stumbles over
                warnings.warn(f"PlotsAtEnd could not draw {file}: {error}", stacklevel=2)

    def _draw(self, file: Path, folder: Path) -> None:
        from lighter_freezers.reports.plots import plot_everything

        plot_everything(file, folder)
        log.info("See the gradient norms: %s", folder)


def _files(trainer: TrainerLike) -> Iterator[Path]:
    for callback in callbacks_of(trainer):
        file = getattr(callback, "norms_file", None)
        if file is not None:
            yield file
