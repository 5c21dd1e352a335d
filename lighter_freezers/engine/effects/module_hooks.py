"""Hooks on a user's modules that are not pickled with the module."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from operator import attrgetter, methodcaller
from typing import Any

__all__ = ["ModuleHook", "call_after", "forget_calls", "is_overridden"]


def is_overridden(module: object, hook: str) -> bool:
    """Whether a LightningModule has a hook of its own in place of Lightning's."""
    return "core.hooks" not in getattr(type(module), hook).__module__


def call_after(module: object, hook: str, call: Callable[[], object]) -> None:
    """Call a function once, right after a hook of a module that Lightning is about to call."""
    vars(module)[hook] = _Followed(module, hook, call)


def forget_calls(module: object) -> None:
    """Forget what `call_after` was asked for: Lightning has not called the hook."""
    for followed in [value for value in vars(module).values() if isinstance(value, _Followed)]:
        followed.restore()


class _Followed:
    """A hook that calls something afterwards. Copies and pickles of its module have the hook alone."""

    def __init__(self, module: object, hook: str, call: Callable[[], object]) -> None:
        self._module, self._hook, self._call = module, hook, call
        self._own = vars(module).get(hook)  # what a user has set on the module itself

    def restore(self) -> None:
        """Put the hook back as it was."""
        del vars(self._module)[self._hook]
        if self._own is not None:
            vars(self._module)[self._hook] = self._own

    def __call__(self, *arguments: object, **named: object) -> None:
        """Call the module's own hook, then what follows it."""
        if vars(self._module).get(self._hook) is self:
            self.restore()
        getattr(self._module, self._hook)(*arguments, **named)
        self._call()

    def __reduce__(self) -> tuple[object, ...]:
        if self._own is not None:
            return partial, (self._own,)
        return getattr, (self._module, self._hook)


class ModuleHook:
    """A hook that is pickled as a no-op function of the standard library.

    So the module loads where this package is not installed. A copy of the module gets that function too,
    because no run would remove the hook from it.

    Args:
        hook: The function to call.
        constant: Where the hook belongs to its module for good: the name that it has in the Python module of
            `hook`. Copies keep it then, and a pickle finds it again in a process that has imported it.
    """

    def __init__(self, hook: Callable[..., object], *, constant: str = "") -> None:
        self._hook = hook
        self._constant = constant

    def __call__(self, *arguments: object) -> Any:  # what torch asks of its kinds of hooks
        """Call the hook."""
        return self._hook(*arguments)

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        return self if self._constant else nullcontext().__exit__

    def __reduce__(self) -> tuple[object, ...]:
        modules = _Loaded(attrgetter("modules"), _Loaded(import_module, "sys"))
        home = _Loaded(methodcaller("get", self._hook.__module__), modules)
        return getattr, (home, self._constant, nullcontext().__exit__)


class _Loaded:
    """An object that is pickled as a call, and loaded as its result."""

    def __init__(self, call: Callable[..., object], argument: object) -> None:
        self._call = call, (argument,)

    def __reduce__(self) -> tuple[object, ...]:
        return self._call
