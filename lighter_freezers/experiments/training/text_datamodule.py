"""TextDataModule for the Trainer of `pytorch_lightning`; `lighter_freezers.lightning` has another."""

from pytorch_lightning import LightningDataModule

from lighter_freezers.experiments.training.text_data import TextData

__all__ = ["TextDataModule"]


class TextDataModule(TextData, LightningDataModule):
    """Batches of text for a language model: the running Python's standard library, or files of your own.

    A byte-level BPE tokenizer is trained on the training split the first time and then cached. The splits
    never share a module (or, from ten files on, a file). Batches are dicts of `input_ids` (B, T), `targets`
    (B, T), the next tokens, and `num_bytes` (B,), the bytes of text in the targets; `<eos>` separates
    documents and has no bytes.

    From `text` all sequences have the same length. From `train_file` and `val_file` each row is a sequence,
    with `<eos>` before it and as its last target; one longer than `block_size` continues in the next. Shorter
    ones are padded on the right to the longest of their batch, which then has `attention_mask` (B, T), True
    for real tokens, and ignored targets after the end.

    The order of training depends on `seed` and the epoch. It is the same on one process and on n with an n-th
    of the batch size, whatever `use_distributed_sampler` is, and a run resumed in mid-epoch continues with
    the next batch.

    ```python
    TextDataModule()                               # the standard library, 16 sequences of 128 tokens
    TextDataModule(text="shakespeare.txt")         # a file, cut 80 / 10 / 10
    TextDataModule(text="novels/", vocab_size=4096)  # all .txt files below a folder
    TextDataModule(train_file="train.jsonl", val_file="val.jsonl")  # rows {"text": "..."}
    TextDataModule(num_train_sequences=64)         # only 64, spread over the text
    ```

    Args:
        text: A UTF-8 .txt file, or a folder with .txt files in it or below it. None means the source of the
            standard library, unless there is a `train_file`.
        vocab_size: Tokens at most, at least 257; a small text gives fewer. Not used with a tokenizer file.
        block_size: Tokens in a sequence, at most.
        batch_size: Sequences in a batch of one process.
        num_train_sequences: How many sequences to train on, spread evenly over the text. None means all.
        num_val_sequences: The same for validation.
        num_test_sequences: The same for the test.
        train_file: A .jsonl or .csv file of rows with a `text`, to train on.
        val_file: The same to validate on; goes with `train_file`.
        test_file: The same for test and prediction. None if there is none.
        tokenizer: `standard_library` for the tokenizer of a model pretrained on that, or a .json file written
            by `data.tokenizer.save(...)` or the package tokenizers. None trains one on the training split.
        seed: Of the order of training.
        cache_dir: The cache for the tokenizer and the encoded text. None means
            `$XDG_CACHE_HOME/lighter_freezers` or `~/.cache/lighter_freezers`.
        num_workers: Processes that make batches; 0 makes them in the main process.

    Raises:
        TypeError: An argument has the wrong type, such as a number in quotes.
        ValueError: An argument is out of range, or `text` comes together with files of rows.
    """
