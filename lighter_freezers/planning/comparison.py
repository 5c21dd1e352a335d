"""Compares a plan with what a finished run measured, phase by phase."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lighter_freezers.planning.phase_meter import FILE, PhaseRecord
from lighter_freezers.planning.values import Plan, PlannedPhase
from lighter_freezers.reports.columns import amount, columns, num_bytes
from lighter_freezers.reports.whole_files import naming

__all__ = ["Comparison", "Line", "compare", "read_report"]

_COUNTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {  # field -> its label, its format
    "flops": ("FLOPs/step", amount),
    "gradient_bytes": ("gradients", num_bytes),
    "optimizer_bytes": ("optimizer", num_bytes),
    "activation_bytes": ("activations", num_bytes),
    "skipped_flops": ("skipped by PrefixCache", amount),
    "stored_bytes": ("stored by PrefixCache", num_bytes),
    "peak_bytes": ("peak on device", num_bytes),
}
_TIMES = {"relative_time": "time of a step", "served_time": "time of a served step / of another"}
_WAY_OUT = (
    "Add lighter_freezers.PhaseRecorder to trainer::callbacks and run again, or give the folder of a run "
    "that had it."
)
_HEADING = ("phase", "what", "planned", "measured", "off")


@dataclass(frozen=True)
class Line:
    """One number of one phase. None means unknown.

    Attributes:
        phase: When the phase began in the run.
        what: The number: `flops`, `gradient_bytes`, `optimizer_bytes`, `activation_bytes`,
            `skipped_flops`, `stored_bytes`, `peak_bytes`, `relative_time`, or `served_time`: that of a step
            whose prefix `PrefixCache` has read, relative to one that it has not. The plan says its share of
            the operations.
        planned: Its value in the plan.
        measured: Its value in the run.
    """

    phase: str
    what: str
    planned: float | None
    measured: float | None

    @property
    def off(self) -> float | None:
        """Planned divided by measured, minus 1: 0.02 means the plan is 2 % too high."""
        if self.planned is None or self.measured is None:
            return None
        if self.planned == self.measured:
            return 0.0
        return self.planned / self.measured - 1 if self.measured else None


@dataclass(frozen=True)
class Comparison:
    """The numbers of a plan and of a run.

    Attributes:
        lines: By phase, in the order of the run.
        missing: Phases of the plan that the run did not have, and phases of the run that are not in the plan.
        notes: What began with a phase of the run, such as a stage and the file of its first weights.
    """

    lines: tuple[Line, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The comparison in plain types."""
        return {
            "lines": [{**asdict(line), "off": line.off} for line in self.lines],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        table = columns([_HEADING, *map(_row, self.lines)], num_left=2)
        return "\n".join([*table, *self.missing, *self.notes])


def read_report(folder: Path) -> list[PhaseRecord]:
    """Read what `PhaseRecorder` wrote into the folder of a run.

    Raises:
        ValueError: There is no such file, or it is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        there = sorted(str(path.parent) for path in folder.rglob(FILE)) if folder.is_dir() else []
        way_out = f"Reports are in: {', '.join(there)}." if there else _WAY_OUT
        raise ValueError(f"There is no {FILE} in '{folder}'. {way_out}")
    with naming(file, "what PhaseRecorder writes"):
        return [PhaseRecord.from_dict(record) for record in json.loads(file.read_text())["phases"]]


def compare(plan: Plan, records: Sequence[PhaseRecord]) -> Comparison:
    """Compare a plan with a run. Phases correspond if the same parameters train in them.

    Args:
        plan: The plan.
        records: What was measured, in the order of the run.
    """
    left = [*plan.phases, *plan.undated]
    pairs: list[tuple[PlannedPhase, PhaseRecord]] = []
    missing = []
    for record in records:
        alike = [phase for phase in left if phase.trains == record.trains]
        alike.sort(key=lambda phase: phase.step != record.optimizer_step)
        if not alike:
            missing.append(f"step {record.optimizer_step} of the run: not in the plan")
            continue
        left.remove(alike[0])
        pairs.append((alike[0], record))
    not_measured = "of the plan: not measured; the run may have ended before or within this phase"
    missing += [f"{phase.when} {not_measured}" for phase in left]
    times = _relative_times(pairs)
    lines = []
    for (phase, record), (planned, measured) in zip(pairs, times, strict=True):
        name = f"step {record.optimizer_step}"
        counts = [Line(name, what, getattr(phase, what), getattr(record, what)) for what in _COUNTS]
        lines += [line for line in counts if line.planned is not None or line.measured is not None]
        lines.append(Line(name, "relative_time", planned, measured))
        if phase.skipped_flops and phase.flops and record.served_seconds is not None:
            took = _ratio(record.served_seconds, record.step_seconds)
            lines.append(Line(name, "served_time", 1 - phase.skipped_flops / phase.flops, took))
    notes = tuple(f"step {record.optimizer_step}: {note}" for record in records for note in record.notes)
    return Comparison(tuple(lines), tuple(missing), notes)


def _relative_times(
    pairs: Sequence[tuple[PlannedPhase, PhaseRecord]],
) -> list[tuple[float | None, float | None]]:
    """Planned and measured times, relative to the timed phase with the most measured FLOPs."""
    timed = [(p, r) for p, r in pairs if p.relative_time is not None and r.step_seconds is not None]
    if not timed:
        return [(None, None)] * len(pairs)
    phase, record = max(timed, key=lambda pair: pair[1].flops or 0)
    return [
        (_ratio(p.relative_time, phase.relative_time), _ratio(r.step_seconds, record.step_seconds))
        for p, r in pairs
    ]


def _ratio(one: float | None, base: float | None) -> float | None:
    return None if one is None or not base else one / base


def _row(line: Line) -> tuple[str, ...]:
    name, shown = _COUNTS.get(line.what, (_TIMES.get(line.what, ""), _decimal))
    off = "-" if line.off is None else f"{line.off:+.1%}"
    return line.phase, name, shown(line.planned), shown(line.measured), off


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
