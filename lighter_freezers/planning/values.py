"""A plan as values: what each rule matches, the phases of the run, what they cost, and what looks wrong."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Plan", "PlannedPhase", "PlannedRule"]


@dataclass(frozen=True)
class PlannedRule:
    """A rule, or a list of operations, and what it can change.

    Attributes:
        title: As logs call it.
        names: Canonical names of the parameters that it matches.
        summary: The same in a few words.
        num_parameters: Elements of these.
    """

    title: str
    names: tuple[str, ...]
    summary: str
    num_parameters: int


@dataclass(frozen=True)
class PlannedPhase:
    """A stretch of the run in which the same parameters train. None stands for what is not known.

    Attributes:
        when: When it begins, in words.
        step: Its first optimizer step; None where a metric decides, or a wait after one.
        epoch: The epoch it begins in.
        end_step: The first step after it; None without a date.
        or_when: Conditions on a metric that would end the phase before it earlier.
        changes: What freezes, thaws or gets another rank, one sentence each.
        holders: Who holds something frozen in it.
        trains: A short name of what trains, as `freeze_report.json` has it.
        num_trainable: Elements that train.
        trainable_share: Share of all elements that trains, from 0 to 1.
        flops: Of one optimizer step: matrix products and attention, forward and backward.
        gradient_bytes: Of all gradients.
        optimizer_bytes: What the optimizers remember after the first step of the phase.
        activation_bytes: The most that is kept for a backward pass.
        peak_bytes: The most that the device has allocated in a step; None without a GPU.
        step_seconds: Of one optimizer step, as `PhaseRecorder` measures it.
        relative_time: Time of a step in relation to the phase with the most FLOPs.
        states: Component -> frozen, trainable, partial or user-frozen.
        ranks: Component -> LoRA rank, where it changed.
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
    states: Mapping[str, str] = field(default_factory=dict, repr=False)
    ranks: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Plan:
    """What a run will freeze, when, and what that costs.

    Attributes:
        model: The class of the module.
        num_parameters: Its elements.
        num_steps: Optimizer steps of the run.
        steps_per_epoch: Of one epoch.
        device: Where it was measured.
        rules: What each of them matches.
        phases: Those that have a date, in their order. Where a metric could come first, as if it did not.
        undated: Those that begin when a metric says so, as they would follow the last phase.
        warnings: What looks wrong.
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

    def as_dict(self) -> dict[str, Any]:
        """In plain types, as `--json` prints it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Plan":
        """The plan that `as_dict` was called on, also after a journey through JSON."""
        lists = {
            "rules": tuple(
                PlannedRule(**{**rule, "names": tuple(rule["names"])}) for rule in content["rules"]
            ),
            "phases": tuple(map(_phase, content["phases"])),
            "undated": tuple(map(_phase, content["undated"])),
            "warnings": tuple(content["warnings"]),
        }
        return cls(**{**content, **lists})

    def __str__(self) -> str:
        from lighter_freezers.planning.tables import plan_text

        return plan_text(self)

    def draw(self, path: str) -> None:
        """Draw layers by steps.

        Args:
            path: The file to write, `.png` or `.svg`.
        """
        from lighter_freezers.planning.picture import draw_plan

        draw_plan(self, path)


def _phase(content: Mapping[str, Any]) -> PlannedPhase:
    tuples = {key: tuple(content[key]) for key in ("or_when", "changes", "holders")}
    return PlannedPhase(**{**content, **tuples})
