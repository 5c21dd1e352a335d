"""Hooks of ours on a user's modules, which leave nothing of this package in a pickled module."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from operator import attrgetter, methodcaller
from typing import Any

__all__ = ["ModuleHook"]


class ModuleHook:
    """A hook that a pickle of its module replaces by a function of the standard library that does nothing.

    So the module loads where this package is not installed. A copy of the module has that function too,
    because it belongs to no run that would remove the hook.

    Args:
        hook: What is to be called.
        constant: Where the hook belongs to its module for good: the name that it has in the Python module of
            `hook`. Copies keep it then, and a pickle finds it again in a process that has imported it.
    """

    def __init__(self, hook: Callable[..., Any], *, constant: str = "") -> None:
        self._hook = hook
        self._constant = constant

    def __call__(self, *arguments: Any) -> Any:
        """Call the hook."""
        return self._hook(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self if self._constant else nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        modules = _Loaded(attrgetter("modules"), _Loaded(import_module, "sys"))
        home = _Loaded(methodcaller("get", self._hook.__module__), modules)
        return getattr, (home, self._constant, nullcontext().__exit__)


class _Loaded:
    """Pickled, it is what a call gives where it is loaded."""

    def __init__(self, call: Callable[..., Any], argument: object) -> None:
        self._call = call, (argument,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call
