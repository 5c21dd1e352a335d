"""Continues sequences token by token: temperature, top-k, top-p, greedy, end of text."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighter_freezers.arguments import count, fraction, number

__all__ = ["Sampling", "continued", "evaluating"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is out of range.
    """

    temperature: float = 1.0  # divides the logits; 0 always takes the most likely
    top_k: int | None = None  # draw among the k most likely only
    top_p: float | None = None  # draw among the most likely that together reach this probability

    def __post_init__(self) -> None:
        if not 0 <= number("temperature", self.temperature) < math.inf:
            raise ValueError(f"temperature must be at least 0 (0 is greedy). Got {self.temperature}.")
        if self.top_k is not None and not count("top_k", self.top_k):
            raise ValueError(f"top_k must be at least 1, or None. Got {self.top_k}.")
        if self.top_p is not None and not fraction("top_p", self.top_p):
            raise ValueError(f"top_p must be above 0, or None. Got {self.top_p}.")

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The next token of each sequence: (B, V) -> (B, 1)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            threshold = logits.topk(self.top_k, dim=-1).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < threshold, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            logits = logits.masked_fill(_is_in_tail(logits, self.top_p), -math.inf)
        return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator)


def _is_in_tail(logits: Tensor, top_p: float) -> Tensor:
    """Whether the more likely tokens already reach the probability, (B, V); never for the most likely."""
    probabilities, order = logits.float().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    is_in_tail = before >= top_p
    is_in_tail[:, 0] = False
    return torch.empty_like(is_in_tail).scatter_(1, order, is_in_tail)


def continued(
    next_logits: Callable[[Tensor], Tensor],
    input_ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    *,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue sequences.

    Args:
        next_logits: Sequences (B, T) -> logits of the token after them, (B, V).
        input_ids: Their beginnings, (B, T).
        max_new_tokens: How many tokens to add.
        sampling: How to draw them.
        eos_token_id: Ends a sequence, which is then filled up with it.
        generator: The random-number generator. None is torch's own.

    Returns:
        (B, T + max_new_tokens).
    """
    num_tokens = input_ids.shape[1] + max_new_tokens
    is_finished = torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
    while input_ids.shape[1] < num_tokens:
        chosen = sampling.draw(next_logits(input_ids), generator)  # (B, 1)
        if eos_token_id is not None:
            chosen = chosen.masked_fill(is_finished, eos_token_id)
            is_finished = is_finished | (chosen == eos_token_id)
        input_ids = torch.cat((input_ids, chosen), dim=1)
        if eos_token_id is not None and bool(is_finished.all()):
            missing = num_tokens - input_ids.shape[1]
            return torch.nn.functional.pad(input_ids, (0, missing), value=eos_token_id)
    return input_ids


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch a module to eval mode in a `with` block; each submodule gets its own mode back."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
