"""GenerationDataModule for `pytorch_lightning`; `lighter_freezers.lightning` has another."""

from pytorch_lightning import LightningDataModule

from lighter_freezers.experiments.training.generation_data import GenerationData

__all__ = ["GenerationDataModule"]


class GenerationDataModule(GenerationData, LightningDataModule):
    """Prompts and answers to fine-tune a causal language model on, and prompts to test it with.

    | `task` | a row | without `source` |
    |---|---|---|
    | `docstrings` | a function -> the first line of its docstring | the standard library, real data |
    | `e2e_nlg` | `mr` -> `ref` | fixtures |
    | `samsum` | `dialogue` -> `summary` | fixtures |
    | `wikisql` | `question` and a table -> SQL | fixtures |
    | `multi_nli` | `premise`, `hypothesis` -> `label` | fixtures |
    | `squad` | paragraph and question -> answer, the JSON of SQuAD 1.1 | fixtures |
    | `sst2` | `sentence` -> `label`, columns between tabs | fixtures |
    | `my_tasks.NEWS` | a `PromptedTask` of your own, imported from there; or the object | none |

    Fixtures are 20 to 50 rows in the format of the data set, written for this package; scores on them mean
    nothing. The same function makes the prompts of training and of evaluation. The answer ends with the
    tokenizer's eos token, and only the answer and its end have labels. Where prompt and answer have more than
    `max_length` tokens, the end of the data in the prompt is cut, never the instruction or the answer; a log
    line states in how many rows. A prompt for generation leaves room for `max_new_tokens`.

    Batches for training and validation are padded on the right: `input_ids`, `attention_mask` and `labels`,
    each (B, T) and not shifted. Batches for test and prediction have each question once, padded on the left:
    `input_ids` and `attention_mask`, (B, T), `prompts`, `references`, all correct answers of each, and
    `answers`, a training batch of all rows of these questions. The padding is the eos token. The order of
    training, also in a resumed run, is that of `TextDataModule`.

    ```python
    GenerationDataModule()                                    # docstrings, our own tokenizer
    GenerationDataModule("e2e_nlg", tokenizer="models/tiny")  # fixtures, a tokenizer of transformers
    GenerationDataModule("samsum", "hub")                     # fetched; needs a network once
    GenerationDataModule("wikisql", "data.tar.bz2")           # the archive of the data set, or a folder
    GenerationDataModule("multi_nli", train_file="train.jsonl", test_file="test.jsonl")  # your own
    ```

    Args:
        task: The name of the task, the import path of a `PromptedTask`, or the object.
        source: `fixture`, `standard_library`, `hub`, `hub:OWNER/NAME`, or the path of a folder or an archive
            with a file for each split. None means the default of the task, or the files below.
        train_file: A .jsonl, .csv or .parquet file of rows to train on, instead of a source.
        val_file: The same to validate on. Without one a tenth of the training rows is held out, by whole
            meaning representations, dialogues, tables, premises or modules.
        test_file: The same for test and prediction. None if there is none.
        tokenizer: A tokenizer of transformers, its folder or its name on the hub; the .json file of a
            byte-level BPE; or `standard_library`. None trains one on the training rows; for the docstrings it
            is that of the standard library.
        vocab_size: Tokens at most of a tokenizer that is trained here, at least 257.
        max_length: Tokens of a prompt with its answer, at most.
        max_new_tokens: Tokens of a generated answer at most, including its end. None means the default of the
            task, 8 to 128.
        batch_size: Rows in a batch of one process.
        num_train_sequences: How many rows to train on, spread evenly over them. None means all.
        num_val_sequences: The same for validation.
        num_test_sequences: How many questions to test on.
        bad_rows: `error` raises at the first row with a missing field, an invalid value, or an answer that
            does not fit into max_length. `drop` leaves such rows out, and logs how many.
        seed: Of the order of training.
        cache_dir: The cache for tokenizers, encoded rows, docstrings and archives. None means
            `$XDG_CACHE_HOME/lighter_freezers` or `~/.cache/lighter_freezers`.
        num_workers: Processes that make batches; 0 makes them in the main process.

    Raises:
        TypeError: An argument has the wrong type, such as a number in quotes.
        ValueError: An argument is out of range, or `source` comes together with files.
    """
