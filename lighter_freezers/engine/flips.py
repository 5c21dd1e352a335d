"""Records which parameters froze and thawed at one moment, where the flags are written."""

from collections.abc import Sequence

from torch.nn import Parameter

__all__ = ["Flips"]


class Flips:
    """The flips of one moment. A parameter that flips back and forth has not changed.

    Args:
        is_open: Whether to note anything.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._is_open = is_open
        self._lists: list[list[Parameter]] = []

    def note(self, parameters: Sequence[Parameter]) -> None:
        """Note parameters whose flag has just been written, each once."""
        if self._is_open and parameters:
            self._lists.append(list(parameters))

    def succeed(self, old: Parameter, new: Parameter) -> None:
        """Note a successor in place of its predecessor."""
        self._lists = [[new if each is old else each for each in flipped] for flipped in self._lists]

    @property
    def net(self) -> tuple[list[Parameter], list[Parameter]]:
        """What is frozen now and trained before, and the other way round."""
        flipped: dict[int, Parameter] = {}
        for parameters in self._lists:
            for parameter in parameters:
                if flipped.pop(id(parameter), None) is None:
                    flipped[id(parameter)] = parameter
        frozen = [parameter for parameter in flipped.values() if not parameter.requires_grad]
        return frozen, [parameter for parameter in flipped.values() if parameter.requires_grad]
