"""The settings and figures of a run, read from the JSON files in its folder."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lighter_freezers.reports.whole_files import naming

__all__ = ["NORM", "RunResults", "differing", "read_runs"]

RUN_SUMMARY = "results_summary.json"
NORM = " gradient norm"  # after the layers of which it is
EVALUATIONS = "evaluation_results*.json"

_Json: TypeAlias = dict[str, Any]  # a file that this package wrote; its keys say what is in them


@dataclass(frozen=True)
class RunResults:
    """The results of one run.

    Attributes:
        title: The part of its path that distinguishes it from the other runs.
        folder: Its folder.
        settings: Every value of its config, by its path in the config, such as `model::lora::r`.
        figures: Name -> value: losses, gradient norms, cost and scores.
    """

    title: str
    folder: Path
    settings: Mapping[str, object]
    figures: Mapping[str, float]


def read_runs(folders: Sequence[Path]) -> list[RunResults]:
    """Read the results of runs.

    Args:
        folders: Of the runs, each with `results_summary.json`, `evaluation_results.json` or both.

    Raises:
        ValueError: A folder is given twice, or a file is not JSON.
        FileNotFoundError: A folder has no results.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ValueError("A run folder is given twice. Name each run once.")
    return [_read_run(folder, title) for folder, title in zip(folders, _titles(resolved), strict=True)]


def differing(runs: Sequence[RunResults]) -> list[str]:
    """The settings that are not the same in all runs with known ones, in the order of the configs."""
    known = [run.settings for run in runs if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [name for name in names if len({repr(settings.get(name)) for settings in known}) > 1]


def _read_run(folder: Path, title: str) -> RunResults:
    evaluations = sorted(folder.glob(EVALUATIONS), key=_number)
    if not (folder / RUN_SUMMARY).exists() and not evaluations:
        raise FileNotFoundError(_nothing_in(folder))
    path = folder / RUN_SUMMARY
    with naming(path, "what ResultsSummary writes"):
        summary = _read(path) if path.exists() else {}
        figures = {**_training_figures(summary), **summary.get("evaluation", {})}
    if evaluations:
        with naming(path := evaluations[-1], "what an evaluation writes"):
            figures |= _read(path).get("scores", {})
    numbers = {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}
    if not numbers:
        raise ValueError(f"{path} holds no results of a run.")
    return RunResults(title, folder, dict(_flat(summary.get("config") or {})), numbers)


def _training_figures(summary: _Json) -> dict[str, object]:
    """The training figures of a summary, under flat names."""
    figures = {name: summary.get(name) for name in ("optimizer_steps", "train_loss", "final_train_loss")}
    figures |= summary.get("metrics", {})
    figures |= {name: summary.get(name) for name in ("trainable_parameters", "parameters", "train_seconds")}
    for statistics in summary.get("gradient_stats", {}).values():
        figures |= {f"{group}{NORM}": values["mean"] for group, values in statistics.items()}
    return figures


def _read(path: Path) -> _Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}. Was the run stopped while it wrote?") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no results of a run.")
    return content


def _number(path: Path) -> int:
    """The number of an evaluation file; the first has none."""
    digits = re.search(r"_(\d+)$", path.stem)
    return int(digits[1]) if digits else 0


def _nothing_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    inside = sorted(path.parent for pattern in (RUN_SUMMARY, EVALUATIONS) for path in folder.rglob(pattern))
    if inside:
        shown = " ".join(dict.fromkeys(map(str, inside[:4])))
        return f"{folder} is not the folder of one run. Runs in it: {shown}"
    return (
        f"{folder} has neither {RUN_SUMMARY} nor evaluation_results.json. Add "
        "lighter_freezers.ResultsSummary to the callbacks of the run, which writes the first at its end, or "
        "evaluate it with `lighter test`."
    )


def _titles(folders: Sequence[Path]) -> list[str]:
    """The shortest path suffixes that differ."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        titles = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(titles)) == len(titles):
            return titles
    return [str(folder) for folder in folders]


def _flat(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a config by its path; objects in a list are named by their class."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{path}::{key}" if path else str(key))
    elif isinstance(node, list) and any(isinstance(value, (Mapping, list)) for value in node):
        classes = [_class_of(value) for value in node]
        for index, (value, name) in enumerate(zip(node, classes, strict=True)):
            is_unique = name is not None and classes.count(name) == 1
            yield from _flat(value, f"{path}::{name if is_unique else index}")
    else:
        yield path, node


def _class_of(node: object) -> str | None:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return None if target is None else str(target).rpartition(".")[2]
