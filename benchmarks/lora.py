"""B11: LoRA ranks that change: what a change costs, and what a rank costs afterwards.

Change: one large layer with its AdamW state, next to the SVD of a whole update, smaller because it takes so
long; all layers of a GPT, against PEFT's way, which adds an adapter and deletes the other, with all that it
has learnt. Step: training steps of a GPT whose ranks went from 64 to 8, against the same GPT with PEFT's
rank 8 from the start and with rank 64; and of rank 0 against the GPT without LoRA. Memory: bytes of
gradients and AdamW's moments by rank, counted. Loss: what shrinking costs at once in a small GPT, by `svd`
and by `kfac`, as means over seeds.
"""

import argparse
import copy
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.measure import Report, cpu_seconds, interleave, main, no_collection
from lighter_freezers import GPT, apply_lora
from lighter_freezers.lora.set_rank import resize_sites
from lighter_freezers.lora.sites import find_lora_sites
from lighter_freezers.lora.statistics import BottleneckStatistics

RANKS = (64, 32, 8, 2, 0)
CUTS = (12, 6, 2)


def lora(network: nn.Module, rank: int, targets: list[str]) -> Any:
    """A network with LoRA whose update is not zero."""
    adapted = apply_lora(network, {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets})
    with torch.no_grad():
        for site in find_lora_sites(adapted).values():
            site.factors.parameters[1].normal_(std=0.02)
    return adapted


def gpt(options: argparse.Namespace, rank: int | None) -> Any:
    """The GPT of all but the first part; None for no LoRA, and no weight that trains but a vector."""
    torch.manual_seed(0)
    size = {"n_layer": options.layers, "n_embd": options.width, "n_head": 4}
    network = GPT({"vocab_size": 512, "block_size": 64, **size})
    if rank is not None:
        return lora(network, rank, ["c_attn", "c_proj", "c_fc"])
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.transformer.h[0].ln_1.weight.requires_grad_(True)  # so that the backward pass goes all the way
    return network


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_ranks(model: nn.Module, rank: int, optimizer: Optimizer | None = None, **how: Any) -> float:
    """The same rank for every layer with LoRA; returns CPU seconds."""
    sites = find_lora_sites(model)
    begin = cpu_seconds()
    resize_sites(model, dict.fromkeys(sites, rank), sites, optimizers=[optimizer] if optimizer else [], **how)
    return cpu_seconds() - begin


def train(model: Any, optimizer: Optimizer, x: torch.Tensor) -> float:
    """One training step; returns CPU seconds."""
    begin = cpu_seconds()
    optimizer.zero_grad()
    model(x, x)[1].backward()
    optimizer.step()
    return cpu_seconds() - begin


def tokens(seed: int = 0, batch: int = 8) -> torch.Tensor:
    """Random walks over the vocabulary: there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-3, 4, (batch, 64), generator=generator)
    return (torch.randint(512, (batch, 1), generator=generator) + steps.cumsum(1)) % 512


def time_one_layer(options: argparse.Namespace, report: Report) -> None:
    """Shrinking 64 to 16 and growing back, with the state of AdamW."""
    m, n = options.large
    model = lora(nn.ModuleDict({"layer": nn.Linear(n, m, bias=False)}), 64, ["layer"])
    optimizer = AdamW(trainable(model))
    for parameter in trainable(model):
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    shrink, grow = [], []
    with no_collection():
        for _ in range(options.rounds):
            shrink.append(set_ranks(model, 16, optimizer))
            grow.append(set_ranks(model, 64, optimizer))
    report.add(f"{m} x {n}, rank 64 to 16", median(shrink) * 1e3, "ms", 50)
    report.add(f"{m} x {n}, rank 16 to 64", median(grow) * 1e3, "ms", 50)
    small = torch.randn(m // 4, n // 4)
    begin = cpu_seconds()
    torch.linalg.svd(small, full_matrices=False)
    report.add(f"SVD of a whole update of {m // 4} x {n // 4}", (cpu_seconds() - begin) * 1e3, "ms")


def time_all_layers(options: argparse.Namespace, report: Report) -> None:
    """Growth and shrinking of a whole GPT, against PEFT's delete and add."""
    from peft.tuners.lora import LoraModel

    x = tokens()
    model = gpt(options, 8)
    optimizer = AdamW(trainable(model))
    train(model, optimizer, x)
    other = gpt(options, 8)
    tuner = LoraModel(other, other.peft_config["default"], "unused")
    count = iter(range(10**6))

    def replaced() -> float:
        name = f"adapter{next(count)}"
        config = copy.deepcopy(other.peft_config["default"])
        config.r = 16
        begin = cpu_seconds()
        tuner.peft_config[name] = config
        tuner.inject_adapter(other, name)
        tuner.delete_adapter(name)
        return cpu_seconds() - begin

    def grown() -> float:
        set_ranks(model, 8, optimizer)
        return set_ranks(model, 16, optimizer)

    def shrunk() -> float:
        set_ranks(model, 16, optimizer)
        return set_ranks(model, 8, optimizer)

    with no_collection():
        samples = interleave({"grow": grown, "shrink": shrunk, "peft": replaced}, options.rounds)
    num_layers = len(find_lora_sites(model))
    report.add(f"{num_layers} layers, rank 8 to 16", samples.median("grow") * 1e3, "ms")
    report.add(f"{num_layers} layers, rank 16 to 8", samples.median("shrink") * 1e3, "ms")
    report.add("growing / PEFT: add an adapter, delete it", samples.ratio("grow", "peft"), "x", 0.4)
    report.add("shrinking / PEFT: add an adapter, delete it", samples.ratio("shrink", "peft"), "x", 1.0)
    before = model(x)[0].detach()
    set_ranks(model, 32)
    change = (model(x)[0].detach() - before).abs().max() / before.abs().max()
    report.add("growth: largest change of a logit / largest logit", float(change), "", 1e-6)


def time_steps(options: argparse.Namespace, report: Report) -> None:
    """Training steps by rank, and of a network whose rank has changed."""
    x = tokens()
    resized = gpt(options, 64)
    resized_optimizer = AdamW(trainable(resized))
    train(resized, resized_optimizer, x)
    set_ranks(resized, 8, resized_optimizer)
    none = gpt(options, 8)
    none.transformer.h[0].ln_1.weight.requires_grad_(True)  # or the layers keep a graph for the loss
    set_ranks(none, 0)
    models = {"resized": resized, "peft 8": gpt(options, 8), "peft 64": gpt(options, 64)}
    models |= {"rank 0": none, "bare": gpt(options, None)}
    optimizers = {name: AdamW(trainable(model)) for name, model in models.items()}
    optimizers["resized"] = resized_optimizer

    def variant(name: str) -> Callable[[], float]:
        return lambda: train(models[name], optimizers[name], x)

    for name in models:
        variant(name)()
    with no_collection():
        samples = interleave({name: variant(name) for name in models}, options.steps)
    report.add("step at PEFT's rank 8", samples.median("peft 8") * 1e3, "ms")
    report.add("step after 64 to 8 / PEFT's rank 8", samples.ratio("resized", "peft 8"), "x", 1.03)
    report.add("step after 64 to 8 / PEFT's rank 64", samples.ratio("resized", "peft 64"), "x", 1.0)
    report.add("step at rank 0 / without LoRA", samples.ratio("rank 0", "bare"), "x", 1.01)


def count_memory(options: argparse.Namespace, report: Report) -> None:
    """Bytes of gradients and of AdamW's moments after a real change of rank."""
    model = gpt(options, RANKS[0])
    optimizer = AdamW(trainable(model))
    sizes = {}
    for rank in RANKS:
        set_ranks(model, rank, optimizer)
        if rank:
            train(model, optimizer, tokens())
        gradients = sum(
            p.grad.numel() * p.grad.element_size() for p in trainable(model) if p.grad is not None
        )
        state = [value for held in optimizer.state.values() for value in held.values() if value.dim()]
        sizes[rank] = gradients + sum(value.numel() * value.element_size() for value in state)
        report.add(f"gradients and moments at rank {rank}", sizes[rank] / 2**20, "MiB")
    report.add("memory at 8 / at 64, by rank", sizes[8] / sizes[64] * 64 / 8, "x", 1.0, is_exact=True)
    report.add("memory at rank 0", sizes[0], "bytes", 0.0, is_exact=True)


def measure_loss(options: argparse.Namespace, report: Report) -> None:
    """What shrinking costs at once, by the two ways to choose."""
    jumps: dict[tuple[str, int], list[float]] = {}
    small = argparse.Namespace(layers=2, width=64)
    for seed in range(options.seeds):
        model = gpt(small, 16)
        optimizer = AdamW(trainable(model), lr=5e-3)
        statistics = BottleneckStatistics(find_lora_sites(model))
        statistics.install()
        for number in range(options.learn):
            train(model, optimizer, tokens(1000 * seed + number))
        statistics.remove()
        held_out = tokens(10**6 + seed, batch=32)
        before = float(model(held_out, held_out)[1].detach())
        for rank in CUTS:
            for how in ("svd", "kfac"):
                twin = copy.deepcopy(model)
                seen = {name: statistics.of(name) for name in find_lora_sites(model)}
                set_ranks(twin, rank, shrink=how, statistics=seen)
                jumps.setdefault((how, rank), []).append(float(twin(held_out, held_out)[1].detach()) - before)
    for rank in CUTS:
        for how in ("svd", "kfac"):
            report.add(f"loss: rank 16 to {rank} by {how}", mean(jumps[how, rank]), "nats")
        ratio = mean(jumps["kfac", rank]) / mean(jumps["svd", rank])
        report.add(f"loss: rank 16 to {rank}, kfac / svd", ratio, "x")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    m, n = options.large
    method = (
        f"{m} x {n}; GPT {options.layers} x {options.width}; CPU time, one thread, medians, paired ratios"
    )
    report = Report("B11", "LoRA ranks that change", method)
    time_one_layer(options, report)
    time_all_layers(options, report)
    time_steps(options, report)
    count_memory(options, report)
    measure_loss(options, report)
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.lora", description=__doc__)
    options.add_argument("--large", type=int, nargs=2, default=[4096, 11008], metavar=("OUT", "IN"))
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--rounds", type=int, default=9, help="of changes")
    options.add_argument("--steps", type=int, default=11, help="of each model")
    options.add_argument("--learn", type=int, default=200, help="steps before the loss is measured")
    options.add_argument("--seeds", type=int, default=2, help="of the loss")
    return options


if __name__ == "__main__":
    main(run, parser())
