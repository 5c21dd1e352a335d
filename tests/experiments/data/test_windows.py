"""Windows of tokens: each token is a target once, and its bytes are counted."""

import pytest
import torch

from lighter_freezers.experiments.data.text_files import text_files
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, cached_tokenizer
from lighter_freezers.experiments.data.windows import TokenWindows
from tests.texts import write_texts

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
