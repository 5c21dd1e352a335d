"""Freezes held parameters again if other code made them trainable, and warns once."""

from collections.abc import Iterable

from lighter_freezers.engine import ledger
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.log_lines import Announcer

__all__ = ["Intrusions"]


class Intrusions:
    """The intrusions of one fit.

    Attributes:
        is_pending: Whether a held parameter has received a gradient that nothing has undone yet.
    """

    def __init__(self) -> None:
        self.is_pending = False
        self._has_warned = False

    def undo(self, holds: Iterable[Hold], announcer: Announcer) -> None:
        """Freeze again what is held."""
        self.is_pending = False
        for hold in holds:
            intruded = ledger.reassert(hold.parameters) if hold.is_active else []
            if intruded and not self._has_warned:
                self._has_warned = True
                announcer.warn_of_intrusion(intruded)
