"""Results on disk: scores with the settings and versions they were made with. Overwrites nothing."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lighter_freezers.reports.whole_files import json_text, write_unused

__all__ = ["RESULTS_FILE", "versions", "write_results"]

RESULTS_FILE = "evaluation_results.json"
PACKAGES = ("lighter-freezers", "torch", "transformers", "peft", "pytorch-lightning", "torchmetrics")


def write_results(folder: str | Path, results: Mapping[str, object], name: str = RESULTS_FILE) -> Path:
    """Write results as JSON into a folder, beside what is there already.

    Args:
        folder: Where to; made if there is none.
        results: Plain values, to which the versions of Python and of the packages that matter are added.
        name: Of the file. Where it exists, a number is added: `evaluation_results_1.json`.

    Returns:
        The file.
    """
    return write_unused(Path(folder) / name, json_text({**results, "versions": versions()}))


def versions() -> dict[str, str]:
    """Python and the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
