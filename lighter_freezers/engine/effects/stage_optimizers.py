"""The optimizer and the LR scheduler that a stage begins with, in place of those that the run had until then.

Each is built from the groups that `configure_optimizers` returned, so that a run resumed in any stage builds
the same. The groups of this package are made anew after that, as at the start of a fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lighter_freezers._log import log
from lighter_freezers.engine.effects.learning_rates import KeptRate
from lighter_freezers.engine.step_context import StepContext
from lighter_freezers.engine.trainer_like import (
    ParameterGroup,
    SavedState,
    TrainerLike,
    optimizers_of,
)
from lighter_freezers.engine.trainer_strategies import refuse_sharded
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["StageOptimizer", "StageOptimizers"]

_ANY_LENGTH = 1000  # steps of a stage whose length is not known yet


@dataclass
class _SchedulerConfig:
    """What Lightning keeps of an LR scheduler. The names are Lightning's."""

    scheduler: object
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


@dataclass(frozen=True)
class StageOptimizer:
    """What a stage begins with.

    Attributes:
        argument: Its place in the list of stages, for errors.
        optimizer: Builds the optimizer from groups of parameters; None to go on with the one that there is.
        scheduler: Builds the LR scheduler of this optimizer, for the number of steps that it is in force;
            None for the one that there is, or with another optimizer for none.
        stepping: When the scheduler steps, as Lightning names it: `interval`, `frequency`, `monitor`, ...
        carries_state: Whether the new optimizer gets the state of the one before it.
        keeps_rates: Whether what trains already keeps the learning rate that it has when the stage begins.
        takes_length: Whether the scheduler needs that number of steps.
    """

    argument: str
    optimizer: Callable[[list[ParameterGroup]], object] | None = None
    scheduler: Callable[[Optimizer, int], object] | None = None
    stepping: SavedState | None = None
    carries_state: bool = False
    keeps_rates: bool = False
    takes_length: bool = False


class StageOptimizers:
    """The optimizer and the LR scheduler of each stage of one fit.

    Args:
        title: Names who sets the rates that are kept.
        stages: What each stage begins with; None where it goes on with what there is.
    """

    def __init__(self, title: str, stages: Sequence[StageOptimizer | None]) -> None:
        self._title = title
        self._stages = list(stages)
        self._installed: tuple[int | None, int | None] = (None, None)  # the stages that brought them
        self._own_groups: list[ParameterGroup] = []  # of the run's optimizer, as its own code built them
        self._groups: list[ParameterGroup] = []  # the same of the optimizer that is installed
        self._defaults: ParameterGroup = {}  # of the run's optimizer
        self._kept: dict[str, float] = {}
        self._kept_at = 0
        self._ends: dict[int, int] = {}  # of schedulers that need their length: the step at which they end
        self._lengths: dict[int, int] = {}  # of those installed so far: their number of steps
        self._lasts_until: dict[int, int] = {}  # the step at which these are over

    def begin(self, trainer: TrainerLike) -> None:
        """Before any group is made: see how the run's own code built them, and try what is to be built.

        Raises:
            RuntimeError: The run has several optimizers, or a strategy that shards parameters.
            ValueError: An optimizer or a scheduler cannot be built, or cannot have the state it shall have.
        """
        if not any(self._stages):
            return
        optimizers = optimizers_of(trainer)
        if len(optimizers) != 1:
            raise RuntimeError(
                f"A stage with an optimizer or a scheduler of its own replaces the run's one optimizer, and "
                f"configure_optimizers returns {len(optimizers)}. Remove these keys, or return one."
            )
        way_out = ", or remove these keys from the stages"
        refuse_sharded(trainer.strategy, "A stage's own optimizer takes whole parameters", way_out)
        before = optimizers[0]
        self._own_groups = self._groups = _groups_of(before)
        self._installed, self._defaults = (None, None), before.defaults
        for stage in filter(None, self._stages):
            before = self._try(stage, before)

    def measure(self, end_of: Callable[[str, range], int], *, is_global_zero: bool) -> None:
        """The data is loaded: find out how long schedulers are in force that need to know it.

        Before that they are built with any length, unless a checkpoint says which; so the stage that has such
        a scheduler is due again.

        Args:
            end_of: Returns the optimizer step at which stages end, given who asks and which they are.
            is_global_zero: Whether this process warns.

        Raises:
            RuntimeError: A length is never known, or a resumed run has more steps than a scheduler has.
        """
        for index, stage in enumerate(self._stages):
            if stage is not None and stage.takes_length:
                others = (each for each in range(index + 1, len(self._stages)) if self._stages[each])
                in_force = range(index, next(others, len(self._stages)))
                self._ends[index] = end_of(f"{stage.argument}.scheduler", in_force)
                self._compare_length(index, f"{stage.argument}.scheduler", is_global_zero=is_global_zero)
        if self._installed[1] in self._ends and self._installed[1] not in self._lengths:
            self._installed = self._installed[0], None

    def brought_by(self, stage: int) -> str:
        """What a stage begins with, for the log."""
        found = self._stages[stage] if self._stages else None
        named = [str(each) for each in (found.optimizer, found.scheduler) if each] if found else []
        return f" with {' and '.join(named)}" if named else ""

    def is_due(self, stage: int) -> bool:
        """Whether a stage has another optimizer or scheduler than is installed."""
        return self._wanted(stage) != self._installed

    def install(self, context: StepContext, stage: int) -> None:
        """Put optimizer and scheduler of a stage into the Trainer, without a group of this package."""
        optimizer_stage, scheduler_stage = self._wanted(stage)
        optimizer, config = optimizers_of(context.trainer)[0], None
        if optimizer_stage != self._installed[0]:
            optimizer = self._exchanged(optimizer, optimizer_stage)
        else:
            optimizer.param_groups[:] = _copied(self._groups)
        if scheduler_stage is not None:
            end, now = self._ends.get(scheduler_stage), context.moment.optimizer_step
            if end is not None and scheduler_stage not in self._lengths:
                self._lengths[scheduler_stage] = max(1, end - now)
                self._lasts_until[scheduler_stage] = now + self._lengths[scheduler_stage]
            num_steps = self._lengths.get(scheduler_stage, _ANY_LENGTH)
            config = _config(self._stage(scheduler_stage), optimizer, num_steps)
        context.trainer.strategy.optimizers = [optimizer]
        context.trainer.strategy.lr_scheduler_configs = [config] if config else []
        self._installed = optimizer_stage, scheduler_stage

    def keep_rates(self, context: StepContext, stage: int, thawed: Sequence[Parameter]) -> None:
        """Note the rates of what trains already, where a stage leaves it at them; before `install`."""
        self._kept, self._kept_at = {}, context.moment.optimizer_step
        latest = max(index for index in self._wanted(stage) if index is not None)
        if self._stage(latest).keeps_rates:
            new = set(map(id, thawed))
            names = {id(each): name for name, each in canonical_parameters(context.model).items()}
            for group in optimizers_of(context.trainer)[0].param_groups:
                earlier = [each for each in group["params"] if each.requires_grad and id(each) not in new]
                self._kept |= {names[id(each)]: float(group["lr"]) for each in earlier if id(each) in names}

    def kept_rates(self, context: StepContext) -> list[KeptRate]:
        """The rates that parameters keep."""
        named = canonical_parameters(context.model)
        alike: dict[float, dict[str, Parameter]] = {}
        for name in sorted(self._kept.keys() & named.keys()):
            alike.setdefault(self._kept[name], {})[name] = named[name]
        return [KeptRate(self._title, self._kept_at, rate, alike[rate]) for rate in sorted(alike)]

    def state(self) -> dict[str, object]:
        """The rates that are kept, and the lengths of schedulers, in plain types."""
        lengths, lasts_until = dict(self._lengths), dict(self._lasts_until)
        return {"step": self._kept_at, "rates": dict(self._kept), "lengths": lengths, "until": lasts_until}

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._kept_at, self._kept = state["step"], dict(state["rates"])
        self._lengths = dict(state.get("lengths", {}))
        self._lasts_until = dict(state.get("until", {}))

    def _compare_length(self, index: int, argument: str, *, is_global_zero: bool) -> None:
        """A resumed run goes on with the scheduler that it had, which has no rates after its last step."""
        last, now = self._lasts_until.get(index), self._ends[index]
        if last is None or now == last or index != max(self._lengths):
            return
        built = (
            f"{argument} was built for {self._lengths[index]} steps, until step {last}, and the resumed run"
        )
        if now > last:
            raise RuntimeError(
                f"{built} would go on with it until step {now}. Train no longer than before, or end its "
                f"stage with until_step: {last} and add a stage with a scheduler for the rest."
            )
        if is_global_zero:
            log.warning("%s ends with it at step %d", built, now)

    def _stage(self, number: int) -> StageOptimizer:
        found = self._stages[number]
        assert found is not None
        return found

    def _wanted(self, stage: int) -> tuple[int | None, int | None]:
        """The latest stages up to this one that bring an optimizer, and a scheduler for it."""
        so_far = [(index, each) for index, each in enumerate(self._stages[: stage + 1]) if each]
        optimizer = max([index for index, each in so_far if each.optimizer], default=None)
        schedulers = [index for index, each in so_far if each.scheduler and index >= (optimizer or 0)]
        return optimizer, max(schedulers, default=None)

    def _exchanged(self, old: Optimizer, stage: int | None) -> Optimizer:
        assert stage is not None  # a stage does not end before it began
        recipe = self._stage(stage)
        new = self._built(recipe)
        self._groups = _groups_of(new)
        if recipe.carries_state:
            known = {id(each) for group in new.param_groups for each in group["params"]}
            new.state.update({each: state for each, state in old.state.items() if id(each) in known})
        return new

    def _try(self, stage: StageOptimizer, before: Optimizer) -> Optimizer:
        """Build what a stage begins with, to see now that it can be built."""
        after = self._built(stage) if stage.optimizer else before
        if stage.carries_state and type(after) is not type(before):
            raise ValueError(
                f"{stage.argument}.optimizer_state: carry needs an optimizer of the same class, and "
                f"{type(before).__name__} is followed by {type(after).__name__}. Write drop."
            )
        if stage.scheduler:
            _config(stage, self._built(stage) if stage.optimizer else _trial(self._own_groups))
        return after

    def _built(self, stage: StageOptimizer) -> Optimizer:
        """The optimizer of a stage, in the run's own groups, with what sets one of these apart.

        The group with the highest rate gets the rate of the new optimizer, the others one in proportion. What
        else was given for some groups only, such as no weight decay for biases, they keep.
        """
        assert stage.optimizer is not None
        groups, defaults = self._own_groups, self._defaults
        try:
            new = stage.optimizer([{"params": list(group["params"])} for group in groups])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{stage.argument}.optimizer cannot be built: {error}") from error
        if not isinstance(new, Optimizer):
            raise ValueError(
                f"{stage.argument}.optimizer must build a torch.optim.Optimizer. Got {type(new).__name__}."
            )
        shared = defaults.keys() & new.defaults.keys() - {"lr"}
        differing = [key for key in shared if any(each[key] != groups[0][key] for each in groups)]
        rates = [float(group["lr"]) for group in groups if group.get("lr") is not None]
        for group, own in zip(new.param_groups, groups, strict=True):
            group.update({key: own[key] for key in differing if own[key] != defaults[key]})
            group.update({"name": own["name"]} if "name" in own else {})
            if len(rates) == len(groups) and max(rates) and group["lr"] is not None:
                group["lr"] = group["lr"] * (float(own["lr"]) / max(rates))
        return new


def _config(stage: StageOptimizer, optimizer: Optimizer, num_steps: int = _ANY_LENGTH) -> _SchedulerConfig:
    assert stage.scheduler is not None
    try:
        scheduler = stage.scheduler(optimizer, num_steps)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{stage.argument}.scheduler cannot be built: {error}") from error
    config = _SchedulerConfig(scheduler, **(stage.stepping or {}))
    config.reduce_on_plateau = isinstance(scheduler, ReduceLROnPlateau)
    if config.reduce_on_plateau and config.monitor is None:
        raise ValueError(
            f"{stage.argument}.scheduler is a ReduceLROnPlateau, which needs a metric: write "
            "scheduler: {scheduler: {_target_: ...}, monitor: val/loss}."
        )
    return config


def _groups_of(optimizer: Optimizer) -> list[ParameterGroup]:
    """The groups as they were built, before any scheduler wrote a rate."""
    groups = _copied(optimizer.param_groups)
    for group in groups:
        if "initial_lr" in group:
            group["lr"] = group.pop("initial_lr")
    return groups


def _copied(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    return [{**group, "params": list(group["params"])} for group in groups]


def _trial(groups: Sequence[ParameterGroup]) -> Optimizer:
    """An optimizer to try a scheduler on."""
    from torch.optim import SGD

    return SGD([{"params": list(group["params"])} for group in groups], lr=1.0, momentum=0.9)
