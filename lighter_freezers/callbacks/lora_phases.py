"""The LoraPhases callback: in each phase of a run some LoRA adapters train, and the others are held."""

from collections.abc import Mapping, Sequence

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.engine.engine import Engine, EngineCallback
from lighter_freezers.engine.rule_arguments import parse_terms
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.terms import CutGradient, OptimizerState
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.transition import Transition
from lighter_freezers.engine.triggers import Schedule
from lighter_freezers.lora.phase_presets import parse_strategy
from lighter_freezers.lora.phases import (
    Adapter,
    LoraPhase,
    adapters_of,
    check_phases,
    parse_phases,
    phases_of_strategy,
)
from lighter_freezers.reports.step_curves import StepCurves
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.element_counts import size_of
from lighter_freezers.selection.names import canonical_parameters
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["LoraPhases"]


class LoraPhases(EngineCallback):
    """Train LoRA adapters in phases: in each phase, only the adapters that it names train.

    | call | what trains |
    |---|---|
    | `LoraPhases("both->mlp->attn", phase1_end=300, phase2_end=600)` | all; MLPs; attention |
    | `LoraPhases("attn->mlp->both", phase1_end=300, phase2_end=600)` | attention; MLPs; all |
    | `LoraPhases("both->mlp->both", phase1_end=300, phase2_end=600)` | all; MLPs; all |
    | `LoraPhases("early->late", phase1_end=300)` | adapters of the lower half of the blocks; the upper half |
    | `LoraPhases([...])`, `LoraPhases(phases=[...])` | what each phase names |

    An adapter outside the current phase stays in the model with its values. `optimizer_state` sets whether
    its optimizer state is kept. Other parameters are not affected.

    Args:
        strategy: One of the four above, or the list of phases. None for `phases`.
        phase1_end: The optimizer step at which the second phase begins, or a share of the run such as `30%`;
            so are the other steps.
        phase2_end: The optimizer step at which the third phase begins; None for `early->late`.
        phases: Instead of a strategy, a list of phases: `start_step`; `end_step`, which is optional;
            `active_modules`, a list of `attention`, `mlp` and layers outside the blocks such as `wte`;
            `layer_range`, the first and last block, both inclusive, or nothing for all. The first phase
            begins at step 0, the last has no end.
        adapter_name: PEFT's name of the adapters.
        optimizer_state: The optimizer state of an adapter outside the current phase: `keep` it,
            `reset` it when the hold begins, or `free` it and remove the parameter from its group until it
            thaws.
        cut_gradient: `auto` ends the backward pass above a frozen prefix of blocks if only an embedding tied
            to the head would use the gradient; `never` keeps the gradient of such an embedding.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Phases leave a gap or overlap; in `setup`, a phase names what has no adapter.

    Runs on: `setup`; the Trainer's engine does everything else, at `on_train_batch_start` between two
    optimizer steps.

    Saves: nothing, since phases follow from the step.

    Logs: at the start of each phase one line, and a row after the last one of the phase before, always with
    the same columns: `lora_phases/phase`, counted from 1, `lora_phases/trainable_parameters`, and for every
    layer with LoRA `lora_phases/<layer>`, 1 if it trains and 0 if it does not.

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

    @checked
    def __init__(
        self,
        strategy: str | Sequence[Mapping[str, object]] | None = None,
        phase1_end: int | str | None = None,
        phase2_end: int | str | None = None,
        *,
        phases: Sequence[Mapping[str, object]] | None = None,
        adapter_name: str = "default",
        optimizer_state: OptimizerState = "keep",
        cut_gradient: CutGradient = "auto",
    ) -> None:
        super().__init__()
        if strategy is not None and not isinstance(strategy, str):
            if phases is not None:
                raise ValueError("strategy is a list of phases, and phases is one too. Give one of them.")
            strategy, phases = None, strategy
        self._strategy, self._ends = parse_strategy(
            strategy, phase1_end, phase2_end, has_phases=phases is not None
        )
        self._given = [] if phases is None else parse_phases(phases)
        self._adapter_name = adapter_name
        self._terms = parse_terms(optimizer_state, cut_gradient)
        self._phases: list[LoraPhase] = []
        self._adapters: list[Adapter] = []
        self._logged = -1  # the last logged phase
        self._curves = StepCurves(is_whole=True)

    def setup(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Register with the engine for the transitions of this fit."""
        engine = Engine.of(trainer)
        self._logged = -1
        if stage == "fit":
            engine.add_listener(self)

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """One rule per phase, which holds in it all adapters that do not train."""
        self._adapters = adapters_of(model, self._adapter_name)
        num_blocks = len(anatomy_of(model).stacks[0].blocks)
        self._phases = self._given or phases_of_strategy(self._strategy, self._ends, num_blocks)
        check_phases(self._phases, self._adapters, num_blocks)
        rules = [self._rule(index, phase) for index, phase in enumerate(self._phases)]
        return [rule for rule in rules if rule is not None]

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Let the first forward pass check the order of the blocks that a phase counts."""
        if any(phase.layer_range is not None for phase in self._phases):
            check_order(pl_module, anatomy_of(pl_module))

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Log the phase that has just started; called by the engine."""
        step = transition.optimizer_step
        phases = Engine.of(trainer).shares.resolved(tuple(self._phases))
        index = max(i for i, phase in enumerate(phases) if phase.start_step <= step)
        if index == self._logged or not trainer.is_global_zero:
            return
        self._logged = index
        sizes = {name: size_of(p) for name, p in canonical_parameters(pl_module).items() if p.requires_grad}
        active = [sum(sizes.get(name, 0) for name in adapter.names) for adapter in self._adapters]
        place = f"{index + 1} of {len(self._phases)}"
        log.info("step %d: LoRA phase %s trains %s, %d parameters", step, place, phases[index], sum(active))
        totals = {"lora_phases/phase": index + 1, "lora_phases/trainable_parameters": sum(active)}
        layers = {
            f"lora_phases/{adapter.title}": float(size > 0)
            for adapter, size in zip(self._adapters, active, strict=True)
        }
        if transition.is_initial:
            self._curves.begin(trainer, totals | layers, step)
        else:
            self._curves.change(trainer, totals | layers, step)

    def _rule(self, index: int, phase: LoraPhase) -> FreezeRule | None:
        """Hold what does not train in a phase; None if everything does."""
        resting = [name for adapter in self._adapters if not phase.trains(adapter) for name in adapter.names]
        if not resting:
            return None
        return FreezeRule(
            title=f"LoraPhases(phase {index + 1} of {len(self._phases)}: {phase})",
            selector=ParameterSelector(names=tuple(resting)),
            schedule=Schedule(from_step=phase.start_step or None, until_step=phase.end_step),
            terms=self._terms,
        )
