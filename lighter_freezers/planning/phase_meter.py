"""What a training step costs in each phase: one step is traced, some are timed, the others run untouched.

A phase is a stretch between two transitions. A run that is recorded and a plan that rehearses it measure with
this same meter. Nothing here reads the device before a phase is over.
"""

import hashlib
import statistics
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lighter_freezers.engine.trainer_clock import window_length
from lighter_freezers.engine.transition import Transition
from lighter_freezers.planning.costs.step_cost import SavedBytes
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FILE", "PhaseMeter", "PhaseRecord", "trainable_key"]

FILE = "freeze_report.json"  # what `PhaseRecorder` writes and `lighter-freezers report` reads
_UNTIMED = (
    2  # steps at the start of a phase: one is traced, in one the new state settles (compile, allocator)
)


@dataclass(frozen=True)
class PhaseRecord:
    """What was measured in one phase. None stands for what was not.

    Attributes:
        optimizer_step: Its first step.
        epoch: The epoch it began in.
        trains: A short name of what trains in it, the same for the same parameters in the same shapes.
        num_trainable: Elements that train.
        flops: Of one optimizer step: matrix products and attention, forward and backward.
        gradient_bytes: Of all gradients, before the optimizer's step.
        optimizer_bytes: What the optimizers remember after the step.
        activation_bytes: The most that is kept for a backward pass.
        peak_bytes: The most that the device had allocated in a step; None without a GPU.
        step_seconds: Median over the timed steps, from the start of a batch to its end: of the GPU's clock,
            or of the CPU time of the process without one.
        num_timed: How many steps that is.
    """

    optimizer_step: int
    epoch: int
    trains: str
    num_trainable: int
    flops: int | None = None
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    activation_bytes: int | None = None
    peak_bytes: int | None = None
    step_seconds: float | None = None
    num_timed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """In plain types."""
        return asdict(self)


def trainable_key(model: nn.Module) -> str:
    """A short name of what trains now: equal where the same parameters train in the same shapes."""
    trains = [(n, tuple(p.shape)) for n, p in canonical_parameters(model).items() if p.requires_grad]
    return hashlib.sha256(repr(sorted(trains)).encode()).hexdigest()[:12]


class PhaseMeter:
    """Measures phase after phase. A step is a window of batches between two optimizer steps.

    Args:
        num_timed: Steps to time in a phase, at most.
    """

    def __init__(self, num_timed: int) -> None:
        self._num_timed = num_timed
        self.records: list[PhaseRecord] = []
        self._open: _OpenPhase | None = None

    @property
    def has_enough(self) -> bool:
        """Whether this phase needs no further step."""
        return self._open is None or self._open.num_steps >= _UNTIMED + self._num_timed

    def begin(self, model: nn.Module, transition: Transition) -> None:
        """A phase begins, and with it ends the one before."""
        self.end()
        self._open = _OpenPhase(
            PhaseRecord(
                transition.optimizer_step,
                transition.epoch,
                trainable_key(model),
                sum(p.numel() for p in model.parameters() if p.requires_grad),
            )
        )

    def end(self) -> None:
        """Close the phase that runs; one without a step is none."""
        if self._open is not None and self._open.num_steps:
            self.records.append(self._open.record())
        self.break_off()

    def break_off(self) -> None:
        """Forget the phase that runs."""
        if self._open is not None:
            self._open.untrace()
        self._open = None

    def start_batch(self, trainer: Any, model: nn.Module, batch: Any, batch_idx: int) -> None:
        """Before a batch, and after whatever changed before it."""
        if not self.has_enough:
            assert self._open is not None
            self._open.start_batch(trainer, model, batch, is_first=batch_idx % _window(trainer) == 0)

    def see_gradients(self, model: nn.Module) -> None:
        """Before the optimizer's step."""
        if self._open is not None and self._open.is_tracing:
            now = _nbytes(parameter.grad for parameter in model.parameters())
            self._open.gradient_bytes = max(now, self._open.gradient_bytes or 0)

    def end_batch(self, trainer: Any, batch_idx: int) -> None:
        """After a batch, and after the optimizer's step if it made one."""
        if not self.has_enough:
            assert self._open is not None
            self._open.end_batch(trainer, is_last=(batch_idx + 1) % _window(trainer) == 0)


class _OpenPhase:
    """The phase that runs."""

    def __init__(self, record: PhaseRecord) -> None:
        self._record = record
        self.num_steps = 0
        self.gradient_bytes: int | None = None
        self._optimizer_bytes: int | None = None
        self._peak_bytes: int | None = None
        self._trace: _Trace | None = None
        self._flops = self._activation_bytes = 0
        self._marks: list[list[Any]] = []  # of each timed step, clock readings: start, end, start, end, ...
        self._is_running = False  # a batch of a whole window

    @property
    def is_tracing(self) -> bool:
        return self._is_running and not self.num_steps

    def start_batch(self, trainer: Any, model: nn.Module, batch: Any, *, is_first: bool) -> None:
        if is_first:
            self._is_running = True
            if not self.num_steps:
                self._flops = self._activation_bytes = 0
        if not self._is_running:  # it joined in the middle of a window
            return
        device = trainer.strategy.root_device
        if not self.num_steps:
            self.untrace()
            self._trace = _Trace(model, batch)
        elif self.num_steps == 1 and device.type == "cuda" and is_first:
            torch.cuda.reset_peak_memory_stats(device)
        elif self.num_steps >= _UNTIMED:
            if is_first:
                self._marks = [*self._marks[: self.num_steps - _UNTIMED], []]
            self._marks[-1].append(_reading(device))

    def end_batch(self, trainer: Any, *, is_last: bool) -> None:
        if not self._is_running:
            return
        device = trainer.strategy.root_device
        if self._trace is not None:
            self._flops += self._trace.flops
            self._activation_bytes = max(self._activation_bytes, self._trace.saved_bytes)
            self.untrace()
        elif self.num_steps >= _UNTIMED:
            self._marks[-1].append(_reading(device))
        if is_last:
            self._end_step(trainer, device)

    def _end_step(self, trainer: Any, device: torch.device) -> None:
        if not self.num_steps:
            self._optimizer_bytes = _nbytes(_state_tensors(trainer.optimizers))
        elif self.num_steps == 1 and device.type == "cuda":
            self._peak_bytes = torch.cuda.max_memory_allocated(device)
        self.num_steps += 1
        self._is_running = False

    def untrace(self) -> None:
        if self._trace is not None:
            self._trace.close()
            self._trace = None

    def record(self) -> PhaseRecord:
        seconds = [_seconds(marks) for marks in self._marks[: max(0, self.num_steps - _UNTIMED)]]
        return replace(
            self._record,
            flops=self._flops,
            gradient_bytes=self.gradient_bytes,
            optimizer_bytes=self._optimizer_bytes,
            activation_bytes=self._activation_bytes,
            peak_bytes=self._peak_bytes,
            step_seconds=statistics.median(seconds) if seconds else None,
            num_timed=len(seconds),
        )


class _Trace:
    """Counts one batch from one hook to another, as `measure_step` counts a function."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
        self._saved = SavedBytes([*model.parameters(), *model.buffers(), *tensors])
        self._stack = ExitStack()
        self._counter = self._stack.enter_context(FlopCounterMode(display=False))
        self._stack.enter_context(self._saved.counting())

    @property
    def flops(self) -> int:
        return int(self._counter.get_total_flops())

    @property
    def saved_bytes(self) -> int:
        return self._saved.peak

    def close(self) -> None:
        self._stack.close()


def _window(trainer: Any) -> int:
    """Batches of one optimizer step; an epoch may have fewer."""
    return int(min(window_length(trainer), trainer.num_training_batches))


def _reading(device: torch.device) -> Any:
    """The clock now; on a GPU an event that the GPU passes when it gets there."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _seconds(marks: list[Any]) -> float:
    """What passed between each start and its end; waits for a GPU that has not come so far."""
    spans = zip(marks[::2], marks[1::2], strict=True)
    if isinstance(marks[0], float):
        return float(sum(end - start for start, end in spans))
    marks[-1].synchronize()
    return sum(float(start.elapsed_time(end)) for start, end in spans) / 1000


def _state_tensors(optimizers: Iterable[Any]) -> list[Any]:
    return [
        value for optimizer in optimizers for state in optimizer.state.values() for value in _leaves(state)
    ]


def _leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in _leaves(value)]
    return (
        [leaf for value in state for leaf in _leaves(value)] if isinstance(state, (list, tuple)) else [state]
    )


def _nbytes(values: Iterable[Any]) -> int:
    """Bytes of the tensors among some values, each storage once."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return sum({tensor.data_ptr() or id(tensor): tensor.nbytes for tensor in tensors}.values())
