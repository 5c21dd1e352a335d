"""Measures a training step in each phase: one step is traced, some are timed, the others are not touched.

A phase is the time between two transitions. `PhaseRecorder` in a run and the rehearsal of a plan use this
same meter. Nothing here reads the device before a phase has ended.
"""

import hashlib
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from lighter_freezers.engine.trainer_clock import window_length
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.transition import Transition
from lighter_freezers.planning.costs.step_cost import StepMeter, tensors_in
from lighter_freezers.prefix.cached_blocks import CachedBlocks, PrefixCost
from lighter_freezers.selection.element_counts import num_trainable
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FILE", "PhaseMeter", "PhaseRecord", "trainable_key"]

FILE = "freeze_report.json"  # what `PhaseRecorder` writes and `lighter-freezers report` reads
_UNTIMED = 2  # steps at the start of a phase: one is traced, one is a warm-up (compilation, allocator)


_Reading: TypeAlias = Any  # seconds, or an event of a GPU, for which torch has no types


@dataclass(frozen=True)
class PhaseRecord:
    """What was measured in one phase. None means not measured.

    Attributes:
        optimizer_step: Its first step.
        epoch: The epoch in which it started.
        trains: A short name of what trains in it, the same for the same parameters in the same shapes.
        num_trainable: Elements that train.
        flops: Of one optimizer step: matrix products and attention, forward and backward.
        forward_flops: Those of them before the backward pass.
        gradient_bytes: Of all gradients, before the optimizer's step.
        optimizer_bytes: Of the optimizers' state after the step.
        activation_bytes: The most that is kept for a backward pass.
        skipped_flops: Those of them that a step does without once `PrefixCache` has its rows.
        stored_bytes: Of the rows of a step that it stores.
        peak_bytes: The most that the device had allocated in a step; None without a GPU.
        step_seconds: Median over the timed steps, from the start of a batch to its end: GPU time, or without
            a GPU the CPU time of the process.
        num_timed: The number of timed steps.
        served_seconds: As `step_seconds`, over steps whose prefix `PrefixCache` has read from its store.
        notes: What began with it other than freezing and thawing, such as a stage and the weights it has.
    """

    optimizer_step: int
    epoch: int
    trains: str
    num_trainable: int
    flops: int | None = None
    forward_flops: int | None = None
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    activation_bytes: int | None = None
    skipped_flops: int | None = None
    stored_bytes: int | None = None
    peak_bytes: int | None = None
    step_seconds: float | None = None
    num_timed: int = 0
    served_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The record in plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "PhaseRecord":  # as JSON has it
        """The record that `as_dict` was made from, also after a way through JSON."""
        return cls(**{**content, "notes": tuple(content.get("notes", ()))})


def trainable_key(model: nn.Module) -> str:
    """A short name of what trains now: equal where the same parameters train in the same shapes."""
    trains = [(n, tuple(p.shape)) for n, p in canonical_parameters(model).items() if p.requires_grad]
    return hashlib.sha256(repr(sorted(trains)).encode()).hexdigest()[:12]


class PhaseMeter:
    """Measures one phase after another. A step is the batches of one accumulation window.

    Args:
        num_timed: Steps to time in a phase, at most.
        measures_equal_once: Whether a phase in which the same parameters train, under the same holders, as in
            an earlier one takes one step, for the optimizer's state, and the rest from that phase.
        waits_for_served: Whether to time as many steps that `PrefixCache` has served.
    """

    def __init__(
        self, num_timed: int, *, measures_equal_once: bool = False, waits_for_served: bool = False
    ) -> None:
        self._num_timed = num_timed
        self._waits_for_served = waits_for_served
        self._measures_equal_once = measures_equal_once
        self._measured: dict[tuple[str, tuple[str, ...]], PhaseRecord] = {}
        self._kind: tuple[str, tuple[str, ...]] = ("", ())  # what trains in the current phase, under whom
        self.records: list[PhaseRecord] = []
        self._open: _OpenPhase | None = None

    @property
    def has_enough(self) -> bool:
        """Whether this phase needs no further step."""
        if self._open is None:
            return True
        if self._open.like:
            return self._open.num_steps > 0
        is_served = self._waits_for_served and self._open.may_be_served and self._num_timed
        has_served = not is_served or len(self._open.served) >= self._num_timed
        return self._open.num_steps >= _UNTIMED + self._num_timed and has_served

    def begin(self, model: nn.Module, transition: Transition) -> None:
        """Start a phase, and end the previous one."""
        self.end()
        record = PhaseRecord(
            transition.optimizer_step,
            transition.epoch,
            trainable_key(model),
            num_trainable(model.parameters()),
            notes=transition.notes,
        )
        self._kind = record.trains, tuple(sorted(transition.holders))
        like = self._measured.get(self._kind) if self._measures_equal_once else None
        self._open = _OpenPhase(record, like, self._num_timed)

    def end(self) -> None:
        """End the current phase; one without a step is dropped."""
        if self._open is not None and self._open.num_steps:
            self.records.append(self._open.record())
            self._measured.setdefault(self._kind, self.records[-1])
        self.break_off()

    def break_off(self) -> None:
        """Drop the current phase."""
        if self._open is not None:
            self._open.untrace()
        self._open = None

    def start_batch(self, trainer: TrainerLike, model: nn.Module, batch: object, batch_idx: int) -> None:
        """Call it before a batch, after all changes for it."""
        if not self.has_enough:
            assert self._open is not None
            self._open.start_batch(trainer, model, batch, is_first=batch_idx % _window(trainer) == 0)

    def see_gradients(self, model: nn.Module) -> None:
        """Call it before the optimizer's step."""
        if self._open is not None and self._open.is_tracing:
            now = _nbytes(parameter.grad for parameter in model.parameters())
            self._open.gradient_bytes = max(now, self._open.gradient_bytes or 0)

    def end_batch(self, trainer: TrainerLike, batch_idx: int) -> None:
        """Call it after a batch, and after the optimizer step if it made one."""
        if not self.has_enough:
            assert self._open is not None
            self._open.end_batch(trainer, is_last=(batch_idx + 1) % _window(trainer) == 0)


class _OpenPhase:
    """The current phase and its measurements."""

    def __init__(self, record: PhaseRecord, like: PhaseRecord | None, num_timed: int) -> None:
        self._record = record
        self._num_timed = num_timed
        self.like = like  # an earlier phase in which the same trained
        self.num_steps = 0
        self.gradient_bytes: int | None = None
        self._optimizer_bytes: int | None = None
        self._peak_bytes: int | None = None
        self._trace: StepMeter | None = None
        self._cached: CachedBlocks | None = None
        self._prefix = PrefixCost()
        self._flops = self._forward_flops = self._activation_bytes = 0
        self._marks: list[_Reading] = []  # clock readings of the current step: start, end, start, end, ...
        self._timed: list[list[_Reading]] = []
        self.served: list[list[_Reading]] = []  # of the steps whose prefix was read
        self.may_be_served = self._is_served = False
        self._is_running = False  # a batch of a whole window

    @property
    def is_tracing(self) -> bool:
        return self._is_running and not self.num_steps

    def start_batch(self, trainer: TrainerLike, model: nn.Module, batch: object, *, is_first: bool) -> None:
        if is_first:
            self._is_running = True
            if not self.num_steps:
                self._flops = self._forward_flops = self._activation_bytes = 0
                self._prefix = PrefixCost()
        if not self._is_running:  # the phase started in the middle of a window
            return
        device = trainer.strategy.root_device
        if not self.num_steps and self.like is None:
            self.untrace()
            self._trace = StepMeter(model, batch)
            self._trace.__enter__()
            self._cached = _cached_blocks(trainer)
            if self._cached is not None:
                self._cached.cost = self._prefix
        elif self.num_steps == 1 and device.type == "cuda" and is_first:
            torch.cuda.reset_peak_memory_stats(device)
        elif self.num_steps >= _UNTIMED:
            self._cached = _cached_blocks(trainer)
            self.may_be_served = self._cached is not None and not self._cached.why
            if is_first:
                self._marks, self._is_served = [], self.may_be_served
            self._marks.append(_reading(device))

    def end_batch(self, trainer: TrainerLike, *, is_last: bool) -> None:
        if not self._is_running:
            return
        device = trainer.strategy.root_device
        if self._trace is not None:
            cost = self._trace.cost()
            self._flops += cost.flops
            self._forward_flops += cost.forward_flops
            self._activation_bytes = max(self._activation_bytes, cost.saved_bytes)
            self.untrace()
        elif self.num_steps >= _UNTIMED:
            self._marks.append(_reading(device))
            self._is_served = self._is_served and self._cached is not None and self._cached.is_served
        if is_last:
            self._end_step(trainer, device)

    def _end_step(self, trainer: TrainerLike, device: torch.device) -> None:
        if not self.num_steps:
            self._optimizer_bytes = _nbytes(
                list(optimizer.state.values()) for optimizer in trainer.optimizers
            )
        elif self.num_steps == 1 and device.type == "cuda":
            self._peak_bytes = torch.cuda.max_memory_allocated(device)
        elif self.num_steps >= _UNTIMED:
            timed = self.served if self._is_served else self._timed
            if len(timed) < self._num_timed:
                timed.append(self._marks)
        self.num_steps += 1
        self._is_running = False

    def untrace(self) -> None:
        if self._trace is not None:
            self._trace.__exit__()
            self._trace = None
        if self._cached is not None:
            self._cached.cost = None
            self._cached = None

    def record(self) -> PhaseRecord:
        if self.like is not None:
            step, epoch = self._record.optimizer_step, self._record.epoch
            return replace(self.like, optimizer_step=step, epoch=epoch, optimizer_bytes=self._optimizer_bytes)
        seconds, served = [[_seconds(marks) for marks in each] for each in (self._timed, self.served)]
        return replace(
            self._record,
            flops=self._flops,
            forward_flops=self._forward_flops,
            gradient_bytes=self.gradient_bytes,
            optimizer_bytes=self._optimizer_bytes,
            activation_bytes=self._activation_bytes,
            skipped_flops=self._prefix.flops or None,
            stored_bytes=self._prefix.stored_bytes or None,
            peak_bytes=self._peak_bytes,
            step_seconds=statistics.median(seconds) if seconds else None,
            num_timed=len(seconds),
            served_seconds=statistics.median(served) if served else None,
        )


def _cached_blocks(trainer: TrainerLike) -> CachedBlocks | None:
    """Those of the Trainer's `PrefixCache`."""
    found = [
        getattr(each, "cached", None) for each in callbacks_of_kind(callbacks_of(trainer), "PrefixCache")
    ]
    return next((each for each in found if isinstance(each, CachedBlocks)), None)


def _window(trainer: TrainerLike) -> int:
    """Batches of one optimizer step; an epoch may have fewer."""
    return int(min(window_length(trainer), trainer.num_training_batches))


def _reading(device: torch.device) -> _Reading:
    """The time now; on a GPU a recorded event."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _seconds(marks: list[_Reading]) -> float:
    """Seconds between each start and its end; waits for the GPU if needed."""
    spans = zip(marks[::2], marks[1::2], strict=True)
    if isinstance(marks[0], float):
        return float(sum(end - start for start, end in spans))
    marks[-1].synchronize()
    return sum(float(start.elapsed_time(end)) for start, end in spans) / 1000


def _nbytes(values: Iterable[object]) -> int:
    """Bytes of the tensors among some values, each storage once."""
    tensors = tensors_in(list(values))
    return sum({tensor.data_ptr() or id(tensor): tensor.nbytes for tensor in tensors}.values())
