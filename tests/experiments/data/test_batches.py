"""Labels of tokens and padded rows, against arithmetic by hand."""

import numpy as np
import torch

from lighter_freezers.experiments.data.batches import (
    UNLABELLED,
    attention_mask,
    first_token_labels,
    padded,
    token_labels,
)

IGNORED = torch.nn.CrossEntropyLoss().ignore_index  # torch's own


def labels(classes: list[int], *offsets: tuple[int, int]) -> list[int]:
    """Those of tokens at these places."""
    begins, ends = np.array(offsets).T
    return token_labels(np.array(classes, np.uint8), begins, ends).tolist()


def test_a_token_has_the_class_of_its_first_labelled_character() -> None:
    """Blanks before it do not count, and what comes after it does not either."""
    classes = [UNLABELLED, 3, 4, UNLABELLED, UNLABELLED, 5]

    assert labels(classes, (0, 3), (2, 3), (1, 6), (3, 6)) == [3, 4, 3, 5]


def test_a_token_without_a_labelled_character_counts_nothing() -> None:
    """Blanks only, also at the end, and a token of no characters; the next one's class is not taken."""
    classes = [1, UNLABELLED, 2, UNLABELLED]

    assert labels(classes, (1, 2), (3, 4), (0, 0), (2, 2), (4, 4)) == [IGNORED] * 5


def test_the_first_token_of_a_word_has_its_label() -> None:
    """The others count nothing, so a long word weighs as much as a short one."""
    assert first_token_labels([2, 0, 1], [1, 3, 2]) == [2, 0, IGNORED, IGNORED, 1, IGNORED]


def test_rows_are_filled_up_on_the_right() -> None:
    """To the longest, and the mask tells what is real."""
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    mask = attention_mask(rows)

    assert padded(rows, 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_equally_long_rows_need_no_mask() -> None:
    """None is built."""
    assert attention_mask([torch.tensor([1, 2]), torch.tensor([3, 4])]) is None
