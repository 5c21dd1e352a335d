"""Models of torchvision, timm, MONAI, segmentation-models-pytorch, and of plain PyTorch as in tutorials."""

import torch
import torchvision.models as tv
from torch import nn

from tests.zoo.lazy_library import LazyLibrary

MODELS = {}


def T(name, f, inp):
    MODELS[name] = (f, inp)


for n in ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"]:
    T("tv_" + n, (lambda n=n: getattr(tv, n)(num_classes=2)), (1, 3, 32, 32))
for n in [
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet0_5",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "vgg11",
    "vgg11_bn",
    "alexnet",
]:
    T("tv_" + n, (lambda n=n: getattr(tv, n)(num_classes=2)), (1, 3, 64, 64))
T("tv_googlenet", lambda: tv.googlenet(num_classes=2, init_weights=False, aux_logits=True), (1, 3, 64, 64))
T("tv_inception_v3", lambda: tv.inception_v3(num_classes=2, init_weights=False, aux_logits=True), None)
T(
    "tv_swin_t",
    lambda: tv.swin_transformer.SwinTransformer([2, 2], 8, [1, 2], [1, 2], [2, 2], num_classes=2),
    (1, 3, 32, 32),
)
T(
    "tv_swin_v2",
    lambda: tv.swin_transformer.SwinTransformer(
        [2, 2],
        8,
        [1, 2],
        [1, 2],
        [2, 2],
        num_classes=2,
        block=tv.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=tv.swin_transformer.PatchMergingV2,
    ),
    (1, 3, 32, 32),
)
T("tv_vit", lambda: tv.VisionTransformer(16, 4, 3, 2, 8, 16, num_classes=2), (1, 3, 16, 16))
T("tv_maxvit", lambda: tv.MaxVit((32, 32), 8, 2, [8, 16], [1, 2], 4, 0.0, num_classes=2), (1, 3, 32, 32))
for n in [
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
]:
    T("tv_" + n, (lambda n=n: getattr(tv.detection, n)(weights=None, weights_backbone=None)), "list64")
T("tv_ssd300_vgg16", lambda: tv.detection.ssd300_vgg16(weights=None, weights_backbone=None), None)
T(
    "tv_ssdlite320",
    lambda: tv.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None),
    None,
)
for n in ["fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"]:
    T(
        "tv_" + n,
        (lambda n=n: getattr(tv.segmentation, n)(weights=None, weights_backbone=None, num_classes=2)),
        (1, 3, 64, 64),
    )
T("tv_s3d", lambda: tv.video.s3d(num_classes=2), None)
T("tv_r3d_18", lambda: tv.video.r3d_18(num_classes=2), None)
T("tv_mvit", lambda: tv.video.mvit_v1_b(num_classes=2), None)
try:
    timm = LazyLibrary("timm")

    for n in [
        "fastvit_t8",
        "coatnet_0_rw_224",
        "inception_v4",
        "hrnet_w18_small",
        "regnety_002",
        "twins_svt_small",
        "pvt_v2_b0",
        "poolformer_s12",
        "mixer_s32_224",
        "resmlp_12_224",
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "cait_xxs24_224",
        "xcit_nano_12_p16_224",
        "eva02_tiny_patch14_224",
        "convnext_atto",
        "convnextv2_atto",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "mobilevit_xxs",
        "repvgg_a0",
        "resnest14d",
        "res2net50_26w_4s",
        "dpn68",
        "densenet121",
        "xception41",
        "tnt_s_patch16_224",
        "pit_ti_224",
        "levit_128s",
        "edgenext_xx_small",
        "efficientformer_l1",
        "focalnet_tiny_srf",
        "davit_tiny",
        "hiera_tiny_224",
        "mambaout_femto",
        "efficientvit_m0",
        "volo_d1_224",
        "nest_tiny",
    ]:
        T("timm_" + n, (lambda n=n: timm.create_model(n, pretrained=False, num_classes=2)), None)
except ImportError:
    pass
try:
    mn = LazyLibrary("monai.networks.nets")

    T("monai_unet", lambda: mn.UNet(2, 1, 2, (4, 8, 16, 32), (2, 2, 2), num_res_units=2), (1, 1, 32, 32))
    T("monai_basic_unet", lambda: mn.BasicUNet(2, 1, 2, (4, 4, 8, 16, 32, 4)), (1, 1, 32, 32))
    T(
        "monai_dynunet",
        lambda: mn.DynUNet(2, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[4, 8, 16, 32]),
        (1, 1, 32, 32),
    )
    T(
        "monai_dynunet_ds",
        lambda: mn.DynUNet(
            2,
            1,
            2,
            [3, 3, 3, 3],
            [1, 2, 2, 2],
            [2, 2, 2],
            filters=[4, 8, 16, 32],
            deep_supervision=True,
            deep_supr_num=1,
        ),
        None,
    )
    T(
        "monai_segresnet",
        lambda: mn.SegResNet(2, 8, 1, 2, blocks_down=(1, 2, 2), blocks_up=(1, 1)),
        (1, 1, 32, 32),
    )
    T("monai_vnet", lambda: mn.VNet(spatial_dims=2, in_channels=1, out_channels=2), (1, 1, 32, 32))
    T("monai_attention_unet", lambda: mn.AttentionUnet(2, 1, 2, (4, 8, 16), (2, 2)), (1, 1, 32, 32))
    T(
        "monai_swin_unetr",
        lambda: mn.SwinUNETR(1, 2, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1)),
        (1, 1, 64, 64),
    )
    T(
        "monai_densenet",
        lambda: mn.DenseNet(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 3)),
        (1, 1, 32, 32),
    )
    T(
        "monai_resnet",
        lambda: mn.ResNet(
            "basic", [1, 2, 1, 1], [4, 8, 16, 32], spatial_dims=2, n_input_channels=1, num_classes=2
        ),
        (1, 1, 32, 32),
    )
    T(
        "monai_efficientnet",
        lambda: mn.EfficientNetBN(
            "efficientnet-b0", spatial_dims=2, in_channels=1, num_classes=2, pretrained=False
        ),
        None,
    )
    T("monai_flexible_unet", lambda: mn.FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=2), None)
    T("monai_highresnet", lambda: mn.HighResNet(2, 1, 2), None)
    T("monai_unetpp", lambda: mn.BasicUNetPlusPlus(2, 1, 2, features=(4, 4, 8, 16, 32, 4)), (1, 1, 32, 32))
    T("monai_senet", lambda: mn.SEResNet50(spatial_dims=2, in_channels=1, num_classes=2), None)
    T(
        "monai_mednext",
        lambda: mn.MedNeXt(2, 4, 1, 2, blocks_down=(1, 2), blocks_bottleneck=1, blocks_up=(2, 1)),
        None,
    )
except ImportError:
    pass
try:
    smp = LazyLibrary("segmentation_models_pytorch")

    for n, e in [
        ("Unet", "resnet18"),
        ("UnetPlusPlus", "resnet18"),
        ("FPN", "resnet18"),
        ("PSPNet", "resnet18"),
        ("DeepLabV3", "resnet18"),
        ("DeepLabV3Plus", "resnet18"),
        ("Linknet", "resnet18"),
        ("MAnet", "resnet18"),
        ("PAN", "resnet18"),
        ("Unet", "mobilenet_v2"),
        ("Unet", "efficientnet-b0"),
        ("UPerNet", "resnet18"),
        ("Segformer", "mit_b0"),
        ("Unet", "vgg11"),
        ("Unet", "densenet121"),
        ("Unet", "timm-regnetx_002"),
    ]:
        T(
            f"smp_{n}_{e}".lower(),
            (lambda n=n, e=e: getattr(smp, n)(e, encoder_weights=None, classes=2)),
            None,
        )
except ImportError:
    pass


# plain
class Block(nn.Module):
    def __init__(self, w=8, heads=2):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(w, w // heads) for _ in range(heads))
        self.project, self.norm = nn.Linear(w, w), nn.LayerNorm(w)

    def forward(self, x):
        return x + self.project(torch.cat([h(self.norm(x)) for h in self.heads], -1))


class Teaching(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.blocks = nn.Sequential(Block(), Block(), Block(), nn.LayerNorm(8))

    def forward(self, x):
        return self.lm_head(self.blocks(self.embed(x)))


T("plain_teaching_gpt", Teaching, "tokens")


class InDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleDict({f"block{i}": Block() for i in range(3)})
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20)

    def forward(self, x):
        x = self.embed(x)
        for b in self.blocks.values():
            x = b(x)
        return self.head(self.norm(x))


T("plain_module_dict", InDict, "tokens")


class Numbered(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.block1, self.block2, self.block3 = Block(), Block(), Block()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20)

    def forward(self, x):
        return self.head(self.norm(self.block3(self.block2(self.block1(self.embed(x))))))


T("plain_numbered", Numbered, "tokens")


class ConvB(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mlp, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        return x + self.mlp(self.conv(self.norm(x)))


class TwoKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList([Block(), ConvB(), Block(), ConvB()])
        self.head = nn.Linear(8, 20)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


T("plain_two_classes", TwoKinds, "tokens")


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(4)
        )

    def forward(self, x):
        w = self.router(x).softmax(-1)
        return x + sum(w[..., i : i + 1] * e(x) for i, e in enumerate(self.experts))


T(
    "plain_moe",
    lambda: nn.Sequential(nn.Embedding(20, 8), MoE(), MoE(), nn.LayerNorm(8), nn.Linear(8, 20)),
    "tokens",
)


class Double(nn.Sequential):
    def __init__(self, i, o):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1)
        )


class UNetLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList([Double(3, 8), Double(8, 16), Double(16, 32)])
        self.bottleneck, self.final_conv = Double(32, 64), nn.Conv2d(8, 2, 1)
        for w in (32, 16, 8):
            self.ups += [nn.ConvTranspose2d(2 * w, w, 2, 2), Double(2 * w, w)]

    def forward(self, x):
        skips = []
        for d in self.downs:
            skips.append(d(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for i in (0, 2, 4):
            x = self.ups[i + 1](torch.cat([skips.pop(), self.ups[i](x)], 1))
        return self.final_conv(x)


T("plain_unet_lists", UNetLists, (1, 3, 16, 16))


class UNetAttrs(nn.Module):
    def __init__(self):
        super().__init__()
        self.outc = nn.Conv2d(8, 2, 1)
        self.up1, self.up2 = Double(48, 16), Double(24, 8)
        self.inc, self.down1, self.down2 = Double(3, 8), Double(8, 16), Double(16, 32)

    def forward(self, x):
        p = nn.functional.max_pool2d
        u = nn.functional.interpolate
        a = self.inc(x)
        b = self.down1(p(a, 2))
        c = self.down2(p(b, 2))
        x = self.up1(torch.cat([u(c, scale_factor=2), b], 1))
        x = self.up2(torch.cat([u(x, scale_factor=2), a], 1))
        return self.outc(x)


T("plain_unet_attributes", UNetAttrs, (1, 3, 16, 16))


class UNetEncDec(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoders = nn.ModuleList([Double(48, 16), Double(24, 8)])
        self.encoders = nn.ModuleList([Double(3, 8), Double(8, 16), Double(16, 32)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skips = []
        for e in self.encoders:
            x = e(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = skips.pop()
        for d in self.decoders:
            x = d(torch.cat([nn.functional.interpolate(x, scale_factor=2), skips.pop()], 1))
        return self.head(x)


T("plain_unet_encoders_decoders", UNetEncDec, (1, 3, 16, 16))
T(
    "plain_mlp",
    lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
    (1, 8),
)
T("plain_torch_transformer", lambda: nn.Transformer(8, 2, 2, 3, 16, batch_first=True), None)


class PreNorm(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(8), f

    def forward(self, x):
        return self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, -1)
        return self.to_out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


class Lucid(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        PreNorm(Attention()),
                        PreNorm(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))),
                    ]
                )
                for _ in range(3)
            ]
        )
        self.mlp_head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))

    def forward(self, x):
        x = self.embed(x)
        for a, f in self.layers:
            x = a(x) + x
            x = f(x) + x
        return self.mlp_head(x)


T("plain_pairs_in_lists", Lucid, "tokens")


class LSTMTagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.out = (
            nn.Embedding(20, 8),
            nn.LSTM(8, 8, 2, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        return self.out(self.lstm(self.embed(x))[0])


T("plain_lstm", LSTMTagger, "tokens")
