"""Plans of small runs, without times."""

from typing import Any

from lighter_freezers import plan
from lighter_freezers.planning.values import Plan
from tests.lab import adamw, batches, regression, trainer

COUNTS = {"num_rounds": 1, "num_timed": 0}


def planned(callbacks: list[Any], namespace: str = "pytorch_lightning", **options: Any) -> Plan:
    """A plan of a small run, without times."""
    model = regression(namespace, optimizer=adamw)
    return plan(
        trainer(namespace, callbacks=callbacks, **options), model, train_dataloaders=batches(), **COUNTS
    )


def changes(phases: tuple[Any, ...]) -> list[tuple[str, tuple[str, ...]]]:
    return [(phase.when, phase.changes) for phase in phases]
