"""Runs a function in place of a module's call: the module, its name and its weights stay where they are."""

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

__all__ = ["Call", "CallDetour", "compiled_call", "detours_of"]

Call: TypeAlias = Callable[..., object]  # of a module: whatever it takes and returns


class CallDetour:
    """A function that runs when a module is called, and gets the module's own call.

    It takes the place where torch keeps the compiled call of a module, which is neither copied nor pickled
    with the module. Several detours of one module are removed in any order.

    Args:
        module: What is called.
        run: Gets the module's own call, its arguments and its keywords; returns the output.
        is_innermost: Run inside the detours that are there, not around them.
    """

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[Call, tuple[object, ...], dict[str, object]], object],
        *,
        is_innermost: bool = False,
    ) -> None:
        self._module = module
        self._run = run
        self.inner: Call | None = compiled_call(module) if is_innermost else module._compiled_call_impl
        around = detours_of(module) if is_innermost else []
        if around:
            around[-1].inner = self
        else:
            module._compiled_call_impl = self

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Run the function."""
        own = self._module._call_impl if self.inner is None else self.inner
        return self._run(own, arguments, keywords)

    def remove(self) -> None:
        """Let the module's own call run again."""
        around = detours_of(self._module)
        place = around.index(self)
        if place:
            around[place - 1].inner = self.inner
        else:
            self._module._compiled_call_impl = self.inner


def compiled_call(module: nn.Module) -> Call | None:
    """The compiled call of a module, below its detours; None where `torch.compile` did not get it."""
    detours = detours_of(module)
    return detours[-1].inner if detours else module._compiled_call_impl


def detours_of(module: nn.Module) -> list[CallDetour]:
    """The detours of a module, from the outside in."""
    found, call = [], module._compiled_call_impl
    while isinstance(call, CallDetour):
        found.append(call)
        call = call.inner
    return found
