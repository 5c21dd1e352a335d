"""Thaws the trunk of a GPT during a run, as set in its config, by a freezing rule."""

from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.gpt.model import GPT

if TYPE_CHECKING:
    from lighter_freezers.engine.rules_of_module import FromModule

__all__ = ["TrunkThaw"]

HOLDER = "freeze_transformer"  # the holder's name when a GPT holds its trunk
TRUNK = "network.transformer."


class TrunkThaw:
    """Transfers a GPT's hold on its trunk to a freezing rule, which releases it at the right step.

    So the engine takes care of the optimizer, the learning rate from then on, DDP, and resumed runs. What the
    user thaws between two runs stays thawed, and what the user freezes by hand stays frozen.

    Args:
        network: A GPT. Nothing is done unless its config has `freeze_transformer` and
            `unfreeze_at_iteration`.
    """

    def __init__(self, network: GPT) -> None:
        self._network = network
        network.is_thawed_by_caller = True
        self._lent: list[str] = []  # what the rule of this run, or of the previous one, selects
        self._has_handed_over = False
        self._has_thawed = False  # in the previous run

    def callbacks(self) -> "list[FromModule]":
        """The callbacks for the module's `configure_callbacks`."""
        config = self._network.config
        if not config.freeze_transformer or config.unfreeze_at_iteration is None:
            return []
        from lighter_freezers.callbacks.freezer import Freezer
        from lighter_freezers.engine.rules_of_module import FromModule

        trunk = dict(self._network.transformer.named_parameters(TRUNK.removesuffix(".")))
        if not self._has_thawed:  # else the same rule, for equal optimizer groups on a resume
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
        """Release the GPT's own hold. Call it when the rule holds."""
        if not self._lent or self._has_handed_over:
            return  # from then on a hold of the GPT counts as the user's
        self._has_handed_over = True
        # not `release`: in a spawned process the ledger does not have the GPT's hold
        ledger.thaw(self._lent_parameters(), HOLDER)

    def _note_the_end(self) -> None:
        self._has_thawed = any(parameter.requires_grad for parameter in self._lent_parameters())

    def _lent_parameters(self) -> list[nn.Parameter]:
        trunk = self._network.transformer.named_parameters(TRUNK.removesuffix("."))
        return [parameter for name, parameter in trunk if name in self._lent]
