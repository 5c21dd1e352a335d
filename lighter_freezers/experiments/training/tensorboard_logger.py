"""TensorBoardLogger for the Trainer of `pytorch_lightning`; `lighter_freezers.lightning` has another."""

from collections.abc import Mapping

from pytorch_lightning import loggers

from lighter_freezers.reports.loggers import with_late_epoch

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's TensorBoardLogger, with `epoch` as `trainer/epoch` and no card for an `hp_metric` of -1.

    TensorBoard orders its cards by name, and would open with `epoch`; now it opens with `freeze/...` of a
    `FreezeStateLogger`, and the -1 that Lightning logs where there is no `hp_metric` is left out.
    Everything else, arguments and files, is as in Lightning.

    `lighter_freezers.lightning.TensorBoardLogger` is the same for `lightning.pytorch`.

    Example:
        ```yaml
        trainer:
          logger:
            _target_: lighter_freezers.TensorBoardLogger
            save_dir: outputs
            name: my_run
        ```
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers."""
        super().log_metrics(with_late_epoch(metrics), step)
