"""Start real gloo processes for a test and bring their results back."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

# Ranks are forked from one process that has loaded these, and nothing more: each saves seconds of imports.
# Windows has no fork, and spawns them.
mp.set_forkserver_preload(["lightning.pytorch", "pytorch_lightning", "peft"])
START = next(method for method in ("forkserver", "spawn") if method in mp.get_all_start_methods())
LOOPBACK = {"linux": {"GLOO_SOCKET_IFNAME": "lo"}, "darwin": {"GLOO_SOCKET_IFNAME": "lo0"}}


def run_ranks(work: Callable[..., Any], folder: Path, num_ranks: int, *arguments: Any) -> list[Any]:
    """Call `work(*arguments)` in each of several processes that know each other; returns what each returned.

    A rank that raises fails the test with its traceback. `work` must be importable.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = (num_ranks, port, folder, dict(os.environ), work, arguments)
    mp.start_processes(_rank, shared, nprocs=num_ranks, start_method=START)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def _rank(
    rank: int,
    num_ranks: int,
    port: int,
    folder: Path,
    environment: dict[str, str],
    work: Callable[..., Any],
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        environment,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(num_ranks),
        NODE_RANK="0",
        LOCAL_RANK=str(rank),
        RANK=str(rank),
        **LOOPBACK.get(sys.platform, {}),
    )
    try:
        torch.save(work(*arguments), folder / f"rank{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
