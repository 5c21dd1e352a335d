"""A byte-level BPE tokenizer, trained on the corpus in this process and kept in a cache folder."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lighter_freezers._log import log
from lighter_freezers.tasks.corpus import Corpus

__all__ = ["END_OF_TEXT", "MIN_VOCAB_SIZE", "TextTokenizer", "cached_tokenizer"]

END_OF_TEXT = "<eos>"
MIN_VOCAB_SIZE = 256 + 1  # every byte, and the mark between documents


class TextTokenizer:
    """Turns text into token ids and back, without loss.

    Each token but `<eos>` stands for a fixed number of bytes, so a loss per token can be told per byte.
    A text that contains the five characters `<eos>` is text like any other.

    Args:
        bpe: A byte-level BPE with the special token `<eos>`.
    """

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        bpe.encode_special_tokens = True  # encode the characters "<eos>" as characters
        self._bpe = bpe
        self.vocab_size = bpe.get_vocab_size()
        self.eos_id = bpe.get_vocab()[END_OF_TEXT]

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[tokenizers.Tokenizer]]:
        return TextTokenizer, (self._bpe,)  # what __init__ sets on the BPE is not part of its pickle

    def encode(self, text: str) -> list[int]:
        """The ids of the tokens of a text."""
        return list(self._bpe.encode(text).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the tokens of each of several texts."""
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for; `<eos>` stands for none."""
        return str(self._bpe.decode(list(ids), skip_special_tokens=True))

    def bytes_per_token(self) -> list[int]:
        """How many bytes of text each token stands for, by id."""
        ids = self._bpe.get_vocab()
        tokens = sorted(ids, key=lambda token: ids[token])
        return [0 if token == END_OF_TEXT else len(token) for token in tokens]  # one character a byte


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
    folder = _default_cache_dir() if cache_dir is None else cache_dir
    file = folder / f"bpe-{corpus.digest[:16]}-{vocab_size}-{tokenizers.__version__}.json"
    bpe = _load(file)
    if bpe is None:
        bpe = _train(corpus.train, vocab_size)
        _write(file, bpe.to_str())
    return TextTokenizer(bpe)


def _default_cache_dir() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "lighter_freezers"


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


def _write(file: Path, content: str) -> None:
    """Write a file so that no reader ever sees half of it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, suffix=".part", delete=False
        ) as part:
            part.write(content)
        os.replace(part.name, file)
    except OSError as error:
        raise RuntimeError(
            f"The tokenizer cannot be kept in {file.parent}: {error}. Give a folder that can be written: "
            "`cache_dir:`, or the environment variable XDG_CACHE_HOME."
        ) from error
