"""A byte-level BPE tokenizer, trained on the corpus in this process and kept in a cache folder."""

import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lighter_freezers._log import log
from lighter_freezers.experiments.data.cache import cache_folder, keep
from lighter_freezers.experiments.data.corpus import Corpus

__all__ = ["END_OF_TEXT", "MIN_VOCAB_SIZE", "TextTokenizer", "cached_tokenizer", "tokenizer_of_file"]

END_OF_TEXT = "<eos>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|endoftext|>", "</s>")  # ours, GPT-2's, RoBERTa's
MIN_VOCAB_SIZE = 256 + 1  # every byte, and the mark between documents
PROBE = "Two  words,\n\ttab e\u0301 \u6f22 \U0001f600 <eos> "  # what tidying up would change


class TextTokenizer:
    """Turns text into token ids and back, without loss.

    Each token but `<eos>` stands for a fixed number of bytes, so a loss per token can be told per byte.
    A text that contains the five characters `<eos>` is text like any other.

    Args:
        bpe: A byte-level BPE with the special token that ends a text.
        end_of_text: That token.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, end_of_text: str = END_OF_TEXT) -> None:
        bpe.encode_special_tokens = True  # encode the characters "<eos>" as characters
        self._bpe = bpe
        self._end_of_text = end_of_text
        self.vocab_size = bpe.get_vocab_size()
        self.eos_id = bpe.get_vocab()[end_of_text]

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[tokenizers.Tokenizer, str]]:
        return TextTokenizer, (self._bpe, self._end_of_text)  # what __init__ sets on the BPE is not pickled

    def encode(self, text: str) -> list[int]:
        """The ids of the tokens of a text."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the tokens of each of several texts."""
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def stream(self, texts: Sequence[str]) -> list[int]:
        """The ids of `<eos> text <eos> text <eos>`."""
        ids = [self.eos_id]
        for text in self.encode_all(texts):
            ids += [*text, self.eos_id]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for; `<eos>` stands for none."""
        return str(self._bpe.decode(list(ids), skip_special_tokens=True))

    def bytes_per_token(self) -> list[int]:
        """How many bytes of text each token stands for, by id."""
        ids = self._bpe.get_vocab()
        tokens = sorted(ids, key=lambda token: ids[token])
        num_bytes = [len(token) for token in tokens]  # one character a byte
        for index, added in self._bpe.get_added_tokens_decoder().items():
            num_bytes[index] = 0 if added.special else len(added.content.encode())
        return num_bytes

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write a `tokenizers` file, for the argument `tokenizer:` of another data module."""
        self._bpe.save(os.fspath(file))


def cached_tokenizer(corpus: Corpus, vocab_size: int, cache_dir: Path | None = None) -> TextTokenizer:
    """Load the tokenizer of a corpus, or train it on the training split and keep it.

    Several processes may ask at once: a file is written under another name and then renamed, and training
    gives the same file each time.

    Args:
        corpus: The text.
        vocab_size: Tokens at most; a small text gives fewer.
        cache_dir: Folder to keep tokenizers in. None means `$XDG_CACHE_HOME/lighter_freezers`, or
            `~/.cache/lighter_freezers` without that variable.

    Raises:
        RuntimeError: The folder cannot be written.
    """
    file = cache_folder(cache_dir) / f"bpe-{corpus.digest[:16]}-{vocab_size}-{tokenizers.__version__}.json"
    bpe = _load(file)
    if bpe is None:
        bpe = _train(corpus.train, vocab_size)
        keep(file, bpe.to_str().encode())
    return TextTokenizer(bpe)


def tokenizer_of_file(file: Path) -> TextTokenizer:
    """Load a byte-level BPE that another run, or `tokenizers`, has saved, such as GPT-2's `tokenizer.json`.

    Raises:
        ValueError: There is no such file, or it holds no tokenizer that gives each text back as it was.
    """
    if not file.is_file():
        raise ValueError(
            f"The tokenizer {file} does not exist (seen from {Path.cwd()}). Give the .json file that "
            "`data.tokenizer.save(...)` or the package tokenizers has written, or `standard_library`."
        )
    try:
        bpe = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception, whatever is wrong with the file
        raise ValueError(f"{file} is no file of the package tokenizers: {error}.") from error
    bpe.no_padding()
    bpe.no_truncation()
    end_of_text = next((mark for mark in ENDS_OF_TEXT if bpe.token_to_id(mark) is not None), None)
    if end_of_text is None:
        raise ValueError(f"{file} has no token that ends a text: none of {', '.join(ENDS_OF_TEXT)}.")
    tokenizer = TextTokenizer(bpe, end_of_text)
    if not _is_lossless(tokenizer):
        raise ValueError(
            f"{file} does not give each text back as it was, byte for byte, so neither losses per byte nor "
            "labels could be told. Give a byte-level BPE without a normaliser, as GPT-2's."
        )
    return tokenizer


def _is_lossless(tokenizer: TextTokenizer) -> bool:
    """Every id has a token, and a text of many kinds of characters comes back, with all its bytes counted."""
    if sorted(tokenizer._bpe.get_vocab().values()) != list(range(tokenizer.vocab_size)):
        return False
    ids, num_bytes = tokenizer.encode(PROBE), tokenizer.bytes_per_token()
    return tokenizer.decode(ids) == PROBE and sum(num_bytes[index] for index in ids) == len(PROBE.encode())


def _load(file: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a file; None where there is no file, or a damaged one."""
    if not file.exists():
        return None
    try:
        bpe = tokenizers.Tokenizer.from_file(str(file))
    except Exception:  # the Rust library raises plain Exception, whatever is wrong with the file
        bpe = None
    if bpe is None or bpe.token_to_id(END_OF_TEXT) is None or bpe.get_vocab_size() < MIN_VOCAB_SIZE:
        log.warning("The cached tokenizer %s is damaged; it is trained again.", file)
        return None
    return bpe


def _train(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe
