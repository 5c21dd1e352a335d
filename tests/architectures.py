"""Real models of transformers and torchvision, built small from configs: nothing is downloaded."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

from lighter_freezers.gpt import GPT

TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BERT = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
LLAMA = {**BERT, **TOKENS, "num_key_value_heads": 1, "tie_word_embeddings": False}
TWO_SIDED = {
    **TOKENS,
    "vocab_size": 32,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "decoder_start_token_id": 1,
}


def _built(config: str, options: Mapping[str, Any], model: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return built

    return build


def _gpt(**options: Any) -> Callable[[], nn.Module]:
    sizes = {"vocab_size": 32, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 8}
    return lambda: GPT({**sizes, **options})


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=2)


def _block() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


class TorchTransformer(nn.Module):
    """What a tutorial writes: learned positions, an encoder of torch, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 16, 8))
        self.temperature = nn.Parameter(torch.ones(()))
        self.embedding = nn.Embedding(32, 8)
        self.encoder = nn.TransformerEncoder(_block(), 3, nn.LayerNorm(8), enable_nested_tensor=False)
        self.classifier = nn.Linear(8, 2)


class SharedBlock(nn.Module):
    """Four layers that are one module."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.layers = nn.ModuleList([_block()] * 4)
        self.head = nn.Linear(8, 2)


GPT2 = {"vocab_size": 32, "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 16, **TOKENS}
T5 = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 3}
OPT = {"vocab_size": 32, "hidden_size": 8, "ffn_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
VIT = {**BERT, "image_size": 8, "patch_size": 4}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 2,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 3]}

ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "gpt2": _built("GPT2Config", GPT2, "GPT2LMHeadModel"),
    "gpt2-classifier": _built("GPT2Config", GPT2, "GPT2ForSequenceClassification"),
    "neox": _built("GPTNeoXConfig", {**BERT, **TOKENS}, "GPTNeoXForCausalLM"),
    "llama": _built("LlamaConfig", LLAMA, "LlamaForCausalLM"),
    "llama-classifier": _built("LlamaConfig", LLAMA, "LlamaForSequenceClassification"),
    "mistral": _built("MistralConfig", LLAMA, "MistralForCausalLM"),
    "qwen2": _built("Qwen2Config", LLAMA, "Qwen2ForCausalLM"),
    "qwen3": _built("Qwen3Config", {**LLAMA, "head_dim": 4}, "Qwen3ForCausalLM"),
    "gemma": _built("GemmaConfig", {**LLAMA, "head_dim": 4, "tie_word_embeddings": True}, "GemmaForCausalLM"),
    "gemma2": _built(
        "Gemma2Config", {**LLAMA, "head_dim": 4, "tie_word_embeddings": True}, "Gemma2ForCausalLM"
    ),
    "opt": _built("OPTConfig", {**OPT, **TOKENS, "word_embed_proj_dim": 4}, "OPTForCausalLM"),
    "bert": _built("BertConfig", BERT, "BertForMaskedLM"),
    "bert-classifier": _built("BertConfig", BERT, "BertForSequenceClassification"),
    "roberta": _built("RobertaConfig", BERT, "RobertaForTokenClassification"),
    "xlm-roberta": _built("XLMRobertaConfig", BERT, "XLMRobertaForMaskedLM"),
    "distilbert": _built(
        "DistilBertConfig",
        {"vocab_size": 32, "dim": 8, "hidden_dim": 16, "n_layers": 3, "n_heads": 2},
        "DistilBertForMaskedLM",
    ),
    "albert": _built("AlbertConfig", {**BERT, "embedding_size": 4}, "AlbertForSequenceClassification"),
    "t5": _built(
        "T5Config", {**T5, "num_heads": 2, "decoder_start_token_id": 0}, "T5ForConditionalGeneration"
    ),
    "bart": _built(
        "BartConfig", {**TWO_SIDED, "max_position_embeddings": 16}, "BartForConditionalGeneration"
    ),
    "bart-classifier": _built(
        "BartConfig", {**TWO_SIDED, "max_position_embeddings": 16}, "BartForSequenceClassification"
    ),
    "whisper": _built(
        "WhisperConfig",
        {**TWO_SIDED, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8},
        "WhisperForConditionalGeneration",
    ),
    "vit": _built("ViTConfig", VIT, "ViTForImageClassification"),
    "swin": _built("SwinConfig", SWIN, "SwinForImageClassification"),
    "convnext": _built("ConvNextConfig", {**STAGES, "num_stages": 2}, "ConvNextForImageClassification"),
    "resnet": _built(
        "ResNetConfig", {**STAGES, "embedding_size": 8, "layer_type": "basic"}, "ResNetForImageClassification"
    ),
    "resnet18": _resnet18,
    "ours": _gpt(),
    "ours-classifier": _gpt(mode="token_classifier", num_token_classes=3),
    "ours-scorer": _gpt(mode="sequence_scorer", cls_token_id=1),
    "torch": TorchTransformer,
    "shared": SharedBlock,
    "sequential": lambda: nn.Sequential(
        nn.Embedding(32, 8), _block(), nn.Dropout(), _block(), nn.LayerNorm(8), nn.Linear(8, 2)
    ),
    "mlp": lambda: nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    ),
}
