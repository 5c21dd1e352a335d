"""The training steps that B9 compares: ours, the yardstick's, those of the peers, and the products alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import cpu_seconds
from benchmarks.plain_gpt import PlainGPT
from lighter_freezers.gpt import GPT, GPTConfig

__all__ = [
    "Size",
    "Step",
    "full_scorer",
    "litgpt",
    "ours",
    "plain",
    "products",
    "scorer",
    "transformers_lm",
    "transformers_scorer",
]


@dataclass(frozen=True)
class Size:
    """How large the networks and the batches are."""

    layers: int
    width: int
    heads: int
    time: int
    batch: int
    vocab: int

    def batch_of_tokens(self) -> tuple[Tensor, Tensor]:
        """Random tokens, and those that follow."""
        tokens = torch.randint(self.vocab, (self.batch, self.time + 1), generator=_seeded())
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def few_targets(self, share: float) -> Tensor:
        """The targets of some positions; the others are ignored."""
        targets = self.batch_of_tokens()[1]
        is_left_out = torch.rand(targets.shape, generator=_seeded()) >= share
        return targets.masked_fill(is_left_out, GPTConfig().ignore_index)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Step:
    """Forward, backward and AdamW: one step of training, with the loss of a network that is given.

    Args:
        network: Whose parameters are trained.
        loss: The loss of the batch.
        is_bf16: Whether the forward pass is under autocast to bfloat16.
    """

    def __init__(self, network: nn.Module, loss: Callable[[], Tensor], is_bf16: bool = False) -> None:
        self._loss = loss
        self._is_bf16 = is_bf16
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def run(self) -> None:
        """Train once."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
            loss = self._loss()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def __call__(self) -> float:
        begin = cpu_seconds()
        self.run()
        return cpu_seconds() - begin


def ours(size: Size, is_bf16: bool = False, targets: Tensor | None = None) -> Step:
    """Our language model, by the method that gives the loss alone."""
    network = GPT(_config(size))
    input_ids, every = size.batch_of_tokens()
    return Step(network, lambda: network.loss(input_ids, every if targets is None else targets), is_bf16)


def plain(size: Size, is_bf16: bool = False) -> Step:
    """The yardstick; its cost does not depend on how many positions have a target."""
    network = PlainGPT(size.vocab, size.layers, size.width, size.heads, size.time)
    input_ids, targets = size.batch_of_tokens()
    return Step(network, lambda: network(input_ids, targets), is_bf16)


def scorer(size: Size) -> Step:
    """Our sequence scorer."""
    network = GPT(_config(size, mode="sequence_scorer", cls_token_id=0))
    input_ids, targets = _scored(size)
    return Step(network, lambda: network.loss(input_ids, targets))


def full_scorer(size: Size) -> Step:
    """The same, with every position going through the last block."""
    network = GPT(_config(size, mode="sequence_scorer", cls_token_id=0))
    input_ids, targets = _scored(size)
    embedding = network.cls_embedding
    assert embedding is not None

    def loss() -> Tensor:
        trunk: Any = network.transformer
        embedded = trunk.wte(input_ids[:, 1:])
        x = torch.cat((embedding.expand(len(embedded), 1, -1), embedded), dim=1)
        x = x + trunk.wpe.weight[: x.shape[1]]
        for block in trunk.h:
            x = block(x)
        scores = network.sequence_head(trunk.ln_f(x)[:, 0]).sigmoid().flatten()
        return F.mse_loss(scores, targets)

    return Step(network, loss)


def _config(size: Size, **mode: Any) -> GPTConfig:
    sizes: dict[str, Any] = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.width}
    return GPTConfig(**sizes, block_size=size.time, vocab_size=size.vocab, **mode)


def _scored(size: Size) -> tuple[Tensor, Tensor]:
    input_ids = size.batch_of_tokens()[0]
    input_ids[:, 0] = 0
    return input_ids, torch.linspace(0, 1, size.batch)


def _transformers_config(size: Size, **options: Any) -> Any:
    from transformers import GPT2Config, logging

    logging.set_verbosity_error()
    sizes = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.width, "n_positions": size.time}
    options |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    options |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return GPT2Config(**{**sizes, "vocab_size": size.vocab, **options})


def transformers_lm(size: Size, is_bf16: bool = False) -> Step | None:
    """The GPT-2 of transformers; None if it cannot be imported."""
    try:
        from transformers import GPT2LMHeadModel
    except ImportError:
        return None
    network = GPT2LMHeadModel(_transformers_config(size))
    input_ids = size.batch_of_tokens()[0]
    return Step(network, lambda: network(input_ids, labels=input_ids).loss, is_bf16)


def transformers_scorer(size: Size) -> Step | None:
    """The same for sequences, with one number as its output."""
    try:
        from transformers import GPT2ForSequenceClassification
    except ImportError:
        return None
    network = GPT2ForSequenceClassification(_transformers_config(size, num_labels=1))
    input_ids, targets = _scored(size)
    return Step(network, lambda: network(input_ids, labels=targets).loss)


def litgpt(size: Size, is_bf16: bool = False) -> Step | None:
    """The GPT of litgpt, blocks as ours, with its chunked loss; None if it cannot be imported."""
    try:
        from litgpt import (
            GPT as LitGPT,  # type: ignore[import-not-found]
            Config,
        )
        from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]
    except ImportError:
        return None
    sizes = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.width, "block_size": size.time}
    network = LitGPT(Config(**sizes, padded_vocab_size=size.vocab, bias=False, parallel_residual=False))
    input_ids, targets = size.batch_of_tokens()
    return Step(network, lambda: chunked_cross_entropy(network(input_ids), targets), is_bf16)


def products(size: Size, is_bf16: bool = False) -> Callable[[], float]:
    """The three products of each linear layer and nothing else: what no step can go below."""
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    num_rows, width = size.batch * size.time, size.width
    block = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    shapes: Sequence[tuple[int, int]] = [*(block * size.layers), (width, size.vocab)]
    triples = [
        tuple(torch.randn(shape, dtype=dtype) for shape in ((num_rows, inp), (out, inp), (num_rows, out)))
        for inp, out in shapes
    ]

    def once() -> float:
        begin = cpu_seconds()
        for x, weight, gradient in triples:
            _ = x @ weight.T, gradient @ weight, gradient.T @ x
        return cpu_seconds() - begin

    return once
