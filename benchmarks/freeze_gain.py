"""B4: what a frozen prefix saves of a step, against the most it can, with and without an end of the gradient.

The limit is arithmetic: a frozen block costs its forward pass, a block that trains three of them, four less
its last product where it is checkpointed and not re-entrant. The peer is the same model with the same flags:
what lighter's Freezer, or `requires_grad=False` by hand, leave of the gain.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.counts import flops
from benchmarks.measure import Report, cpu_seconds, interleave, main, no_collection
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.backward_cut import GradientBoundary

__all__ = ["MODES", "Setting", "measure_mode", "parser", "run"]

HOLDER = "benchmark"
BATCH, VOCAB = 2, 65


class Setting:
    """One model, frozen in one way.

    Args:
        options: `layers`, `width` and `time` of the command line.
        num_frozen: Blocks of the prefix.
        mode: A key of `MODES`.
    """

    def __init__(self, options: argparse.Namespace, num_frozen: int, mode: str) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        self.options, self.num_frozen, self.mode = options, num_frozen, mode
        torch.manual_seed(0)
        sizes = {"n_layer": options.layers, "n_embd": options.width, "n_head": 4, "n_positions": options.time}
        tokens = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
        dropouts = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        config = GPT2Config(
            **sizes, **tokens, **dropouts, tie_word_embeddings="tied" in mode, attn_implementation="eager"
        )
        self.model: nn.Module = GPT2LMHeadModel(config).train()
        self.x = torch.randint(0, VOCAB, (BATCH, options.time))
        MODES[mode](self.model)
        prefixes = [f"transformer.h.{index}." for index in range(num_frozen)]
        embeddings = ["wpe"] if "tied" in mode else ["wpe", "wte"]
        chosen = [
            parameter
            for name, parameter in self.model.named_parameters()
            if any(part in name for part in (*prefixes, *(embeddings if num_frozen else [])))
        ]
        ledger.hold(chosen, HOLDER)
        self.boundary = GradientBoundary(self.model, is_silent=True)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, fused=True)

    def step(self) -> None:
        """Forward, backward, optimizer."""
        self.optimizer.zero_grad()
        self.model(input_ids=self.x, labels=self.x, use_cache=False).loss.backward()
        self.optimizer.step()

    @property
    def limit(self) -> int:
        """Floating-point operations that cannot be saved."""
        tokens, width = BATCH * self.options.time, self.options.width
        block = 2 * tokens * 12 * width**2 + 4 * tokens * self.options.time * width
        last = 0 if "re-entrant" in self.mode else 8 * tokens * width**2  # a product that is not repeated
        again = block - last if "checkpoint" in self.mode else 0
        num_trained = self.options.layers - self.num_frozen
        return self.num_frozen * block + num_trained * (3 * block + again) + 6 * tokens * width * VOCAB

    def seconds(self) -> float:
        """CPU time of one step."""
        begin = cpu_seconds()
        self.step()
        return cpu_seconds() - begin


def _nothing(model: Any) -> None:
    """As it is."""


def _inputs(model: Any) -> None:
    model.enable_input_require_grads()


def _checkpointing(model: Any) -> None:
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()


def _reentrant(model: Any) -> None:
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()


MODES: Mapping[str, Callable[[Any], None]] = {
    "plain": _nothing,
    "tied head": _nothing,
    "input_require_grads": _inputs,
    "tied head, input_require_grads": _inputs,
    "checkpointing": _checkpointing,
    "tied head, checkpointing": _checkpointing,
    "re-entrant checkpointing": _reentrant,
    "tied head, re-entrant checkpointing": _reentrant,
}


def measure_mode(options: argparse.Namespace, num_frozen: int, mode: str, report: Report) -> None:
    """Operations against the limit, with flags alone and with the boundary."""
    setting = Setting(options, num_frozen, mode)
    title = f"{mode}, {num_frozen} of {options.layers}"
    plain = flops(setting.step)
    setting.boundary.follow()
    setting.step()  # the first one after a transition looks at re-entrant segments
    ours = flops(setting.step)
    report.add(f"{title}: flags alone / limit", plain / setting.limit, "x")
    report.add(f"{title}: ours / limit", ours / setting.limit, "x", 1.01, is_exact=True)


def time_modes(options: argparse.Namespace, report: Report) -> None:
    """Time against the ratio of operations, in one process."""
    num_frozen = options.layers // 2
    settings = {"none": Setting(options, 0, "tied head")}
    settings |= {name: Setting(options, num_frozen, "tied head") for name in ("flags", "ours")}
    settings["ours"].boundary.follow()
    for setting in settings.values():
        setting.step()
    with no_collection():
        samples = interleave({name: each.seconds for name, each in settings.items()}, options.rounds)
    ratio = flops(settings["ours"].step) / flops(settings["none"].step)
    half = f"tied head, {num_frozen} of {options.layers}"
    report.add(f"{half}: time, flags alone / nothing frozen", samples.ratio("flags", "none"), "x")
    report.add(f"{half}: time, ours / nothing frozen", samples.ratio("ours", "none"), "x")
    report.add(f"{half}: operations, ours / nothing frozen", ratio, "x")
    report.add(f"{half}: time ratio / operation ratio", samples.ratio("ours", "none") / ratio, "x", 1.03)


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    method = (
        f"GPT-2 of transformers, {options.layers} x {options.width}, T={options.time}; operations counted; "
        "CPU time, one thread, medians, paired ratios"
    )
    report = Report("B4", "What a frozen prefix saves", method)
    for mode in MODES:
        for num_frozen in options.prefix:
            measure_mode(options, num_frozen, mode, report)
    if options.rounds:
        time_modes(options, report)
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.freeze_gain", description=__doc__)
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--time", type=int, default=128, help="tokens of a sequence")
    options.add_argument("--prefix", type=int, nargs="+", default=[1, 3, 5], help="frozen blocks")
    options.add_argument("--rounds", type=int, default=15, help="of steps; 0 counts operations only")
    return options


if __name__ == "__main__":
    main(run, parser())
