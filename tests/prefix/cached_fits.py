"""Fits of small models whose first blocks are frozen, with and without a `PrefixCache`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighter_freezers import GPT, Freezer, PrefixCache, anatomy_of
from tests.architectures import BERT, GPT2, LLAMA, T5, VIT
from tests.lab import trainer

NUM_ROWS, BATCH = 10, 4  # three batches an epoch, the last one with two rows

_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SIZES = {"vocab_size": 32, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 8}


def _tokens() -> torch.Tensor:
    return torch.randint(3, 32, (NUM_ROWS, 16), generator=torch.Generator().manual_seed(1))


def _images() -> torch.Tensor:
    return torch.randn(NUM_ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _hf(config: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options))


def _resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=2)


def _causal(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return network(input_ids=ids, labels=ids).loss


def _ours(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return network(ids, ids)[1]


def _states(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return network(ids).last_hidden_state.square().mean()


def _logits(network: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    output = network(rows)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return logits.square().mean()


_LLAMA = {**LLAMA, "attention_dropout": 0.0}
_T5 = {**T5, "num_layers": 3, "num_heads": 2, "dropout_rate": 0.0}
_GPT2 = {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., torch.Tensor], Callable[[], torch.Tensor]]] = {
    "ours": (lambda: GPT(_SIZES), _ours, _tokens),
    "gpt2": (_hf("GPT2Config", "GPT2LMHeadModel", **_GPT2), _causal, _tokens),
    "llama": (_hf("LlamaConfig", "LlamaForCausalLM", **_LLAMA), _causal, _tokens),
    "qwen2": (_hf("Qwen2Config", "Qwen2ForCausalLM", **_LLAMA), _causal, _tokens),
    "bert": (_hf("BertConfig", "BertForMaskedLM", **BERT, **_NO_DROPOUT), _causal, _tokens),
    "vit": (_hf("ViTConfig", "ViTForImageClassification", **VIT, **_NO_DROPOUT), _logits, _images),
    "t5-encoder": (_hf("T5Config", "T5EncoderModel", **_T5), _states, _tokens),
    "resnet": (_resnet, _logits, _images),
}


class Fitted(pl.LightningModule):
    """A network with its loss; it notes the loss of each training batch and of each validation batch."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        build, self.loss_of, self.rows = MODELS[name]
        self.network = build()
        self.losses: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss_of(self.network, batch[0])
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated.append(self.loss_of(self.network, batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    def loader(self, *, shuffle: bool = True) -> DataLoader[Any]:
        torch.manual_seed(7)
        return DataLoader(TensorDataset(self.rows()), batch_size=BATCH, shuffle=shuffle)


def prefix_of(module: nn.Module, num_blocks: int | None) -> list[str]:
    """The names of the embeddings and of the first blocks, all of them with None."""
    anatomy = anatomy_of(module)
    return [*anatomy.embeddings, *(name for block in anatomy.blocks[:num_blocks] for name in block)]


def fit(
    name: str,
    folder: Path | None,
    *,
    num_blocks: int | None = 2,
    epochs: int = 3,
    change: Callable[[Fitted], None] = lambda module: None,
    callbacks: Sequence[Any] = (),
    validates: bool = False,
    freezer: dict[str, Any] | None = None,
    cache: dict[str, Any] | None = None,
    **options: Any,
) -> Fitted:
    """Fit a model for some epochs; with a folder, with a cache there."""
    module = Fitted(name)
    change(module)
    names = prefix_of(module, num_blocks)
    cached = [] if folder is None else [PrefixCache(str(folder), **(cache or {}))]
    trainer(
        "pytorch_lightning",
        callbacks=[Freezer(names, **(freezer or {})), *callbacks, *cached],
        max_epochs=epochs,
        limit_val_batches=1.0 if validates else 0,
        **options,
    ).fit(module, module.loader(), module.loader(shuffle=False))
    return module
