"""Reads the config that a schedule is written for, and builds its model as lighter does."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

import lighter_freezers
from lighter_freezers._extras import require
from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.planning.config_errors import clear_errors, refuse_lightning_cli, refuse_non_mapping

__all__ = ["Source", "read_source"]

Kind = Literal["run", "module", "network"]


@dataclass(frozen=True)
class Source:
    """A config and the model that it describes.

    Attributes:
        text: The text of the file.
        kind: `run` with a `trainer` and a `model`, `module` with a `model` alone, `network` where a
            `_target_` or a `network` is all there is.
        model: What it builds.
        epochs: Length of the run; None where the config has none or counts steps.
        steps: Length of the run in optimizer steps; None where the config has none.
        has_freezers: Whether it already has callbacks of this package that change what trains.
    """

    text: str
    kind: Kind
    model: nn.Module
    epochs: int | None
    steps: int | None
    has_freezers: bool


def read_source(path: Path) -> Source:
    """Read a file and build the model in it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a config, or what it describes cannot be built.
        TypeError: What it describes is not a model.
    """
    require("A config", "lighter")
    from lighter.engine.runner import ConfigLoader, ProjectImporter

    text = path.read_text()
    with clear_errors():
        refuse_non_mapping([str(path)])
        config = ConfigLoader.load([str(path)])
        keys = config.get() or {}
        kind, place = _kind(keys, path)
        refuse_lightning_cli(keys)
        with redirect_stdout(sys.stderr):  # what models print while they are built
            ProjectImporter.auto_discover_and_import()
            model = config.resolve(place)
        lengths = [_length(config, name) for name in ("max_epochs", "max_steps")]
    if not isinstance(model, nn.Module):
        raise TypeError(f"{path} describes a {type(model).__name__}, not a torch.nn.Module.")
    epochs, steps = lengths
    return Source(text, kind, model, None if steps else epochs, steps, _has_freezers(keys))


def _length(config: Any, name: str) -> int | None:  # sparkwheel has no types
    """The length of the run; None where the config has no number above 0."""
    value = config.resolve(f"trainer::{name}") if config.get(f"trainer::{name}") is not None else None
    return value if isinstance(value, int) and value > 0 else None


def _has_freezers(keys: dict[str, object]) -> bool:
    trainer = keys.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    targets = [str(each.get("_target_")) for each in callbacks or [] if isinstance(each, dict)]
    names = [
        target.rpartition(".")[2] for target in targets if target.partition(".")[0] == "lighter_freezers"
    ]
    return any(issubclass(getattr(lighter_freezers, name, object), EngineCallback) for name in names)


def _kind(keys: object, path: Path) -> tuple[Kind, str]:
    """The kind of a config, and the path of the model in it."""
    if isinstance(keys, dict):
        if "model" in keys:
            return ("run" if "trainer" in keys else "module"), "model"
        if "network" in keys:
            return "network", "network"
        if "_target_" in keys:
            return "network", ""
    found = ", ".join(map(str, keys)) if isinstance(keys, dict) else type(keys).__name__
    raise ValueError(
        f"{path} has no model: a config has `trainer`, `model` and `data`, a file for a model alone a "
        f"`_target_`. Found: {found or 'nothing'}."
    )
