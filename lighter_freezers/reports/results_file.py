"""Writes results to disk: scores with the settings and versions behind them. Overwrites nothing."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lighter_freezers.reports.whole_files import json_text, write_unused

__all__ = ["RESULTS_FILE", "versions", "write_results"]

RESULTS_FILE = "evaluation_results.json"
PACKAGES = ("lighter-freezers", "torch", "transformers", "peft", "pytorch-lightning", "torchmetrics")


def write_results(folder: str | Path, results: Mapping[str, object], name: str = RESULTS_FILE) -> Path:
    """Write results as JSON into a folder, as a new file.

    Args:
        folder: The folder, which is created if needed.
        results: Plain values; the versions of Python and of relevant packages are added.
        name: The file name. If it exists, a number is added: `evaluation_results_1.json`.

    Returns:
        The file.
    """
    return write_unused(Path(folder) / name, json_text({**results, "versions": versions()}))


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
