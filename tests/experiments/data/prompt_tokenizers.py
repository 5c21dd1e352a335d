"""Real tokenizers, built in this process, that the tests of prompts share."""

import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lighter_freezers.experiments.data.prompt_tokenizer import (
    PromptTokenizer,
    own_tokenizer,
    transformers_tokenizer,
)
from lighter_freezers.experiments.data.tokenizer import TextTokenizer

TEXTS = [
    "### Instruction: Describe the thing.\n\n### Input:\nname[The Mill], food[French]\n\n### Output:\n",
    "The Mill serves French food near the river, and the prices are fair.",
    "def area(width):\n    return width * 2\n",
] * 20
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama() -> Any:
    """Llama's kind: a sign for the space before each word, one more at the beginning, bytes, `<s>` first."""
    vocabulary, merges = _spaced_words()
    bpe = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens(["<unk>", "<s>", "</s>"])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _spaced_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of words with "▁" before them; as Llama's, none of them across lines."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
    )
    bpe.train_from_iterator([line for text in TEXTS for line in text.split("\n")], trainer)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def gpt2() -> Any:
    """GPT-2's kind: byte-level, nothing before the first word, no token before a text."""
    return _fast(_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)), eos_token="<|end|>")


def greedy() -> Any:
    """A byte-level BPE that joins whatever stands side by side, the end of a line with the next word too."""
    bpe = _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), ["a:\nb", "a:\nbc"] * 50
    )
    return _fast(bpe, eos_token="<|end|>")


def bert() -> Any:
    """BERT's kind: it puts a token before and one after each text."""
    words = sorted({word for text in TEXTS for word in text.split()})
    ids = {word: index for index, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}
    model = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return _fast(model, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")


def own() -> PromptTokenizer:
    """Ours."""
    return own_tokenizer(
        TextTokenizer(_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)), "<|end|>")
    )


def all_kinds() -> dict[str, PromptTokenizer]:
    """One of each kind that gives texts back."""
    return {
        "llama": transformers_tokenizer(llama()),
        "gpt2": transformers_tokenizer(gpt2()),
        "greedy": transformers_tokenizer(greedy()),
        "own": own(),
    }


def _byte_level(pre_tokenizer: Any, texts: list[str] = TEXTS) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _fast(bpe: tokenizers.Tokenizer, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
