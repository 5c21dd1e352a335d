"""A text cut into windows of equally many tokens, and for each token the one that follows it."""

from collections.abc import Sequence

import torch

from lighter_freezers.experiments.data.sequences import Batch, Sequences, window_starts
from lighter_freezers.experiments.data.tokenizer import TextTokenizer

__all__ = ["TokenWindows"]


class TokenWindows(Sequences):
    """Windows of a token stream, side by side, indexed by lists of window numbers.

    The stream is `<eos> document <eos> document <eos>`. What is left at its end, less than a window, is left
    out.

    Args:
        documents: Texts.
        tokenizer: Turns them into tokens.
        block_size: Tokens in a window.
        num_windows: How many windows to keep, spread evenly over the text. None keeps all.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: TextTokenizer,
        block_size: int,
        num_windows: int | None = None,
    ) -> None:
        self._tokens = torch.tensor(tokenizer.stream(documents))
        self.num_tokens = len(self._tokens)
        self._bytes_per_token = torch.tensor(tokenizer.bytes_per_token())
        self._starts = window_starts(self.num_tokens, block_size, num_windows)
        self._offsets = torch.arange(block_size + 1)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these B windows of T tokens: input_ids, targets and num_bytes of the targets."""
        starts = self._starts[torch.as_tensor(indices)]
        windows = self._tokens[starts[:, None] + self._offsets]  # (B, T + 1)
        targets = windows[:, 1:].contiguous()
        return {
            "input_ids": windows[:, :-1].contiguous(),  # (B, T)
            "targets": targets,  # (B, T)
            "num_bytes": self._bytes_per_token[targets].sum(dim=1),  # (B,)
        }

    def describe(self) -> str:
        """As `36 sequences of 128 tokens`."""
        return f"{len(self):,} sequences of {len(self._offsets) - 1} tokens"
