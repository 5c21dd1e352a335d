"""Labels and rows as tensors: labels of tokens from those of characters, and padding.

The only place that writes the number of positions that count nothing.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["IGNORE_INDEX", "UNLABELLED", "attention_mask", "first_token_labels", "padded", "token_labels"]

IGNORE_INDEX = -100  # what torch's cross-entropy passes over unless told otherwise
UNLABELLED = 255  # a character without a class, as a blank outside of strings

Offsets = npt.NDArray[np.int64]


def token_labels(classes: npt.NDArray[np.uint8], begins: Offsets, ends: Offsets) -> Offsets:
    """The class of each token: that of its first character that has one.

    Args:
        classes: The class of each character of a text, or UNLABELLED.
        begins: Where each token begins in the text, (N,).
        ends: Where it ends, the first character after it, (N,).

    Returns:
        Classes (N,); IGNORE_INDEX for a token without a labelled character.
    """
    places = np.where(classes == UNLABELLED, len(classes), np.arange(len(classes)))
    next_labelled = np.minimum.accumulate(places[::-1])[::-1]  # (characters,)
    firsts = np.append(next_labelled, len(classes))[begins]  # (N,)
    found = np.append(classes, UNLABELLED)[firsts].astype(np.int64)
    return np.where(firsts < ends, found, IGNORE_INDEX)


def first_token_labels(labels: Sequence[int], num_tokens: Sequence[int]) -> list[int]:
    """The labels of the tokens of words: a word's first token has its label, the others count nothing.

    Args:
        labels: The class of each word.
        num_tokens: Into how many tokens each word was cut, at least 1.
    """
    return [
        value
        for label, count in zip(labels, num_tokens, strict=True)
        for value in (label, *[IGNORE_INDEX] * (count - 1))
    ]


def padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    """Rows of up to T numbers as one (B, T) tensor, filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def attention_mask(rows: Sequence[Tensor]) -> Tensor | None:
    """Which positions of the padded rows are real, (B, T) bool; None where all are."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return None
    return torch.arange(longest) < lengths[:, None]
