"""A byte-level BPE, trained on the corpus in this process; it and what it encodes are kept in a cache."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lighter_freezers._extras import require
from lighter_freezers._log import log
from lighter_freezers.experiments.data.cache import Ids, cache_folder, encoded_once, keep
from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.reports.whole_files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["END_OF_TEXT", "MIN_VOCAB_SIZE", "TextTokenizer", "cached_tokenizer", "tokenizer_of_file"]

END_OF_TEXT = "<eos>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|endoftext|>", "</s>")  # of ours, GPT-2 and RoBERTa
MIN_VOCAB_SIZE = 256 + 1  # all bytes, and <eos>
PROBE = "Two  words,\n\ttab e\u0301 \u6f22 \U0001f600 <eos> "  # a text that any normalisation would change


class TextTokenizer:
    """Encodes text as token ids and decodes them, without loss.

    Each token but `<eos>` has a fixed number of bytes, so a loss per token can be converted to one per byte.
    The five characters `<eos>` in a text are plain text.

    Args:
        bpe: A byte-level BPE with the special token that ends a text.
        end_of_text: That token.
        cache_dir: The cache folder for encoded texts. None means that of this package.
    """

    def __init__(
        self, bpe: tokenizers.Tokenizer, end_of_text: str = END_OF_TEXT, cache_dir: Path | None = None
    ) -> None:
        bpe.encode_special_tokens = True  # encode the characters "<eos>" as plain text
        self._bpe = bpe
        self._end_of_text = end_of_text
        self.cache_dir = cache_dir
        self.vocab_size = bpe.get_vocab_size()
        self.eos_id = bpe.get_vocab()[end_of_text]

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[tokenizers.Tokenizer, str, Path | None]]:
        # pickling loses what __init__ sets on the BPE
        return TextTokenizer, (self._bpe, self._end_of_text, self.cache_dir)

    def encode(self, text: str) -> list[int]:
        """The ids of the tokens of a text."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the tokens of each of several texts."""
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_once(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, encoded once and kept in the cache."""
        fingerprint = hashlib.sha256(f"{tokenizers.__version__} {self._bpe.to_str()}".encode()).hexdigest()
        return encoded_once(texts, fingerprint, self.encode_all, cache_folder(self.cache_dir))

    def stream(self, texts: Sequence[str]) -> Ids:
        """The ids of all texts as `<eos> text <eos> text <eos>`, encoded once and kept in the cache."""
        end = np.array([self.eos_id], dtype=np.int32)
        return np.concatenate([end, *(part for ids in self.encode_once(texts) for part in (ids, end))])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; `<eos>` has none."""
        return str(self._bpe.decode(list(ids), skip_special_tokens=True))

    def bytes_per_token(self) -> list[int]:
        """The number of bytes of each token, by id."""
        ids = self._bpe.get_vocab()
        tokens = sorted(ids, key=lambda token: ids[token])
        num_bytes = [len(token) for token in tokens]  # one character per byte
        for index, added in self._bpe.get_added_tokens_decoder().items():
            num_bytes[index] = 0 if added.special else len(added.content.encode())
        return num_bytes

    def for_transformers(self) -> "PreTrainedTokenizerFast":
        """A tokenizer of transformers that puts the end of a text before each, as `stream` does.

        Raises:
            ImportError: transformers is not installed.
        """
        require("A tokenizer of transformers", "transformers")
        from transformers import PreTrainedTokenizerFast

        bpe, mark = tokenizers.Tokenizer.from_str(self._bpe.to_str()), self._end_of_text
        ends = [(mark, self.eos_id)]
        bpe.post_processor = processors.TemplateProcessing(single=f"{mark} $A", special_tokens=ends)
        special = {"bos_token": mark, "eos_token": mark}
        return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)  # type: ignore[no-untyped-call]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write a `tokenizers` file, for the argument `tokenizer:` of another data module."""
        write_whole(os.fspath(file), self._bpe.to_str(pretty=True))


def cached_tokenizer(corpus: Corpus, vocab_size: int, cache_dir: Path | None = None) -> TextTokenizer:
    """Load the tokenizer of a corpus from the cache, or train it on the training split and cache it.

    Several processes may call this at once: a file is written under another name and then renamed, and
    training gives the same file each time.

    Args:
        corpus: The text.
        vocab_size: Tokens at most; a small text gives fewer.
        cache_dir: The cache folder. None means `$XDG_CACHE_HOME/lighter_freezers`, or
            `~/.cache/lighter_freezers` without that variable.

    Raises:
        RuntimeError: The folder is not writable.
    """
    file = cache_folder(cache_dir) / f"bpe-{corpus.digest[:16]}-{vocab_size}-{tokenizers.__version__}.json"
    bpe = _load(file)
    if bpe is None:
        bpe = _train(corpus.train, vocab_size)
        keep(file, bpe.to_str().encode())
    return TextTokenizer(bpe, cache_dir=cache_dir)


def tokenizer_of_file(file: Path, cache_dir: Path | None = None) -> TextTokenizer:
    """Load a byte-level BPE saved by another run or by `tokenizers`, such as GPT-2's `tokenizer.json`.

    Args:
        file: The file.
        cache_dir: The cache folder for what it encodes. None means that of this package.

    Raises:
        ValueError: There is no such file, or its tokenizer is not lossless.
    """
    if not file.is_file():
        raise ValueError(
            f"Tokenizer {file} does not exist (working directory: {Path.cwd()}). Give the .json file that "
            "`data.tokenizer.save(...)` or the package tokenizers has written, or `standard_library`."
        )
    try:
        bpe = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception, whatever is wrong with the file
        raise ValueError(f"{file} is not a file of the package tokenizers: {error}.") from error
    bpe.no_padding()
    bpe.no_truncation()
    end_of_text = next((mark for mark in ENDS_OF_TEXT if bpe.token_to_id(mark) is not None), None)
    if end_of_text is None:
        raise ValueError(f"{file} has no token that ends a text: none of {', '.join(ENDS_OF_TEXT)}.")
    tokenizer = TextTokenizer(bpe, end_of_text, cache_dir)
    if not _is_lossless(tokenizer):
        raise ValueError(
            f"{file} does not give each text back as it was, byte for byte, so neither losses per byte nor "
            "labels could be told. Give a byte-level BPE without a normaliser, as GPT-2's."
        )
    return tokenizer


def _is_lossless(tokenizer: TextTokenizer) -> bool:
    """Whether every id has a token, and a text with many kinds of characters decodes byte for byte."""
    if sorted(tokenizer._bpe.get_vocab().values()) != list(range(tokenizer.vocab_size)):
        return False
    ids, num_bytes = tokenizer.encode(PROBE), tokenizer.bytes_per_token()
    return tokenizer.decode(ids) == PROBE and sum(num_bytes[index] for index in ids) == len(PROBE.encode())


def _load(file: Path) -> tokenizers.Tokenizer | None:
    """Load a tokenizer; None where the file is missing or damaged."""
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
