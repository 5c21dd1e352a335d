"""Keeps callbacks that average weights from changing frozen layers, or rejects them before the run."""

from collections.abc import Iterable
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from lighter_freezers._lightning import Callback
from lighter_freezers.engine import ledger, trainer_clock
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.effects.norm_layers import norms_with_statistics
from lighter_freezers.engine.row_hold import RowHold
from lighter_freezers.engine.stages import StageClock
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.transition import Transition

__all__ = ["AverageKeeper"]


class _Engine(Protocol):
    @property
    def actions(self) -> list[Action]: ...

    def add_listener(self, listener: "AverageKeeper", /) -> None: ...


class AverageKeeper(Callback):
    """Keeps averages of what is frozen equal to it, to the bit, and the statistics of frozen batch norms.

    An average of equal numbers differs from them by rounding (0.999 w + 0.001 w), and integers are even cut
    off. What is held while its average equals it is therefore copied into the average before that is used or
    saved. What freezes after averaging has begun has the average of what it was.

    Args:
        engine: Reports all transitions of a fit.

    Runs on: `on_fit_start` (refuse what an average cannot follow), `on_train_start`, `on_validation_start`,
    `on_train_epoch_end` and `on_train_end` (averages), `on_train_batch_start` (statistics).
    """

    @classmethod
    def where_needed(cls, trainer: TrainerLike, engine: "_Engine") -> "list[AverageKeeper]":
        """One for a Trainer that averages weights, none for others."""
        return [cls(engine)] if _averaging(callbacks_of(trainer)) else []

    def __init__(self, engine: "_Engine") -> None:
        self._engine = engine
        self._pairs: list[tuple[Tensor, Tensor]] = []  # in the average, in the model
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []  # the same, of some rows
        self._statistics: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def setup(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Ask to be told of transitions."""
        self._engine.add_listener(self)

    def on_fit_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Fail before training where an average would keep shapes that change, or weights that are put back.

        Raises:
            ValueError: An action may change LoRA ranks, or put the best weights of a stage back.
        """
        kind = type(_averaging(callbacks_of(trainer))[0]).__name__
        if any(isinstance(action, StageClock) and action.restores for action in self._engine.actions):
            raise ValueError(
                f"restore_best puts weights of an earlier step back, and {kind} goes on averaging the ones "
                "that they replace and may validate on the average. Remove one of the two."
            )
        if any(action.reshapes for action in self._engine.actions):
            raise ValueError(
                f"{kind} averages weights of the shapes they have at the start, so LoRA ranks cannot change. "
                "Remove one of the two callbacks."
            )

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Find what is held from the start, or was when the checkpoint was saved."""
        self._find_pairs(trainer, pl_module)

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Leave the average of what thaws alone from now on."""
        self._correct()
        norms = chain(*(norm.buffers(recurse=False) for norm in _still_norms(pl_module)))
        still = {id(buffer) for buffer in norms}
        self._pairs = [
            (copy, own)
            for copy, own in self._pairs
            if (isinstance(own, nn.Parameter) and ledger.is_held(own)) or id(own) in still
        ]
        held = {id(parameter) for parameter, _ in self._held_rows()}
        self._rows = [each for each in self._rows if id(each[1]) in held]

    def on_validation_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Validation runs on the average."""
        self._correct()

    def on_train_epoch_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Correct, and copy the statistics that stochastic averaging would reset after the last epoch."""
        self._correct()
        self._find_pairs(trainer, pl_module)
        self._statistics = [
            (norm, {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)})
            for norm in _still_norms(pl_module)
        ]

    def on_train_batch_start(
        self, trainer: TrainerLike, pl_module: nn.Module, batch: object, batch_idx: int
    ) -> None:
        """Put the statistics back that were reset for the additional epoch."""
        if not batch_idx and trainer_clock.is_update_epoch(trainer):
            for norm, statistics in self._statistics:
                for name, value in statistics.items():
                    norm.get_buffer(name).copy_(value)

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """The run ends on the average."""
        self._correct()

    def state_dict(self) -> dict[str, object]:
        """Nothing to save: Lightning asks before an averaging callback puts its average into a checkpoint."""
        self._correct()
        return {}

    def teardown(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """The fit is over."""
        self._pairs, self._rows, self._statistics = [], [], []

    def _find_pairs(self, trainer: TrainerLike, model: nn.Module) -> None:
        constant = [parameter for parameter in model.parameters() if ledger.is_held(parameter)]
        norms = _still_norms(model)
        ids = {id(tensor) for tensor in chain(constant, *(norm.buffers(recurse=False) for norm in norms))}
        self._pairs, self._rows = [], []
        for callback in _averaging(callbacks_of(trainer)):
            average = getattr(callback, "_average_model", None)
            if average is not None:
                copies = dict(
                    zip(_tensors(model), _tensors(getattr(average, "module", average)), strict=False)
                )
                pairs = [(copy, own) for own, copy in copies.items() if id(own) in ids]
                self._pairs += [(copy, own) for copy, own in pairs if _is_equal(copy, own)]
                rows = [(copies[own], own, rows) for own, rows in self._held_rows()]
                self._rows += [each for each in rows if _is_equal(each[0][each[2]], each[1][each[2]])]

    def _held_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        holds = [action for action in self._engine.actions if isinstance(action, RowHold)]
        return [pair for hold in holds for pair in hold.rows_now.items()]

    @torch.no_grad()
    def _correct(self) -> None:
        for copy, own in self._pairs:
            copy.copy_(own)
        for copy, own, rows in self._rows:
            copy[rows] = own[rows].to(copy.device)


def _averaging(callbacks: Iterable[object]) -> list[object]:
    """Lightning's averaging callbacks and those derived from them, of either namespace."""
    return callbacks_of_kind(callbacks, "WeightAveraging", "StochasticWeightAveraging")


def _still_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms that do not move now because all their parameters are held."""
    return [
        norm
        for norm, parameters in norms_with_statistics(model)
        if not (
            norm.training and getattr(norm, "track_running_stats", True) and getattr(norm, "momentum", 1) != 0
        )
        and all(map(ledger.is_held, parameters))
    ]


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


def _is_equal(copy: Tensor, own: Tensor) -> bool:
    return copy.shape == own.shape and torch.equal(copy, own.detach().to(copy.device))
