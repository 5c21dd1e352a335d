"""LISA: a few blocks, drawn anew every few steps, train beside embeddings and head."""

from collections.abc import Iterable

from lighter_freezers import arguments
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window

__all__ = ["Lisa"]


class Lisa(LayerPolicy):
    """Train `num_blocks` blocks at a time, drawn uniformly; embeddings, final norm and head always train.

    Layerwise Importance Sampled AdamW (https://arxiv.org/abs/2403.17919), with AdamW or any other optimizer.

    | call | what trains |
    |---|---|
    | `Lisa()` | 2 blocks, others every 20 steps, and all that is in no block |
    | `Lisa(num_blocks=8, every_n_steps=5)` | 8 blocks, others every 5 steps |
    | `Lisa(rest="freeze")` | the drawn blocks alone: embeddings and head are most of LISA's memory |

    Args:
        num_blocks: Blocks that train at a time.
        every_n_steps: Optimizer steps between two draws.
        options: `seed`, `rest`, `optimizer_state`, `cut_gradient` and `blocks`, as for `LayerPolicy`.

    Raises:
        ValueError: At the start of a run, the model has fewer blocks.
    """

    def __init__(self, num_blocks: int = 2, every_n_steps: int | str = 20, **options: Options) -> None:
        super().__init__(every_n_steps, **options)
        self.num_blocks = arguments.at_least("num_blocks", num_blocks, 1)

    def choose(self, window: Window) -> Iterable[str]:
        """Draw uniformly, without replacement, from the blocks that no other callback holds."""
        if self.num_blocks > len(window.units):
            raise ValueError(f"num_blocks={self.num_blocks}, and {len(window.units)} blocks can train.")
        return window.random.sample(window.free, min(self.num_blocks, len(window.free)))
