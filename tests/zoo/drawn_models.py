"""Plain PyTorch with unusual code: shared blocks, several lists in one loop, recursions, towers, taps."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision.models as tv
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {}
Tensor = torch.Tensor


class Attention(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


class Mlp(nn.Sequential):
    def __init__(self, width: int = 8) -> None:
        super().__init__(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width)
        self.ln_2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Conv(nn.Module):
    """Two convolutions."""

    def __init__(self, width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).relu()


class Base(nn.Module):
    """An embedding, blocks that a subclass runs, a norm and a head."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 20)
        self.layers = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.run(self.embed(x))))

    def run(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Shared(Base):
    """One block, four times in its list."""

    def __init__(self) -> None:
        super().__init__(0)
        block = Block()
        self.layers = nn.ModuleList([block] * 4)

    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Grouped(Base):
    """Two blocks, each run twice in a row, by number."""

    def __init__(self) -> None:
        super().__init__(2)

    def run(self, x: Tensor) -> Tensor:
        for index in range(4):
            x = self.layers[index // 2](x)
        return x


class Depth(Base):
    """Mixture of depths: a router beside each block chooses the tokens that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(8, 1) for _ in range(4))

    def run(self, x: Tensor) -> Tensor:
        for router, layer in zip(self.routers, self.layers, strict=True):
            weight = router(x).sigmoid()
            x = weight * layer(x) + (1 - weight) * x
        return x


class Reversed(Base):
    def run(self, x: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            x = layer(x)
        return x


class Sliced(Base):
    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers[::-1]:
            x = layer(x)
        return x


class Halves(Base):
    """The second half gets the outputs of the first as skips."""

    def run(self, x: Tensor) -> Tensor:
        skips = []
        half = len(self.layers) // 2
        for layer in self.layers[:half]:
            x = layer(x)
            skips.append(x)
        for layer in self.layers[half:]:
            x = layer(x + skips.pop())
        return x


class Taps(Base):
    """Some outputs are collected on the way."""

    def run(self, x: Tensor) -> Tensor:
        taps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in (1, 3):
                taps.append(x)
        return sum(taps)


class While(Base):
    def run(self, x: Tensor) -> Tensor:
        index = 0
        while index < len(self.layers):
            x = self.layers[index](x)
            index += 1
        return x


class Checkpointed(Base):
    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.training else layer(x)
        return x


class Flamingo(Base):
    """A cross attention behind every second block."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = nn.ModuleList(Block() for _ in range(2))

    def run(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index % 2 == 1:
                x = self.cross[index // 2](x, x)
        return x


class Added(nn.Module):
    """Blocks added by name, and found again by `getattr`."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.embed = nn.Linear(8, 20), nn.Embedding(20, 8)
        for index in range(3):
            self.add_module(f"layer_{index}", Block())

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index in range(3):
            x = getattr(self, f"layer_{index}")(x)
        return self.head(x)


class Children(nn.Module):
    """Everything by `children()`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.first, self.second, self.third = Block(), Block(), Block()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class Named(nn.Module):
    """Three blocks under names without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.lower, self.middle, self.upper = Block(), Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.middle(self.lower(self.embed(x)))))


class Functional(nn.Module):
    """The head is a parameter, used by `F.linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.unembed, self.bias = nn.Parameter(torch.zeros(20, 8)), nn.Parameter(torch.zeros(20))
        self.embed, self.positions = nn.Embedding(20, 8), nn.Parameter(torch.zeros(6, 8))
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x) + self.positions[: x.shape[1]])
        return F.linear(x, self.unembed, self.bias)


class Weights(nn.Module):
    """A net without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(8, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.linear(x, weight).relu()
        return x


class NanoGpt(nn.Module):
    """Everything in a ModuleDict, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(20, 8),
                "wpe": nn.Embedding(6, 8),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(Block() for _ in range(3)),
                "ln_f": nn.LayerNorm(8),
            }
        )
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        x = self.transformer.drop(self.transformer.wte(x) + self.transformer.wpe(at))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Dicts(nn.Module):
    """Each layer a ModuleDict of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"n1": nn.LayerNorm(8), "attn": Attention(), "n2": nn.LayerNorm(8), "ffn": Mlp()})
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer["attn"](layer["n1"](x))
            x = x + layer["ffn"](layer["n2"](x))
        return self.out(x)


class Sublayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(0.1)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.dropout(sublayer(self.norm(x)))


class AnnotatedLayer(nn.Module):
    def __init__(self, is_decoder: bool) -> None:
        super().__init__()
        self.self_attn, self.feed_forward = nn.MultiheadAttention(8, 2, batch_first=True), Mlp()
        self.src_attn = nn.MultiheadAttention(8, 2, batch_first=True) if is_decoder else None
        self.sublayer = nn.ModuleList(Sublayer() for _ in range(3 if is_decoder else 2))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.sublayer[0](x, lambda x: self.self_attn(x, x, x)[0])
        if self.src_attn is not None:
            x = self.sublayer[1](x, lambda x: self.src_attn(x, memory, memory)[0])
        return self.sublayer[-1](x, self.feed_forward)


class AnnotatedStack(nn.Module):
    def __init__(self, depth: int, is_decoder: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AnnotatedLayer(is_decoder) for _ in range(depth))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory)
        return self.norm(x)


class Annotated(nn.Module):
    """The encoder and decoder of a well-known lesson; its generator runs in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = AnnotatedStack(3, is_decoder=True), AnnotatedStack(2)
        self.src_embed, self.tgt_embed = (
            nn.Sequential(nn.Embedding(20, 8)),
            nn.Sequential(nn.Embedding(20, 8)),
        )
        self.generator = nn.Linear(8, 20)

    def encode(self, source: Tensor) -> Tensor:
        return self.encoder(self.src_embed(source))

    def decode(self, memory: Tensor, target: Tensor) -> Tensor:
        return self.decoder(self.tgt_embed(target), memory)

    def forward(self, source: Tensor) -> Tensor:
        return self.decode(self.encode(source), source)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.project = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.project(self.norm(x).mean(1))


class TwoTowers(nn.Module):
    """Retrieval: a query tower, an item tower, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros(()))
        self.query_tower, self.item_tower = Tower(), Tower()

    def forward(self, x: Tensor) -> Tensor:
        query, item = self.query_tower(x), self.item_tower(x)
        return self.temperature.exp() * query @ item.T


class Triplet(nn.Module):
    """One tower for an anchor, a positive and a negative."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()

    def forward(self, x: Tensor) -> Tensor:
        anchor, positive, negative = (self.tower(each) for each in (x, x.flip(1), x.roll(1, 1)))
        return (anchor - positive).norm() - (anchor - negative).norm()


class Streams(nn.Module):
    """Two ResNets, one for pictures and one for flow, in a ModuleDict; their features are put together."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1024, 2)
        self.streams = nn.ModuleDict({"rgb": tv.resnet18(), "flow": tv.resnet18()})
        for stream in self.streams.values():
            stream.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.streams["rgb"](x), self.streams["flow"](x)], -1))


class Cut(nn.Module):
    """A ResNet without its head, as many tutorials cut it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(tv.resnet18().children())[:-1])
        self.classifier = nn.Linear(512, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class CutUNet(nn.Module):
    """A U-Net on the stages of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        net = tv.resnet18()
        self.decoder = nn.ModuleList([Conv(768, 64), Conv(192, 32), Conv(96, 32)])
        self.out, self.stem = nn.Conv2d(32, 2, 1), nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.encoder = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], 1))
        return self.out(x)


class UNetZip(nn.Module):
    """Up-convolutions and decoder blocks in two lists, zipped; registered from the deep end."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 2, 1)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in (16, 8, 4))
        self.decs = nn.ModuleList(Conv(2 * w, w) for w in (16, 8, 4))
        self.mid = Conv(16, 32)
        self.encs = nn.ModuleList([Conv(1, 4), Conv(4, 8), Conv(8, 16)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encs:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.mid(x)
        for up, block, skip in zip(self.ups, self.decs, skips[::-1], strict=True):
            x = block(torch.cat([up(x), skip], 1))
        return self.head(x)


class UNetReversed(nn.Module):
    """A decoder that is registered from the shallow end and run from the deep one."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 8, 16)
        self.down = nn.ModuleList([Conv(1, 4), Conv(4, 8), Conv(8, 16)])
        self.up = nn.ModuleList([Conv(12, 4), Conv(24, 8)])
        self.final = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = skips.pop()
        for block in reversed(self.up):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1))
        return self.final(x)


class Pix2Pix(nn.Module):
    """A U-Net whose each level holds the next one."""

    def __init__(self, outer: int, inner: int, below: nn.Module | None = None, top: bool = False) -> None:
        super().__init__()
        self.top = top
        down = nn.Conv2d(1 if top else outer, inner, 4, 2, 1)
        up = nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1)
        self.model = nn.Sequential(down, *([] if below is None else [below]), nn.ReLU(), up)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.top else torch.cat([x, self.model(x)], 1)


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def cycle_gan() -> nn.Module:
    """Convolutions, residual blocks and transposed convolutions in one Sequential."""
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(1, 4, 7),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, 2, 1),
        nn.ReLU(),
        *(Residual() for _ in range(4)),
        nn.ConvTranspose2d(8, 4, 3, 2, 1, 1),
        nn.ReLU(),
        nn.ReflectionPad2d(3),
        nn.Conv2d(4, 1, 7),
        nn.Tanh(),
    )


class Temporal(nn.Module):
    """A block of a temporal network: its layers stand in it twice."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(i, o, 3, padding=1), nn.Conv1d(o, o, 3, padding=1)
        self.net = nn.Sequential(self.conv1, nn.ReLU(), self.conv2, nn.ReLU())
        self.downsample = nn.Conv1d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (x if self.downsample is None else self.downsample(x))


class Tcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(Temporal(1, 8), Temporal(8, 8), Temporal(8, 8))
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[..., -1])


class Nerf(nn.Module):
    """Linear layers, one of which gets the input again, and heads for density and colour."""

    def __init__(self) -> None:
        super().__init__()
        self.pts_linears = nn.ModuleList(
            [nn.Linear(3, 8)] + [nn.Linear(11 if i == 2 else 8, 8) for i in range(4)]
        )
        self.alpha_linear, self.feature_linear = nn.Linear(8, 1), nn.Linear(8, 8)
        self.views_linears, self.rgb_linear = nn.ModuleList([nn.Linear(8, 4)]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for index, _ in enumerate(self.pts_linears):
            h = self.pts_linears[index](h).relu()
            if index == 2:
                h = torch.cat([x, h], -1)
        alpha, h = self.alpha_linear(h), self.feature_linear(h)
        for index, _ in enumerate(self.views_linears):
            h = self.views_linears[index](h).relu()
        return torch.cat([self.rgb_linear(h), alpha], -1)


class Dlrm(nn.Module):
    """Tables and a bottom net side by side, a top net behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList(nn.Embedding(10, 8) for _ in range(3))
        self.bot_l = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top_l = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        dense = self.bot_l(x.float())
        sparse = [table(x[:, index]) for index, table in enumerate(self.emb_l)]
        return self.top_l(torch.cat([dense, *sparse], -1))


class Lstms(nn.Module):
    """LSTMs in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.embed = nn.Linear(8, 2), nn.Embedding(20, 8)
        self.rnns = nn.ModuleList(nn.LSTM(8, 8, batch_first=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for rnn, norm in zip(self.rnns, self.norms, strict=True):
            x = norm(x + rnn(x)[0])
        return self.out(x)


class Seq2Seq(nn.Module):
    """A GRU that reads and a GRU that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"embed": nn.Embedding(20, 8), "rnn": nn.GRU(8, 8, 2, batch_first=True)})
        self.decoder = nn.ModuleDict({"embed": nn.Embedding(20, 8), "rnn": nn.GRU(8, 8, 2, batch_first=True)})
        self.out = nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        state = self.encoder["rnn"](self.encoder["embed"](x))[1]
        return self.out(self.decoder["rnn"](self.decoder["embed"](x), state)[0])


class TimedConv(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.mlp, self.block1, self.block2 = (
            nn.Linear(8, o),
            nn.Conv2d(i, o, 3, padding=1),
            nn.Conv2d(o, o, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.block2((self.block1(x) + self.mlp(t)[..., None, None]).relu())


class Diffusion(nn.Module):
    """The U-Net of a diffusion model: levels are lists, the time goes into every block."""

    def __init__(self) -> None:
        super().__init__()
        self.init_conv, self.time_mlp = nn.Conv2d(1, 8, 3, padding=1), Mlp()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, o in ((8, 8), (8, 16)):
            self.downs.append(nn.ModuleList([TimedConv(i, i), TimedConv(i, i), nn.Conv2d(i, o, 4, 2, 1)]))
        self.mid_block1, self.mid_block2 = TimedConv(16, 16), TimedConv(16, 16)
        for i, o in ((8, 16), (8, 8)):
            up = nn.ConvTranspose2d(o, i, 4, 2, 1)
            self.ups.append(nn.ModuleList([TimedConv(o + i, o), TimedConv(o + i, o), up]))
        self.final_res_block, self.final_conv = TimedConv(16, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.init_conv(x)
        first, t, skips = x, self.time_mlp(torch.zeros(1, 8)), []
        for block1, block2, down in self.downs:
            x = block1(x, t)
            skips.append(x)
            x = block2(x, t)
            skips.append(x)
            x = down(x)
        x = self.mid_block2(self.mid_block1(x, t), t)
        for block1, block2, up in self.ups:
            wide = skips.pop()
            x = block1(torch.cat([F.interpolate(x, wide.shape[-2:]), wide], 1), t)
            x = block2(torch.cat([x, skips.pop()], 1), t)
            x = F.interpolate(up(x), wide.shape[-2:])
        return self.final_conv(self.final_res_block(torch.cat([x, first], 1), t))


class Tasks(nn.Module):
    """A trunk with a head for each task in a ModuleDict, and a loop over them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"depth": Mlp(), "normal": Mlp(), "edges": Mlp()})
        self.stem, self.trunk = nn.Conv2d(1, 8, 3, padding=1), nn.Sequential(Conv(), Conv(), Conv())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(self.stem(x)).mean((2, 3))
        return {name: head(x) for name, head in self.heads.items()}


class Exits(nn.Module):
    """A classifier behind each block."""

    def __init__(self) -> None:
        super().__init__()
        self.exits = nn.ModuleList(nn.Linear(8, 2) for _ in range(3))
        self.stem, self.blocks = nn.Conv2d(1, 8, 3, padding=1), nn.ModuleList(Conv() for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, answers = self.stem(x), []
        for block, leave in zip(self.blocks, self.exits, strict=True):
            x = block(x)
            answers.append(leave(x.mean((2, 3))))
        return answers


class Stage(nn.Module):
    def __init__(self, i: int, o: int, depth: int) -> None:
        super().__init__()
        self.down, self.blocks = nn.Conv2d(i, o, 2, 2), nn.Sequential(*(Conv(o, o) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class Pyramid(nn.Module):
    """Stages under attributes, and the sum of lateral convolutions of all."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, 8, 1) for w in (8, 16, 32))
        self.smooth, self.stem = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.stage1, self.stage2, self.stage3 = Stage(4, 8, 1), Stage(8, 16, 2), Stage(16, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        x = self.stem(x)
        for stage in (self.stage1, self.stage2, self.stage3):
            x = stage(x)
            features.append(x)
        size = features[0].shape[-2:]
        total = sum(F.interpolate(lat(f), size) for lat, f in zip(self.lateral, features, strict=True))
        return self.smooth(total)


class Le(nn.Module):
    """The net of the first tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv2(F.max_pool2d(self.conv1(x).relu(), 2)).relu(), 2)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def conv_block(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class ResNet9(nn.Module):
    """Single convolutions and residual pairs in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_block(1, 8), conv_block(8, 16)
        self.res1 = nn.Sequential(conv_block(16, 16), conv_block(16, 16))
        self.conv3, self.conv4 = conv_block(16, 32), conv_block(32, 64)
        self.res2 = nn.Sequential(conv_block(64, 64), conv_block(64, 64))
        self.classifier = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        x = self.res1(x) + x
        x = self.conv4(self.conv3(x))
        x = self.res2(x) + x
        return self.classifier(x)


class Unet2(nn.Module):
    """A U-Net with its parts as attributes that have no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.out_conv, self.up_high, self.up_low = nn.Conv2d(4, 2, 1), Conv(12, 4), Conv(24, 8)
        self.enc_high, self.enc_mid, self.enc_low = Conv(1, 4), Conv(4, 8), Conv(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc_high(x)
        b = self.enc_mid(F.max_pool2d(a, 2))
        c = self.enc_low(F.max_pool2d(b, 2))
        x = self.up_low(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.out_conv(self.up_high(torch.cat([F.interpolate(x, scale_factor=2), a], 1)))


class Lucid(nn.Module):
    """A vision transformer of a well-known collection: pairs in lists, patches by a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.LayerNorm(8))
        self.pos_embedding, self.cls_token = (
            nn.Parameter(torch.zeros(1, 5, 8)),
            nn.Parameter(torch.zeros(1, 1, 8)),
        )
        self.transformer = LucidTransformer()
        self.mlp_head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_patch_embedding(x)
        x = torch.cat([self.cls_token, x], 1) + self.pos_embedding
        return self.mlp_head(self.transformer(x)[:, 0])


class LucidTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.layers = nn.ModuleList(nn.ModuleList([Attention(), Mlp()]) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.norm(x)


class Hourglass(nn.Module):
    """Stacked hourglasses, each with heads whose answer goes into the next."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = nn.Conv2d(1, 8, 3, padding=1)
        self.hgs = nn.ModuleList(nn.Sequential(Conv(), Conv(), Conv()) for _ in range(2))
        self.outs = nn.ModuleList(nn.Conv2d(8, 3, 1) for _ in range(2))
        self.merge = nn.ModuleList(nn.Conv2d(3, 8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, answers = self.pre(x), []
        for index in range(2):
            y = self.hgs[index](x)
            answers.append(self.outs[index](y))
            if index < 1:
                x = x + y + self.merge[index](answers[-1])
        return answers


class VqVae(nn.Module):
    """A code book between an encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Residual(), Residual())
        self.codebook = nn.Embedding(16, 8)
        self.decoder = nn.Sequential(Residual(), Residual(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1)
        codes = (z.reshape(-1, 8) @ self.codebook.weight.T).argmax(-1).view(z.shape[:-1])
        return self.decoder(self.codebook(codes).permute(0, 3, 1, 2))


class Interleaved(nn.Module):
    """Local and global blocks in two lists that one loop runs in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.window_blocks = nn.ModuleList(Block() for _ in range(3))
        self.global_blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for window, everywhere in zip(self.window_blocks, self.global_blocks, strict=True):
            x = everywhere(window(x))
        return self.head(x)


class Latent(nn.Module):
    """A Perceiver: one cross attention and one stack of blocks, run three times over."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.embed = nn.Parameter(torch.zeros(1, 4, 8)), nn.Embedding(20, 8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.blocks, self.out = nn.ModuleList(Block() for _ in range(2)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, latents = self.embed(x), self.latents
        for _ in range(3):
            latents = latents + self.cross(latents, x, x)[0]
            for block in self.blocks:
                latents = block(latents)
        return self.out(latents.mean(1))


class Speech(nn.Module):
    """Convolutions over frames, a transformer encoder of PyTorch's own, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend = nn.Sequential(nn.Conv1d(1, 8, 3, 2), nn.GELU(), nn.Conv1d(8, 8, 3, 2), nn.GELU())
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.ctc = nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.ctc(self.encoder(self.frontend(x).transpose(1, 2)))


class Hyena(nn.Module):
    """Blocks of two classes without attention, chosen by number, in one ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.unembedding = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.blocks = nn.ModuleList(Gated() if index % 3 else Block() for index in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.back = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.gate(x).sigmoid() * self.value(x))


class Experts(nn.Module):
    """Each block's experts in a list beside the blocks, by number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.attentions = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(3))
        self.experts = nn.ModuleList(nn.ModuleList(Mlp() for _ in range(4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index, attention in enumerate(self.attentions):
            x = x + attention(x, x, x)[0]
            x = x + sum(expert(x) for expert in self.experts[index])
        return self.head(x)


MODELS |= {
    "drawn_shared": (Shared, "tokens"),
    "drawn_grouped": (Grouped, "tokens"),
    "drawn_depth": (Depth, "tokens"),
    "drawn_reversed": (Reversed, "tokens"),
    "drawn_sliced": (Sliced, "tokens"),
    "drawn_halves": (Halves, "tokens"),
    "drawn_taps": (Taps, "tokens"),
    "drawn_while": (While, "tokens"),
    "drawn_checkpointed": (Checkpointed, "tokens"),
    "drawn_flamingo": (Flamingo, "tokens"),
    "drawn_added": (Added, "tokens"),
    "drawn_children": (Children, "tokens"),
    "drawn_named": (Named, "tokens"),
    "drawn_functional": (Functional, "tokens"),
    "drawn_weights": (Weights, (1, 8)),
    "drawn_nanogpt": (NanoGpt, "tokens"),
    "drawn_dicts": (Dicts, "tokens"),
    "drawn_annotated": (Annotated, "tokens"),
    "drawn_two_towers": (TwoTowers, "tokens"),
    "drawn_triplet": (Triplet, "tokens"),
    "drawn_streams": (Streams, (1, 3, 32, 32)),
    "drawn_cut": (Cut, (1, 3, 32, 32)),
    "drawn_cut_unet": (CutUNet, (1, 3, 64, 64)),
    "drawn_fx": (lambda: create_feature_extractor(tv.resnet18(), {"layer4": "out"}), (1, 3, 32, 32)),
    "drawn_unet_zip": (UNetZip, (1, 1, 16, 16)),
    "drawn_unet_reversed": (UNetReversed, (1, 1, 16, 16)),
    "drawn_unet_names": (Unet2, (1, 1, 16, 16)),
    "drawn_pix2pix": (lambda: Pix2Pix(1, 8, Pix2Pix(8, 16, Pix2Pix(16, 32)), top=True), (1, 1, 16, 16)),
    "drawn_cycle_gan": (cycle_gan, (1, 1, 16, 16)),
    "drawn_tcn": (Tcn, (1, 1, 16)),
    "drawn_nerf": (Nerf, (1, 3)),
    "drawn_dlrm": (Dlrm, "tokens"),
    "drawn_lstms": (Lstms, "tokens"),
    "drawn_seq2seq": (Seq2Seq, "tokens"),
    "drawn_diffusion": (Diffusion, (1, 1, 16, 16)),
    "drawn_tasks": (Tasks, (1, 1, 8, 8)),
    "drawn_exits": (Exits, (1, 1, 8, 8)),
    "drawn_pyramid": (Pyramid, (1, 1, 16, 16)),
    "drawn_le": (Le, (1, 1, 32, 32)),
    "drawn_resnet9": (ResNet9, (1, 1, 8, 8)),
    "drawn_lucid": (Lucid, (1, 4, 16)),
    "drawn_hourglass": (Hourglass, (1, 1, 8, 8)),
    "drawn_vqvae": (VqVae, (1, 1, 8, 8)),
    "drawn_interleaved": (Interleaved, "tokens"),
    "drawn_latent": (Latent, "tokens"),
    "drawn_speech": (Speech, (1, 1, 40)),
    "drawn_hyena": (Hyena, "tokens"),
    "drawn_experts": (Experts, "tokens"),
}
