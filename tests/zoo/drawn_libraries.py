"""Models of libraries at the size of their defaults, without weights: on the meta device."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torchvision.models as tv
import transformers
from torch import nn

from tests.zoo.lazy_library import LazyLibrary

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {}


def on_meta(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same model without weights."""

    def built() -> nn.Module:
        with torch.device("meta"):
            return build()

    return built


def _of(cls: str, config: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, cls)(getattr(transformers, f"{config}Config")(**options))


FEW = {"num_hidden_layers": 4}
RESNET = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
NO_TIMM: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
NO_TIMM |= {"backbone_config": RESNET}
TABLE: list[tuple[str, str, str, dict[str, Any]]] = [
    ("rt_detr", "RTDetrForObjectDetection", "RTDetr", {}),
    ("rt_detr_v2", "RTDetrV2ForObjectDetection", "RTDetrV2", {}),
    ("d_fine", "DFineForObjectDetection", "DFine", {}),
    ("deformable_detr", "DeformableDetrForObjectDetection", "DeformableDetr", NO_TIMM),
    ("grounding_dino", "GroundingDinoForObjectDetection", "GroundingDino", {}),
    ("maskformer", "MaskFormerModel", "MaskFormer", {}),
    ("mask2former", "Mask2FormerModel", "Mask2Former", {}),
    ("oneformer", "OneFormerModel", "OneFormer", {}),
    ("bridgetower", "BridgeTowerForImageAndTextRetrieval", "BridgeTower", {}),
    ("seamless_t2t", "SeamlessM4TForTextToText", "SeamlessM4T", {}),
    ("seamless_v2_s2t", "SeamlessM4Tv2ForSpeechToText", "SeamlessM4Tv2", {}),
    ("bark_coarse", "BarkCoarseModel", "BarkCoarse", {}),
    ("bark_fine", "BarkFineModel", "BarkFine", {}),
    ("musicgen", "MusicgenForCausalLM", "MusicgenDecoder", {}),
    ("moonshine", "MoonshineForConditionalGeneration", "Moonshine", {}),
    ("dac", "DacModel", "Dac", {}),
    ("kosmos2", "Kosmos2ForConditionalGeneration", "Kosmos2", {}),
    ("florence2", "Florence2ForConditionalGeneration", "Florence2", {}),
    ("depth_anything", "DepthAnythingForDepthEstimation", "DepthAnything", {}),
    ("swiftformer", "SwiftFormerForImageClassification", "SwiftFormer", {}),
    ("textnet", "TextNetForImageClassification", "TextNet", {}),
    ("hgnet_v2", "HGNetV2ForImageClassification", "HGNetV2", {}),
    ("owlv2", "Owlv2ForObjectDetection", "Owlv2", {}),
    ("pix2struct", "Pix2StructForConditionalGeneration", "Pix2Struct", {}),
    ("udop", "UdopForConditionalGeneration", "Udop", {}),
    ("tapas", "TapasForQuestionAnswering", "Tapas", {}),
    ("luke", "LukeForMaskedLM", "Luke", {}),
    ("roc_bert", "RoCBertForMaskedLM", "RoCBert", {}),
    ("splinter", "SplinterForQuestionAnswering", "Splinter", {}),
    ("lilt", "LiltForTokenClassification", "Lilt", {}),
    ("layoutlmv3", "LayoutLMv3ForTokenClassification", "LayoutLMv3", {}),
    ("markuplm", "MarkupLMForTokenClassification", "MarkupLM", {}),
    ("sew", "SEWForCTC", "SEW", {}),
    ("fastspeech2", "FastSpeech2ConformerModel", "FastSpeech2Conformer", {}),
    ("jetmoe", "JetMoeForCausalLM", "JetMoe", {}),
    ("glm4_moe", "Glm4MoeForCausalLM", "Glm4Moe", FEW),
    ("bitnet", "BitNetForCausalLM", "BitNet", FEW),
    ("t5gemma", "T5GemmaForConditionalGeneration", "T5Gemma", {}),
    ("sam2", "Sam2Model", "Sam2", {}),
    ("vjepa2", "VJEPA2Model", "VJEPA2", {}),
    ("mobilevitv2", "MobileViTV2ForImageClassification", "MobileViTV2", {}),
    ("dinov2_registers", "Dinov2WithRegistersForImageClassification", "Dinov2WithRegisters", {}),
    ("donut_swin", "DonutSwinModel", "DonutSwin", {}),
    ("mgp_str", "MgpstrForSceneTextRecognition", "Mgpstr", {}),
    ("univnet", "UnivNetModel", "UnivNet", {}),
    ("superglue", "SuperGlueForKeypointMatching", "SuperGlue", {}),
    ("zoedepth", "ZoeDepthForDepthEstimation", "ZoeDepth", {}),
    ("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoX", FEW),
    ("opt", "OPTForCausalLM", "OPT", {}),
    ("cohere2", "Cohere2ForCausalLM", "Cohere2", FEW),
    ("doge", "DogeForCausalLM", "Doge", {}),
    ("plbart", "PLBartForConditionalGeneration", "PLBart", {}),
    ("bert_pretraining", "BertForPreTraining", "Bert", {}),
    ("dpr_reader", "DPRReader", "DPR", {}),
    ("distilbert", "DistilBertForSequenceClassification", "DistilBert", {}),
    ("bart_classifier", "BartForSequenceClassification", "Bart", {}),
    ("trocr", "TrOCRForCausalLM", "TrOCR", {}),
    ("smolvlm", "SmolVLMForConditionalGeneration", "SmolVLM", {}),
    ("imagegpt", "ImageGPTForCausalImageModeling", "ImageGPT", {}),
    ("mra", "MraForMaskedLM", "Mra", {}),
    ("speecht5_tts", "SpeechT5ForTextToSpeech", "SpeechT5", {}),
    ("parakeet", "ParakeetForCTC", "ParakeetCTC", {}),
    ("bros", "BrosForTokenClassification", "Bros", {}),
    ("visual_bert", "VisualBertForPreTraining", "VisualBert", {}),
]  # fmt: skip
for name, cls, config, options in TABLE:
    MODELS[f"hf_{name}"] = (on_meta(_of(cls, config, options)), None)


def _tv(name: str, **options: Any) -> Callable[[], nn.Module]:
    return on_meta(lambda: getattr(tv, name)(**options))


BARE = {"weights": None, "weights_backbone": None}
for name in ("mnasnet1_3", "vgg16", "squeezenet1_1", "maxvit_t"):
    MODELS[f"tv_{name}"] = (_tv(name), None)
for name in ("mvit_v2_s", "swin3d_t", "r2plus1d_18", "mc3_18"):
    MODELS[f"tv_{name}"] = (on_meta(getattr(tv.video, name)), None)
for name in ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn_v2"):
    MODELS[f"tv_{name}"] = (on_meta(lambda name=name: getattr(tv.detection, name)(**BARE)), None)
MODELS["tv_raft_small"] = (on_meta(tv.optical_flow.raft_small), None)
TIMM = """
    efficientnet_lite0 gcvit_xxtiny crossvit_tiny_240 visformer_tiny mvitv2_tiny convmixer_768_32
    sequencer2d_s
    ghostnet_100 selecsls42 vovnet39a cspresnet50 dla34 nfnet_f0 regnetz_b16 inception_resnet_v2 nasnetalarge
    pnasnet5large tiny_vit_5m_224 efficientvit_b0 shvit_s1 starnet_s1 coat_tiny botnet26t_256 halonet26t
    rdnet_tiny hrnet_w18 tresnet_m resnetv2_50 caformer_s18 rexnet_100 samvit_base_patch16 fasternet_t0
"""
if find_spec("timm"):
    timm = LazyLibrary("timm")

    for name in TIMM.split():
        MODELS[f"timm_{name}"] = (on_meta(lambda name=name: timm.create_model(name)), None)
if find_spec("monai"):
    mn = LazyLibrary("monai.networks.nets")

    MODELS |= {
        "monai_segresnetds": (
            on_meta(lambda: mn.SegResNetDS(2, 8, blocks_down=(1, 2, 2), dsdepth=2)),
            None,
        ),
        "monai_quicknat": (on_meta(lambda: mn.Quicknat(2, 1, num_filters=8)), None),
        "monai_fc": (on_meta(lambda: mn.TorchVisionFCModel("resnet18", 2, pretrained=False)), None),
        "monai_hovernet": (on_meta(lambda: mn.HoVerNet(mode="fast", out_classes=5)), None),
    }
    if find_spec("einops"):
        MODELS["monai_unetr"] = (on_meta(lambda: mn.UNETR(1, 2, (32, 32, 32), 8, 24, 32, 4)), None)
SMP = [
    *[("DPT", "tu-vit_base_patch16_224"), ("Unet", "tu-convnext_atto"), ("Unet", "mobileone_s0")],
    *[("Unet", "inceptionv4"), ("Unet", "xception"), ("Unet", "se_resnet50")],
]
if find_spec("segmentation_models_pytorch"):
    smp = LazyLibrary("segmentation_models_pytorch")

    for kind, encoder in SMP:
        MODELS[f"smp_{kind}_{encoder}".lower()] = (
            on_meta(lambda kind=kind, encoder=encoder: getattr(smp, kind)(encoder, encoder_weights=None)),
            None,
        )
