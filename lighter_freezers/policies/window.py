"""What a policy sees of one window of optimizer steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

__all__ = ["Plain", "Window"]

Plain: TypeAlias = Any  # plain data, of which only the policy that wrote it knows the type


@dataclass(frozen=True)
class Window:
    """What a policy sees of one window: the same on all ranks and in a resumed run.

    Attributes:
        index: Windows before this one.
        step: Its first optimizer step.
        units: Titles of all units, in the order of `LayerPolicy.units`.
        training: Those that trained until now; all of them in the first window.
        random: A generator that depends on the policy's seed and on the index alone.
        measured: `statistic` of what trained in the window before: its mean over the steps.
        prepared: What `LayerPolicy.prepare` returned when the run began.
        memory: What the policy keeps from window to window, in plain types; saved in checkpoints.
        held: Units that other callbacks hold when it begins, each as a whole: chosen, they would not train.
    """

    index: int
    step: int
    units: tuple[str, ...]
    training: frozenset[str]
    random: Random = field(default_factory=Random)
    measured: Mapping[str, float] = field(default_factory=dict)
    prepared: Plain = None
    memory: dict[str, Plain] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

    @property
    def free(self) -> list[str]:
        """The units that no other callback holds, in their order."""
        return [unit for unit in self.units if unit not in self.held]
