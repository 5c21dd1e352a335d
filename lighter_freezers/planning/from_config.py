"""Plans what `lighter fit` would run: trainer, model and data are built as lighter builds them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lighter_freezers._extras import require
from lighter_freezers.planning.config_errors import (
    clear_errors,
    missing_part,
    refuse_lightning_cli,
    refuse_non_callbacks,
    refuse_non_mapping,
    unused_variables,
)
from lighter_freezers.planning.copied_trainer import hushed
from lighter_freezers.planning.plan import plan
from lighter_freezers.planning.values import Plan

__all__ = ["built_from_config", "plan_of_config"]


def plan_of_config(inputs: Sequence[str], *, has_times: bool) -> Plan:
    """Plan what `lighter fit` would run with these inputs.

    Args:
        inputs: Config files and overrides such as `trainer::max_epochs=3`, or mappings.
        has_times: Whether to time steps; otherwise one step in each phase is counted.

    Raises:
        ValueError: A file or a key is missing, or the config cannot be built.
    """
    model, trainer, data, said = built_from_config(inputs)
    rounds = {} if has_times else {"num_rounds": 1, "num_timed": 0}
    planned = plan(trainer, model, data, progress=_show, **rounds)
    _show("")
    return replace(planned, warnings=(*said, *planned.warnings))


def _show(text: str) -> None:
    """One line of a terminal, overwritten each time; nothing elsewhere."""
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        print(f"\r\033[K{text}", end="", file=sys.__stderr__, flush=True)


# Any: what a config builds
def built_from_config(inputs: Sequence[Any]) -> tuple[Any, Any, Any, Sequence[str]]:
    """Model, trainer and data of a config, and what was warned of meanwhile.

    Raises:
        ValueError: A file or a key is missing, or the config cannot be built.
    """
    require("A config", "lighter")
    from lighter.engine.runner import ConfigLoader, ProjectImporter

    with clear_errors():
        refuse_non_mapping(inputs)
        config = ConfigLoader.load(list(inputs))
    ProjectImporter.auto_discover_and_import()
    refuse_lightning_cli(config.get() or {})
    for key in ("trainer", "model"):
        if config.get(key) is None:
            raise ValueError(missing_part(config.get() or {}, key))
    with hushed() as said, clear_errors():
        model, trainer = config.resolve("model"), config.resolve("trainer")
        refuse_non_callbacks(getattr(trainer, "callbacks", ()))
        data = None if config.get("data") is None else config.resolve("data")
    return model, trainer, data, [*unused_variables(config.get()), *said]
