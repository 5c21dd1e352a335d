"""A plan as values, as text and as an image: rules, phases, their cost, warnings."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from lighter_freezers.planning.phase_meter import PhaseRecord
from lighter_freezers.reports.columns import amount, columns, num_bytes
from lighter_freezers.reports.timeline import Timeline
from lighter_freezers.reports.timeline_svg import draw_to_file

_Json: TypeAlias = Mapping[str, Any]  # what `as_dict` gave

__all__ = ["Plan", "PlannedPhase", "PlannedRule", "rates_and_totals", "total_lines"]

_COSTS = ("begins", "trains", "share", "FLOPs/step", "time", "gradients", "optimizer", "activations")


@dataclass(frozen=True)
class PlannedRule:
    """A rule, or a list of operations, and what it can change.

    Attributes:
        title: Its name in the logs.
        names: Canonical names of the parameters that it matches.
        summary: The same as a short phrase.
        num_parameters: Their number of elements.
    """

    title: str
    names: tuple[str, ...]
    summary: str
    num_parameters: int


@dataclass(frozen=True)
class PlannedPhase:
    """A part of the run in which the same parameters train. None means unknown.

    Attributes:
        when: When it starts, in words.
        step: Its first optimizer step; None where a metric decides, or a wait after one.
        epoch: The epoch in which it starts.
        end_step: The first step after it; None where that is unknown.
        or_when: Conditions on a metric that would end the previous phase earlier.
        changes: What freezes, thaws or gets another rank, one sentence each.
        holders: Who holds something frozen in it.
        trains: A short name of what trains, as `freeze_report.json` has it.
        num_trainable: Elements that train.
        trainable_share: Share of all elements that trains, from 0 to 1.
        flops: Of one optimizer step: matrix products and attention, forward and backward.
        gradient_bytes: Of all gradients.
        optimizer_bytes: Of the optimizers' state after the first step of the phase.
        activation_bytes: The most that is kept for a backward pass.
        peak_bytes: The most that the device has allocated in a step; None without a GPU.
        step_seconds: Of one optimizer step, as `PhaseRecorder` measures it.
        relative_time: Time of a step relative to the phase with the most FLOPs.
        skipped_flops: Operations that a step does without once `PrefixCache` has stored its rows.
        stored_bytes: Of the rows of one step that it stores.
        states: Component -> frozen, trainable, partial or user-frozen.
        ranks: Component -> LoRA rank, where it changed.
        learning_rates: Group of the optimizer, by its layers -> rate, before the LR scheduler's own changes.
    """

    when: str
    step: int | None
    epoch: int | None
    end_step: int | None
    or_when: tuple[str, ...]
    changes: tuple[str, ...]
    holders: tuple[str, ...]
    trains: str
    num_trainable: int
    trainable_share: float
    flops: int | None
    gradient_bytes: int | None
    optimizer_bytes: int | None
    activation_bytes: int | None
    peak_bytes: int | None
    step_seconds: float | None
    relative_time: float | None
    skipped_flops: int | None = None
    stored_bytes: int | None = None
    states: Mapping[str, str] = field(default_factory=dict, repr=False)
    ranks: Mapping[str, int] = field(default_factory=dict, repr=False)
    learning_rates: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Plan:
    """What a run will freeze, when, and what that costs.

    Attributes:
        model: The class of the module.
        num_parameters: Its elements.
        num_steps: Optimizer steps of the run.
        steps_per_epoch: Of one epoch.
        device: The device it was measured on.
        rules: What each of them matches.
        phases: Those with a known step, in order, assuming that no metric ends one earlier.
        undated: Those that start on a metric, as if they followed the last phase.
        warnings: What looks wrong.
        weight_bytes: Of all parameters.
        everything: A step in which no rule holds anything, to compare with; None if it cannot be measured.
    """

    model: str
    num_parameters: int
    num_steps: int
    steps_per_epoch: int | None
    device: str
    rules: tuple[PlannedRule, ...]
    phases: tuple[PlannedPhase, ...]
    undated: tuple[PlannedPhase, ...]
    warnings: tuple[str, ...]
    weight_bytes: int = 0
    everything: PhaseRecord | None = None

    def as_dict(self) -> dict[str, object]:
        """The plan in plain types, as `--json` prints it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: _Json) -> "Plan":
        """The plan from the result of `as_dict`, which may have been stored as JSON."""
        lists = {
            "rules": tuple(
                PlannedRule(**{**rule, "names": tuple(rule["names"])}) for rule in content["rules"]
            ),
            "phases": tuple(map(_phase, content["phases"])),
            "undated": tuple(map(_phase, content["undated"])),
            "warnings": tuple(content["warnings"]),
            "everything": PhaseRecord.from_dict(content["everything"]) if content.get("everything") else None,
        }
        return cls(**{**content, **lists})

    def __str__(self) -> str:
        return _plan_text(self)

    def draw(self, path: str) -> None:
        """Draw layers by steps.

        Args:
            path: The file to write, `.png` or `.svg`.
        """
        draw_to_file(_timeline_of(self), self.num_steps, path)


def _phase(content: _Json) -> PlannedPhase:
    tuples = {key: tuple(content[key]) for key in ("or_when", "changes", "holders")}
    return PlannedPhase(**{**content, **tuples})


def _timeline_of(plan: Plan) -> Timeline:
    """The states of all components over the phases with a known step."""
    components = list(dict.fromkeys(name for phase in plan.phases for name in phase.states))
    timeline = Timeline(components)
    for phase in plan.phases:
        assert phase.step is not None
        timeline.record(phase.step, phase.states)
        is_change = bool(phase.ranks) and phase is not plan.phases[0]
        timeline.ranks.record(phase.step, phase.ranks, is_change=is_change)
    return timeline


def _plan_text(plan: Plan) -> str:
    phases = [*plan.phases, *plan.undated]
    per_epoch = "" if plan.steps_per_epoch is None else f", {plan.steps_per_epoch:,} an epoch"
    parts = [
        f"{plan.model}: {amount(plan.num_parameters)} parameters, {plan.num_steps:,} steps{per_epoch}",
        _titled("What each rule matches", _rule_lines(plan)),
        _titled("When what changes", _change_lines(phases)),
        _titled("What each phase costs", columns([_COSTS, *map(_cost_row, phases)])),
        *([_titled("What PrefixCache stores and saves", cached)] if (cached := _cache_lines(plan)) else []),
        rates_and_totals(plan),
        _titled("Warnings", [f"- {warning}" for warning in plan.warnings] or ["none"]),
    ]
    return "\n\n".join(parts)


def rates_and_totals(plan: Plan) -> str:
    """The learning rates of each phase, and what the whole run costs, under their titles."""
    rates = _titled("Learning rates where they change, before the LR scheduler's part", _rate_lines(plan))
    return "\n\n".join([rates, _titled("Totals", total_lines(plan))])


def _rule_lines(plan: Plan) -> list[str]:
    if not plan.rules:
        return ["there is no rule: nothing changes"]
    return [
        f"{rule.title}: {rule.summary} ({len(rule.names)} tensors, {amount(rule.num_parameters)} parameters)"
        for rule in plan.rules
    ]


def _change_lines(phases: Iterable[PlannedPhase]) -> list[str]:
    lines = []
    for phase in phases:
        epoch = "" if phase.epoch is None else f" (epoch {phase.epoch})"
        earlier = f"; or as soon as {' or '.join(phase.or_when)}" if phase.or_when else ""
        lines.append(f"{phase.when}{epoch}{earlier}: {'; '.join(phase.changes)}")
    return lines


def _cache_lines(plan: Plan) -> list[str]:
    """Per phase with a cached prefix: the size of its store, and the share of a step that is left."""
    lines = []
    for phase in [*plan.phases, *plan.undated]:
        if not phase.skipped_flops or not phase.flops or phase.stored_bytes is None:
            continue
        step, end, in_epoch = phase.step, phase.end_step, plan.steps_per_epoch
        share = 1 - phase.skipped_flops / phase.flops
        said = f"{phase.when}: {num_bytes(phase.stored_bytes)} a step"
        if in_epoch is not None:
            said += f", {num_bytes(phase.stored_bytes * in_epoch)} an epoch"
        if step is not None and end is not None and in_epoch is not None and end - step <= in_epoch:
            lines.append(f"{said}; the phase is no longer than an epoch, so no row is read")
        else:
            lines.append(f"{said}; from its second epoch on a step needs {share:.0%} of its operations")
    return lines


def _rate_lines(plan: Plan) -> list[str]:
    lines, before = [], ""
    for phase in [*plan.phases, *plan.undated]:
        rates = [f"{name} {rate:.3g}" for name, rate in phase.learning_rates.items()]
        now = ", ".join(rates) or "no group trains"
        if now != before:
            lines.append(f"{phase.when}: {now}")
        before = now
    return lines


def total_lines(plan: Plan) -> list[str]:
    """What the whole run costs, beside one in which everything trains, in sentences."""
    steps = [(phase, (phase.end_step or plan.num_steps) - (phase.step or 0)) for phase in plan.phases]
    seconds = sum(number * (phase.step_seconds or math.nan) for phase, number in steps)
    lines = []
    if plan.everything is not None and plan.everything.flops:
        flops = sum(number * (phase.flops or 0) for phase, number in steps)
        peak = max(_peak(phase, plan) for phase in plan.phases) / _peak(plan.everything, plan)
        lines.append(
            f"this schedule does {flops / (plan.num_steps * plan.everything.flops):.0%} of the operations of "
            f"training everything, peak {peak:.0%} of the memory"
        )
    if not math.isnan(seconds):
        of_what = "CPU time" if plan.device == "cpu" else "time"
        lines.append(f"about {_duration(seconds)} of {of_what} here, without validation and loading")
    if any(phase.or_when for phase in plan.phases):
        lines.append("all of this if no metric ends a phase earlier")
    return lines or ["unknown: nothing was measured"]


def _peak(cost: PlannedPhase | PhaseRecord, plan: Plan) -> int:
    """Bytes: as the device has measured them, or weights, gradients, optimizer state and activations."""
    parts = (cost.gradient_bytes, cost.optimizer_bytes, cost.activation_bytes)
    return cost.peak_bytes or plan.weight_bytes + sum(part or 0 for part in parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.2g} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cost_row(phase: PlannedPhase) -> tuple[str, ...]:
    return (
        phase.when,
        amount(phase.num_trainable),
        f"{phase.trainable_share:.1%}",
        amount(phase.flops),
        "-" if phase.relative_time is None else f"{phase.relative_time:.2f}",
        num_bytes(phase.gradient_bytes),
        num_bytes(phase.optimizer_bytes),
        num_bytes(phase.activation_bytes),
    )


def _titled(title: str, lines: Iterable[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])
