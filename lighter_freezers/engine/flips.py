"""Records which parameters froze and thawed at one moment, where the flags are written."""

from collections.abc import Iterable, Sequence
from itertools import chain

from torch.nn import Parameter

from lighter_freezers.engine.effects.stale_graphs import drop_stale_graphs

__all__ = ["Flips", "between_steps"]


class Flips:
    """The flips of one moment. A parameter that flips back and forth has not changed.

    Args:
        is_open: Whether to note which; otherwise only that there was something.

    Attributes:
        num_noted: How often something flipped.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._is_open = is_open
        self.num_noted = 0
        self._lists: list[tuple[bool, list[Parameter]]] = []  # each with the flag that was written

    def note(self, parameters: Sequence[Parameter]) -> None:
        """Note parameters whose flag has just been written, each once."""
        if not parameters:
            return
        self.num_noted += 1
        drop_stale_graphs()
        if self._is_open:
            self._lists.append((parameters[0].requires_grad, list(parameters)))

    def succeed(self, old: Parameter, new: Parameter) -> None:
        """Note a successor in place of its predecessor."""
        self._lists = [
            (flag, [new if each is old else each for each in flipped]) for flag, flipped in self._lists
        ]

    @property
    def net(self) -> tuple[list[Parameter], list[Parameter]]:
        """What is frozen now and trained before, and the other way round."""
        frozen = _joined(flipped for flag, flipped in self._lists if not flag)
        thawed = _joined(flipped for flag, flipped in self._lists if flag)
        if not frozen or not thawed or {*map(id, frozen)}.isdisjoint(map(id, thawed)):
            return frozen, thawed
        moved: dict[int, Parameter] = {}
        for parameter in chain.from_iterable(flipped for _, flipped in self._lists):
            if moved.pop(id(parameter), None) is None:
                moved[id(parameter)] = parameter
        frozen = [parameter for parameter in moved.values() if not parameter.requires_grad]
        return frozen, [parameter for parameter in moved.values() if parameter.requires_grad]


def _joined(lists: Iterable[list[Parameter]]) -> list[Parameter]:
    return list(chain.from_iterable(lists))


between_steps = Flips()  # what functions called by the user flip, outside of any moment
