"""Rows of one's own as sequences for each of the three tasks, decoded again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers.experiments.data.rows import RowFiles
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, cached_tokenizer
from lighter_freezers.experiments.tasks.language_model import RowTextsTask
from lighter_freezers.experiments.tasks.sequence_scores import ScoredTextsTask
from lighter_freezers.experiments.tasks.token_classes import LabelledWordsTask

IGNORED = torch.nn.CrossEntropyLoss().ignore_index
TEXTS = ["thaw the head", "é 漢 😀", "<eos>", "hold the layer and thaw the other layer"]


def files(folder: Path, train: list[dict[str, Any]], val: list[dict[str, Any]] | None = None) -> RowFiles:
    """The rows in JSONL files."""
    for name, rows in (("train", train), ("val", train if val is None else val)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowFiles(folder / "train.jsonl", folder / "val.jsonl")


def tokenizer_of(task: Any, folder: Path) -> TextTokenizer:
    """A token for each byte."""
    return cached_tokenizer(task.corpus, 257, folder / "cache")


def test_a_text_is_a_sequence(tmp_path: Path) -> None:
    """`<eos>` comes before it and is the last target; its bytes are counted, those of padding are not."""
    task = RowTextsTask(files(tmp_path, [{"text": text} for text in TEXTS]))
    tokenizer = tokenizer_of(task, tmp_path)
    batch = task.sequences("val", tokenizer, 100, None)[range(4)]

    assert task.corpus.train == tuple(TEXTS)
    assert batch["num_bytes"].tolist() == [len(text.encode()) for text in TEXTS]
    for text, ids, targets, mask in zip(
        TEXTS, batch["input_ids"], batch["targets"], batch["attention_mask"], strict=True
    ):
        assert ids[mask].tolist() == [tokenizer.eos_id, *tokenizer.encode(text)]
        assert targets[mask].tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
        assert set(targets[~mask].tolist()) <= {IGNORED}


def test_a_long_text_goes_on_in_the_next_sequence(tmp_path: Path) -> None:
    """No token of it is lost, and each is a target once."""
    task = RowTextsTask(files(tmp_path, [{"text": text} for text in TEXTS]))
    tokenizer = tokenizer_of(task, tmp_path)
    sequences = task.sequences("train", tokenizer, 5, None)
    batch = sequences[range(len(sequences))]
    targets = batch["targets"][batch["targets"] != IGNORED].tolist()

    assert targets == [index for text in TEXTS for index in (*tokenizer.encode(text), tokenizer.eos_id)]
    assert batch["input_ids"].shape == (len(sequences), 5)
    assert int(batch["num_bytes"].sum()) == sum(len(text.encode()) for text in TEXTS)
    assert "rows longer than block_size=5: 4 of 4, continued in the next sequence" in sequences.describe()


WORDS = [
    {"tokens": ["Ada", "sleeps", "in", "São Paulo", "😀"], "labels": ["PER", "O", "O", "LOC", "O"]},
    {"tokens": ["no"], "labels": ["O"]},
]


def test_the_first_token_of_each_word_has_its_label(tmp_path: Path) -> None:
    """The words come back from the tokens, each from one with a label and those without that follow."""
    task = LabelledWordsTask(files(tmp_path, WORDS))
    tokenizer = tokenizer_of(task, tmp_path)
    batch = task.sequences("val", tokenizer, 100, None)[[0, 1]]

    assert task.class_names == ("LOC", "O", "PER")
    for row, ids, targets, mask in zip(
        WORDS, batch["input_ids"], batch["targets"], batch["attention_mask"], strict=True
    ):
        words: list[list[int]] = []
        labels = []
        for index, label in zip(ids[mask].tolist(), targets[mask].tolist(), strict=True):
            if label != IGNORED:
                words.append([])
                labels.append(task.class_names[label])
            words[-1].append(index)
        assert [tokenizer.decode(word).strip() for word in words] == row["tokens"]
        assert labels == row["labels"]
        assert tokenizer.decode(ids[mask].tolist()) == " ".join(row["tokens"])


def test_long_rows_of_words_are_cut(tmp_path: Path) -> None:
    """After `block_size` tokens, and the log line counts them."""
    task = LabelledWordsTask(files(tmp_path, WORDS))
    tokenizer = tokenizer_of(task, tmp_path)
    whole, cut = (task.sequences("train", tokenizer, size, None) for size in (100, 4))

    assert torch.equal(cut[[0]]["input_ids"], whole[[0]]["input_ids"][:, :4])
    assert torch.equal(cut[[0]]["targets"], whole[[0]]["targets"][:, :4])
    assert cut.describe().endswith("rows longer than block_size=4: 1 of 2, cut")
    assert "longer" not in whole.describe()


def test_given_names_order_the_classes(tmp_path: Path) -> None:
    """Also with one that the file does not have; one that it has must be among them."""
    task = LabelledWordsTask(files(tmp_path, WORDS), ("O", "PER", "LOC", "ORG"))
    batch = task.sequences("train", tokenizer_of(task, tmp_path), 100, None)[[0]]
    assert batch["targets"][batch["targets"] != IGNORED].tolist() == [1, 0, 0, 2, 0]

    few = LabelledWordsTask(files(tmp_path, WORDS), ("O", "PER"))
    with pytest.raises(ValueError, match=r"line 1, field 'labels\[3\]': expected a class of class_names"):
        few.sequences("train", tokenizer_of(few, tmp_path), 100, None)


def test_a_label_that_training_does_not_have_is_refused(tmp_path: Path) -> None:
    """The error names the line of the validation file and where the classes are from."""
    task = LabelledWordsTask(files(tmp_path, WORDS, [WORDS[1], {"tokens": ["x"], "labels": ["ORG"]}]))

    with pytest.raises(
        ValueError,
        match=r"val\.jsonl, line 2, field 'labels\[0\]': expected a class of .*train\.jsonl \(LOC, O, PER\)",
    ):
        task.sequences("val", tokenizer_of(task, tmp_path), 100, None)


def test_a_scored_text_begins_with_cls(tmp_path: Path) -> None:
    """A token that no text has, then the text, cut after `block_size` with it."""
    rows = [{"text": text, "score": index / 3} for index, text in enumerate(TEXTS)]
    task = ScoredTextsTask(files(tmp_path, rows))
    tokenizer = tokenizer_of(task, tmp_path)
    sequences = task.sequences("val", tokenizer, 11, None)
    batch = sequences[range(4)]

    assert batch["input_ids"][:, 0].tolist() == [tokenizer.vocab_size] * 4
    assert batch["targets"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for text, ids, mask in zip(TEXTS, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask].tolist()[1:] == tokenizer.encode(text)[:10]
    assert sequences.describe().endswith("rows longer than block_size=11 with [CLS]: 3 of 4, cut")


def test_a_split_without_a_file_is_named(tmp_path: Path) -> None:
    """As the test, which may be missing."""
    task = ScoredTextsTask(files(tmp_path, [{"text": "a", "score": 1}]))

    with pytest.raises(ValueError, match="There is no test file. Give `test_file:`"):
        task.sequences("test", tokenizer_of(task, tmp_path), 9, None)


def test_the_tokenizer_learns_from_training_rows_only(tmp_path: Path) -> None:
    """Other rows to validate on leave it as it is."""
    rows = [{"text": text} for text in TEXTS]
    one, two = (RowTextsTask(files(tmp_path, rows, rows[:size])).corpus for size in (1, 2))

    assert one.digest == two.digest
    assert "bytes" in one.describe()
    assert "val" not in one.describe()
