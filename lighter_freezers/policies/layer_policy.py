"""The base class of policies: once per window it is asked which units train; the engine does the rest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers import arguments
from lighter_freezers.engine import (
    Action,
    ActionResult,
    Engine,
    EngineCallback,
    Hold,
    Moment,
    RateFactor,
    RunShares,
    StepContext,
    Terms,
    parameters_of_blocks,
)
from lighter_freezers.policies.answers import checked_choice, checked_rate, checked_units
from lighter_freezers.policies.composition import Share, refuse_together
from lighter_freezers.policies.unit_statistic import Statistic, UnitStatistic
from lighter_freezers.policies.untrained import warn_of_untrained
from lighter_freezers.policies.window import Plain, Window
from lighter_freezers.selection.name_summary import first_few

__all__ = ["LayerPolicy", "Options"]

Options: TypeAlias = Plain  # of `LayerPolicy`, which checks them: seed, rest, blocks and others


class LayerPolicy(EngineCallback):
    """Choose which units of a model train, anew in each window of optimizer steps. To be subclassed.

    A subclass has to define `choose`; the other methods have defaults. The engine does the rest: flags,
    optimizer state, norm layers, the backward pass, DDP, checkpoints, log and plan.

    Args:
        every_n_steps: Optimizer steps in a window, as the Trainer counts them, or a share of the run such as
            `10%`; None for one window.
        seed: Seed of what is drawn.
        optimizer_state: What becomes of the optimizer state of what does not train: `reset` drops it when
            the unit stops, `free` also takes the parameters out of their groups meanwhile, `keep` keeps it.
        cut_gradient: `auto` or `never`, as for `Freezer`.
        rest: What is in no unit: `train` it as before, or `freeze` it for the whole run. None for the
            default of the class.
        blocks: Paths of the modules that are the blocks, in order, or patterns such as `encoder.*`. None to
            find them.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range; in `setup`, the model has no unit that can train.
        RuntimeError: When a fit starts, another policy chooses among the same parameters.

    Runs on: `setup`; the Trainer's engine does everything else, at `on_train_batch_start` between two
    optimizer steps.

    Saves: the window, what trains in it, what others held then, what was measured, `memory` and `prepared`.

    Logs: one line for each window in which something else trains.
    """

    rest: Literal["train", "freeze"] = "train"
    statistic: Statistic | None = None
    freezes: bool = True  # whether it may leave units out; one that sets rates alone goes with any other

    def __init__(
        self,
        every_n_steps: int | str | None,
        *,
        seed: int = 0,
        optimizer_state: Literal["keep", "reset", "free"] = "reset",
        cut_gradient: Literal["auto", "never"] = "auto",
        rest: Literal["train", "freeze"] | None = None,
        blocks: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self._bounds: dict[str, int | None] = {}
        self.every_n_steps = self.steps_or_share("every_n_steps", every_n_steps)
        self.seed = arguments.count("seed", seed) or 0
        self.terms = Terms(
            optimizer_state=arguments.choice("optimizer_state", optimizer_state, ("keep", "reset", "free")),
            cut_gradient=arguments.choice("cut_gradient", cut_gradient, ("auto", "never")),
        )
        self.rest = arguments.choice("rest", self.rest if rest is None else rest, ("train", "freeze"))
        self.blocks = _paths(blocks)
        if self.statistic is not None:
            arguments.choice("statistic", self.statistic, get_args(Statistic))

    def steps_or_share(self, argument: str, value: int | str | None) -> int | None:
        """Check a number of steps, or a share of the run, for the attribute of the same name.

        A share is beyond the end of the run until training starts; then its steps take its place.
        """
        steps = arguments.bound(argument, value)
        if steps is not None:
            arguments.at_least(argument, steps, 1)
        self._bounds[argument] = steps
        return steps

    def resolve(self, shares: RunShares) -> None:
        """Put steps in place of shares of the run."""
        for argument, steps in self._bounds.items():
            if isinstance(steps, arguments.Share):
                setattr(self, argument, shares.resolved(steps))

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """Title -> parameters of each unit, in forward order: the blocks, unless a policy defines others."""
        return parameters_of_blocks(model, self.blocks)

    def prepare(self, model: nn.Module) -> object:
        """Plain data about the model, computed when a run begins and saved; that of rank zero counts."""
        return None

    def index_at(self, moment: Moment) -> int:
        """The window of the next optimizer step."""
        return 0 if self.every_n_steps is None else moment.optimizer_step // self.every_n_steps

    def choose(self, window: Window) -> Iterable[str]:
        """The units that train in this window: from `window` alone, with no other source of chance."""
        raise NotImplementedError(f"{type(self).__name__} defines no `choose(self, window)`.")

    def rate(self, unit: str, moment: Moment, window: Window) -> float:
        """Factor of the unit's learning rate at a moment; define it, and each unit has groups of its own."""
        return 1.0

    def actions(self) -> list[Action]:
        """The action that follows `choose`."""
        return [_PolicyAction(self)]


def _paths(blocks: object) -> Sequence[str] | None:
    paths = arguments.plain(blocks)
    if paths is None:
        return None
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise TypeError(f"blocks must be a list of paths of modules. Got {blocks!r}.")
    if not paths:
        raise ValueError("blocks is empty. Write paths of modules, such as ['encoder.*'], or leave it out.")
    return paths


class _PolicyAction(Action):
    """Holds, in each window, the units that a policy does not choose."""

    def __init__(self, policy: LayerPolicy) -> None:
        super().__init__()
        self.title, self.kind = type(policy).__name__, f"policy {type(policy).__name__}"
        self.terms, self.depends_on_data = policy.terms, policy.statistic is not None
        self._policy = policy
        self._statistic = UnitStatistic(policy.statistic) if policy.statistic else None
        self._units: dict[str, Hold] = {}
        self._rest = Hold([], self.title)
        self._window: Window | None = None  # the current one; `training` is what trains in it

    @property
    def wants_gradients(self) -> bool:
        """Whether it measures."""
        return self._statistic is not None

    @property
    def rate_factors(self) -> Sequence[RateFactor]:
        """One for each unit, where the policy defines `rate`."""
        if type(self._policy).rate is LayerPolicy.rate:
            return ()
        return [
            RateFactor(f"{self.title} {unit}", hold.parameters, self._rate_of(unit))
            for unit, hold in self._units.items()
        ]

    def setup(self, trainer: object, model: nn.Module, stage: str) -> None:
        """Find the units, without those that the user froze."""
        if stage != "fit":
            return
        found = checked_units(self.title, self._policy.units(model))
        units = {title: self.new_hold(each) for title, each in found.items()}
        later = {id(parameter) for parameter in self.trainable_later(model).values()}
        self._units = {
            title: hold for title, hold in units.items() if any(id(p) in later for p in hold.parameters)
        }
        if not self._units:
            raise ValueError(
                f"{self.title} finds no unit that can train in {type(model).__name__}: "
                f"{len(units)} units, all frozen by the user. Thaw what it shall choose from, or remove it."
            )
        inside = {id(parameter) for hold in units.values() for parameter in hold.parameters}
        rest = model.parameters() if self._policy.rest == "freeze" else ()
        self._rest = self.new_hold(each for each in rest if id(each) not in inside)

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """The units; what is in none of them is held for the whole run or not at all."""
        rest = {id(parameter) for parameter in self._rest.parameters}
        return {name: each for name, each in super().trainable_later(model).items() if id(each) not in rest}

    def start(self, context: StepContext) -> None:
        """Check what other policies of this run choose from."""
        others = [each for each in Engine.of(context.trainer).actions if isinstance(each, _PolicyAction)]
        for other in others[: others.index(self)]:
            refuse_together(self._share, other._share)

    @property
    def _share(self) -> Share:
        units = {id(each) for hold in self._units.values() for each in hold.parameters}
        rest = {id(each) for each in self._rest.parameters}
        return Share(self.title, units, rest, freezes=self._policy.freezes)

    def resolve(self, shares: RunShares) -> None:
        """Put steps in place of shares of the run."""
        self._policy.resolve(shares)

    def resume(self, context: StepContext) -> None:
        """Hold what was held, or decide the first window."""
        frozen = self._rest.take() if self._policy.rest == "freeze" else []
        if self._window is None:
            prepared = context.of_rank_zero(self._policy.prepare(context.model))
            self._window = Window(-1, 0, tuple(self._units), frozenset(self._units), prepared=prepared)
            self._decide(context, {})
            if context.trainer.is_global_zero:
                warn_of_untrained(context.model, frozen, self.title)
        self._window = replace(
            self._window,
            step=self._first_step(self._window.index),
            units=tuple(self._units),
            training=self._window.training & self._units.keys(),
        )
        self._follow()

    def next_step(self, moment: Moment) -> int | None:
        """The first step of the next window."""
        length = self._policy.every_n_steps
        return None if length is None else (self._policy.index_at(moment) + 1) * length

    def is_due(self, moment: Moment) -> bool:
        """Whether a new window begins, or this one has to be decided again."""
        window = self._window
        return window is None or self._policy.index_at(moment) != window.index or self._is_idle(window)

    def before_optimizer_step(self, context: StepContext, optimizer: Optimizer) -> None:
        """Measure the units that train."""
        assert self._statistic
        assert self._window
        units = {title: h.parameters for title, h in self._units.items() if title in self._window.training}
        self._statistic.note(context, optimizer, units)

    def apply(self, context: StepContext) -> ActionResult:
        """Begin a new window."""
        assert self._window
        before = self._window.training
        self._decide(context, self._statistic.take(context) if self._statistic else {})
        self._follow()
        training = [unit for unit in self._window.free if unit in self._window.training]
        if self._window.training == before:
            return ActionResult()
        words = (
            f"{len(training)} of {len(self._units)} units: {first_few(training)}" if training else "no unit"
        )
        return ActionResult(notes=(f"{self.title} trains {words}",))

    def state(self) -> dict[str, object]:
        """The window, and what was measured in it so far."""
        window = self._window
        if window is None:
            return {"window": None}
        kept = {"index": window.index, "training": sorted(window.training), "held": sorted(window.held)}
        found = {"measured": dict(window.measured), "prepared": window.prepared, "memory": window.memory}
        return {
            "window": {**kept, **found},
            "statistic": self._statistic.state() if self._statistic else {},
        }

    def remember(self, state: Mapping[str, Plain]) -> None:
        """Restore what `state` returned."""
        saved = state["window"]
        if saved is None:
            return
        self._window = Window(
            saved["index"],
            0,  # until it is known how many steps a window has
            tuple(self._units),
            frozenset(saved["training"]),
            measured=saved["measured"],
            prepared=saved["prepared"],
            memory=dict(saved["memory"]),
            held=frozenset(saved.get("held", ())),  # checkpoints of before do not have it
        )
        if self._statistic:
            self._statistic.remember(state["statistic"])

    def _decide(self, context: StepContext, measured: Mapping[str, float]) -> None:
        assert self._window
        index = self._policy.index_at(context.moment)
        window = replace(
            self._window,
            index=index,
            step=self._first_step(index),
            random=context.random(self._policy.seed, index),
            measured=measured,
            held=self._held(),
        )
        chosen = checked_choice(self.title, self._policy.choose(window), list(self._units))
        self._window = replace(window, training=chosen)

    def _held(self) -> frozenset[str]:
        """The units that other callbacks hold."""
        return frozenset(title for title, hold in self._units.items() if self.is_held_by_others(hold))

    def _is_idle(self, window: Window) -> bool:
        """Whether others have come to hold all that it chose, and some other unit could train."""
        chosen = (each for title in window.training for each in self._units[title].parameters)
        if any(each.requires_grad for each in chosen):
            return False
        held = self._held()
        return held != window.held and len(held) < len(self._units)

    def _first_step(self, index: int) -> int:
        return index * (self._policy.every_n_steps or 0)

    def _follow(self) -> None:
        assert self._window
        for title, hold in self._units.items():
            if title not in self._window.training:
                hold.take()
        for title, hold in self._units.items():  # afterwards, so that nothing shared thaws between two holds
            if title in self._window.training:
                hold.let_go()

    def _rate_of(self, unit: str) -> Callable[[Moment], float]:
        def rate(moment: Moment) -> float:
            if self._window is None:
                return 1.0
            return checked_rate(self.title, unit, self._policy.rate(unit, moment, self._window))

        return rate
