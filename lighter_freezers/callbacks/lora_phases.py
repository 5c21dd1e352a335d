"""The LoraPhases callback: in each phase of a run some LoRA adapters train, and the others are held."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from lighter_freezers import arguments
from lighter_freezers._log import log
from lighter_freezers.engine.engine import Engine, EngineCallback
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.transition import Transition
from lighter_freezers.engine.triggers import Schedule
from lighter_freezers.lora.phases import (
    STRATEGIES,
    Adapter,
    Phase,
    adapters_of,
    check_phases,
    parse_phases,
    phases_of_strategy,
)
from lighter_freezers.reports.loggers import write_metrics
from lighter_freezers.selection.layer_names import find_blocks
from lighter_freezers.selection.names import canonical_parameters, closest_names
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["LoraPhases", "create_layerwise_lora_config", "create_phased_lora_config"]

Steps = Sequence[int | None] | None
BOTH = ("attention", "mlp")


class LoraPhases(EngineCallback):
    """Train some LoRA adapters at a time, phase after phase. What a phase names trains in it, and no other.

    | call | what trains |
    |---|---|
    | `LoraPhases("both->mlp->attn", phase1_end=300, phase2_end=600)` | all; MLPs; attention |
    | `LoraPhases("attn->mlp->both", phase1_end=300, phase2_end=600)` | attention; MLPs; all |
    | `LoraPhases("both->mlp->both", phase1_end=300, phase2_end=600)` | all; MLPs; all |
    | `LoraPhases("early->late", phase1_end=300)` | adapters of the lower half of the blocks; the upper half |
    | `LoraPhases(phases=[...])` | what each phase names |

    An adapter that does not train stays in the model with the values it has. Its optimizer state is kept, or
    forgotten, by `optimizer_state`. Everything that is no adapter is left alone.

    Args:
        strategy: One of the four above. None for `phases`.
        phase1_end: The optimizer step at which the second phase begins.
        phase2_end: The optimizer step at which the third phase begins; None for `early->late`.
        phases: Instead of a strategy, a list of phases: `start_step`; `end_step`, which may be left out;
            `active_modules`, a list of `attention`, `mlp` and layers outside the blocks such as `wte`;
            `layer_range`, first and last block, both included, or nothing for all. The first begins at step
            0, the last has no end.
        adapter_name: PEFT's name of the adapters.
        optimizer_state: `keep` or `reset` what the optimizer remembers of an adapter when it stops training.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Phases leave a gap or overlap; in `setup`, a phase names what has no adapter.

    Runs on: `setup`; everything else is done by the Trainer's engine, at `on_train_batch_start` between
    two optimizer steps.

    Saves: nothing of its own: phases follow from the step.

    Logs: at the start of each phase one line, and one row of the same columns each time:
    `lora_phases/phase`, counted from 1, `lora_phases/trainable_parameters`, and for every layer with LoRA
    `lora_phases/<layer>`, 1 where it trains and 0 where it does not.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.LoraPhases
              strategy: both->mlp->attn
              phase1_end: 300
              phase2_end: 600
        ```
    """

    def __init__(
        self,
        strategy: str | None = None,
        phase1_end: int | None = None,
        phase2_end: int | None = None,
        *,
        phases: Sequence[Mapping[str, Any]] | None = None,
        adapter_name: str = "default",
        optimizer_state: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__()
        self._strategy, self._ends = _strategy(
            strategy, phase1_end, phase2_end, has_phases=phases is not None
        )
        self._given = [] if phases is None else parse_phases("phases", phases)
        self._adapter_name = adapter_name
        self._optimizer_state: Literal["keep", "reset"] = arguments.choice(
            "optimizer_state", optimizer_state, ("keep", "reset")
        )
        self._phases: list[Phase] = []
        self._adapters: list[Adapter] = []
        self._logged = -1  # the phase that was logged last

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make sure that there is an engine, and hear of its transitions."""
        engine = Engine.of(trainer)
        self._logged = -1
        if stage == "fit":
            engine.add_listener(self)

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """One rule per phase, which holds in it all adapters that do not train."""
        self._adapters = adapters_of(model, self._adapter_name)
        num_blocks = find_blocks(model)[0].num_blocks
        self._phases = self._given or phases_of_strategy(self._strategy, self._ends, num_blocks)
        check_phases(self._phases, self._adapters, num_blocks)
        rules = [self._rule(index, phase) for index, phase in enumerate(self._phases)]
        # The last phase first: at a boundary it holds before the phase before it lets go, so that an adapter
        # that rests in both does not change in between.
        return [rule for rule in reversed(rules) if rule is not None]

    def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
        """Log the phase that has just begun; called by the engine."""
        step = transition.optimizer_step
        index = max(i for i, phase in enumerate(self._phases) if phase.start_step <= step)
        if index == self._logged or not trainer.is_global_zero:
            return
        self._logged = index
        sizes = {name: p.numel() for name, p in canonical_parameters(pl_module).items() if p.requires_grad}
        active = [sum(sizes.get(name, 0) for name in adapter.names) for adapter in self._adapters]
        place = f"{index + 1} of {len(self._phases)}"
        log.info(
            "step %d: LoRA phase %s trains %s, %d parameters", step, place, self._phases[index], sum(active)
        )
        totals = {"lora_phases/phase": index + 1, "lora_phases/trainable_parameters": sum(active)}
        layers = {
            f"lora_phases/{adapter.title}": float(size > 0)
            for adapter, size in zip(self._adapters, active, strict=True)
        }
        write_metrics(trainer.loggers, totals | layers, step)

    def _rule(self, index: int, phase: Phase) -> FreezeRule | None:
        """Hold what does not train in a phase; None if everything does."""
        resting = [name for adapter in self._adapters if not phase.trains(adapter) for name in adapter.names]
        if not resting:
            return None
        return FreezeRule(
            title=f"LoraPhases(phase {index + 1} of {len(self._phases)}: {phase})",
            selector=ParameterSelector(names=tuple(resting)),
            schedule=Schedule(from_step=phase.start_step or None, until_step=phase.end_step),
            optimizer_state=self._optimizer_state,
        )


def create_phased_lora_config(
    phase1_steps: Steps = (0, 100),
    phase2_steps: Steps = (100, 200),
    phase3_steps: Steps = (200, None),
    phase1_modules: Sequence[str] | None = None,
    phase2_modules: Sequence[str] | None = None,
    phase3_modules: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Up to three phases over kinds of layers, for `LoraPhases(phases=...)`.

    Args:
        phase1_steps: First step, and the step at which the phase ends or None; None for no such phase.
        phase2_steps: The same for the second.
        phase3_steps: The same for the third.
        phase1_modules: What trains in it. None for `[attention]`.
        phase2_modules: None for `[mlp]`.
        phase3_modules: None for `[attention, mlp]`.

    Returns:
        The phases, as plain values.

    Example:
        ```python
        from lighter_freezers import LoraPhases, create_phased_lora_config

        phases = create_phased_lora_config((0, 300), (300, 600), (600, None), ["attention", "mlp"])
        callback = LoraPhases(phases=phases)
        ```
    """
    chosen = [
        (phase1_steps, phase1_modules or ("attention",)),
        (phase2_steps, phase2_modules or ("mlp",)),
        (phase3_steps, phase3_modules or BOTH),
    ]
    return [_as_config(steps, modules) for steps, modules in chosen if steps]


def create_layerwise_lora_config(
    num_layers: int = 22,
    phase1_steps: Steps = (0, 200),
    phase2_steps: Steps = (200, None),
    modules: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Two phases over the depth of a model, the lower half of its blocks and then the upper.

    Args:
        num_layers: Blocks in the model, at least 2.
        phase1_steps: First step of the lower half, and the step at which it ends.
        phase2_steps: The same for the upper half; None as its end means until the run ends.
        modules: What trains in either. None for `[attention, mlp]`.

    Returns:
        The phases, as plain values.

    Example:
        ```python
        from lighter_freezers import LoraPhases, create_layerwise_lora_config

        callback = LoraPhases(phases=create_layerwise_lora_config(22, (0, 200), (200, None)))
        ```
    """
    number = arguments.count("num_layers", num_layers) or 0
    if number < 2:
        raise ValueError(f"num_layers must be at least 2, to be cut in halves. Got {num_layers!r}.")
    ranges = ([0, number // 2 - 1], [number // 2, number - 1])
    return [
        _as_config(steps, modules or BOTH, layer_range)
        for steps, layer_range in zip((phase1_steps, phase2_steps), ranges, strict=True)
        if steps
    ]


def _as_config(
    steps: Sequence[int | None], modules: Sequence[str], layer_range: list[int] | None = None
) -> dict[str, Any]:
    if len(steps) != 2:
        raise ValueError(f"The steps of a phase are a pair (first step, end step or None). Got {steps!r}.")
    start, end = steps
    names = list(modules)
    return {"start_step": start, "end_step": end, "active_modules": names, "layer_range": layer_range}


def _strategy(
    strategy: str | None, phase1_end: int | None, phase2_end: int | None, *, has_phases: bool
) -> tuple[str, list[int]]:
    """The strategy and the steps at which its phases end; "" where phases are given instead."""
    given = {"strategy": strategy, "phase1_end": phase1_end, "phase2_end": phase2_end}
    if has_phases:
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"phases says what trains when; {', '.join(extra)} would too. Give one of them.")
        return "", []
    if strategy is None or strategy not in STRATEGIES:
        close, known = closest_names(str(strategy), STRATEGIES, 1)[0], ", ".join(STRATEGIES)
        raise ValueError(f"Unknown strategy {strategy!r}. Closest: '{close}'. All: {known}. Or give phases.")
    ends = [arguments.count(name, given[name]) for name in ("phase1_end", "phase2_end")]
    wanted = len(STRATEGIES[strategy]) - 1
    bounds = [end for end in ends[:wanted] if end]
    if len(bounds) < wanted:
        raise ValueError(
            f"'{strategy}' has {wanted + 1} phases: give "
            f"{' and '.join(['phase1_end', 'phase2_end'][:wanted])}, steps above 0."
        )
    if ends[wanted:] != [None] * (2 - wanted):
        raise ValueError(f"'{strategy}' has two phases, the second lasts to the end: leave phase2_end out.")
    if bounds != sorted(set(bounds)):
        raise ValueError(f"phase1_end={bounds[0]} is not before phase2_end={bounds[1]}. Put it before.")
    return strategy, bounds
