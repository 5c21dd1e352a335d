"""One interface for all tokenizers that encode prompts: our own BPE, and any of transformers."""

import hashlib
import os
from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from lighter_freezers._log import log
from lighter_freezers.experiments.causal_models import Tokenizer, load_tokenizer
from lighter_freezers.experiments.data.cache import encoded_once
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, tokenizer_of_file

__all__ = [
    "PromptTokenizer",
    "check_tokenizer",
    "kept_tokenizer",
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

    @property
    def fingerprint(self) -> str | None:
        """A digest of all that the ids of a text depend on; None where that is not known."""

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

    @property
    def fingerprint(self) -> str | None:
        kind, rust = type(self.source), getattr(self.source, "backend_tokenizer", None)
        if rust is None or not kind.__module__.startswith("transformers."):  # ids may depend on its code
            return None
        said = f"{kind.__qualname__} {version('transformers')} {version('tokenizers')} {rust.to_str()}"
        return hashlib.sha256(said.encode()).hexdigest()

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


class _KeptTokenizer:
    """A tokenizer that encodes the same texts once, and reads their ids from a folder from then on."""

    def __init__(self, tokenizer: PromptTokenizer, fingerprint: str, folder: Path) -> None:
        self.source = tokenizer.source
        self.begins_with = tokenizer.begins_with
        self.eos_id = tokenizer.eos_id
        self.vocab_size = tokenizer.vocab_size
        self.decode = tokenizer.decode
        self.fingerprint: str | None = fingerprint
        self._kept = partial(
            encoded_once, fingerprint=fingerprint, encode=tokenizer.encode_all, folder=folder
        )

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self._kept(texts)]


def kept_tokenizer(tokenizer: PromptTokenizer, folder: Path) -> PromptTokenizer:
    """The same, with the ids of all texts kept in a folder; unchanged if it has no fingerprint."""
    fingerprint = tokenizer.fingerprint
    if fingerprint is None:
        _say_not_kept(type(tokenizer.source).__name__)
        return tokenizer
    return _KeptTokenizer(tokenizer, fingerprint, folder)


@cache  # one line for all splits
def _say_not_kept(kind: str) -> None:
    log.info(
        "Each start encodes the text again: what %s makes of it may depend on code and packages of its own, "
        "so nothing is kept. Fast tokenizers of transformers, which `AutoTokenizer` prefers, encode once.",
        kind,
    )


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
