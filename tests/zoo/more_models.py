"""More models: recurrent and shared blocks, mixtures of experts, speech, detection, and plain PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from tests.zoo.lazy_library import LazyLibrary
from tests.zoo.transformers_models import ED, H, L, V, hf

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {}
TOWER_V = V | {"num_hidden_layers": 2}
CLIP_V = TOWER_V | {"model_type": "clip_vision_model"}
OPT = {"model_type": "opt", "vocab_size": 32, "hidden_size": 8, "ffn_dim": 16, "num_attention_heads": 2}
OPT |= {"num_hidden_layers": 3, "word_embed_proj_dim": 8, "max_position_embeddings": 32}
EXPERTS = {"num_experts_per_tok": 2}
FUNNEL = {"vocab_size": 32, "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 16, "block_sizes": [2, 2]}
XLM = {"vocab_size": 32, "emb_dim": 8, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 32}
ALBERT = H | {"embedding_size": 4}
SPEECH = {"num_mel_bins": 4, "max_source_positions": 16, "max_target_positions": 16}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [3, 1, 1, 3]}
DETR = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "num_queries": 4}
DETR |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
DETR |= {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}

GPT2 = {"n_embd": 8, "n_layer": 3, "n_head": 2}
CVT = {"embed_dim": [8, 8, 16], "depth": [1, 2, 3], "num_heads": [1, 1, 2]}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 3]}

TABLE: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("whisper", "Whisper", "WhisperForConditionalGeneration", ED | SPEECH, "none"),
    ("albert", "Albert", "AlbertForMaskedLM", ALBERT | {"num_hidden_groups": 1}, "ids"),
    ("albert_groups", "Albert", "AlbertForMaskedLM", ALBERT | {"num_hidden_groups": 3}, "ids"),
    ("funnel", "Funnel", "FunnelForMaskedLM", FUNNEL | {"num_decoder_layers": 2}, "ids"),
    ("xlm", "XLM", "XLMWithLMHeadModel", XLM, "ids"),
    ("flaubert", "Flaubert", "FlaubertWithLMHeadModel", XLM, "ids"),
    ("diffllama", "DiffLlama", "DiffLlamaForCausalLM", L | {"num_key_value_heads": 2}, "ids"),
    ("olmoe", "Olmoe", "OlmoeForCausalLM", H | EXPERTS | {"num_key_value_heads": 1, "num_experts": 4}, "ids"),
    ("phimoe", "Phimoe", "PhimoeForCausalLM", H | {"num_key_value_heads": 1, "num_local_experts": 4}, "ids"),
    ("nllb_moe", "NllbMoe", "NllbMoeForConditionalGeneration", ED | {"num_experts": 2}, "none"),
    ("yoso", "Yoso", "YosoForMaskedLM", H, "none"),
    ("gpt2_classifier", "GPT2", "GPT2ForSequenceClassification", GPT2, "none"),
    ("bloom_tokens", "Bloom", "BloomForTokenClassification", {"n_layer": 3, "n_head": 2}, "none"),
    ("cvt", "Cvt", "CvtForImageClassification", CVT, "none"),
    ("convnext", "ConvNext", "ConvNextForImageClassification", STAGES | {"num_stages": 2}, "img32"),
    ("resnet_hf", "ResNet", "ResNetForImageClassification", RESNET | {"layer_type": "bottleneck"}, "img32"),
    ("superpoint", "SuperPoint", "SuperPointForKeypointDetection", {}, "none"),
    ("vitdet", "VitDet", "VitDetModel", V | {"image_size": 32, "patch_size": 8}, "img32"),
    ("mobilevit_default", "MobileViT", "MobileViTForImageClassification", {}, "none"),
    ("vits", "Vits", "VitsModel", {}, "none"),
    ("encodec_default", "Encodec", "EncodecModel", {}, "none"),
]  # fmt: skip
for name, config, cls, sizes, kind in TABLE:
    MODELS[name] = (hf(f"{config}Config", cls, **sizes), kind)


def _of(cls: str, config: str, **parts: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, cls)(getattr(transformers, config)(**parts))


LLAMA, QWEN = L | {"model_type": "llama"}, L | {"model_type": "qwen2"}
MODELS |= {
    "zamba": (hf("ZambaConfig", "ZambaForCausalLM", **H | {"num_hidden_layers": 6},
                 num_key_value_heads=2, attn_layer_period=3,
                 attn_layer_offset=2, mamba_d_state=4, n_mamba_heads=2, use_mamba_kernels=False), "none"),
    "prophetnet": (hf("ProphetNetConfig", "ProphetNetForConditionalGeneration", vocab_size=32, hidden_size=8,
                      encoder_ffn_dim=16, decoder_ffn_dim=16, num_encoder_layers=2, num_decoder_layers=3,
                      num_encoder_attention_heads=2, num_decoder_attention_heads=2), "none"),
    "perceiver": (hf("PerceiverConfig", "PerceiverForSequenceClassification", num_latents=4, d_latents=8,
                     d_model=8, num_blocks=1, num_self_attends_per_block=3, num_self_attention_heads=2,
                     num_cross_attention_heads=2, vocab_size=32, max_position_embeddings=16), "none"),
    "reformer": (hf("ReformerConfig", "ReformerModelWithLMHead", attention_head_size=4, hidden_size=8,
                    attn_layers=["local", "lsh", "local"], axial_pos_embds_dim=[4, 4], is_decoder=True,
                    axial_pos_shape=[4, 4], feed_forward_size=16, num_attention_heads=2), "none"),
    "llava_next": (_of("LlavaNextForConditionalGeneration", "LlavaNextConfig", vision_config=CLIP_V,
                       text_config=LLAMA, image_token_index=5), "none"),
    "internvl": (_of("InternVLForConditionalGeneration", "InternVLConfig", text_config=QWEN,
                     vision_config=TOWER_V | {"image_size": [16, 16], "patch_size": [4, 4]}), "none"),
    "qwen2_audio": (_of("Qwen2AudioForConditionalGeneration", "Qwen2AudioConfig", text_config=QWEN,
                        audio_config={"model_type": "qwen2_audio_encoder", "d_model": 8, "encoder_layers": 2,
                                      "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 4,
                                      "max_source_positions": 16}), "none"),
    "blip_caption": (_of("BlipForConditionalGeneration", "BlipConfig", projection_dim=8, vision_config=V,
                         text_config=H | {"encoder_hidden_size": 8}), "none"),
    "instructblip": (_of("InstructBlipForConditionalGeneration", "InstructBlipConfig", num_query_tokens=2,
                         vision_config=TOWER_V, text_config=OPT,
                         qformer_config=H | {"encoder_hidden_size": 8, "num_hidden_layers": 2}), "none"),
    "git": (_of("GitForCausalLM", "GitConfig", **H, vision_config=TOWER_V), "none"),
    "swin_hf": (_of("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2, embed_dim=8,
                    depths=[1, 2], num_heads=[1, 2], window_size=2), "img32"),
    "swin2sr": (_of("Swin2SRForImageSuperResolution", "Swin2SRConfig", image_size=16, patch_size=1,
                    embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4), "none"),
    "detr_resnet50": (lambda: transformers.DetrForObjectDetection(transformers.DetrConfig(
        **DETR, d_model=16, backbone_config=transformers.ResNetConfig(
            **RESNET, layer_type="bottleneck", out_features=["stage4"]))), "img32"),
    "dab_detr": (lambda: transformers.DabDetrForObjectDetection(transformers.DabDetrConfig(
        **DETR, hidden_size=16, backbone_config=transformers.ResNetConfig(
            **RESNET, layer_type="basic", out_features=["stage4"]))), "none"),
}  # fmt: skip


class Residual(nn.Module):
    """A block of two convolutions, or of a gated dilated one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


class WaveNet(nn.Module):
    """Gates, residual and skip convolutions in three lists of one loop."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 8, 1)
        self.blocks = nn.ModuleList(Residual() for _ in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(4))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.start(x), 0
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = block(x)
            total = total + skip(x)
        return self.end(total)


class Graph(nn.Module):
    """Message passing: each layer mixes neighbours and itself, with a norm from another list."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 8)
        self.convs = nn.ModuleList(
            nn.ModuleDict({"own": nn.Linear(8, 8), "neighbours": nn.Linear(8, 8)}) for _ in range(3)
        )
        self.norms, self.decode = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(3)), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encode(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv["own"](x) + conv["neighbours"](x.roll(1, 0))).relu()
        return self.decode(x)


class Universal(nn.Module):
    """One block, run six times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for _ in range(6):
            x = self.block(x)
        return self.head(x)


class Autoencoder(nn.Module):
    """A variational one: an encoder, two projections to the latent, a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 8, 3, padding=1), Residual(), Residual(), Residual())
        self.mean, self.deviation = nn.Conv1d(8, 4, 1), nn.Conv1d(8, 4, 1)
        self.decoder = nn.Sequential(nn.Conv1d(4, 8, 1), Residual(), Residual(), nn.Conv1d(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        return self.decoder(self.mean(x) + 0 * self.deviation(x))


class Siamese(nn.Module):
    """One encoder for two inputs, and a head that compares."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 8, 1), *(Residual() for _ in range(3)))
        self.compare = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = (self.encoder(each).mean(-1) for each in (x, x.flip(-1)))
        return self.compare(torch.cat([one, other], -1))


MODELS |= {
    "plain_wavenet": (WaveNet, (1, 1, 16)),
    "plain_graph": (Graph, (6, 4)),
    "plain_universal": (Universal, "tokens"),
    "plain_autoencoder": (Autoencoder, (1, 1, 16)),
    "plain_siamese": (Siamese, (1, 1, 16)),
}
try:
    mn = LazyLibrary("monai.networks.nets")
except ImportError:
    pass
else:
    MODELS |= {
        "monai_autoencoder": (lambda: mn.AutoEncoder(2, 1, 1, (4, 8, 8), (2, 2, 2), num_res_units=2), None),
        "monai_segresnet_vae": (lambda: mn.SegResNetVAE((32, 32), spatial_dims=2, init_filters=8,
                                                        blocks_down=(1, 2, 2), blocks_up=(1, 1)), None),
    }  # fmt: skip
