"""What a run with our callbacks has to do, in plain torch, written from docs/concepts.md and docs/callbacks/.

Nothing of the package is used here: flags are set at each step from the arguments alone, and each parameter
has an optimizer of its own, so there are no groups that something could be moved between.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.engine.oracle_holders import OperationsHolder, holder_of

NUM_SAMPLES, WIDTH = 4, 3  # of a batch, of a layer


class Halving(nn.Linear):
    """Stands for dropout: in training mode it gives the half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y * 0.5 if self.training else y


class Net(nn.Module):
    """Two layers with a batch norm between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = Halving(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.layer2 = Halving(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer2(torch.tanh(self.norm(self.layer1(x))))))


NAMES = [name for name, _ in Net().named_parameters()]


@dataclass(frozen=True)
class History:
    """One run: its length, its optimizers, what the user froze, and the arguments of our callbacks."""

    callbacks: tuple[tuple[str, dict[str, Any]], ...]  # class and arguments
    num_epochs: int = 2
    num_batches: int = 3
    accumulate: int = 1
    optimizer: str = "SGD"
    has_scheduler: bool = False
    is_filtered: bool = False  # the optimizer has what trains when it is built
    has_two_optimizers: bool = False  # under manual optimization, each steps once per batch
    user_frozen: tuple[str, ...] = ()
    scores: tuple[int, ...] = (3, 2, 2)  # the metric, logged in each epoch's training and validation
    order: int = 0  # of all callbacks in the list: a seed

    def data(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.num_batches * NUM_SAMPLES, WIDTH, generator=generator)

    @property
    def num_steps(self) -> int:
        return self.num_epochs * -(-self.num_batches // self.accumulate)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


def factor_of(step: int) -> float:
    """What the scheduler multiplies the rate by: without rounding, also of a rate that an operation sets."""
    return 0.5 ** (step % 5)


@dataclass
class Record:
    """What can be seen of a run."""

    frozen: list[set[str]] = field(default_factory=list)  # at each batch
    rates: list[dict[str, float]] = field(default_factory=list)  # of what trained, at each optimizer step
    statistics: list[torch.Tensor] = field(default_factory=list)  # running means after each batch
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    state: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # of the optimizers, at the end
    left: set[str] = field(default_factory=set)  # what is frozen when the run has ended


class Oracle:
    """Runs a history.

    Args:
        history: What to run.
        cut: Batches after which the run is saved and resumed. Lightning saves no gradients, so a cut in the
            middle of an accumulation window loses those of its first part.
    """

    def __init__(self, history: History, cut: int | None = None) -> None:
        self.history, self.cut = history, cut
        self.net = Net()
        self.parameters = dict(self.net.named_parameters())
        self.optimizers = {name: OPTIMIZERS[history.optimizer]([p]) for name, p in self.parameters.items()}
        lengths = {"step": history.num_steps, "epoch": history.num_epochs}
        self.holders = [holder_of(kind, arguments, NAMES, lengths) for kind, arguments in history.callbacks]
        self.user_frozen = {*history.user_frozen}
        for holder in self.holders:
            holder.begin(self.user_frozen)
        self.thawed_at: dict[str, int] = {}
        self.base_rate = {"SGD": 0.1, "AdamW": 0.01}[history.optimizer]
        self.step = self.schedule_began = 0
        self.record = Record()

    def run(self) -> Record:
        history, num_batches = self.history, 0
        for epoch in range(history.num_epochs):
            num_backward = 0
            for index, batch in enumerate(history.data().split(NUM_SAMPLES)):
                if num_backward == 0:
                    self._follow(epoch)
                self.record.frozen.append(self._frozen())
                loss = self.net(batch).square().mean()
                (loss / history.accumulate).backward()
                num_backward += 1
                num_batches += 1
                if num_backward == history.accumulate or index == history.num_batches - 1:
                    self._step()
                    num_backward = 0
                self.record.statistics.append(self.net.norm.running_mean.clone())
                for holder in self.holders:
                    holder.note_loss(loss.item(), self.step)
                if num_batches == self.cut:
                    self._drop_gradients()
            for monitor in ("val/score", "train/score"):
                for holder in self.holders:
                    holder.observe(monitor, history.scores[epoch])
        return self._ended()

    def _ended(self) -> Record:
        record = self.record
        record.weights = {name: value.clone() for name, value in self.net.state_dict().items()}
        record.state = {
            name: dict(optimizer.state[self.parameters[name]]) for name, optimizer in self.optimizers.items()
        }
        kept = [holder.held for holder in self.holders if not holder.terms.get("restore_on_end")]
        record.left = self.user_frozen.union(*kept)
        return record

    def _frozen(self) -> set[str]:
        return {name for name, p in self.parameters.items() if not p.requires_grad}

    def _drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _follow(self, epoch: int) -> None:
        before = self._held_by_schedule()
        for holder in self.holders:
            newly = holder.follow(self.step, epoch)
            if holder.terms.get("optimizer_state", "keep") != "keep":
                for name in newly:
                    self.optimizers[name].state.clear()
            self.user_frozen -= holder.freed
            for change, value in holder.take_rate_changes():
                if change == "reset_lr_schedule":
                    self.schedule_began = self.step
                else:
                    self.base_rate = value if change == "set_lr" else self.base_rate * value
        now = self._held()
        self.thawed_at |= dict.fromkeys(before - self._held_by_schedule(), self.step)
        for name, parameter in self.parameters.items():
            parameter.requires_grad = name not in now and name not in self.user_frozen
            if not parameter.requires_grad:
                parameter.grad = None
        self._set_modes(now)

    def _set_modes(self, now: set[str]) -> None:
        strictness = {"eval": 0, "stats": 1, "train": 2}
        for path, module in self.net.named_children():
            own = {name for name in NAMES if name.startswith(f"{path}.")}
            holding = [holder for holder in self.holders if holder.held & own and own <= now]
            asking = [h.held for h in self.holders if h.terms.get("frozen_mode") == "eval"]
            is_still = own <= set().union(*asking)
            if path == "norm":
                asked = [holder.norm_mode for holder in holding]
                mode = "eval" if is_still else min(asked, key=strictness.__getitem__, default="train")
                module.track_running_stats = mode != "stats"
                is_still = mode == "eval"
            module.train(not is_still)

    def _held_by_schedule(self) -> set[str]:
        """Not by an operation, which neither delays nor restarts a warm-up."""
        holders = [each for each in self.holders if not isinstance(each, OperationsHolder)]
        return set().union(*(holder.held for holder in holders))

    def _held(self) -> set[str]:
        return set().union(*(holder.held for holder in self.holders))

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
        self._drop_gradients()

    def _rate(self, name: str) -> float:
        scheduled = self.base_rate
        if self.history.has_scheduler:
            scheduled *= factor_of(self.step - self.schedule_began)
        asking = [holder for holder in self.holders if name in holder.rates]
        if not asking:
            return scheduled
        latest = max(holder.rates[name].released_at for holder in asking)
        since = self.step - self.thawed_at.get(name, 0)
        return min(
            holder.rates[name].at(scheduled, since)
            for holder in asking
            if holder.rates[name].released_at == latest
        )


__all__ = ["NAMES", "NUM_SAMPLES", "OPTIMIZERS", "History", "Net", "Oracle", "Record", "factor_of"]
