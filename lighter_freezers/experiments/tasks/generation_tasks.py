"""The generation tasks by name."""

from collections.abc import Mapping

from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.tasks.docstrings import DOCSTRINGS
from lighter_freezers.experiments.tasks.e2e_nlg import E2E_NLG
from lighter_freezers.experiments.tasks.multi_nli import MULTI_NLI
from lighter_freezers.experiments.tasks.samsum import SAMSUM
from lighter_freezers.experiments.tasks.wikisql import WIKISQL

__all__ = ["TASKS", "task_named"]

TASKS: Mapping[str, PromptedTask] = {
    task.name: task for task in (DOCSTRINGS, E2E_NLG, SAMSUM, WIKISQL, MULTI_NLI)
}


def task_named(name: object) -> PromptedTask:
    """The task of this name.

    Raises:
        ValueError: There is none.
    """
    for known, task in TASKS.items():
        if name == known:
            return task
    raise ValueError(f"There is no task {name!r}. Known: {', '.join(TASKS)}.")
