"""Optimizers and LR schedulers of stages as they stand in YAML: `{_target_: torch.optim.SGD, lr: 0.01}`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pydoc import locate
from typing import Any, TypeAlias

from lighter_freezers import arguments
from lighter_freezers.engine.effects.stage_optimizers import StageOptimizer

__all__ = ["OPTIMIZER_KEYS", "Entry", "parse_stage_optimizer"]

OPTIMIZER_KEYS = ("optimizer", "scheduler", "optimizer_state", "earlier")
_STEPPING = (
    "interval",
    "frequency",
    "monitor",
    "name",
    "strict",
)  # Lightning's, beside a scheduler
_EXAMPLES = {
    "optimizer": "{_target_: torch.optim.SGD, lr: 0.01}",
    "scheduler": "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 2}",
}
Entry: TypeAlias = Mapping[str, Any]  # as YAML has it; each value is checked where it is read


@dataclass(frozen=True)
class _Target:
    """A class or function with its arguments but for the first one; plain data, so that it can be pickled."""

    build: Callable[..., object]
    arguments: Entry

    def __call__(self, subject: object) -> object:
        """Build it for some groups, or for an optimizer; its parts, such as those of a SequentialLR, too."""
        built = {
            key: [part(subject) if isinstance(part, _Target) else part for part in value]
            if isinstance(value, list)
            else value
            for key, value in self.arguments.items()
        }
        return self.build(subject, **built)

    def __str__(self) -> str:
        return str(getattr(getattr(self.build, "func", self.build), "__name__", self.build))


def parse_stage_optimizer(argument: str, entry: Entry) -> StageOptimizer | None:
    """Read the optimizer and the LR scheduler of a stage; None where it goes on with what there is.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A class cannot be found, or a key has nothing to say here.
    """
    optimizer = _target("optimizer", entry.get("optimizer"))
    scheduler, stepping = _scheduler(entry.get("scheduler"))
    carries = arguments.choice("optimizer_state", entry.get("optimizer_state", "drop"), ("drop", "carry"))
    earlier = arguments.choice("earlier", entry.get("earlier", "join"), ("join", "keep"))
    if "optimizer_state" in entry and optimizer is None:
        raise ValueError("optimizer_state is that of another optimizer. Give optimizer, or remove it.")
    if optimizer is None and scheduler is None:
        if "earlier" in entry:
            raise ValueError("earlier is about another optimizer or scheduler. Give one, or remove it.")
        return None
    return StageOptimizer(argument, optimizer, scheduler, stepping, carries == "carry", earlier == "keep")


def _scheduler(value: object) -> tuple[_Target | None, Entry]:
    """The LR scheduler, and when it steps: by epochs where nothing is said."""
    if not isinstance(value, Mapping) or "scheduler" not in value:
        return _target("scheduler", value), {}
    stepping = {key: each for key, each in value.items() if key != "scheduler"}
    if unknown := [key for key in stepping if key not in _STEPPING]:
        raise ValueError(
            f"scheduler does not know '{unknown[0]}'. Keys beside scheduler: {', '.join(_STEPPING)}."
        )
    arguments.choice("scheduler.interval", stepping.get("interval", "epoch"), ("step", "epoch"))
    arguments.at_least("scheduler.frequency", stepping.get("frequency", 1), 1)
    return _target("scheduler", value["scheduler"]), stepping


def _target(argument: str, value: object) -> _Target | None:
    if value is None:
        return None
    if callable(value):
        return _Target(value, {})
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise TypeError(
            f"{argument} must be a mapping such as {_EXAMPLES[argument]}, or a function that builds it. "
            f"Got {value!r}. Inline under lighter, write _mode_: callable beside _target_."
        )
    build = locate(value["_target_"])
    if not callable(build):
        raise ValueError(f"{argument}: there is no class '{value['_target_']}' to import.")
    given = {key: each for key, each in value.items() if key not in ("_target_", "_mode_")}
    return _Target(build, {key: _parts(argument, each) for key, each in given.items()})


def _parts(argument: str, value: object) -> object:
    is_list_of_parts = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
    return [_target(argument, each) for each in value] if is_list_of_parts else value  # type: ignore[attr-defined]
