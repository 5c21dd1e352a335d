"""Results on disk: scores with the settings and versions they were made with. Overwrites nothing."""

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

__all__ = ["RESULTS_FILE", "plain", "unused_path", "versions", "write_results"]

RESULTS_FILE = "evaluation_results.json"
PACKAGES = ("lighter-freezers", "torch", "transformers", "peft", "pytorch-lightning", "torchmetrics")


def write_results(folder: str | Path, results: Mapping[str, Any], name: str = RESULTS_FILE) -> Path:
    """Write results as JSON into a folder, beside what is there already.

    Args:
        folder: Where to; made if there is none.
        results: Plain values, to which the versions of Python and of the packages that matter are added.
        name: Of the file. Where it exists, a number is added: `evaluation_results_1.json`.

    Returns:
        The file.
    """
    path = unused_path(Path(folder) / name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = plain({**results, "versions": versions()})
    with path.open("x", encoding="utf-8") as file:  # "x": two processes cannot write the same one
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def unused_path(path: Path) -> Path:
    """The path if nothing is there; else the same with `_1`, `_2`, ... at the end of its stem."""
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(1))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def versions() -> dict[str, str]:
    """Python and the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """What JSON can hold: numbers that are none become null, paths and other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
