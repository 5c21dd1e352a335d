"""What the engine passes to its listeners: which parameters changed, when, and who holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lighter_freezers.selection.name_summary import NameSummary

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
        uncertain: Those of the names and notes that another run of the same schedule may not have here.
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
    uncertain: frozenset[str] = frozenset()

    def in_words(self, names: NameSummary, *, is_certain: bool = False) -> list[str]:
        """A phrase for each thing that changes.

        Args:
            names: Those of the model.
            is_certain: Whether it has happened, so that data cannot make it another one.
        """
        uncertain = frozenset[str]() if is_certain or self.is_initial else self.uncertain
        said = [f"for example {note}" if note in uncertain else note for note in self.notes]
        freezes = "starts with frozen" if self.is_initial else "freezes"
        for sure, unsure, changed in (
            (freezes, "may freeze", self.frozen),
            ("thaws", "may thaw", self.thawed),
        ):
            for verb, is_sure in ((sure, True), (unsure, False)):
                if some := [name for name in changed if (name not in uncertain) == is_sure]:
                    said.append(f"{verb} {names.compress(some)}")
        if self.is_initial and not self.frozen:
            said.append("starts with nothing frozen")
        return said
