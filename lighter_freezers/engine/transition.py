"""What the engine passes to its listeners: which parameters changed, when, and who holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Transition"]


@dataclass(frozen=True)
class Transition:
    """One change of what trains. Names are canonical.

    Attributes:
        optimizer_step: Optimizer steps done before it; it holds from the step with this number on.
        epoch: The epoch it happens in, counted from 0.
        frozen: What stops training.
        thawed: What trains from now on.
        holders: Who holds something frozen from now on.
        is_initial: Sent once when a fit starts, also after a resume; `frozen` is then all that is frozen.
        notes: What actions changed, one sentence each.
        ranks: LoRA rank from now on, for the components whose rank changed; all of them when it is initial.
        is_reshaped: Whether parameters have other shapes or names than before, so that sizes have to be
            looked up again.
        depends_on_data: Whether another run of the same schedule may differ here.
    """

    optimizer_step: int
    epoch: int
    frozen: tuple[str, ...]
    thawed: tuple[str, ...]
    holders: tuple[str, ...]
    is_initial: bool
    notes: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    is_reshaped: bool = False
    depends_on_data: bool = False
