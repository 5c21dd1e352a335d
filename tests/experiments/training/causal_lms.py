"""Tiny causal language models, a tokenizer and batches that the tests of the module share. No download."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

HOMES = {"pytorch_lightning": "lighter_freezers", "lightning.pytorch": "lighter_freezers.lightning"}
VOCAB, EOS = 96, 0
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
# Conv1D of GPT-2, tied weights; Llama has linear layers and a head of its own
ARCHITECTURES = ("llama", "gpt2")


def causal_lm(architecture: str = "llama", num_positions: int = 64, vocab_size: int = VOCAB) -> Any:
    """The same small model every time."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    special = {"bos_token_id": EOS, "eos_token_id": EOS, "initializer_range": 0.2}
    if architecture == "llama":
        sizes = {**LLAMA, "num_key_value_heads": 1, "max_position_embeddings": num_positions}
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes, **special))
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": num_positions}
    no_dropout = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **special, **no_dropout))


def tokenizer() -> Any:
    """A tokenizer of transformers whose tokens are characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": EOS, **{chr(code): code - 31 for code in range(32, 126)}, "\n": 95}
    inner = Tokenizer(models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def saved_model(folder: Path, architecture: str = "llama") -> str:
    """The path of a model with its tokenizer, as transformers saves them."""
    causal_lm(architecture).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def module(namespace: str = "pytorch_lightning", *arguments: Any, **options: Any) -> Any:
    """A CausalLMModule of either namespace; a Llama unless told otherwise."""
    if not arguments and not options.keys() & {"model", "network"}:
        options["network"] = causal_lm()
    return import_module(HOMES[namespace]).CausalLMModule(*arguments, **options)


def training_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
    """Prompts and answers, padded on the right; labels on the answers only."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in rows:
        padding = longest - len(prompt) - len(answer)
        batch["input_ids"].append([*prompt, *answer, *[EOS] * padding])
        batch["attention_mask"].append([1] * (len(prompt) + len(answer)) + [0] * padding)
        batch["labels"].append([-100] * len(prompt) + [*answer] + [-100] * padding)
    return {name: torch.tensor(values) for name, values in batch.items()}


def rows(num_rows: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Prompts of 2 to 9 tokens and answers of 1 to 5, which end in the end of text."""
    generator = torch.Generator().manual_seed(seed)

    def some(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return torch.randint(1, VOCAB - 1, (length,), generator=generator).tolist()

    return [(some(2, 9), [*some(1, 4), EOS]) for _ in range(num_rows)]


def training_loader(num_rows: int = 16, batch_size: int = 4, seed: int = 0) -> DataLoader[Any]:
    """Batches of these rows, the same ones every time; the last may be smaller."""
    every = rows(num_rows, seed)
    batches = [training_batch(every[first : first + batch_size]) for first in range(0, num_rows, batch_size)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def question_batch(questions: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, Any]:
    """Prompts padded on the left, with their references and right answers, as a test gets them."""
    encode = tokenizer()
    encoded = [encode(prompt).input_ids for prompt, _ in questions]
    longest = max(map(len, encoded))
    goods = [(ids, good) for ids, (_, every) in zip(encoded, questions, strict=True) for good in every]
    right = [(ids, [*encode(good).input_ids, EOS]) for ids, good in goods]
    return {
        "input_ids": torch.tensor([[EOS] * (longest - len(ids)) + ids for ids in encoded]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded]),
        "prompts": [prompt for prompt, _ in questions],
        "references": [references for _, references in questions],
        "answers": training_batch(right),
    }
