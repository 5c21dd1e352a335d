"""TokenLabelDataModule for the Trainer of `pytorch_lightning`; `lighter_freezers.lightning` has the other."""

from pytorch_lightning import LightningDataModule

from lighter_freezers.experiments.training.labelled_data import TokenLabelData

__all__ = ["TokenLabelDataModule"]


class TokenLabelDataModule(TokenLabelData, LightningDataModule):
    """Batches for a token classifier: Python source with a class for each token, or your own labelled words.

    Without files it is the standard library that `TextDataModule` reads, with the same tokenizer and windows,
    so that a checkpoint pretrained there fits. The ten classes come from `tokenize` and `ast`: other,
    keyword, string, comment, def, call, attr, param, name, number; a token has the class of its first
    character that has one, and white space outside strings and comments is ignored. All modules are labelled
    the first time, which takes seconds, and the labels are cached.

    Rows of your own are words with the name of a class each: `{"tokens": ["Ada", "sleeps"], "labels":
    ["PERSON", "O"]}` in a JSONL file, or columns `tokens` and `labels` separated by spaces in a CSV file. The
    words are joined by spaces. The first token of a word has its label, its others are ignored. A row longer
    than `block_size` is cut, and a log line states how many were.

    Batches are dicts of `input_ids` (B, T), `targets` (B, T) and, only where a row is shorter than another,
    `attention_mask` (B, T), True for real tokens. Their order is that of `TextDataModule`.

    ```python
    TokenLabelDataModule(num_train_sequences=64)                       # few labels: pretraining helps
    TokenLabelDataModule("train.jsonl", "val.jsonl", "test.jsonl")     # your own
    TokenLabelDataModule("train.csv", "val.csv", tokenizer="standard_library")  # of a pretrained model
    ```

    Args:
        train_file: A .jsonl or .csv file of rows to train on. None means the standard library.
        val_file: The same to validate on; goes with `train_file`.
        test_file: The same for test and prediction. None if there is none.
        class_names: The names of the classes in your files, in the order of their numbers. None collects them
            from `train_file`, in alphabetical order.
        tokenizer: As in `TextDataModule`.
        vocab_size: Tokens at most, at least 257; a small text gives fewer. Not used with a tokenizer file.
        block_size: Tokens in a sequence, at most.
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
