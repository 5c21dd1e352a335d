"""Explicit stages as freezing rules for one model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lighter_freezers.arguments import Share
from lighter_freezers.engine.effects.learning_rates import LearningRateRequest
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.stage_best import BestRequest
from lighter_freezers.engine.stages import Best, StageClock
from lighter_freezers.engine.terms import NormMode, Terms
from lighter_freezers.engine.triggers import Plateau, Schedule
from lighter_freezers.layers.stage_list import Stage
from lighter_freezers.layers.thaw_order import layers_of
from lighter_freezers.selection.names import canonical_parameters
from lighter_freezers.selection.select import ParameterSelector
from lighter_freezers.selection.words import names_of_words

__all__ = ["StagePlan"]


@dataclass(frozen=True)
class StagePlan:
    """All stages of a run, for any model.

    Attributes:
        stages: In their order.
        optimizer: Which optimizer takes what no optimizer knows, as `FreezeRule` has it.
        terms: What else is asked for while something is held.
        best: Whether the value that a plateau has to beat is kept in the next stage.
        restores: Which weights of the stage before a stage begins with; None for those of its last step.
    """

    stages: tuple[Stage, ...]
    optimizer: int | str | None = None
    terms: Terms = Terms()
    best: Best = "keep"
    restores: BestRequest | None = None

    @property
    def plateaus(self) -> list[Plateau]:
        """The plateaus that alone end a stage."""
        ends = [stage.end for stage in self.stages[:-1]]
        waiting = [end.trigger for end in ends if end.patience is None and end.schedule == Schedule()]
        return [trigger for trigger in waiting if isinstance(trigger, Plateau)]

    @property
    def depends_on_order(self) -> bool:
        """Whether the order of the blocks matters: for rates by depth."""
        return any(stage.by_depth for stage in self.stages)

    @property
    def longest_stage(self) -> tuple[int, int]:
        """Epochs of the longest stage that its epochs alone end, and steps of one that its steps do."""
        ends = [stage.end for stage in self.stages[:-1]]
        waits = [end.trigger is not None or end.patience is not None for end in ends]
        bounds = [(end.schedule.until_epoch, end.schedule.until_step) for end in ends]
        alone = [not wait and None in each for wait, each in zip(waits, bounds, strict=True)]
        epochs, steps = ([each[unit] for each in bounds] for unit in (0, 1))
        return _longest(epochs, alone), _longest(steps, alone)

    def clock(self) -> StageClock:
        """A new clock for one fit."""
        ends, optimizers = [stage.end for stage in self.stages[:-1]], [each.optimizer for each in self.stages]
        return StageClock(str(self), ends, self.best, self.restores, optimizers)

    def rules(self, model: nn.Module) -> list[FreezeRule]:
        """The rules that hold what each stage leaves frozen.

        Raises:
            ValueError: A stage names what the model does not have, or thaws and freezes the same.
        """
        spans: dict[tuple[int, int, NormMode, LearningRateRequest | None], list[str]] = {}
        frozen, rates = self._by_stage(model)
        for name in canonical_parameters(model):
            for begin, end, norms in self._spans([name in names for names in frozen]):
                rate = rates[end].get(name) if end < len(self.stages) else None
                if begin < end or rate:
                    spans.setdefault((begin, end, norms, rate), []).append(name)
        order = sorted(spans, key=lambda span: (span[:2], str(span[2:])))
        return [self._rule(*span, spans[span]) for span in order]

    def _by_stage(
        self, model: nn.Module
    ) -> tuple[list[set[str]], list[dict[str, LearningRateRequest | None]]]:
        """What is frozen in each stage, and the rates of what thaws in it."""
        held = set(canonical_parameters(model))
        frozen: list[set[str]] = []
        rates: list[dict[str, LearningRateRequest | None]] = []
        for stage in self.stages:
            thawed = names_of_words(model, stage.thaw, f"{stage.argument}.thaw")
            again = names_of_words(model, stage.freeze, f"{stage.argument}.freeze")
            if both := sorted(thawed & again):
                raise ValueError(
                    f"{stage.argument} both thaws and freezes {both[0]}. Name it in one of them."
                )
            rates.append(_rates(model, stage, thawed))
            held = (held - thawed) | again
            frozen.append(held)
        return frozen, rates

    def _spans(self, is_frozen: Sequence[bool]) -> Iterable[tuple[int, int, NormMode]]:
        """Stretches of stages in which a parameter is held alike: the first stage, the one after the last."""
        begin = 0
        if not is_frozen[0]:
            yield 0, 0, self.stages[0].frozen_norms
        for stage, end in enumerate(range(1, len(is_frozen) + 1)):
            norms = self.stages[stage].frozen_norms
            goes_on = end < len(is_frozen) and is_frozen[end] and self.stages[end].frozen_norms == norms
            if is_frozen[stage] and not goes_on:
                yield begin, end, norms
            if not (is_frozen[stage] and goes_on):
                begin = end

    def _rule(
        self,
        begin: int,
        end: int,
        norms: NormMode,
        rate: LearningRateRequest | None,
        names: Sequence[str],
    ) -> FreezeRule:
        is_whole_run = (begin, end) == (0, len(self.stages))
        return FreezeRule(
            title=str(self),
            selector=ParameterSelector(names=tuple(names)),
            schedule=Schedule(until_step=0) if begin == end else Schedule(),
            learning_rate=rate,
            terms=replace(self.terms, frozen_norms=norms),
            optimizer=self.optimizer,
            stages=None if is_whole_run or begin == end else tuple(range(begin, end)),
        )

    def __str__(self) -> str:
        return f"GradualUnfreezing({len(self.stages)} stages)"


def _rates(model: nn.Module, stage: Stage, thawed: set[str]) -> dict[str, LearningRateRequest | None]:
    """The rate of each parameter that thaws in a stage; of several parts the last one counts."""
    rates: dict[str, LearningRateRequest | None] = dict.fromkeys(thawed, stage.rate)
    if stage.by_depth is not None:
        factors = layers_of(model).factors(*stage.by_depth)
        whole = stage.rate or LearningRateRequest()
        rates |= {name: replace(whole, factor=factors[name]) for name in thawed & factors.keys()}
    for word, rate in stage.rates:
        argument = f"{stage.argument}.unfreeze_lr_factor"
        covered = names_of_words(model, (word,), argument)
        if not covered & thawed:
            raise ValueError(f"{argument}: nothing of {word!r} thaws in this stage. Name what does.")
        rates |= dict.fromkeys(covered & thawed, rate)
    return rates


def _longest(ends: Sequence[int | Share | None], alone: Sequence[bool]) -> int:
    """The longest stage in one unit of time, of those that end by it alone."""
    longest = begin = 0
    for end, is_alone in zip(ends, alone, strict=True):
        if end is None or isinstance(end, Share):
            return longest
        if is_alone:
            longest = max(longest, end - begin)
        begin = end
    return longest
