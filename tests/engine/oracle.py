"""What a run with Freezers has to do, in plain torch, written from docs/concepts.md and docs/callbacks/.

Nothing of the package is used here: flags are set at each step from the arguments alone, and each parameter
has an optimizer of its own, so there are no groups that something could be moved between.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

NUM_SAMPLES, WIDTH = 4, 3  # of a batch, of a layer


class Net(nn.Module):
    """Two layers with a batch norm between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.layer2 = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer2(torch.tanh(self.norm(self.layer1(x))))))


NAMES = [name for name, _ in Net().named_parameters()]


@dataclass(frozen=True)
class History:
    """One run: its length, its optimizers, what the user froze, and the arguments of its Freezers."""

    freezers: tuple[dict[str, Any], ...]
    num_epochs: int = 2
    num_batches: int = 3
    accumulate: int = 1
    optimizer: str = "SGD"
    has_scheduler: bool = False
    is_filtered: bool = False  # the optimizer has what trains when it is built
    has_two_optimizers: bool = False  # under manual optimization, each steps once per batch
    user_frozen: tuple[str, ...] = ()
    scores: tuple[int, ...] = (3, 2, 2)  # the metric, logged in each epoch's training and validation

    def data(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.num_batches * NUM_SAMPLES, WIDTH, generator=generator)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


def factor_of(step: int) -> float:
    """What the scheduler multiplies the rate by."""
    return 1 / (1 + step)


@dataclass
class Record:
    """What can be seen of a run."""

    frozen: list[set[str]] = field(default_factory=list)  # at each batch
    rates: list[dict[str, float]] = field(default_factory=list)  # of what trained, at each optimizer step
    statistics: list[torch.Tensor] = field(default_factory=list)  # running means after each batch
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    state: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # of the optimizers, at the end


class _Rule:
    """One Freezer: whether it holds, since when it does not, and what its condition has seen."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.names = [name for name in NAMES if _selects(arguments, name)]
        self.holds = self.is_met = False
        self.released_at: int | None = None
        self.best: float | None = None
        self.num_checks = 0

    def is_due(self, step: int, epoch: int) -> bool:
        given = self.arguments.get
        if self.is_met:
            return False
        if given("windows"):
            return any(start <= step < end for start, end in given("windows"))
        begins = [given("from_step"), given("from_epoch")]
        has_begun = begins == [None, None] or _reached(step, begins[0]) or _reached(epoch, begins[1])
        return (
            has_begun
            and not _reached(step, given("until_step"))
            and not _reached(epoch, given("until_epoch"))
        )

    def observe(self, monitor: str, value: float) -> None:
        condition = self.arguments.get("until_metric")
        if condition is None or condition["monitor"] != monitor:
            return
        if "plateau" not in condition:
            below, above = condition.get("below"), condition.get("above")
            self.is_met |= below is not None and value < below or above is not None and value > above
        elif self.best is None or value < self.best:
            self.best, self.num_checks = value, 0
        else:
            self.num_checks += 1
            self.is_met |= self.num_checks >= condition["plateau"]["patience"]

    def rate(self, scheduled: float, since_thaw: int) -> float:
        given = self.arguments.get
        rate = given("unfreeze_lr") or scheduled * given("unfreeze_lr_factor", 1.0)
        warmup = given("warmup_steps", 0)
        return rate * min(1.0, (since_thaw + 1) / warmup) if warmup else rate

    @property
    def has_rate(self) -> bool:
        return any(key in self.arguments for key in ("unfreeze_lr", "unfreeze_lr_factor", "warmup_steps"))


def _reached(now: int, bound: int | None) -> bool:
    return bound is not None and now >= bound


def _selects(arguments: dict[str, Any], name: str) -> bool:
    def listed(key: str) -> list[str]:
        value = arguments.get(key, [])
        return [value] if isinstance(value, str) else value

    is_norm = "class:BatchNorm1d" in listed("patterns") and name.startswith("norm.")
    is_in = any(fnmatchcase(name, pattern) for pattern in listed("patterns"))
    is_in |= is_norm or name in listed("names") or name.startswith(tuple(listed("name_starts_with")) or "?")
    return is_in and name not in listed("except_names")


class Oracle:
    """Runs a history."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.net = Net()
        self.parameters = dict(self.net.named_parameters())
        self.optimizers = {name: OPTIMIZERS[history.optimizer]([p]) for name, p in self.parameters.items()}
        self.rules = [_Rule(arguments) for arguments in history.freezers]
        self.thawed_at: dict[str, int] = {}
        self.step = 0
        self.record = Record()

    def run(self) -> Record:
        history = self.history
        for epoch in range(history.num_epochs):
            num_backward = 0
            for index, batch in enumerate(history.data().split(NUM_SAMPLES)):
                if num_backward == 0:
                    self._follow(epoch)
                self.record.frozen.append({n for n, p in self.parameters.items() if not p.requires_grad})
                (self.net(batch).square().mean() / history.accumulate).backward()
                num_backward += 1
                if num_backward == history.accumulate or index == history.num_batches - 1:
                    self._step()
                    num_backward = 0
                self.record.statistics.append(self.net.norm.running_mean.clone())
            for monitor in ("val/score", "train/score"):
                for rule in self.rules:
                    rule.observe(monitor, history.scores[epoch])
        self.record.weights = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.record.state = {
            name: dict(optimizer.state[self.parameters[name]]) for name, optimizer in self.optimizers.items()
        }
        return self.record

    def _follow(self, epoch: int) -> None:
        before = self._held()
        for rule in self.rules:
            held, rule.holds = rule.holds, rule.is_due(self.step, epoch)
            if held and not rule.holds:
                rule.released_at = self.step
            if rule.holds and not held and rule.arguments.get("optimizer_state", "keep") != "keep":
                for name in rule.names:
                    self.optimizers[name].state.clear()
        now = self._held()
        self.thawed_at |= dict.fromkeys(before - now, self.step)
        for name, parameter in self.parameters.items():
            parameter.requires_grad = name not in now and name not in self.history.user_frozen
            if not parameter.requires_grad:
                parameter.grad = None
        norm, modes = self.net.norm, {"eval": 0, "stats": 1, "train": 2}
        holding = [rule for rule in self.rules if rule.holds and {"norm.weight", "norm.bias"} & {*rule.names}]
        asked = [rule.arguments.get("frozen_norms", "eval") for rule in holding]
        mode = min(asked, key=modes.__getitem__) if {"norm.weight", "norm.bias"} <= now else "train"
        norm.train(mode != "eval")
        norm.track_running_stats = mode != "stats"

    def _held(self) -> set[str]:
        return {name for rule in self.rules if rule.holds for name in rule.names}

    def _step(self) -> None:
        parts = [NAMES[:4], NAMES[4:]] if self.history.has_two_optimizers else [NAMES]
        for part in parts:
            rates = {}
            for name in part:
                if self.parameters[name].grad is not None:
                    rates[name] = self.optimizers[name].param_groups[0]["lr"] = self._rate(name)
                    self.optimizers[name].step()
            self.record.rates.append(rates)
            self.step += 1
        for parameter in self.parameters.values():
            parameter.grad = None

    def _rate(self, name: str) -> float:
        scheduled = {"SGD": 0.1, "AdamW": 0.01}[self.history.optimizer]
        if self.history.has_scheduler:
            scheduled *= factor_of(self.step)
        asking = [r for r in self.rules if name in r.names and r.has_rate and r.released_at is not None]
        if not asking:
            return scheduled
        latest = max(rule.released_at for rule in asking)
        since = self.step - self.thawed_at[name]
        return min(rule.rate(scheduled, since) for rule in asking if rule.released_at == latest)
