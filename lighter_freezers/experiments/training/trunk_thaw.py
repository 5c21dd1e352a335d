"""Thaws the trunk of a GPT in the middle of a run, as its config asks. A Freezer does the work."""

from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.gpt.model import GPT

if TYPE_CHECKING:
    from lighter_freezers.engine.rules_of_module import FromModule

__all__ = ["TrunkThaw"]

HOLDER = "freeze_transformer"  # the name under which a GPT holds its trunk
TRUNK = "network.transformer."


class TrunkThaw:
    """Hands over the hold that a GPT has on its trunk to a Freezer, which lets go at the right step.

    So the Freezer's ways apply: the optimizer, the learning rate from then on, DDP, and a resumed run. What
    the user thaws between two runs stays thawed, and what the user freezes by hand stays frozen.

    Args:
        network: A GPT. Nothing is done unless its config has `freeze_transformer` and
            `unfreeze_at_iteration`.
    """

    def __init__(self, network: GPT) -> None:
        self._network = network
        self._lent: list[str] = []  # what the Freezer of this run, or of the one before, selects
        self._has_handed_over = False
        self._has_thawed = False  # in the run before

    def callbacks(self) -> "list[FromModule]":
        """What the module's `configure_callbacks` returns."""
        config = self._network.config
        if not config.freeze_transformer or config.unfreeze_at_iteration is None:
            return []
        from lighter_freezers.callbacks.freezer import Freezer
        from lighter_freezers.engine.rules_of_module import FromModule

        trunk = dict(self._network.transformer.named_parameters(TRUNK.removesuffix(".")))
        if not self._has_thawed:  # else the same again, for a resumed run has the same optimizer groups
            self._lent = [name for name, parameter in trunk.items() if not parameter.requires_grad]
        if not self._lent:
            return [FromModule([], self._note_the_end)]
        freezer = Freezer(
            name_starts_with=TRUNK,
            except_names=[name for name in trunk if name not in self._lent],
            until_step=config.unfreeze_at_iteration,
            unfreeze_lr_factor=config.unfreeze_lr_multiplier,
        )
        return [FromModule(freezer.rules(), self._note_the_end)]

    def hand_over(self) -> None:
        """Let the Freezer hold alone. To be called when it holds."""
        if not self._lent or self._has_handed_over:
            return  # a hold of the GPT is the user's from then on
        self._has_handed_over = True
        # not `release`: in a process that was spawned, the ledger does not know that the GPT holds
        ledger.thaw(self._lent_parameters(), HOLDER)

    def _note_the_end(self) -> None:
        self._has_thawed = any(parameter.requires_grad for parameter in self._lent_parameters())

    def _lent_parameters(self) -> list[nn.Parameter]:
        trunk = self._network.transformer.named_parameters(TRUNK.removesuffix("."))
        return [parameter for name, parameter in trunk if name in self._lent]
