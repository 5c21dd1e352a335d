"""Freezer, GradualUnfreezing and LayerOperations as the documents describe them: who holds what, and when."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

Lengths = Mapping[str, int]  # of the run, in steps and epochs


@dataclass(frozen=True)
class Rate:
    """What was asked for the rate of a parameter, and the step at which it was released."""

    asked: Mapping[str, Any]
    released_at: int

    def at(self, scheduled: float, since_thaw: int) -> float:
        rate = self.asked.get("unfreeze_lr") or scheduled * self.asked.get("unfreeze_lr_factor", 1.0)
        warmup = self.asked.get("warmup_steps", 0)
        return rate * min(1.0, (since_thaw + 1) / warmup) if warmup else rate


RATES = ("unfreeze_lr", "unfreeze_lr_factor", "warmup_steps")


def rates_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in RATES if key in arguments}


class Condition:
    """A condition on a metric, from when it begins to be watched."""

    def __init__(self, asked: Mapping[str, Any] | None) -> None:
        self.asked, self.is_met = asked, False
        self.best: float | None = None
        self.num_checks = 0

    def observe(self, monitor: str, value: float) -> None:
        if self.asked is None or self.asked["monitor"] != monitor:
            return
        if "plateau" not in self.asked:
            below, above = self.asked.get("below"), self.asked.get("above")
            self.is_met |= below is not None and value < below or above is not None and value > above
            return
        plateau = self.asked["plateau"]
        sign = -1 if plateau.get("mode", "min") == "max" else 1
        if self.best is None or sign * value < sign * self.best - plateau.get("min_delta", 0.0):
            self.best, self.num_checks = value, 0
        else:
            self.num_checks += 1
            self.is_met |= self.num_checks >= plateau["patience"]


class Holder:
    """One callback: what it holds now, and the rates of what it has released."""

    def __init__(self, arguments: Mapping[str, Any], names: Sequence[str], lengths: Lengths) -> None:
        self.arguments, self.names, self.lengths = arguments, [*names], lengths
        self.terms = arguments
        self.held: set[str] = set()
        self.rates: dict[str, Rate] = {}
        self.freed: set[str] = set()  # of what the user had frozen

    @property
    def norm_mode(self) -> str:
        return self.terms.get("frozen_norms", "eval")

    def begin(self, user_frozen: set[str]) -> None:
        """Before the run."""

    def follow(self, step: int, epoch: int) -> set[str]:
        """A step begins; returns what this callback begins to hold."""
        before, self.held = self.held, self.due(step, epoch)
        for name in before - self.held:
            if asked := self.asked(name):
                self.rates[name] = Rate(asked, step)
        return self.held - before

    def due(self, step: int, epoch: int) -> set[str]:
        raise NotImplementedError

    def asked(self, name: str) -> Mapping[str, Any]:
        return rates_in(self.arguments)

    def observe(self, monitor: str, value: float) -> None:
        """A metric was measured."""

    def note_loss(self, loss: float, step: int) -> None:
        """A batch has this loss, and after it `step` optimizer steps are done."""

    def take_rate_changes(self) -> list[tuple[str, float]]:
        return []

    def bound(self, arguments: Mapping[str, Any], key: str) -> int | None:
        """A number of steps or epochs; of a share of the run, rounded, at least 1."""
        value = arguments.get(key)
        if not isinstance(value, str):
            return value
        unit = "epoch" if "epoch" in key else "step"
        return max(1, round(int(value.rstrip("%")) / 100 * self.lengths[unit]))


class FreezerHolder(Holder):
    def __init__(self, arguments: Mapping[str, Any], names: Sequence[str], lengths: Lengths) -> None:
        super().__init__(arguments, names, lengths)
        self.selected = {name for name in names if _selects(arguments, name)}
        self.condition = Condition(arguments.get("until_metric"))

    def due(self, step: int, epoch: int) -> set[str]:
        return self.selected if self._is_due(step, epoch) else set()

    def observe(self, monitor: str, value: float) -> None:
        self.condition.observe(monitor, value)

    def _is_due(self, step: int, epoch: int) -> bool:
        given = self.arguments
        if self.condition.is_met:
            return False
        if "windows" in given:
            return any(start <= step < end for start, end in given["windows"])
        begins = [self.bound(given, "from_step"), self.bound(given, "from_epoch")]
        has_begun = begins == [None, None] or _reached(step, begins[0]) or _reached(epoch, begins[1])
        ends = _reached(step, self.bound(given, "until_step"))
        return has_begun and not ends and not _reached(epoch, self.bound(given, "until_epoch"))


def _reached(now: int, bound: int | None) -> bool:
    return bound is not None and now >= bound


def _listed(arguments: Mapping[str, Any], key: str) -> list[str]:
    value = arguments.get(key, [])
    return [value] if isinstance(value, str) else value


def matches(pattern: str, name: str) -> bool:
    """A pattern of those that the documents name, on this model."""
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    if pattern.startswith("class:"):
        return name.startswith({"BatchNorm1d": "norm.", "Linear": ("layer", "head")}[pattern[6:]])
    return fnmatchcase(name, pattern)


def named_by(words: str | Sequence[str], name: str) -> bool:
    """Words name parameters, paths of modules, or are patterns."""
    words = [words] if isinstance(words, str) else words
    return any(name == word or name.startswith(f"{word}.") or matches(word, name) for word in words)


def _selects(arguments: Mapping[str, Any], name: str) -> bool:
    if "train" in arguments:
        return not named_by(arguments["train"], name)

    def are_in(prefix: str) -> bool:
        starts = tuple(_listed(arguments, f"{prefix}name_starts_with"))
        patterns = _listed(arguments, f"{prefix}patterns")
        is_named = name in _listed(arguments, f"{prefix}names") or bool(starts) and name.startswith(starts)
        return is_named or any(matches(pattern, name) for pattern in patterns)

    return are_in("") and not are_in("except_")


class GradualHolder(Holder):
    """Blocks are `layer1`, `norm` and `layer2`, by the argument `blocks`; the head trains from the start."""

    def begin(self, user_frozen: set[str]) -> None:
        parts = [{name for name in self.names if name.startswith(f"{path}.")} for path in self.blocks]
        stack = [part for part in parts if part - user_frozen]  # from the input to the output
        decay = self.arguments.get("lr_decay", 1.0)
        self.factors = {
            name: decay ** -(depth + 1) for depth, part in enumerate(reversed(stack)) for name in part
        }
        ordered = stack if self.arguments.get("direction") == "bottom-up" else stack[::-1]
        per_stage = self.arguments.get("layers_per_stage", 1)
        self.stages = [set().union(*ordered[at : at + per_stage]) for at in range(0, len(ordered), per_stage)]
        self.condition = Condition(
            {"monitor": plateau["monitor"], "plateau": plateau}
            if (plateau := self.arguments.get("plateau"))
            else None
        )
        self.num_plateaus = 0
        if not self._has_pace:
            for stage in self.stages:
                self.rates |= {name: Rate(self.asked(name), -1) for name in stage}

    @property
    def blocks(self) -> list[str]:
        return self.arguments["blocks"]

    @property
    def _has_pace(self) -> bool:
        return any(key in self.arguments for key in ("every_n_steps", "every_n_epochs", "plateau"))

    def due(self, step: int, epoch: int) -> set[str]:
        if not self._has_pace:
            return set()
        if "plateau" in self.arguments:
            number = self.num_plateaus
        elif "every_n_steps" in self.arguments:
            number = sum(step >= begin for begin in self._beginnings())
        else:
            number = epoch // self.arguments["every_n_epochs"]
        return set().union(*self.stages[number:])

    def _beginnings(self) -> list[int]:
        """The step at which each stage after the first begins; of a share, that many of the run's steps."""
        every = self.arguments["every_n_steps"]
        if not isinstance(every, str):
            return [every * (number + 1) for number in range(len(self.stages))]
        percent = int(every.rstrip("%"))
        shares = [percent * (number + 1) / 100 * self.lengths["step"] for number in range(len(self.stages))]
        return [max(1, round(share)) for share in shares]

    def asked(self, name: str) -> Mapping[str, Any]:
        warmup = {key: self.arguments[key] for key in ("warmup_steps",) if key in self.arguments}
        has_rate = warmup or "lr_decay" in self.arguments
        return {"unfreeze_lr_factor": self.factors[name], **warmup} if has_rate else {}

    def observe(self, monitor: str, value: float) -> None:
        self.condition.observe(monitor, value)
        if self.condition.is_met:
            self.num_plateaus += 1
            self.condition.is_met, self.condition.num_checks = False, 0


class StagesHolder(Holder):
    """Explicit stages: what none has thawed yet is frozen."""

    def begin(self, user_frozen: set[str]) -> None:
        self.stages = self.arguments["stages"]
        self.number, held = 0, {*self.names}
        self.frozen = []
        for stage in self.stages:
            thawed = {name for name in self.names if named_by(stage.get("thaw", []), name)}
            again = {name for name in self.names if named_by(stage.get("freeze", []), name)}
            held = (held - thawed) | again
            self.frozen.append(held)
        self.condition = Condition(self.stages[0].get("until_metric"))
        first = self.stages[0]
        thawed = {name for name in self.names if named_by(first.get("thaw", []), name)}
        self.rates = {name: Rate(rates_in(first), -1) for name in thawed if rates_in(first)}

    @property
    def norm_mode(self) -> str:
        return self.stages[self.number].get("frozen_norms", "eval")

    def due(self, step: int, epoch: int) -> set[str]:
        while self.number < len(self.stages) - 1 and self._is_over(step, epoch):
            best = self.condition.best
            alike = self._plateau(self.number) == self._plateau(self.number + 1) is not None
            self.number += 1
            self.condition = Condition(self.stages[self.number].get("until_metric"))
            if alike and self.arguments.get("best", "keep") == "keep":
                self.condition.best = best
        return self.frozen[self.number]

    def _plateau(self, number: int) -> tuple[str, str] | None:
        """What a plateau watches; a stage with another keeps no best value."""
        asked = self.stages[number].get("until_metric") or {}
        return (asked["monitor"], asked["plateau"].get("mode", "min")) if "plateau" in asked else None

    def _is_over(self, step: int, epoch: int) -> bool:
        stage = self.stages[self.number]
        ends = _reached(step, self.bound(stage, "until_step"))
        return self.condition.is_met or ends or _reached(epoch, self.bound(stage, "until_epoch"))

    def asked(self, name: str) -> Mapping[str, Any]:
        stage = self.number  # it may have passed over the one that thawed this
        while stage and name not in self.frozen[stage - 1]:
            stage -= 1
        return rates_in(self.stages[stage])

    def observe(self, monitor: str, value: float) -> None:
        self.condition.observe(monitor, value)


class OperationsHolder(Holder):
    """One operation after another, each once."""

    def begin(self, user_frozen: set[str]) -> None:
        self.left = [*self.arguments["operations"]]
        self.monitor = self.arguments["monitor"]
        self.latest: float | None = None
        self.since = 0
        self.holding: set[str] = set()
        self.changes: list[tuple[str, float]] = []
        self.losses: list[float] = []  # of the block under way
        self.num_steps, self.step = 0, 0
        self.pending: list[tuple[int, float]] = []  # the step from which a mean can be read

    def due(self, step: int, epoch: int) -> set[str]:
        for ready, mean in [each for each in self.pending if each[0] <= step]:
            self.pending.remove((ready, mean))
            self.latest = mean
        while self.left and self._is_due(self.left[0], step):
            self._do(self.left.pop(0))
            self.since = step
        return {*self.holding}

    def _is_due(self, operation: Mapping[str, Any], step: int) -> bool:
        below, wait = operation.get("trigger_loss"), self.bound(operation, "max_wait_iters")
        is_low = below == float("inf") or (
            below is not None and self.latest is not None and self.latest < below
        )
        return is_low or wait is not None and step >= self.since + wait

    def _do(self, operation: Mapping[str, Any]) -> None:
        if operation["name"] in ("freeze_layer", "unfreeze_layer"):
            names = {name for name in self.names if name.startswith(f"{operation['value']}.")}
            if operation["name"] == "freeze_layer":
                self.holding |= names
            else:
                self.holding -= names
                self.freed = self.freed | names
        else:
            self.changes.append((operation["name"], operation.get("value") or 0.0))
        if operation.get("reevaluate"):
            self.latest = None

    def observe(self, monitor: str, value: float) -> None:
        if monitor == self.monitor:
            self.latest = value

    def note_loss(self, loss: float, step: int) -> None:
        if self.monitor != "training_loss" or not self.left:
            return
        self.losses.append(loss)
        self.num_steps += step - self.step
        self.step = step
        if self.num_steps >= self.arguments["average_over"]:
            self.pending.append((step + 1, sum(self.losses) / len(self.losses)))
            self.losses, self.num_steps = [], 0

    def take_rate_changes(self) -> list[tuple[str, float]]:
        changes, self.changes = self.changes, []
        return changes


def holder_of(kind: str, arguments: dict[str, Any], names: Sequence[str], lengths: Lengths) -> Holder:
    """The holder that stands for a callback."""
    if kind == "GradualUnfreezing" and "stages" in arguments:
        return StagesHolder(arguments, names, lengths)
    kinds = {"Freezer": FreezerHolder, "GradualUnfreezing": GradualHolder}
    return kinds.get(kind, OperationsHolder)(arguments, names, lengths)
