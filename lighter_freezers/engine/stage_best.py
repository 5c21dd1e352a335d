"""The best weights of each stage, in files of our own, for the stage after it and for the end of the run.

No limit of a ModelCheckpoint touches these files. A checkpoint names the file it goes on with, and of each
stage the last two are kept, so that a run resumed from its latest checkpoint finds it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lighter_freezers.engine import ledger
from lighter_freezers.engine.step_context import StepContext
from lighter_freezers.engine.trainer_clock import moment
from lighter_freezers.engine.trainer_like import (
    SavedState,
    TrainerLike,
    callbacks_of,
    callbacks_of_kind,
)
from lighter_freezers.engine.trainer_strategies import refuse_sharded
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["BestOfStage", "BestRequest"]


@dataclass(frozen=True)
class BestRequest:
    """What to keep of each stage.

    Attributes:
        monitor: The metric that decides; empty for that of the Trainer's EarlyStopping.
        mode: Whether lower or higher is better.
        with_optimizer: Whether the optimizers' state goes back, too.
        at_end: Whether the module has the best weights of all stages when the run has ended.
    """

    monitor: str
    mode: Literal["min", "max"] = "min"
    with_optimizer: bool = False
    at_end: bool = False

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is the best so far; NaN never is."""
        if math.isnan(value) or than is None:
            return not math.isnan(value)
        return value < than if self.mode == "min" else value > than


@dataclass(frozen=True)
class _Kept:
    """The best moment of a stage."""

    score: float
    step: int
    file: str


class BestOfStage:
    """Keeps the best weights of each stage of one fit.

    Args:
        request: What to keep.
    """

    def __init__(self, request: BestRequest) -> None:
        self.request = request
        self._kept: dict[int, _Kept] = {}  # stage -> its best moment
        self._run: tuple[TrainerLike, nn.Module] | None = None
        self._folder = Path()

    def set_up(self, trainer: TrainerLike) -> None:
        """Take over metric and mode of EarlyStopping, if none was given."""
        for stopping in callbacks_of_kind(callbacks_of(trainer), "EarlyStopping"):
            if not self.request.monitor:
                monitor, mode = attrgetter("monitor", "mode")(stopping)
                self.request = replace(self.request, monitor=monitor, mode=mode)

    def begin(self, trainer: TrainerLike, model: nn.Module) -> None:
        """Training goes on; every rank calls it.

        Raises:
            RuntimeError: The file that a resumed run goes on with is missing.
        """
        if self._run is None:
            way_out = ", or remove restore_best"
            refuse_sharded(trainer.strategy, "restore_best keeps whole weights", way_out)
            if not self.request.monitor:
                raise RuntimeError(
                    "restore_best: true takes the metric of EarlyStopping, and the Trainer has none. Give "
                    "the metric: restore_best: {monitor: val/loss}."
                )
            self._run = trainer, model
            self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "stages"
            for stage, kept in self._kept.items():
                if not Path(kept.file).is_file():
                    raise RuntimeError(
                        f"The best weights of stage {stage + 1} are those of step {kept.step} in the file "
                        f"'{kept.file}', which is missing. Put it back, or resume from a later checkpoint."
                    )

    def observe(self, stage: int, value: float) -> None:
        """Write the weights if the metric is the best of its stage."""
        best = self._kept.get(stage)
        if self._run is None or not self.request.is_better(value, best.score if best else None):
            return
        trainer, model = self._run
        step = moment(trainer).optimizer_step
        file = self._folder / f"stage={stage + 1}-step={step}.pt"
        self._kept[stage] = _Kept(value, step, str(file))
        if trainer.is_global_zero:
            _write(file, _content(trainer, model, with_optimizer=self.request.with_optimizer))
            old = sorted(self._folder.glob(f"stage={stage + 1}-step=*.pt"), key=_step_of)
            for superseded in [each for each in old if _step_of(each) <= step][:-2]:
                superseded.unlink()

    def restore(self, context: StepContext, stage: int) -> str | None:
        """Put the best weights of a stage back; returns what was done, None where nothing was measured."""
        kept = self._kept.get(stage)
        if kept is None:
            return None
        _put_back(context, Path(kept.file))
        metric = f"{self.request.monitor} {kept.score:.4g} at step {kept.step}"
        return f"the best weights of stage {stage + 1} are back ({metric}, {kept.file})"

    def restore_best_of_all(self) -> str | None:
        """The same at the end of the run, with the best of all stages; and write them as a checkpoint."""
        sign = 1.0 if self.request.mode == "min" else -1.0
        stage = min(self._kept, key=lambda each: sign * self._kept[each].score, default=None)
        if stage is None or self._run is None:
            return None
        trainer, model = self._run
        note = self.restore(StepContext(trainer, model, moment(trainer)), stage)
        file = self._folder / "best.ckpt"
        trainer.save_checkpoint(str(file), weights_only=True)
        return f"{note}, and in {file}"

    def state(self) -> dict[str, object]:
        """Which file is the best of each stage."""
        return {f"{stage}": [kept.score, kept.step, kept.file] for stage, kept in self._kept.items()}

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._kept = {int(stage): _Kept(*kept) for stage, kept in state.items()}


def _step_of(file: Path) -> int:
    return int(file.stem.rpartition("=")[2])


def _write(file: Path, content: Mapping[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, file)


def _content(trainer: TrainerLike, model: nn.Module, *, with_optimizer: bool) -> dict[str, object]:
    """All that may have trained, and the buffers; what the user froze does not change."""
    named = canonical_parameters(model)
    weights = {name: each.detach() for name, each in named.items() if not ledger.is_user_frozen(each)}
    names = {id(each): name for name, each in named.items()}
    states = [
        {names[id(each)]: dict(state) for each, state in optimizer.state.items() if id(each) in names}
        for optimizer in (trainer.optimizers if with_optimizer else [])
    ]
    return {"weights": weights, "buffers": dict(model.named_buffers()), "optimizers": states}


@torch.no_grad()
def _put_back(context: StepContext, file: Path) -> None:
    """Rank zero reads the file, and all ranks get what is in it."""
    read = torch.load(file, map_location="cpu", weights_only=True) if context.trainer.is_global_zero else None
    content = context.of_rank_zero(read)
    assert content is not None
    named: dict[str, Tensor] = {**canonical_parameters(context.model)}
    for name, value in content["weights"].items():
        named[name].copy_(value)
    buffers = dict(context.model.named_buffers())
    for name, value in content["buffers"].items():
        buffers[name].copy_(value)
    for optimizer, states in zip(context.optimizers, content["optimizers"], strict=False):
        for name, parameter in canonical_parameters(context.model).items():
            before = optimizer.state.pop(parameter, {})
            if name in states:
                optimizer.state[parameter] = {
                    key: _like(value, before.get(key)) for key, value in states[name].items()
                }


def _like(value: object, before: object) -> object:
    """A value of an optimizer's state on the device on which the optimizer keeps it."""
    return value.to(before.device) if isinstance(value, Tensor) and isinstance(before, Tensor) else value
