"""Labels of tokens, windows of text and padded rows, against arithmetic by hand."""

import numpy as np
import pytest
import torch

from lighter_freezers.experiments.data.batches import (
    UNLABELLED,
    EncodedRow,
    PaddedRows,
    TokenWindows,
    about_long_rows,
    attention_mask,
    evenly_spread,
    first_token_labels,
    padded,
    token_labels,
    window_starts,
)
from lighter_freezers.experiments.data.text_files import text_files
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, cached_tokenizer
from tests.texts import write_texts

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


@pytest.mark.parametrize(
    ("total", "limit", "kept"),
    [
        (5, None, [0, 1, 2, 3, 4]),
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),
        (3, 9, [0, 1, 2]),
        (0, 4, []),
    ],
)
def test_what_is_kept_is_spread_evenly(total: int, limit: int | None, kept: list[int]) -> None:
    """Over all there is; a limit beyond the end changes nothing."""
    assert evenly_spread(total, limit).tolist() == kept


def test_starts_of_windows_lie_side_by_side() -> None:
    """Each has a token after it, and what is left over is left out."""
    assert window_starts(13, 4, None).tolist() == [0, 4, 8]
    assert window_starts(12, 4, None).tolist() == [0, 4]
    assert window_starts(41, 4, 5).tolist() == [0, 8, 16, 24, 32]


def rows(*lengths: int, is_scored: bool = False, num_bytes: int | None = None) -> list[EncodedRow]:
    """Rows of so many tokens, numbered from 1, with targets ten times as large."""
    return [
        EncodedRow(
            torch.arange(1, length + 1),
            torch.tensor(length / 10) if is_scored else 10 * torch.arange(1, length + 1),
            num_bytes,
        )
        for length in lengths
    ]


def test_a_batch_is_as_long_as_its_longest_row() -> None:
    """Not as the longest of the file; what is after the end of a row counts nothing."""
    batch = PaddedRows(rows(2, 3, 9), "", None, pad_id=7)[[1, 0]]

    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 7]]
    assert batch["targets"].tolist() == [[10, 20, 30], [10, 20, IGNORED]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, True, False]]
    assert set(batch) == {"input_ids", "targets", "attention_mask"}


def test_equally_long_rows_have_no_mask() -> None:
    """Then nothing is padded."""
    batch = PaddedRows(rows(3, 3, num_bytes=5), "", None, pad_id=7)[[0, 1]]

    assert set(batch) == {"input_ids", "targets", "num_bytes"}
    assert batch["num_bytes"].tolist() == [5, 5]


def test_a_target_for_the_row_is_not_padded() -> None:
    """Scores are one number a row."""
    batch = PaddedRows(rows(2, 3, is_scored=True), "", None, pad_id=7)[[0, 1]]

    assert torch.equal(batch["targets"], torch.tensor([0.2, 0.3]))


def test_a_limit_spreads_over_the_file() -> None:
    """Every n-th row rather than the first ones."""
    kept = PaddedRows(rows(*range(1, 11)), "", 5, pad_id=0)

    assert [len(kept[[index]]["input_ids"][0]) for index in range(len(kept))] == [1, 3, 5, 7, 9]


def test_the_log_line_tells_how_many_are_too_long() -> None:
    """And nothing if none is."""
    remark = about_long_rows(2, 30, "block_size=4", "cut")

    assert PaddedRows(rows(1, 4), remark, None, 0).describe() == (
        "2 sequences of 1 to 4 tokens; rows longer than block_size=4: 2 of 30, cut"
    )
    assert about_long_rows(0, 30, "block_size=4", "cut") == ""


DOCUMENTS = ["thaw head", "é 漢 😀", "layer 1 <eos>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("texts")
    return cached_tokenizer(text_files(write_texts(folder)), 270, folder / "cache")


def test_targets_are_the_tokens_that_follow(tokenizer: TextTokenizer) -> None:
    """Windows of one token: the stream, shifted by one, with `<eos>` around each document."""
    windows = TokenWindows(DOCUMENTS, tokenizer, block_size=1)
    batch = windows[range(len(windows))]
    stream = [i for document in DOCUMENTS for i in (*tokenizer.encode(document), tokenizer.eos_id)]

    assert batch["targets"].flatten().tolist() == stream
    assert batch["input_ids"].flatten().tolist() == [tokenizer.eos_id, *stream[:-1]]
    assert int(batch["num_bytes"].sum()) == sum(len(document.encode()) for document in DOCUMENTS)


def test_windows_lie_side_by_side(tokenizer: TextTokenizer) -> None:
    """What is left at the end is left out, and each row counts its own bytes."""
    windows = TokenWindows(DOCUMENTS, tokenizer, block_size=5)
    batch = windows[range(len(windows))]
    num_bytes = torch.tensor(tokenizer.bytes_per_token())

    assert len(windows) == (windows.num_tokens - 1) // 5
    assert torch.equal(batch["input_ids"].flatten()[1:], batch["targets"].flatten()[:-1])
    assert torch.equal(batch["num_bytes"], num_bytes[batch["targets"]].sum(dim=1))
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_a_limit_spreads_over_the_text(tokenizer: TextTokenizer) -> None:
    """Every n-th window rather than the first ones; a limit beyond the end changes nothing."""
    whole = TokenWindows(DOCUMENTS * 8, tokenizer, block_size=4)
    half = TokenWindows(DOCUMENTS * 8, tokenizer, block_size=4, num_windows=len(whole) // 2)

    assert len(half) == len(whole) // 2
    assert torch.equal(half[[1]]["input_ids"], whole[[len(whole) // len(half)]]["input_ids"])
    assert len(TokenWindows(DOCUMENTS, tokenizer, block_size=4, num_windows=10**6)) < 100


def test_a_text_that_is_too_short_has_no_window(tokenizer: TextTokenizer) -> None:
    """A window needs the token after it as well."""
    assert len(TokenWindows(["thaw"], tokenizer, block_size=100)) == 0
