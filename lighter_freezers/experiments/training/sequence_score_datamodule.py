"""SequenceScoreDataModule for `pytorch_lightning`; `lighter_freezers.lightning` has another."""

from pytorch_lightning import LightningDataModule

from lighter_freezers.experiments.training.labelled_data import SequenceScoreData

__all__ = ["SequenceScoreDataModule"]


class SequenceScoreDataModule(SequenceScoreData, LightningDataModule):
    """Batches for a sequence scorer: Python source and its share of documentation, or your own scored texts.

    Without files it is the standard library that `TextDataModule` reads, with the same tokenizer, so that a
    checkpoint pretrained there fits. A sequence is [CLS] and `block_size` - 1 tokens; its score is the share
    of their characters, white space included, in comments and strings. All modules are labelled the
    first time, which takes seconds, and the labels are kept in the cache.

    Rows of your own are a text with a score from 0 to 1: `{"text": "Well made.", "score": 0.9}` in a JSONL
    file, or columns `text` and `score` in a CSV file. A row longer than `block_size` with its [CLS] is cut,
    and a log line states how many were.

    Batches are dicts of `input_ids` (B, T), `targets` (B,) and, only where a row is shorter than another,
    `attention_mask` (B, T), True for real tokens. Their order is that of `TextDataModule`.

    ```python
    SequenceScoreDataModule(num_train_sequences=400)
    SequenceScoreDataModule("train.csv", "val.csv", "test.csv")        # your own
    SequenceScoreDataModule("train.csv", "val.csv", tokenizer="standard_library")  # of a pretrained model
    ```

    Args:
        train_file: A .jsonl or .csv file of rows to train on. None means the standard library.
        val_file: The same to validate on; goes with `train_file`.
        test_file: The same for test and prediction. None if there is none.
        cls_token_id: The id of [CLS]. None takes the first id after those of the tokenizer, which no text
            contains; `vocab_size` is then one more than the tokenizer's.
        tokenizer: As in `TextDataModule`.
        vocab_size: Tokens at most, at least 257, without [CLS]; a small text gives fewer. Not used with a
            tokenizer file.
        block_size: Tokens in a sequence, at most and with [CLS]; at least 2.
        batch_size: Sequences in a batch of one process.
        num_train_sequences: How many sequences to train on, spread evenly over the text. None means all.
        num_val_sequences: The same for validation.
        num_test_sequences: The same for the test.
        seed: Of the order of training.
        cache_dir: The cache for tokenizer, encoded text and labels. None means
            `$XDG_CACHE_HOME/lighter_freezers` or `~/.cache/lighter_freezers`.
        num_workers: Processes that make batches; 0 makes them in the main process.

    Raises:
        TypeError: An argument has the wrong type, such as a number in quotes.
        ValueError: An argument is out of range, or a required file is not given.
    """
