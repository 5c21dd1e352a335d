"""Lets a LightningModule define its own freezing rules, without replacing the user's Freezers."""

from collections.abc import Callable

from torch import nn

from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.trainer_like import TrainerLike

__all__ = ["FromModule"]


class FromModule(EngineCallback):
    """Brings rules to the Trainer from a LightningModule's `configure_callbacks`.

    A Freezer would not do there: Lightning removes every callback of the Trainer that has the type of one
    from the module, or a type above it.

    Args:
        rules: The rules; empty where this run has none, so that rules of an earlier run of the same Trainer
            are replaced.
        at_end: Called when the run has ended or failed.
    """

    def __init__(self, rules: list[FreezeRule], at_end: Callable[[], None]) -> None:
        super().__init__()
        self._rules = rules
        self._at_end = at_end

    def rules(self) -> list[FreezeRule]:
        """The rules from the module."""
        return self._rules

    def on_exception(self, trainer: TrainerLike, pl_module: nn.Module, exception: BaseException) -> None:
        """Call `at_end`: a LightningModule has no such hook."""
        self._at_end()

    def teardown(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Call `at_end`."""
        self._at_end()
