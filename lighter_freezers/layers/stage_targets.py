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
_STAGE = "stage"  # as the value of a scheduler's argument: how many optimizer steps it is in force
Entry: TypeAlias = Mapping[str, Any]  # as YAML has it; each value is checked where it is read


@dataclass(frozen=True)
class _Target:
    """A class or function with its arguments but for the first one; plain data, so that it can be pickled."""

    build: Callable[..., object]
    arguments: Entry

    def __call__(self, subject: object, num_steps: int = 0) -> object:
        """Build it for some groups, or for an optimizer; its parts, such as those of a SequentialLR, too."""

        def built(value: object) -> object:
            if isinstance(value, list):
                return [built(each) for each in value]
            if isinstance(value, _Target):
                return value(subject, num_steps)
            return num_steps if _is_length(value) else value

        return self.build(subject, **{key: built(each) for key, each in self.arguments.items()})

    @property
    def takes_length(self) -> bool:
        """Whether it or one of its parts has an argument that is the length of the stage."""
        lists = [each if isinstance(each, list) else [each] for each in self.arguments.values()]
        return any(
            each.takes_length if isinstance(each, _Target) else _is_length(each) for each in sum(lists, [])
        )

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
    if optimizer is not None and optimizer.takes_length:
        raise ValueError(
            f"'{_STAGE}' is a number of steps, which an optimizer does not take. Write a number."
        )
    takes_length = scheduler is not None and scheduler.takes_length
    states = carries == "carry", earlier == "keep"
    return StageOptimizer(argument, optimizer, scheduler, stepping, *states, takes_length=takes_length)


def _scheduler(value: object) -> tuple[_Target | None, Entry]:
    """The LR scheduler, and when it steps: by epochs where nothing is said, by steps with their number."""
    scheduler, stepping = _given_scheduler(value)
    if scheduler is None or not scheduler.takes_length:
        return scheduler, stepping
    if stepping.get("interval", "step") != "step" or stepping.get("frequency", 1) != 1:
        raise ValueError(
            f"scheduler has an argument with the value '{_STAGE}', the stage's number of optimizer steps, so "
            "it has to step with each of them. Write interval: step, without frequency."
        )
    return scheduler, {**stepping, "interval": "step"}


def _given_scheduler(value: object) -> tuple[_Target | None, Entry]:
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
        lengths = {key: each for key, each in getattr(value, "keywords", {}).items() if _is_length(each)}
        return _Target(value, lengths)
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


def _is_length(value: object) -> bool:
    return isinstance(value, str) and value == _STAGE


def _parts(argument: str, value: object) -> object:
    is_list_of_parts = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
    return [_target(argument, each) for each in value] if is_list_of_parts else value  # type: ignore[attr-defined]
