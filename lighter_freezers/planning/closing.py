"""The last lines of a run: its loss, what was frozen when, what that saved, and what to run next."""

import json
from collections.abc import Sequence
from operator import mul
from pathlib import Path

from lighter_freezers.planning.phase_meter import FILE, PhaseRecord
from lighter_freezers.reports.columns import columns
from lighter_freezers.reports.whole_files import naming

__all__ = ["backward_work", "closing_lines"]

_MOST_CHANGES = 8


def closing_lines(
    folder: Path,
    losses: Sequence[tuple[str, str]],
    changes: Sequence[tuple[int, str]],
    pictures: Sequence[str],
    num_elements: int,
) -> list[str]:
    """What the run was, as a short table: whole in `lighter`'s log on a terminal of 80 columns.

    Args:
        folder: Of the run, with the files that callbacks have left there.
        losses: The name of each, and what it did.
        changes: Optimizer step and what changed before it, in order.
        pictures: Commands that show the pictures of the run.
        num_elements: Of the model.
    """
    shown, num_more = changes[:_MOST_CHANGES], len(changes) - _MOST_CHANGES
    rows = [*losses, *((f"step {step}", said) for step, said in shown)]
    if num_more > 0:
        rows.append(("", f"and {num_more} more changes, the last at step {changes[-1][0]}"))
    rows += _work_in(folder, num_elements)
    file = folder / "freeze_timeline.png"
    rows += [("picture", where) for where in pictures or ([str(file)] if file.exists() else [])]
    has_norms = any(folder.glob("*.group_norms.csv"))
    has_config = (folder / "config.yaml").exists()
    commands = ["report"] * has_config + ["plots"] * has_norms + ["compare"]
    following = ["next", *(f"  lighter-freezers {name} {folder}" for name in commands)]
    return [f"  {line}" for line in [*(columns(rows, num_left=2) if rows else ()), *following]]


def backward_work(
    records: Sequence[PhaseRecord], num_steps: int, num_elements: int
) -> tuple[float | None, float | None]:
    """What the backward passes of a run cost.

    Args:
        records: The phases of the run, in order.
        num_steps: Its optimizer steps.
        num_elements: Of the model.

    Returns:
        The share of the operations that it did without, against a phase in which everything trained (None
        without one), and its operations for each one of the forward passes (None where none were counted).
    """
    starts = [each.optimizer_step for each in records]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], num_steps], strict=False)]
    forward = [each.forward_flops or 0 for each in records]
    backward = [(each.flops or 0) - own for each, own in zip(records, forward, strict=True)]
    full = [own for each, own in zip(records, backward, strict=True) if each.num_trainable == num_elements]
    done, both = sum(map(mul, backward, lengths)), sum(map(mul, forward, lengths))
    whole = max(full, default=0) * sum(lengths)
    return max(0.0, 1 - done / whole) if whole else None, done / both if both else None


def _work_in(folder: Path, num_elements: int) -> list[tuple[str, str]]:
    """From what `PhaseRecorder` has written, if it was there."""
    file = folder / FILE
    if not file.is_file():
        return []
    with naming(file, "a report of phases"):
        report = json.loads(file.read_text(encoding="utf-8"))
        if "num_steps" not in report:
            return []
        records = [PhaseRecord.from_dict(record) for record in report["phases"]]
        saved, ratio = backward_work(records, report["num_steps"], num_elements)
    if saved is not None:
        return [("saved", f"{saved:.0%} of the backward work of full training")]
    if ratio is not None:  # what full training costs is not known: heads and checkpoints differ
        return [("backward", f"{ratio:.2f} times the forward work (about 2 if all trains)")]
    return []
