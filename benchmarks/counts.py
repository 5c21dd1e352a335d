"""What does not depend on the speed of a machine: the most bytes that were allocated, and operations."""

import os
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["flops", "peak_bytes"]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that torch's CPU allocator had handed out at a time since the call began.

    Read from the profiler: a `TorchDispatchMode` would make autograd add gradients up in new tensors.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells of GPUs that it did not find
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    allocated = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and of attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
