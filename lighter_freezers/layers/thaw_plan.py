"""The stages of a gradual unfreezing as freezing rules for one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lighter_freezers import arguments
from lighter_freezers.engine.effects.learning_rates import LearningRateRequest
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.terms import Terms
from lighter_freezers.engine.triggers import Plateau, Schedule
from lighter_freezers.layers.thaw_order import Direction, Layer, Layers, cut_into_stages
from lighter_freezers.layers.thaw_pace import Pace
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["ExplicitStage", "ThawPlan"]


@dataclass(frozen=True)
class ExplicitStage:
    """One stage as it stands in a list of stages.

    Attributes:
        layers: What thaws in it.
        factors: The rate of each of them relative to the LR scheduler's; empty where all have that.
        rest: Its other keys.
    """

    layers: tuple[Layer, ...]
    factors: tuple[float, ...]
    rest: Mapping[str, object]


@dataclass(frozen=True)
class ThawPlan:
    """In which order the layers of a model thaw, how fast, and at which learning rates.

    Attributes:
        pace: When stages start.
        direction: Whether blocks thaw from the head downwards, or from the embeddings upwards.
        layers_per_stage: Blocks that thaw together.
        embeddings: When the embeddings thaw.
        lr_decay: What the rate of a layer is divided by for each layer above it; None for equal rates.
        warmup_steps: Optimizer steps over which the rate of what thaws rises from zero.
        optimizer: Which optimizer takes what no optimizer knows, as `FreezeRule` has it.
        terms: What else is asked for while layers are held.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its range, or has no effect at this pace.
    """

    depends_on_order: ClassVar[bool] = True  # as of `StagePlan`

    pace: Pace
    direction: Direction
    layers_per_stage: int
    embeddings: int | Literal["last", "never"]
    lr_decay: float | None
    warmup_steps: int
    optimizer: int | str | None
    terms: Terms = Terms()

    def __post_init__(self) -> None:
        _check_stages(self)
        _check_decay(self)
        _refuse_idle_arguments(self)

    @property
    def plateaus(self) -> list[Plateau]:
        """The plateaus that stages wait for."""
        return [] if self.pace.plateau is None else [self.pace.plateau]

    @property
    def longest_stage(self) -> tuple[int, int]:
        """Epochs, and steps, of a stage that nothing else ends; 0 where the pace counts in others."""
        epochs, steps = self.pace.every_n_epochs, self.pace.every_n_steps
        return epochs if isinstance(epochs, int) else 0, steps if isinstance(steps, int) else 0

    def rules(self, layers: Layers) -> list[FreezeRule]:
        """The rules that hold each stage until it starts: one per stage, or one per layer with `lr_decay`."""
        rules = [rule for stage, cut in enumerate(self._stages(layers)) for rule in self._rules(stage, cut)]
        if self.embeddings == "never" and layers.embeddings is not None:
            rules.append(FreezeRule(str(self), _selector([layers.embeddings]), Schedule(), terms=self.terms))
        return rules

    def beginnings(self, layers: Layers) -> list[tuple[Schedule, str]]:
        """When each layer thaws, and its name in the log."""
        stages = enumerate(self._stages(layers))
        return [(self.pace.hold(stage)[0], layer.title) for stage, cut in stages for layer in cut]

    def explicit(self, layers: Layers) -> list[ExplicitStage]:
        """The same stages one by one, as `GradualUnfreezing(stages=...)` takes them."""
        cuts = list(enumerate(self._stages(layers)))
        if self.pace.plateau is None:
            cuts = [(stage, cut) for stage, cut in cuts if cut or not stage]
        ends = [self.pace.bound(stage) for stage, _ in cuts[1:]]
        found = []
        for (stage, cut), end in zip(cuts, [*ends, {}], strict=True):
            named = tuple(layer for layer in cut if layer.names)
            factors = [(self.lr_decay or 1.0) ** -layer.depth for layer in named]
            warmup = {"warmup_steps": self.warmup_steps} if stage and self.warmup_steps else {}
            has_rates = any(factor != 1.0 for factor in factors)
            found.append(ExplicitStage(named, tuple(factors if has_rates else ()), {**end, **warmup}))
        return found

    def _stages(self, layers: Layers) -> list[tuple[Layer, ...]]:
        total = len(layers.blocks)
        num_blocks = self.pace.num_blocks(total, self.layers_per_stage, layers.can_begin_with_head)
        embeddings = self.embeddings
        if isinstance(embeddings, str):
            return cut_into_stages(
                layers, self.direction, num_blocks, num_blocks.index(total) if embeddings == "last" else None
            )
        num_blocks += [total] * (embeddings + 1 - len(num_blocks))
        return cut_into_stages(layers, self.direction, num_blocks, embeddings)

    def _rules(self, stage: int, layers: Sequence[Layer]) -> list[FreezeRule]:
        """The rules of one stage; the first holds nothing, but may set lower rates."""
        layers = [layer for layer in layers if layer.names]
        groups = [[layer] for layer in layers] if self.lr_decay else [layers]
        schedule, trigger = self.pace.hold(stage)
        rules = []
        for group in groups if layers else []:
            rate = self._rate(stage, group[0].depth)
            if stage or rate:
                rules.append(
                    FreezeRule(
                        title=str(self),
                        selector=_selector(group),
                        schedule=schedule,
                        trigger=trigger,
                        learning_rate=rate,
                        optimizer=self.optimizer,
                        terms=self.terms,
                        monitor_argument="plateau.monitor",
                    )
                )
        return rules

    def _rate(self, stage: int, depth: int) -> LearningRateRequest | None:
        """The rate to request for a layer; None for the LR scheduler's own."""
        factor = (self.lr_decay or 1.0) ** -depth
        warmup_steps = self.warmup_steps if stage else 0
        if factor == 1.0 and not warmup_steps:
            return None
        return LearningRateRequest(factor=factor, warmup_steps=warmup_steps)

    def __str__(self) -> str:
        if self.pace == Pace():
            return f"GradualUnfreezing(lr_decay={self.lr_decay:g})"
        return f"GradualUnfreezing({self.direction}, {self.pace})"


def _selector(layers: Sequence[Layer]) -> ParameterSelector:
    return ParameterSelector(names=tuple(name for layer in layers for name in layer.names))


def _check_stages(plan: ThawPlan) -> None:
    per_stage = arguments.count("layers_per_stage", plan.layers_per_stage)
    if not per_stage:
        raise ValueError(f"layers_per_stage must be at least 1. Got {per_stage!r}.")
    if per_stage > 1 and plan.pace.total_epochs is not None:
        raise ValueError(
            "total_epochs shares the blocks out by itself. Remove layers_per_stage, or total_epochs."
        )
    if isinstance(plan.embeddings, str):
        arguments.choice("unfreeze_embeddings", plan.embeddings, ("last", "never"))
    elif arguments.count("unfreeze_embeddings", plan.embeddings) is None:
        raise TypeError("unfreeze_embeddings must be 'last', 'never' or the number of a stage. Got None.")


def _check_decay(plan: ThawPlan) -> None:
    if plan.lr_decay is not None and not 1 <= arguments.number("lr_decay", plan.lr_decay) < math.inf:
        raise ValueError(
            f"lr_decay divides the rate once per layer: at least 1, 2.6 in the paper. Got {plan.lr_decay}."
        )
    if plan.lr_decay is None and plan.pace == Pace():
        raise ValueError(
            "Say when layers thaw: every_n_epochs, every_n_steps, total_epochs or plateau. With lr_decay "
            "alone nothing is frozen, and layers have learning rates by depth."
        )


def _refuse_idle_arguments(plan: ThawPlan) -> None:
    """Refuse arguments that have no effect where nothing is frozen."""
    idle = {
        "direction": plan.direction != "top-down",
        "layers_per_stage": plan.layers_per_stage > 1,
        "unfreeze_embeddings": isinstance(plan.embeddings, int) and plan.embeddings > 0,
        "warmup_steps": plan.warmup_steps > 0,
    }
    given = [name for name, is_given in idle.items() if is_given]
    if given and plan.pace == Pace():
        raise ValueError(
            f"{', '.join(given)} concerns what thaws, but lr_decay alone freezes nothing. Remove it, or "
            "say when layers thaw: every_n_epochs, every_n_steps, total_epochs or plateau."
        )
