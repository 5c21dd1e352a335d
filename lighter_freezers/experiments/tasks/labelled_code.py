"""The standard library as one stream of tokens with a class each; the classes are cached.

`token_classes.py` and `sequence_scores.py` define the tasks.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighter_freezers.experiments.data.batches import token_labels
from lighter_freezers.experiments.data.cache import Arrays, cache_folder, kept_arrays
from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.tokenizer import TextTokenizer
from lighter_freezers.experiments.tasks.code_labels import CodeClasses, character_classes, is_documentation

__all__ = ["LabelledCode", "cached_classes"]

VERSION = 2  # of the cached classes: raise it when `character_classes` changes


class LabelledCode:
    """One split of a corpus of ASCII Python source, `<eos> module <eos> module <eos>`, with classes.

    Args:
        corpus: The modules.
        split: `train`, `val` or `test`.
        tokenizer: Encodes them.
        cache_dir: The cache folder for the classes; see `cached_classes`.
    """

    def __init__(
        self, corpus: Corpus, split: str, tokenizer: TextTokenizer, cache_dir: Path | None = None
    ) -> None:
        self._split = split
        self._classes = cached_classes(corpus, split, cache_dir)
        stream = tokenizer.stream(corpus.split(split))
        num_bytes = np.array(tokenizer.bytes_per_token())[stream]
        self._ends = num_bytes.cumsum()  # in characters of the split, which equal bytes in ASCII
        self._begins = self._ends - num_bytes
        assert self._ends[-1] == len(self._classes)
        self.ids = torch.from_numpy(stream).long()  # (N,)

    def check_windows(self, num_windows: int, block_size: int) -> None:
        """Refuse a split without a single window.

        Raises:
            ValueError: There is none; the message says what to lower.
        """
        if not num_windows:
            raise ValueError(
                f"The {self._split} text has {len(self.ids)} tokens: too few for one sequence of block_size="
                f"{block_size}. Lower block_size."
            )

    def labels(self) -> Tensor:
        """The class of each token, (N,); `<eos>` and white space outside strings are ignored."""
        return torch.from_numpy(token_labels(self._classes, self._begins, self._ends))

    def documentation_shares(self, starts: Tensor, num_tokens: int) -> Tensor:
        """The share of characters in strings and comments, for windows of `num_tokens` tokens.

        All characters count, white space too; `<eos>` has none.

        Args:
            starts: The first token of each window, (W,).
            num_tokens: Tokens in a window.

        Returns:
            Shares in [0, 1], (W,).
        """
        num_before = np.concatenate([[0], is_documentation(self._classes).cumsum()])
        firsts = self._begins[starts.numpy()]
        lasts = self._ends[starts.numpy() + num_tokens - 1]
        shares = (num_before[lasts] - num_before[firsts]) / np.maximum(lasts - firsts, 1)
        return torch.from_numpy(shares).float()


def cached_classes(corpus: Corpus, split: str, cache_dir: Path | None = None) -> CodeClasses:
    """The classes of all characters of a split, module by module: from the cache, or computed and cached.

    Several processes may call this at once.

    Args:
        corpus: The modules.
        split: `train`, `val` or `test`.
        cache_dir: The cache folder. None means that of the tokenizers.

    Raises:
        SyntaxError: A module is not valid Python.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"classes-{corpus.digest[:16]}-{split}-python{python}-v{VERSION}.npz"

    def build() -> Arrays:
        return {"classes": np.concatenate([character_classes(module) for module in corpus.split(split)])}

    kept = kept_arrays(cache_folder(cache_dir) / name, build, ("classes",))
    return kept["classes"].astype(np.uint8, copy=False)
