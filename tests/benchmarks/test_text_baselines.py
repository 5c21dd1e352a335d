"""The baselines: right where it can be worked out by hand, and printed by a command."""

import gzip
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.text_baselines import PRIOR, bigram_bits, compressed_bits, unigram_bits
from tests.texts import write_texts


def test_the_unigram_by_hand() -> None:
    """Three of one symbol and one of the other, one added to each."""
    bits = unigram_bits(np.array([0, 0, 0, 1]), np.array([0, 1]), num_symbols=2)

    assert bits == pytest.approx(-math.log2(4 / 6) - math.log2(2 / 6))


def test_the_bigram_by_hand() -> None:
    """The first symbol by the unigram, the second given the first."""
    bits = bigram_bits(np.array([0, 1, 0, 1]), np.array([0, 1]), num_symbols=2)

    assert bits == pytest.approx(-math.log2(0.5) - math.log2((2 + PRIOR / 2) / (2 + PRIOR)))


def test_probabilities_sum_to_one() -> None:
    """After each symbol, also one that was never seen."""
    train = np.array([0, 1, 2, 1, 0, 0])
    for first in range(4):
        unigram = unigram_bits(train, np.array([first]), 4)
        both = [bigram_bits(train, np.array([first, second]), 4) for second in range(4)]

        assert sum(2 ** (unigram - bits) for bits in both) == pytest.approx(1.0)


def test_a_context_helps_a_compressor() -> None:
    """What was seen before costs less."""
    text = bytes(range(256)) * 2

    assert compressed_bits(gzip.compress, text, context=text) < compressed_bits(gzip.compress, text) / 4


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    """Sizes, digest, Python version and a figure for each baseline, in a sensible order."""
    text = write_texts(tmp_path / "texts")
    command = [sys.executable, "-W", "error", "-m", "benchmarks.text_baselines"]
    run = subprocess.run(
        [*command, "--text", str(text), "--cache-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = {line[9:].strip(): float(line[2:7]) for line in run.stdout.splitlines() if line[3:4] == "."}

    assert "Digest: " in run.stdout
    assert f"Python {sys.version.split()[0]}" in run.stdout
    assert len(figures) == 7
    assert figures["bigram of bytes"] < figures["unigram of bytes"] < 8
