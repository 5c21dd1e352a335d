"""B9: a training step of our GPT, against a plain statement of nanoGPT's, the peers, and the products alone.

A step is forward, backward and fused AdamW on random tokens, without dropout, eager. Four cases: a small
vocabulary in float32 and in bfloat16 (autocast), a large one in float32 with targets everywhere and at 15 %
of the positions, and a sequence scorer. The limit is the time of the linear layers' three products alone.
Peaks are bytes that torch's allocator handed out during a step, which begins with parameters and optimizer
state there and no gradients. Each value comes from steps that took turns in one process.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from benchmarks import gpt_steps
from benchmarks.counts import flops, peak_bytes
from benchmarks.gpt_steps import Size, Step
from benchmarks.measure import Report, Samples, interleave, main, no_collection

PEERS = {"transformers GPT-2": gpt_steps.transformers_lm, "litgpt": gpt_steps.litgpt}
SHARE_OF_TARGETS = 0.15
CASES = ("fp32", "bf16", "large", "scorer")


def took_turns(steps: Mapping[str, Callable[[], float]], num_rounds: int) -> Samples:
    """Seconds of steps; the first of each, which makes optimizer state, does not count."""
    for step in steps.values():
        step()
    with no_collection():
        return interleave(steps, num_rounds)


def peers(report: Report, size: Size, is_bf16: bool = False) -> dict[str, Step]:
    """The peers that are there; the others are skipped visibly, once."""
    found = {}
    for name, make in PEERS.items():
        step = make(size, is_bf16)
        if step is not None:
            found[name] = step
        elif not any(skipped.startswith(name) for skipped in report.skipped):
            report.skip(name, "not installed")
    return found


def add_small_vocabulary(report: Report, size: Size, num_rounds: int, is_bf16: bool) -> None:
    """Time against all others, and the share of the limit."""
    case = "bf16" if is_bf16 else "fp32"
    most, most_of_peer, least_share = (0.75, 0.65, 0.60) if is_bf16 else (0.98, 0.88, 0.82)
    steps: dict[str, Step] = {
        "plain": gpt_steps.plain(size, is_bf16),
        "ours": gpt_steps.ours(size, is_bf16),
        **peers(report, size, is_bf16),
    }
    samples = took_turns({**steps, "limit": gpt_steps.products(size, is_bf16)}, num_rounds)
    num_tokens = size.batch * size.time
    for name in ("plain", "ours"):
        report.add(f"{case}: {name}", num_tokens / samples.median(name), "tokens/s")
    report.add(f"{case}: ours / plain", samples.ratio("ours", "plain"), "x", most)
    _add_peers(report, case, samples, {"transformers GPT-2": most_of_peer})
    for name, target in (("plain", None), ("ours", 1 / least_share)):
        report.add(f"{case}: {name} / products alone", samples.ratio(name, "limit"), "x", target)
    _add_peaks(report, case, steps, None)


def add_large_vocabulary(report: Report, size: Size, num_rounds: int) -> None:
    """Time and peak with targets everywhere, and at few positions."""
    few = f"{SHARE_OF_TARGETS:.0%} of targets"
    steps: dict[str, Step] = {
        "plain": gpt_steps.plain(size),
        "ours": gpt_steps.ours(size),
        few: gpt_steps.ours(size, targets=size.few_targets(SHARE_OF_TARGETS)),
        **peers(report, size),
    }
    samples = took_turns(steps, num_rounds)
    case = f"{size.vocab:,} tokens"
    report.add(f"{case}: ours / plain", samples.ratio("ours", "plain"), "x", 0.85)
    _add_peers(report, case, samples, {"transformers GPT-2": 0.78})
    report.add(f"{case}: ours with {few} / plain", samples.ratio(few, "plain"), "x", 0.45)
    _add_peaks(report, case, steps, 0.70)


def add_scorer(report: Report, size: Size, num_rounds: int) -> None:
    """Time and operations of a scorer whose last block computes [CLS] only."""
    steps: dict[str, Step] = {"ours": gpt_steps.scorer(size), "full": gpt_steps.full_scorer(size)}
    name = "transformers GPT-2"
    peer = gpt_steps.transformers_scorer(size)
    if peer is not None:
        steps[name] = peer
    samples = took_turns(steps, num_rounds)
    share = flops(steps["ours"].run) / flops(steps["full"].run)
    in_products = (12 * size.layers - 10) / (
        12 * size.layers
    )  # of 12 C * C per token, the last block keeps 2
    report.add("scorer: operations, ours / all positions", share, "x", in_products + 0.01, is_exact=True)
    report.add("scorer: ours / all positions", samples.ratio("ours", "full"), "x", share + 0.02)
    _add_peers(report, "scorer", samples, {name: 0.73})


def _add_peers(report: Report, case: str, samples: Samples, targets: Mapping[str, float]) -> None:
    for name in PEERS:
        if name in samples.seconds:
            report.add(f"{case}: ours / {name}", samples.ratio("ours", name), "x", targets.get(name))


def _add_peaks(report: Report, case: str, steps: Mapping[str, Step], target: float | None) -> None:
    peaks = {name: peak_bytes(step.run) for name, step in steps.items()}
    for name, peak in peaks.items():
        report.add(f"{case}: peak, {name}", peak / 1e6, "MB", is_exact=True)
    ratio = peaks["ours"] / peaks["plain"]
    report.add(f"{case}: peak, ours / plain", ratio, "x", target, is_exact=True)


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = Size(options.layers, options.width, options.heads, options.time, options.batch, options.small)
    method = (
        f"{size.layers} layers, {size.width} channels, {size.batch} x {size.time} tokens, one thread, "
        "CPU time, medians, paired ratios"
    )
    report = Report("B9", "training step of the GPT", method)
    for case in options.cases:
        if case == "large":
            add_large_vocabulary(report, replace(size, vocab=options.vocab), options.rounds)
        elif case == "scorer":
            add_scorer(report, size, options.rounds)
        else:
            add_small_vocabulary(report, size, options.rounds, case == "bf16")
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.gpt", description=__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--vocab", type=int, default=50_304, help="of the large vocabulary")
    options.add_argument("--small", type=int, default=65, help="size of the small vocabulary")
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--width", type=int, default=384)
    options.add_argument("--heads", type=int, default=6)
    options.add_argument("--time", type=int, default=256, help="tokens of a sequence")
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--rounds", type=int, default=4)
    return options


if __name__ == "__main__":
    main(run, parser())
