"""Fits of small models whose first blocks are frozen, with and without a `PrefixCache`."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
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


def _large_images() -> torch.Tensor:
    return torch.randn(NUM_ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(import_module("torchvision.models"), name)(num_classes=2, **options)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=2, **options)


def _causal(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return network(input_ids=ids, labels=ids).loss


def _ours(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return network(ids, ids)[1]


def _states(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return network(ids).last_hidden_state.square().mean()


def _pooled(network: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return network(rows).pooler_output.square().mean()


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
    "resnet": (_torchvision("resnet18"), _logits, _images),
}
_TINY = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
_SMALL = {**_TINY, "intermediate_size": 32, "max_position_embeddings": 32}
_CALM = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
_OPT = {**_TINY, "word_embed_proj_dim": 16, "ffn_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
_PHI = {**_SMALL, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
_DEBERTA = {**_SMALL, **_NO_DROPOUT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_DISTIL = {"vocab_size": 32, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_LOCAL = {"global_attn_every_n_layers": 2, "local_attention": 4}
_VISION = {**_SMALL, "image_size": 8, "patch_size": 4}
_STAGES = {"image_size": 32, "depths": [2, 2]}
_SWIN = {
    **_STAGES,
    **_NO_DROPOUT,
    "embed_dim": 8,
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
_CONVNEXT = {**_STAGES, "num_stages": 2, "hidden_sizes": [8, 16]}
_TIMM_VIT = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 24, "num_heads": 2}
_GPTJ = {"vocab_size": 32, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32, "rotary_dim": 4}
_GEMMA = {**_LLAMA, "head_dim": 8, "sliding_window": 4}
_MLM = {
    "roberta": _hf("RobertaConfig", "RobertaForMaskedLM", **_SMALL, **_NO_DROPOUT),
    "electra": _hf("ElectraConfig", "ElectraForMaskedLM", **_SMALL, **_NO_DROPOUT, embedding_size=16),
    "deberta": _hf("DebertaV2Config", "DebertaV2ForMaskedLM", **_DEBERTA),
    "distilbert": _hf("DistilBertConfig", "DistilBertForMaskedLM", **_DISTIL, attention_dropout=0.0),
    "modernbert": _hf("ModernBertConfig", "ModernBertForMaskedLM", **_SMALL, **_IDS, **_LOCAL),
    "mistral": _hf("MistralConfig", "MistralForCausalLM", **_LLAMA, sliding_window=4),
    "gemma2": _hf("Gemma2Config", "Gemma2ForCausalLM", **_GEMMA),
    "qwen3": _hf("Qwen3Config", "Qwen3ForCausalLM", **_LLAMA, head_dim=8),
    "phi": _hf("PhiConfig", "PhiForCausalLM", **_PHI),
    "opt": _hf("OPTConfig", "OPTForCausalLM", **_OPT, max_position_embeddings=32),
    "gpt-neox": _hf("GPTNeoXConfig", "GPTNeoXForCausalLM", **_SMALL, **_CALM),
    "gptj": _hf("GPTJConfig", "GPTJForCausalLM", **_GPTJ, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "falcon": _hf("FalconConfig", "FalconForCausalLM", **_TINY, **_CALM, alibi=False),
    "falcon-alibi": _hf("FalconConfig", "FalconForCausalLM", **_TINY, **_CALM, alibi=True),
}
MODELS |= {name: (build, _causal, _tokens) for name, build in _MLM.items()}
_IMAGES = {
    "swin": _hf("SwinConfig", "SwinForImageClassification", **_SWIN),
    "convnext": _hf("ConvNextConfig", "ConvNextForImageClassification", **_CONVNEXT),
    "torchvision-efficientnet": _torchvision("efficientnet_b0", stochastic_depth_prob=0.0, dropout=0.0),
    "torchvision-convnext": _torchvision("convnext_tiny", stochastic_depth_prob=0.0),
    "timm-vit": _timm("vit_tiny_patch16_224", **_TIMM_VIT),
    "timm-convnext": _timm("convnext_atto"),
    "timm-resnet": _timm("resnet18"),
}
MODELS |= {name: (build, _logits, _large_images) for name, build in _IMAGES.items()}
MODELS["clip-text"] = (_hf("CLIPTextConfig", "CLIPTextModel", **_SMALL, **_IDS), _states, _tokens)
MODELS["clip-vision"] = (_hf("CLIPVisionConfig", "CLIPVisionModel", **_VISION), _pooled, _images)

_ALBERT = {**_SMALL, **_NO_DROPOUT, "embedding_size": 8}
_BLOOM = {"vocab_size": 32, "hidden_size": 16, "n_layer": 4, "n_head": 2, **_CALM}
REFUSED = {  # name -> the reason
    "albert": "share their weights",
    "bloom": "return more than hidden states",
}
MODELS["albert"] = (_hf("AlbertConfig", "AlbertForMaskedLM", **_ALBERT), _causal, _tokens)
MODELS["bloom"] = (_hf("BloomConfig", "BloomForCausalLM", **_BLOOM), _causal, _tokens)


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
