"""The callback that sums a run up in one JSON file: config, losses, gradient norms, cost and scores."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lighter_freezers._lightning import Callback
from lighter_freezers.engine import trainer_clock
from lighter_freezers.reports.results_file import plain, unused_path, versions
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["ResultsSummary"]

FILE = "results_summary.json"
NUM_LAST = 10  # batches in `final_train_loss`


class ResultsSummary(Callback):
    """Write `results_summary.json` into the run's folder, when training ends and again when a test ends.

    | key of the file | what |
    |---|---|
    | `config` | what `lighter` built the run from, or the module's `hparams` |
    | `optimizer_steps`, `epochs` | how long it trained |
    | `train_loss`, `final_train_loss` | mean over all batches of this fit; over the last ten |
    | `train_seconds` | wall time of the training loop, validation included |
    | `parameters` | elements of the model, at the end |
    | `trainable_parameters`, `final_trainable_parameters` | those that train in the first step; at the end |
    | `metrics` | the last values of all that was logged in the fit |
    | `gradient_stats` | of each `*.summary.json` that `GradientNormMonitor` wrote |
    | `evaluation` | what `lighter test` logged, without `test/` |
    | `versions` | Python and packages |

    The folder is the Trainer's log folder, `version_N` of a logger. A second fit there writes
    `results_summary_1.json`. A test adds its figures to the file that is there: give the logger of the test
    the version of the run (`trainer::logger::version=0`). Compare runs with `lighter-freezers compare`.

    Runs on: on_train_start, on_train_batch_end (which keeps the loss, unread), on_train_end, on_fit_end,
    on_test_end.

    Saves: nothing; after a resume, losses and seconds are those since then.

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
        self._total: torch.Tensor | None = None  # of the losses before these
        self._num_batches = 0
        self._sizes: dict[str, int] = {}
        self._path: Path | None = None  # of this process's fit

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count."""
        self._started = time.monotonic()
        self._sizes = {}
        self._losses, self._total, self._num_batches, self._path = [], None, 0, None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keep the loss of a batch; every so often fold the kept ones into one sum, on the device."""
        if not self._sizes:
            self._sizes["trainable_parameters"] = _num_trainable(pl_module)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        self._losses.append(loss.detach())
        self._num_batches += 1
        if len(self._losses) > 100 * NUM_LAST:
            early, self._losses = self._losses[:-NUM_LAST], self._losses[-NUM_LAST:]
            total = torch.stack(early).float().sum()
            self._total = total if self._total is None else self._total + total

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Count what trains, before everything held is let go."""
        self._sizes["parameters"] = sum(p.numel() for p in canonical_parameters(pl_module).values())
        self._sizes["final_trainable_parameters"] = _num_trainable(pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the file; on the first rank only."""
        losses = self._mean_losses(trainer)
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        moment = trainer_clock.moment(trainer)
        self._path = unused_path(folder / FILE)
        _write(
            self._path,
            {
                "config": _config(pl_module),
                "optimizer_steps": moment.optimizer_step,
                "epochs": moment.epoch,
                **losses,
                "train_seconds": round(time.monotonic() - self._started, 3),
                **self._sizes,
                "metrics": _logged(trainer),
                "gradient_stats": _gradient_stats(folder),
            },
        )

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Add the figures of a test to the file of the run."""
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        path = self._path or folder / FILE
        known = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"config": _config(pl_module)}
        )
        scores = {name.partition("/")[2] or name: value for name, value in _logged(trainer).items()}
        _write(path, {**known, "evaluation": scores})

    def _mean_losses(self, trainer: Any) -> dict[str, float | None]:
        """The mean over all batches and over the last; one read of the host each."""
        if not self._losses:
            return {"train_loss": None, "final_train_loss": None}
        kept = torch.stack(self._losses).float() * trainer_clock.window_length(trainer)
        earlier = 0.0 if self._total is None else self._total * trainer_clock.window_length(trainer)
        return {
            "train_loss": trainer_clock.reduced(trainer, (kept.sum() + earlier) / self._num_batches),
            "final_train_loss": trainer_clock.reduced(trainer, kept[-NUM_LAST:].mean()),
        }


def _num_trainable(pl_module: Any) -> int:
    return sum(p.numel() for p in canonical_parameters(pl_module).values() if p.requires_grad)


def _folder(trainer: Any) -> Path:
    """The folder of the run, the same on all ranks."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _config(pl_module: Any) -> Any:
    """What `lighter` keeps under `config` in the module's hyperparameters; else all of these."""
    known = dict(pl_module.hparams)
    return known.get("config", known)


def _logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer_clock.metrics(trainer).items()}


def _gradient_stats(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("*.summary.json"))
    return {file.name.removesuffix(".summary.json"): json.loads(file.read_text()) for file in files}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """All of it, or nothing: a reader never sees half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    written = plain({**content, "versions": versions()})
    part.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
