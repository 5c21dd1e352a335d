"""Plans and reports as text: fixed columns, for a terminal as for a file."""

from collections.abc import Iterable, Sequence

from lighter_freezers.planning.values import Plan, PlannedPhase

__all__ = ["amount", "columns", "num_bytes", "plan_text"]

_COSTS = ("begins", "trains", "share", "FLOPs/step", "time", "gradients", "optimizer", "activations")


def plan_text(plan: Plan) -> str:
    """The whole plan: what rules match, when what changes, what each phase costs, and warnings.

    Args:
        plan: What to show.
    """
    per_epoch = "" if plan.steps_per_epoch is None else f", {plan.steps_per_epoch:,} an epoch"
    parts = [
        f"{plan.model}: {amount(plan.num_parameters)} parameters, {plan.num_steps:,} steps{per_epoch}",
        _titled("What each rule matches", _rule_lines(plan)),
        _titled("When what changes", _change_lines([*plan.phases, *plan.undated])),
        _titled("What each phase costs", _cost_lines(plan)),
        _titled("Warnings", [f"- {warning}" for warning in plan.warnings] or ["none"]),
    ]
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]], num_left: int = 1) -> list[str]:
    """Rows of cells as lines: the first columns to the left, the others to the right.

    Args:
        rows: The first is the heading.
        num_left: How many columns begin at their left.
    """
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if index < num_left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def amount(number: float | None) -> str:
    """A count with three digits and k, M, G or T."""
    if number is None:
        return "-"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def num_bytes(number: int | None) -> str:
    """Bytes with three digits and their unit."""
    return "-" if number is None else f"{amount(number)}B" if number >= 1000 else f"{number} B"


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


def _cost_lines(plan: Plan) -> list[str]:
    rows = [_COSTS, *(_cost_row(phase) for phase in [*plan.phases, *plan.undated])]
    return columns(rows)


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
