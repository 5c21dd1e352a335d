"""Models of transformers, built small from their real classes: nothing is downloaded."""

import torch
import transformers

H = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
L = H | {"num_key_value_heads": 1, "head_dim": 4}
V = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 4,
}
ED = {
    "vocab_size": 32,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 1,
}
IDS = {"input_ids": (1, 6)}


def hf(cfg, cls, **kw):
    def b():
        torch.manual_seed(0)
        return getattr(transformers, cls)(getattr(transformers, cfg)(**kw))

    return b


MODELS = {}


def row(name, cfg, cls, kw, inp="ids"):
    MODELS[name] = (hf(cfg + "Config", cls, **kw), inp)


for n, c, extra in [
    ("phi", "Phi", {}),
    ("phi3", "Phi3", {}),
    ("olmo", "Olmo", {}),
    ("olmo2", "Olmo2", {}),
    ("cohere", "Cohere", {}),
    ("stablelm", "StableLm", {}),
    ("starcoder2", "Starcoder2", {}),
    ("granite", "Granite", {}),
    ("persimmon", "Persimmon", {}),
    ("mixtral", "Mixtral", {"num_local_experts": 4}),
    (
        "qwen2_moe",
        "Qwen2Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
    ),
    ("qwen3_moe", "Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}),
    ("granitemoe", "GraniteMoe", {"num_local_experts": 4}),
    ("gemma3", "Gemma3Text", {}),
    ("nemotron", "Nemotron", {}),
    ("glm", "Glm", {}),
    ("smollm3", "SmolLM3", {}),
    ("lfm2", "Lfm2", {"layer_types": ["conv", "conv", "full_attention"]}),
    ("exaone4", "Exaone4", {}),
    ("helium", "Helium", {}),
    ("ernie4_5", "Ernie4_5", {}),
    ("gpt_oss", "GptOss", {"num_local_experts": 4}),
    ("minimax", "MiniMax", {"num_local_experts": 4}),
    ("arcee", "Arcee", {}),
    ("seed_oss", "SeedOss", {}),
    ("hunyuan", "HunYuanDenseV1", {}),
]:
    cls = c + "ForCausalLM" if c != "Gemma3Text" else "Gemma3ForCausalLM"
    row(n, c, cls, L | extra)
row(
    "deepseek_v2",
    "DeepseekV2",
    "DeepseekV2ForCausalLM",
    H
    | {
        "num_key_value_heads": 2,
        "kv_lora_rank": 4,
        "q_lora_rank": 4,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
)
row(
    "deepseek_v3",
    "DeepseekV3",
    "DeepseekV3ForCausalLM",
    H
    | {
        "num_key_value_heads": 2,
        "kv_lora_rank": 4,
        "q_lora_rank": 4,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
)
row(
    "jamba",
    "Jamba",
    "JambaForCausalLM",
    H
    | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "mamba_d_state": 4,
        "mamba_d_conv": 2,
        "mamba_dt_rank": 2,
        "use_mamba_kernels": False,
    },
)
row(
    "bamba",
    "Bamba",
    "BambaForCausalLM",
    H
    | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "mamba_n_heads": 4,
        "mamba_d_head": 4,
        "mamba_d_state": 4,
        "mamba_n_groups": 1,
        "attn_layer_indices": [2],
    },
)
row(
    "granitemoehybrid",
    "GraniteMoeHybrid",
    "GraniteMoeHybridForCausalLM",
    H
    | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_n_heads": 4,
        "mamba_d_head": 4,
        "mamba_d_state": 4,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "shared_intermediate_size": 8,
    },
)
row(
    "zamba2",
    "Zamba2",
    "Zamba2ForCausalLM",
    H
    | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 4,
        "mamba_headdim": 8,
        "n_mamba_heads": 2,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "use_mem_rope": False,
        "adapter_rank": 2,
        "use_mamba_kernels": False,
    },
)
row(
    "falcon_h1",
    "FalconH1",
    "FalconH1ForCausalLM",
    L | {"mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_ssm": 16, "mamba_d_state": 4, "mamba_n_groups": 1},
)
row(
    "qwen3_next",
    "Qwen3Next",
    "Qwen3NextForCausalLM",
    L
    | {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
    },
)
row(
    "nemotron_h",
    "NemotronH",
    "NemotronHForCausalLM",
    L
    | {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_num_heads": 4,
        "mamba_head_dim": 4,
        "ssm_state_size": 4,
        "n_groups": 1,
    },
)
row(
    "mamba",
    "Mamba",
    "MambaForCausalLM",
    {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 32, "state_size": 4, "time_step_rank": 2},
)
row(
    "mamba2",
    "Mamba2",
    "Mamba2ForCausalLM",
    {
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "vocab_size": 32,
        "state_size": 4,
        "num_heads": 4,
        "head_dim": 4,
        "n_groups": 1,
        "expand": 2,
    },
)
row(
    "falcon_mamba",
    "FalconMamba",
    "FalconMambaForCausalLM",
    {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 32, "state_size": 4, "time_step_rank": 2},
)
row(
    "rwkv",
    "Rwkv",
    "RwkvForCausalLM",
    {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 32, "attention_hidden_size": 8},
)
row(
    "recurrent_gemma",
    "RecurrentGemma",
    "RecurrentGemmaForCausalLM",
    H | {"num_key_value_heads": 1, "head_dim": 4, "lru_width": 8},
)
row(
    "xlstm",
    "xLSTM",
    "xLSTMForCausalLM",
    {"hidden_size": 16, "num_hidden_layers": 3, "num_blocks": 3, "num_heads": 2, "vocab_size": 32},
)
row(
    "gpt_neo",
    "GPTNeo",
    "GPTNeoForCausalLM",
    {
        "hidden_size": 8,
        "num_layers": 4,
        "num_heads": 2,
        "vocab_size": 32,
        "max_position_embeddings": 32,
        "attention_types": [[["global", "local"], 2]],
    },
)
row(
    "gptj",
    "GPTJ",
    "GPTJForCausalLM",
    {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 32, "n_positions": 32, "rotary_dim": 4},
)
row(
    "codegen",
    "CodeGen",
    "CodeGenForCausalLM",
    {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 32, "n_positions": 32, "rotary_dim": 4},
)
row("bloom", "Bloom", "BloomForCausalLM", {"hidden_size": 8, "n_layer": 3, "n_head": 2, "vocab_size": 32})
row(
    "falcon",
    "Falcon",
    "FalconForCausalLM",
    {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 32},
)
row(
    "mpt",
    "Mpt",
    "MptForCausalLM",
    {"d_model": 8, "n_layers": 3, "n_heads": 2, "vocab_size": 32, "max_seq_len": 32},
)
row(
    "gpt_bigcode",
    "GPTBigCode",
    "GPTBigCodeForCausalLM",
    {"n_embd": 8, "n_layer": 3, "n_head": 2, "vocab_size": 32, "n_positions": 32},
)
row(
    "xglm",
    "XGLM",
    "XGLMForCausalLM",
    {
        "d_model": 8,
        "num_layers": 3,
        "attention_heads": 2,
        "ffn_dim": 16,
        "vocab_size": 32,
        "max_position_embeddings": 32,
    },
)
row("biogpt", "BioGpt", "BioGptForCausalLM", H)
row(
    "ctrl",
    "CTRL",
    "CTRLLMHeadModel",
    {"n_embd": 8, "n_layer": 3, "n_head": 2, "dff": 16, "vocab_size": 32, "n_positions": 32},
)
row(
    "xlnet",
    "XLNet",
    "XLNetLMHeadModel",
    {"d_model": 8, "n_layer": 3, "n_head": 2, "d_inner": 16, "vocab_size": 32},
)
row(
    "gemma3n",
    "Gemma3nText",
    "Gemma3nForCausalLM",
    L
    | {
        "num_hidden_layers": 3,
        "vocab_size_per_layer_input": 32,
        "hidden_size_per_layer_input": 4,
        "laurel_rank": 2,
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0] * 3,
    },
)
for n, c, cls, e in [
    ("electra", "Electra", "ElectraForMaskedLM", {"embedding_size": 4}),
    (
        "deberta",
        "Deberta",
        "DebertaForSequenceClassification",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    (
        "deberta_v2",
        "DebertaV2",
        "DebertaV2ForSequenceClassification",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3},
    ),
    ("mpnet", "MPNet", "MPNetForMaskedLM", {}),
    (
        "squeezebert",
        "SqueezeBert",
        "SqueezeBertForSequenceClassification",
        {
            "embedding_size": 8,
            "q_groups": 1,
            "k_groups": 1,
            "v_groups": 1,
            "post_attention_groups": 1,
            "intermediate_groups": 1,
            "output_groups": 1,
        },
    ),
    (
        "esm",
        "Esm",
        "EsmForMaskedLM",
        {
            "position_embedding_type": "rotary",
            "mask_token_id": 3,
            "emb_layer_norm_before": True,
            "token_dropout": False,
        },
    ),
    ("camembert", "Camembert", "CamembertForMaskedLM", {}),
    ("longformer", "Longformer", "LongformerForMaskedLM", {"attention_window": 4}),
    ("big_bird", "BigBird", "BigBirdForMaskedLM", {"attention_type": "original_full"}),
    (
        "nystromformer",
        "Nystromformer",
        "NystromformerForMaskedLM",
        {"segment_means_seq_len": 4, "num_landmarks": 2},
    ),
    ("roformer", "RoFormer", "RoFormerForMaskedLM", {"embedding_size": 8}),
    ("ernie", "Ernie", "ErnieForMaskedLM", {}),
    ("modernbert", "ModernBert", "ModernBertForMaskedLM", {"cls_token_id": 3, "sep_token_id": 4}),
    ("fnet", "FNet", "FNetForMaskedLM", {}),
    ("layoutlm", "LayoutLM", "LayoutLMForTokenClassification", {}),
    ("mobilebert", "MobileBert", "MobileBertForMaskedLM", {"embedding_size": 8, "intra_bottleneck_size": 8}),
    ("megatron_bert", "MegatronBert", "MegatronBertForMaskedLM", {}),
    ("ibert", "IBert", "IBertForMaskedLM", {}),
    ("lxmert", "Lxmert", "LxmertForPreTraining", {}),
    ("convbert", "ConvBert", "ConvBertForMaskedLM", {"embedding_size": 8}),
    (
        "canine",
        "Canine",
        "CanineForSequenceClassification",
        {"num_hash_buckets": 16, "local_transformer_stride": 4},
    ),
    ("data2vec_text", "Data2VecText", "Data2VecTextForMaskedLM", {}),
    ("xmod", "Xmod", "XmodForMaskedLM", {"languages": ["en_XX"], "default_language": "en_XX"}),
    ("rembert", "RemBert", "RemBertForMaskedLM", {"input_embedding_size": 4, "output_embedding_size": 4}),
    ("bert_generation", "BertGeneration", "BertGenerationDecoder", {}),
]:
    row(n, c, cls, H | e)
for n, c, cls, e in [
    ("mbart", "MBart", "MBartForConditionalGeneration", {}),
    ("pegasus", "Pegasus", "PegasusForConditionalGeneration", {}),
    ("marian", "Marian", "MarianMTModel", {}),
    (
        "led",
        "LED",
        "LEDForConditionalGeneration",
        {"attention_window": 4, "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32},
    ),
    ("m2m_100", "M2M100", "M2M100ForConditionalGeneration", {}),
    ("blenderbot", "Blenderbot", "BlenderbotForConditionalGeneration", {}),
    (
        "bigbird_pegasus",
        "BigBirdPegasus",
        "BigBirdPegasusForConditionalGeneration",
        {"attention_type": "original_full"},
    ),
    (
        "fsmt",
        "FSMT",
        "FSMTForConditionalGeneration",
        {"langs": ["en", "de"], "src_vocab_size": 32, "tgt_vocab_size": 32},
    ),
]:
    row(n, c, cls, ED | e, "ed")
T5 = {
    "vocab_size": 32,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
for n, c in [("mt5", "MT5"), ("umt5", "UMT5"), ("longt5", "LongT5"), ("switch", "SwitchTransformers")]:
    row(
        n,
        c,
        c + "ForConditionalGeneration",
        T5
        | (
            {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2}
            if n == "switch"
            else {}
        ),
        "ed",
    )
row("t5_classifier", "T5", "T5ForSequenceClassification", T5, "none")
row(
    "speech_to_text",
    "Speech2Text",
    "Speech2TextForConditionalGeneration",
    ED
    | {
        "input_feat_per_channel": 4,
        "conv_channels": 8,
        "num_conv_layers": 2,
        "max_source_positions": 32,
        "max_target_positions": 32,
    },
    "none",
)
IMG = "img16"
for n, c, cls, e in [
    ("deit", "DeiT", "DeiTForImageClassification", {}),
    ("beit", "Beit", "BeitForImageClassification", {}),
    ("dinov2", "Dinov2", "Dinov2ForImageClassification", {}),
    (
        "vit_mae",
        "ViTMAE",
        "ViTMAEForPreTraining",
        {
            "decoder_hidden_size": 8,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
        },
    ),
    ("vit_msn", "ViTMSN", "ViTMSNForImageClassification", {}),
    ("yolos", "Yolos", "YolosForObjectDetection", {"image_size": [16, 16], "num_detection_tokens": 4}),
    ("data2vec_vision", "Data2VecVision", "Data2VecVisionForImageClassification", {}),
    ("dinov3", "DINOv3ViT", "DINOv3ViTModel", {}),
    ("ijepa", "IJepa", "IJepaForImageClassification", {}),
]:
    row(n, c, cls, V | e, IMG)
ST = {"hidden_sizes": [8, 16], "depths": [2, 3]}
row("convnextv2", "ConvNextV2", "ConvNextV2ForImageClassification", ST | {"num_stages": 2}, IMG)
row("regnet_hf", "RegNet", "RegNetForImageClassification", ST | {"embedding_size": 8, "groups_width": 4}, IMG)
row(
    "bit",
    "Bit",
    "BitForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 3], "num_groups": 2},
    IMG,
)
row(
    "swinv2_hf",
    "Swinv2",
    "Swinv2ForImageClassification",
    {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 2,
    },
    IMG,
)
row(
    "segformer",
    "Segformer",
    "SegformerForSemanticSegmentation",
    {
        "num_encoder_blocks": 2,
        "depths": [2, 3],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 8,
    },
    IMG,
)
row(
    "pvt",
    "Pvt",
    "PvtForImageClassification",
    {
        "image_size": 16,
        "num_encoder_blocks": 2,
        "depths": [2, 3],
        "sequence_reduction_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [2, 2],
        "strides": [2, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
    },
    IMG,
)
row(
    "pvt_v2",
    "PvtV2",
    "PvtV2ForImageClassification",
    {
        "image_size": 16,
        "num_encoder_blocks": 2,
        "depths": [2, 3],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
    },
    IMG,
)
row(
    "poolformer",
    "PoolFormer",
    "PoolFormerForImageClassification",
    {
        "hidden_sizes": [8, 16],
        "depths": [2, 4],
        "num_encoder_blocks": 2,
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "padding": [1, 1],
    },
    IMG,
)
row(
    "glpn",
    "GLPN",
    "GLPNForDepthEstimation",
    {
        "num_encoder_blocks": 4,
        "depths": [1, 2, 1, 2],
        "sr_ratios": [2, 1, 1, 1],
        "hidden_sizes": [8, 8, 16, 16],
        "patch_sizes": [3, 3, 3, 3],
        "strides": [2, 2, 2, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
        "decoder_hidden_size": 8,
    },
    "img32",
)
row(
    "mobilevit_hf",
    "MobileViT",
    "MobileViTForImageClassification",
    {
        "image_size": 32,
        "hidden_sizes": [8, 8, 8],
        "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16],
        "num_attention_heads": 2,
    },
    "img32",
)
row(
    "mobilenet_v1",
    "MobileNetV1",
    "MobileNetV1ForImageClassification",
    {"depth_multiplier": 0.25, "image_size": 32},
    "img32",
)
row(
    "mobilenet_v2_hf",
    "MobileNetV2",
    "MobileNetV2ForImageClassification",
    {"depth_multiplier": 0.35, "image_size": 32},
    "img32",
)
row(
    "efficientnet_hf",
    "EfficientNet",
    "EfficientNetForImageClassification",
    {"width_coefficient": 0.25, "depth_coefficient": 1.0, "image_size": 32, "hidden_dim": 1280 // 4},
    "none",
)
row(
    "levit_hf",
    "Levit",
    "LevitForImageClassification",
    {
        "image_size": 64,
        "hidden_sizes": [8, 16, 16],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 2, 1],
        "key_dim": [4, 4, 4],
        "mlp_ratio": [2, 2, 2],
        "attention_ratio": [2, 2, 2],
    },
    "img64",
)
row(
    "focalnet_hf",
    "FocalNet",
    "FocalNetForImageClassification",
    {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "img32",
)
row(
    "hiera_hf",
    "Hiera",
    "HieraForImageClassification",
    {
        "embed_dim": 8,
        "image_size": [32, 32],
        "patch_stride": [4, 4],
        "patch_size": [7, 7],
        "patch_padding": [3, 3],
        "depths": [1, 2],
        "num_heads": [1, 2],
        "query_stride": [2, 2],
        "masked_unit_size": [4, 4],
        "num_query_pool": 1,
    },
    "none",
)
row("vivit", "Vivit", "VivitForVideoClassification", V | {"num_frames": 2, "tubelet_size": [2, 4, 4]}, "none")
row(
    "videomae", "VideoMAE", "VideoMAEForVideoClassification", V | {"num_frames": 2, "tubelet_size": 2}, "none"
)
row("timesformer", "Timesformer", "TimesformerForVideoClassification", V | {"num_frames": 2}, "none")
row(
    "ast",
    "AST",
    "ASTForAudioClassification",
    V | {"max_length": 24, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
    "none",
)
RB = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 2, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}


def bb():
    return transformers.ResNetConfig(**{k: v for k, v in RB.items() if k != "model_type"})


def detr(cfg, cls, **e):
    def b():
        r = bb()
        r.out_features = e.pop("out", ["stage4"]) if "out" in e else ["stage4"]
        return getattr(transformers, cls)(
            getattr(transformers, cfg)(
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone=None,
                backbone_config=r,
                d_model=16,
                encoder_layers=2,
                decoder_layers=3,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                num_queries=4,
                **e,
            )
        )

    return b


MODELS["detr"] = (detr("DetrConfig", "DetrForObjectDetection"), "img32")
MODELS["conditional_detr"] = (detr("ConditionalDetrConfig", "ConditionalDetrForObjectDetection"), "img32")
MODELS["table_transformer"] = (detr("TableTransformerConfig", "TableTransformerForObjectDetection"), "img32")


def upernet():
    c = transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 2, 1],
            num_stages=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=8,
        use_auxiliary_head=True,
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        num_labels=3,
    )
    return transformers.UperNetForSemanticSegmentation(c)


MODELS["upernet"] = (upernet, "img64")
row(
    "dpt",
    "DPT",
    "DPTForDepthEstimation",
    V
    | {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "reassemble_factors": [4, 2, 1, 0.5],
        "is_hybrid": False,
        "hidden_act": "gelu",
    },
    "none",
)


def sam():
    v = transformers.SamVisionConfig(
        hidden_size=8,
        output_channels=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        window_size=2,
        global_attn_indexes=[1],
        mlp_dim=16,
        mlp_ratio=2.0,
    )
    return transformers.SamModel(
        transformers.SamConfig(
            vision_config=v,
            prompt_encoder_config=transformers.SamPromptEncoderConfig(
                hidden_size=8, image_size=32, patch_size=8, mask_input_channels=4
            ),
            mask_decoder_config=transformers.SamMaskDecoderConfig(
                hidden_size=8, mlp_dim=16, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=8
            ),
        )
    )


MODELS["sam"] = (sam, "none")


W = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8, 8],
    "conv_stride": [2, 2],
    "conv_kernel": [3, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
row("wav2vec2", "Wav2Vec2", "Wav2Vec2ForCTC", W, "wave")
row(
    "wav2vec2_stable",
    "Wav2Vec2",
    "Wav2Vec2ForCTC",
    W | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    "wave",
)
row("hubert", "Hubert", "HubertForCTC", W, "wave")
row("wavlm", "WavLM", "WavLMForCTC", W, "wave")
row("unispeech", "UniSpeech", "UniSpeechForCTC", W, "wave")
row("data2vec_audio", "Data2VecAudio", "Data2VecAudioForCTC", W | {"conv_pos_kernel_size": 3}, "wave")
row("wav2vec2_conformer", "Wav2Vec2Conformer", "Wav2Vec2ConformerForCTC", W, "wave")
row(
    "encodec",
    "Encodec",
    "EncodecModel",
    {"num_filters": 4, "hidden_size": 8, "codebook_size": 8, "codebook_dim": 8, "upsampling_ratios": [2, 2]},
    "none",
)
tv_ = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def two(cfg, cls, **kw):
    def b():
        return getattr(transformers, cls)(
            getattr(transformers, cfg)(
                text_config=tv_
                | {
                    "vocab_size": 32,
                    "max_position_embeddings": 16,
                    "bos_token_id": 0,
                    "eos_token_id": 1,
                    "pad_token_id": 2,
                }
                | kw.get("text", {}),
                vision_config=tv_ | {"image_size": 16, "patch_size": 4} | kw.get("vision", {}),
                projection_dim=8,
            )
        )

    return b


for n, c in [
    ("clip", "CLIP"),
    ("siglip", "Siglip"),
    ("siglip2", "Siglip2"),
    ("altclip", "AltCLIP"),
    ("chinese_clip", "ChineseCLIP"),
    ("owlvit", "OwlViT"),
    ("blip", "Blip"),
]:
    MODELS[n] = (two(c + "Config", c + "Model"), "clip")
MODELS["clip_classifier"] = (two("CLIPConfig", "CLIPForImageClassification"), "img16")
MODELS["clipseg"] = (
    lambda: transformers.CLIPSegForImageSegmentation(
        transformers.CLIPSegConfig(
            text_config=tv_ | {"vocab_size": 32, "max_position_embeddings": 16},
            vision_config=tv_ | {"image_size": 16, "patch_size": 4},
            projection_dim=8,
            extract_layers=[0, 1],
            reduce_dim=8,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
        )
    ),
    "none",
)
MODELS["groupvit"] = (
    lambda: transformers.GroupViTModel(
        transformers.GroupViTConfig(
            text_config=tv_ | {"vocab_size": 32, "max_position_embeddings": 16},
            vision_config=tv_
            | {
                "image_size": 16,
                "patch_size": 4,
                "depths": [2, 1],
                "num_group_tokens": [4, 0],
                "num_output_groups": [2, 0],
            },
            projection_dim=8,
            projection_intermediate_dim=8,
        )
    ),
    "none",
)
MODELS["clap"] = (
    lambda: transformers.ClapModel(
        transformers.ClapConfig(
            text_config=H | {"type_vocab_size": 1, "max_position_embeddings": 34},
            audio_config={
                "spec_size": 32,
                "window_size": 4,
                "num_mel_bins": 8,
                "hidden_size": 16,
                "patch_embeds_hidden_size": 8,
                "depths": [1, 2],
                "num_attention_heads": [1, 2],
                "num_hidden_layers": 2,
                "patch_size": 2,
                "patch_stride": [2, 2],
                "enable_fusion": False,
            },
            projection_dim=8,
        )
    ),
    "none",
)
MODELS["align"] = (
    lambda: transformers.AlignModel(
        transformers.AlignConfig(
            text_config=H,
            vision_config={
                "width_coefficient": 0.25,
                "depth_coefficient": 0.5,
                "image_size": 32,
                "hidden_dim": 320,
            },
            projection_dim=8,
        )
    ),
    "none",
)


def vlm(cls, cfg, text, vision, **kw):
    def b():
        return getattr(transformers, cls)(
            getattr(transformers, cfg)(text_config=text, vision_config=vision, **kw)
        )

    return b


LT = L | {"model_type": "llama"}
CV = tv_ | {"image_size": 16, "patch_size": 4, "model_type": "clip_vision_model"}
MODELS["llava"] = (
    vlm(
        "LlavaForConditionalGeneration", "LlavaConfig", LT, CV | {"num_hidden_layers": 2}, image_token_index=5
    ),
    "none",
)
MODELS["paligemma"] = (
    vlm(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        L | {"model_type": "gemma"},
        tv_
        | {
            "num_hidden_layers": 2,
            "image_size": 16,
            "patch_size": 4,
            "model_type": "siglip_vision_model",
            "projection_dim": 8,
        },
        projection_dim=8,
        image_token_index=5,
    ),
    "none",
)
MODELS["idefics3"] = (
    vlm(
        "Idefics3ForConditionalGeneration",
        "Idefics3Config",
        LT,
        tv_ | {"num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
        scale_factor=2,
        image_token_id=5,
    ),
    "none",
)
MODELS["mllama"] = (
    vlm(
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        L
        | {
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        {
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "max_num_tiles": 1,
            "vision_output_dim": 16,
            "intermediate_layers_indices": [1],
            "supported_aspect_ratios": [[1, 1]],
        },
        image_token_index=5,
    ),
    "none",
)
MODELS["qwen2_vl"] = (
    vlm(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        L | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}},
        {"depth": 2, "embed_dim": 8, "hidden_size": 8, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    ),
    "none",
)
MODELS["qwen2_5_vl"] = (
    vlm(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        L | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}},
        {
            "depth": 2,
            "hidden_size": 8,
            "out_hidden_size": 8,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "fullatt_block_indexes": [1],
        },
    ),
    "none",
)
MODELS["qwen3_vl"] = (
    vlm(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        L,
        {
            "depth": 2,
            "hidden_size": 8,
            "out_hidden_size": 8,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
    ),
    "none",
)
MODELS["qwen3_5"] = (
    vlm(
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        L
        | {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 4,
        },
        {
            "depth": 2,
            "hidden_size": 8,
            "out_hidden_size": 8,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "num_position_embeddings": 16,
        },
    ),
    "none",
)
MODELS["lfm2_vl"] = (
    vlm(
        "Lfm2VlForConditionalGeneration",
        "Lfm2VlConfig",
        L
        | {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "model_type": "lfm2",
        },
        tv_
        | {"num_hidden_layers": 2, "num_patches": 16, "patch_size": 4, "model_type": "siglip2_vision_model"},
    ),
    "none",
)
MODELS["gemma3_vl"] = (
    vlm(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        L,
        tv_
        | {"num_hidden_layers": 2, "image_size": 16, "patch_size": 4, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    ),
    "none",
)
MODELS["blip2"] = (
    lambda: transformers.Blip2ForConditionalGeneration(
        transformers.Blip2Config(
            vision_config=tv_ | {"num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
            qformer_config=H | {"encoder_hidden_size": 8, "num_hidden_layers": 2},
            text_config={
                "model_type": "opt",
                "vocab_size": 32,
                "hidden_size": 8,
                "ffn_dim": 16,
                "num_attention_heads": 2,
                "num_hidden_layers": 3,
                "word_embed_proj_dim": 8,
                "max_position_embeddings": 32,
            },
            num_query_tokens=2,
        )
    ),
    "none",
)
MODELS["vilt"] = (
    hf(
        "ViltConfig",
        "ViltForQuestionAnswering",
        **(H | {"image_size": 16, "patch_size": 4, "max_image_length": -1}),
    ),
    "none",
)
MODELS["flava"] = (
    lambda: transformers.FlavaModel(
        transformers.FlavaConfig(
            text_config=H,
            image_config=V,
            multimodal_config={
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            hidden_size=8,
            projection_dim=8,
        )
    ),
    "none",
)
MODELS["vision_encoder_decoder"] = (
    lambda: transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(transformers.ViTConfig(**V)),
        decoder=transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=8, n_layer=2, n_head=2, vocab_size=32, n_positions=16, add_cross_attention=True
            )
        ),
    ),
    "ved",
)
TS = {
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
}
for n, c in [
    ("time_series", "TimeSeriesTransformer"),
    ("informer", "Informer"),
    ("autoformer", "Autoformer"),
]:
    row(n, c, c + "ForPrediction", TS, "none")
row(
    "patchtst",
    "PatchTST",
    "PatchTSTForPrediction",
    {
        "num_input_channels": 2,
        "context_length": 16,
        "patch_length": 4,
        "patch_stride": 4,
        "d_model": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "prediction_length": 4,
    },
    "none",
)
row(
    "patchtsmixer",
    "PatchTSMixer",
    "PatchTSMixerForPrediction",
    {
        "num_input_channels": 2,
        "context_length": 16,
        "patch_length": 4,
        "patch_stride": 4,
        "d_model": 8,
        "num_layers": 3,
        "prediction_length": 4,
    },
    "none",
)
row(
    "timesfm",
    "TimesFm",
    "TimesFmModelForPrediction",
    {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 4,
        "patch_length": 4,
        "context_length": 16,
        "horizon_length": 4,
    },
    "none",
)
row(
    "decision_transformer",
    "DecisionTransformer",
    "DecisionTransformerModel",
    {
        "state_dim": 3,
        "act_dim": 2,
        "hidden_size": 8,
        "n_layer": 3,
        "n_head": 2,
        "max_ep_len": 16,
        "n_positions": 64,
    },
    "none",
)
row(
    "speecht5",
    "SpeechT5",
    "SpeechT5ForSpeechToText",
    {
        "vocab_size": 32,
        "hidden_size": 8,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "conv_dim": [8, 8],
        "conv_stride": [2, 2],
        "conv_kernel": [3, 3],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    },
    "none",
)
