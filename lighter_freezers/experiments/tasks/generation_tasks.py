"""The generation tasks by name, and those of other packages by their path."""

from collections.abc import Mapping
from pkgutil import resolve_name

from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.tasks.docstrings import DOCSTRINGS
from lighter_freezers.experiments.tasks.e2e_nlg import E2E_NLG
from lighter_freezers.experiments.tasks.multi_nli import MULTI_NLI
from lighter_freezers.experiments.tasks.samsum import SAMSUM
from lighter_freezers.experiments.tasks.squad import SQUAD
from lighter_freezers.experiments.tasks.wikisql import WIKISQL

__all__ = ["TASKS", "task_named"]

TASKS: Mapping[str, PromptedTask] = {
    task.name: task for task in (DOCSTRINGS, E2E_NLG, SAMSUM, WIKISQL, MULTI_NLI, SQUAD)
}


def task_named(name: object) -> PromptedTask:
    """The task of this name.

    Args:
        name: A name in `TASKS`, a `PromptedTask`, or the import path of one, such as `my_tasks.NEWS`.

    Raises:
        ValueError: There is none.
    """
    if isinstance(name, PromptedTask):
        return name
    for known, task in TASKS.items():
        if name == known:
            return task
    if not isinstance(name, str) or "." not in name:
        raise ValueError(f"There is no task {name!r}. Known: {', '.join(TASKS)}; or the path of one's own.")
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"task='{name}' cannot be imported: {error}.") from error
    if not isinstance(found, PromptedTask):
        raise ValueError(f"task='{name}' is a {type(found).__name__}, not a PromptedTask.")
    return found
