"""One interface for all tokenizers that encode prompts: our own BPE, and any of transformers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lighter_freezers.experiments.causal_models import Tokenizer, load_tokenizer
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, tokenizer_of_file

__all__ = [
    "PromptTokenizer",
    "check_tokenizer",
    "own_tokenizer",
    "prompt_tokenizer",
    "transformers_tokenizer",
]


class PromptTokenizer(Protocol):
    """What encoding prompts and answers requires of a tokenizer.

    `begins_with` are the tokens that stand before every prompt (`<s>` of a Llama, our own `<eos>`), `eos_id`
    is the token that ends an answer and that fills up what is shorter, `vocab_size` counts all ids.
    """

    begins_with: tuple[int, ...]
    eos_id: int
    vocab_size: int

    @property
    def source(self) -> object:
        """The tokenizer behind this face."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with nothing added; the characters `</s>` in a text are plain text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""


class _TransformersTokenizer:
    """A tokenizer of transformers. It adds its own start of a prompt, but no end."""

    def __init__(self, tokenizer: Tokenizer, begins_with: tuple[int, ...]) -> None:
        self.source = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        self.begins_with = begins_with
        self.vocab_size = len(tokenizer)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.source(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,  # a text longer than the model's limit is cut later
        )
        return [list(ids) for ids in encoded.input_ids]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.source.decode(list(ids), skip_special_tokens=True))


def own_tokenizer(tokenizer: TextTokenizer) -> PromptTokenizer:
    """Wrap a byte-level BPE of ours; a text begins and ends with `<eos>`, as in `TextDataModule`."""
    return _TransformersTokenizer(tokenizer.for_transformers(), (tokenizer.eos_id,))


def transformers_tokenizer(tokenizer: Tokenizer) -> PromptTokenizer:
    """Wrap a tokenizer of transformers.

    Raises:
        TypeError: It is not one.
        ValueError: It has no end-of-text token, so no model could learn to stop.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "eos_token_id"):
        raise TypeError(
            "tokenizer must be a path or a tokenizer of transformers. "
            f"Got {tokenizer!r} ({type(tokenizer).__name__})."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer {type(tokenizer).__name__} has no eos_token, so an answer could not end. "
            "Set it: tokenizer.eos_token = '</s>'."
        )
    alone = list(tokenizer("").input_ids)
    has_begin = tokenizer.bos_token_id is not None and alone[:1] == [tokenizer.bos_token_id]
    return _TransformersTokenizer(tokenizer, (int(tokenizer.bos_token_id),) if has_begin else ())


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Check a tokenizer that is neither a path nor None, before anything is loaded.

    Raises:
        TypeError: It is none of transformers.
        ValueError: It has no end-of-text token.
    """
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        transformers_tokenizer(tokenizer)


def prompt_tokenizer(source: Tokenizer | str | Path) -> PromptTokenizer:
    """Load or wrap a tokenizer: a .json file of `tokenizers`, or transformers' folder, name or object.

    Raises:
        TypeError: It is none of these.
        ValueError: There is none at that path, or it has no end-of-text token.
        ImportError: transformers is not installed.
    """
    if not isinstance(source, (str, Path)):
        return transformers_tokenizer(source)
    if str(source).endswith(".json"):
        return own_tokenizer(tokenizer_of_file(Path(source).expanduser()))
    path = Path(source).expanduser()
    try:
        tokenizer = load_tokenizer(path if path.exists() else source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"No tokenizer of transformers can be loaded from {str(source)!r}: {error} Give a folder that "
            "`tokenizer.save_pretrained(...)` has written, a name on the hub, the .json file of a byte-level "
            "BPE, or leave `tokenizer:` out for one trained on the training rows."
        ) from error
    return transformers_tokenizer(tokenizer)
