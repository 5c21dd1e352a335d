"""Baselines for a language model's bits per byte: n-gram counts and compressors.

Run it: `python -m benchmarks.text_baselines [--text PATH]`.
"""

import argparse
import gzip
import lzma
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lighter_freezers.experiments.data.corpus import SPLITS, Corpus
from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.data.text_files import text_files
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, cached_tokenizer

__all__ = ["bigram_bits", "compressed_bits", "report", "unigram_bits"]

Symbols = npt.NDArray[np.int64]

VOCAB_SIZE = 1024  # as in TextDataModule
PRIOR = 10.0  # the weight of the unigram in a bigram, in counts


def unigram_bits(train: Symbols, test: Symbols, num_symbols: int) -> float:
    """Bits of the test data by the frequencies in the training data, with one count added to each symbol."""
    return float(-np.log2(_frequencies(train, num_symbols)[test]).sum())


def bigram_bits(train: Symbols, test: Symbols, num_symbols: int) -> float:
    """Bits of the whole test data, each symbol given the previous one.

    p(b | a) = (n(a, b) + PRIOR p(b)) / (n(a) + PRIOR), with the unigram p(b); the first symbol by p(b).
    """
    unigram = _frequencies(train, num_symbols)
    pairs = np.bincount(train[:-1] * num_symbols + train[1:], minlength=num_symbols**2)
    before = np.bincount(train[:-1], minlength=num_symbols)
    first, second = test[:-1], test[1:]
    likelihood = (pairs[first * num_symbols + second] + PRIOR * unigram[second]) / (before[first] + PRIOR)
    return float(-np.log2(likelihood).sum() - np.log2(unigram[test[0]]))


def _frequencies(symbols: Symbols, num_symbols: int) -> npt.NDArray[np.float64]:
    counts = np.bincount(symbols, minlength=num_symbols) + 1.0
    return np.asarray(counts / counts.sum())


def compressed_bits(compress: Callable[[bytes], bytes], content: bytes, context: bytes = b"") -> int:
    """Bits that a compressor needs for the content after the context."""
    before = len(compress(context)) if context else 0
    return 8 * (len(compress(context + content)) - before)


def report(corpus: Corpus, tokenizer: TextTokenizer) -> str:
    """The table that the command prints."""
    lines = [f"Text:   {corpus.source} (read by Python {platform.python_version()})"]
    lines += [f"Digest: {corpus.digest}"]
    lines += [
        f"{name:<7} {len(corpus.split(name)):>5} documents {corpus.num_bytes(name):>12,} bytes"
        for name in SPLITS
    ]
    lines += ["", "Bits per byte of the test split, learned from the training split:"]
    num_bytes = corpus.num_bytes("test")
    lines += [f"  {bits / num_bytes:.3f}  {name}" for name, bits in _bits(corpus, tokenizer).items()]
    return "\n".join(lines)


def _bits(corpus: Corpus, tokenizer: TextTokenizer) -> dict[str, float]:
    train, test = (b"".join(text.encode() for text in corpus.split(name)) for name in ("train", "test"))
    train_bytes, test_bytes = (np.frombuffer(text, np.uint8).astype(np.int64) for text in (train, test))
    train_ids, test_ids = (_tokens(corpus.split(name), tokenizer) for name in ("train", "test"))
    size = tokenizer.vocab_size
    return {
        "unigram of bytes": unigram_bits(train_bytes, test_bytes, 256),
        "bigram of bytes": bigram_bits(train_bytes, test_bytes, 256),
        f"unigram of {size} tokens": unigram_bits(train_ids, test_ids, size),
        f"bigram of {size} tokens": bigram_bits(train_ids, test_ids, size),
        "gzip -9 of the test split alone (its window of 32 KB would forget any context)": compressed_bits(
            gzip.compress, test
        ),
        "xz of the test split alone": compressed_bits(lzma.compress, test),
        "xz after the training split: size of both less size of the training split": compressed_bits(
            lzma.compress, test, train
        ),
    }


def _tokens(documents: Sequence[str], tokenizer: TextTokenizer) -> Symbols:
    """All tokens, with <eos> after each document, as for a language model."""
    ids = [index for document in tokenizer.encode_all(documents) for index in (*document, tokenizer.eos_id)]
    return np.array(ids)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Print baselines in bits per byte for a text.")
    parser.add_argument(
        "--text", type=Path, help="a .txt file or a folder of them; default: standard library"
    )
    parser.add_argument("--cache-dir", type=Path, help="folder for the tokenizer; default: ~/.cache")
    options = parser.parse_args()
    corpus = standard_library() if options.text is None else text_files(options.text)
    print(report(corpus, cached_tokenizer(corpus, VOCAB_SIZE, options.cache_dir)))


if __name__ == "__main__":
    _main()
