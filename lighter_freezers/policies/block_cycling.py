"""Block cycling, as in BAdam: one block trains at a time, each in turn."""

import random
from collections.abc import Iterable, Sequence
from typing import Literal

from lighter_freezers import arguments
from lighter_freezers.arguments import checked
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window

__all__ = ["BlockCycling"]


class BlockCycling(LayerPolicy):
    """Train one block at a time, each in turn; its optimizer state is dropped when the next one begins.

    BAdam (https://arxiv.org/abs/2404.02827), with Adam or any other optimizer.

    | call | what trains |
    |---|---|
    | `BlockCycling()` | each block for 50 steps, in a new random order in each tour |
    | `BlockCycling(order="ascending")` | from the input to the output; or `descending` |
    | `BlockCycling(order=["3", "0", "3", "1"])` | these blocks in this order, over and over |
    | `BlockCycling(rest="train")` | embeddings, final norm and head beside each block |

    Args:
        every_n_steps: Optimizer steps for each block.
        order: `random`, `ascending`, `descending`, or titles of blocks.
        options: `seed`, `rest`, `optimizer_state`, `cut_gradient` and `blocks`, as for `LayerPolicy`.
    """

    rest = "freeze"

    @checked
    def __init__(
        self,
        every_n_steps: int | str = 50,
        order: Literal["random", "ascending", "descending"] | Sequence[str | int] = "random",
        **options: Options,
    ) -> None:
        super().__init__(every_n_steps, **options)
        if isinstance(order, str):
            self.order: str | list[str] = arguments.choice(
                "order", order, ("random", "ascending", "descending")
            )
        elif not order:
            raise ValueError("order is empty. Write titles of blocks, such as ['3', '0', '1'], or 'random'.")
        elif wrong := [title for title in order if not isinstance(title, (str, int))]:
            raise TypeError(f"order must be a list of titles of blocks. Got {wrong[0]!r} in it.")
        else:
            self.order = [str(title) for title in order]

    def choose(self, window: Window) -> Iterable[str]:
        """The next block of this tour that no other callback holds."""
        units = list(window.units) if isinstance(self.order, str) else self.order
        tour, place = divmod(window.index, len(units))
        if self.order == "random":
            random.Random(f"{self.seed}/tour {tour}").shuffle(units)  # one draw for a whole tour
        if self.order == "descending":
            units.reverse()
        turns = [*units[place:], *units[:place]]
        return [next((unit for unit in turns if unit not in window.held), turns[0])]
