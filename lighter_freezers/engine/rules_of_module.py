"""Lets a module bring freezing rules of its own, without pushing the user's Freezers aside."""

from collections.abc import Callable
from typing import Any

from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.rules import FreezeRule

__all__ = ["FromModule"]


class FromModule(EngineCallback):
    """Brings rules to the Trainer from a LightningModule's `configure_callbacks`.

    A Freezer would not do there: Lightning removes every callback of the Trainer that has the type of one
    from the module, or a type above it.

    Args:
        rules: The rules; empty where this run has none, for then what an earlier run of the same Trainer has
            left behind is replaced.
        at_end: Called when the run is over or breaks off.
    """

    def __init__(self, rules: list[FreezeRule], at_end: Callable[[], None]) -> None:
        super().__init__()
        self._rules = rules
        self._at_end = at_end

    def rules(self) -> list[FreezeRule]:
        """Those that it was given."""
        return self._rules

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Tell the module, for which Lightning has no such hook."""
        self._at_end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Tell the module."""
        self._at_end()
