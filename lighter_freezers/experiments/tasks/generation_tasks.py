"""The generation tasks by name, and those of other packages by their path.

A data set is one file of this folder with a `PromptedTask`; it is found by that.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules, resolve_name

from lighter_freezers.experiments import tasks
from lighter_freezers.experiments.data.prompts import PromptedTask

__all__ = ["TASKS", "task_named"]

TASKS: Mapping[str, PromptedTask] = {
    found.name: found
    for module in iter_modules(tasks.__path__, f"{tasks.__name__}.")
    for found in vars(import_module(module.name)).values()
    if isinstance(found, PromptedTask)
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
