"""The tokenizers that encode prompts: any of transformers, and our own BPE as one of them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from lighter_freezers._log import log
from lighter_freezers.experiments.causal_models import Tokenizer, load_tokenizer
from lighter_freezers.experiments.data.cache import Ids, encoded_once
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, tokenizer_of_file

__all__ = [
    "PromptTokenizer",
    "check_tokenizer",
    "kept_tokenizer",
    "own_tokenizer",
    "prompt_tokenizer",
    "transformers_tokenizer",
]


class PromptTokenizer:
    """A tokenizer of transformers as prompts and answers need it: it adds its start of a prompt, but no end.

    Args:
        source: The tokenizer.
        begins_with: The tokens that stand before every prompt: `<s>` of a Llama, our own `<eos>`.
        once: `encoded_once` for this tokenizer and a folder. None encodes at each call.

    Attributes:
        eos_id: The token that ends an answer and that fills up what is shorter.
        vocab_size: The number of all ids.
    """

    def __init__(
        self, source: Tokenizer, begins_with: tuple[int, ...], once: Callable[..., list[Ids]] | None = None
    ) -> None:
        self.source = source
        self.begins_with = begins_with
        self.eos_id = int(source.eos_token_id)
        self.vocab_size = len(source)
        self._once = once

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with nothing added; the characters `</s>` in a text are plain text."""
        if self._once is None:
            return self._encoded(texts)
        return [ids.tolist() for ids in self._once(texts, encode=self._encoded)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.source.decode(list(ids), skip_special_tokens=True))

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.source(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,  # a text longer than the model's limit is cut later
        )
        return [list(ids) for ids in encoded.input_ids]


def kept_tokenizer(tokenizer: PromptTokenizer, folder: Path) -> PromptTokenizer:
    """The same, with the ids of all texts kept in a folder; unchanged where they may depend on its code."""
    source = tokenizer.source
    kind, rust = type(source), getattr(source, "backend_tokenizer", None)
    if rust is None or not kind.__module__.startswith("transformers."):
        _say_encodes_each_start(kind.__name__)
        return tokenizer
    said = f"{kind.__qualname__} {version('transformers')} {version('tokenizers')} {rust.to_str()}"
    fingerprint = hashlib.sha256(said.encode()).hexdigest()
    once = partial(encoded_once, fingerprint=fingerprint, folder=folder)
    return PromptTokenizer(source, tokenizer.begins_with, once)


@cache  # one line for all splits
def _say_encodes_each_start(kind: str) -> None:
    log.info(
        "Each start encodes the text again: what %s makes of it may depend on code and packages of its own, "
        "so nothing is kept. Fast tokenizers of transformers, which `AutoTokenizer` prefers, encode once.",
        kind,
    )


def own_tokenizer(tokenizer: TextTokenizer) -> PromptTokenizer:
    """Wrap a byte-level BPE of ours; a text begins and ends with `<eos>`, as in `TextDataModule`."""
    return PromptTokenizer(tokenizer.for_transformers(), (tokenizer.eos_id,))


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
    return PromptTokenizer(tokenizer, (int(tokenizer.bos_token_id),) if has_begin else ())


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
