"""Batches of rows of different lengths."""

import torch

from lighter_freezers.experiments.data.padded_rows import EncodedRow, PaddedRows, about_long_rows

IGNORED = torch.nn.CrossEntropyLoss().ignore_index


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
