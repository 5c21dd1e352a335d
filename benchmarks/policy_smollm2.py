"""Full training, LoRA and LISA on SmolLM2-135M: one seed, equal steps, each at the best of its rates.

A small companion of `policy_study` on a real pretrained model, with the data and the model of
`configs/experiments/smollm2_static.yaml`. It needs the package with the weights. The loss is that of answers
that no run has seen; the clock is the CPU time of the training loop without validation, torch on one thread.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks import fits
from benchmarks.measure import versions
from benchmarks.policy_costs import Costs
from benchmarks.smollm2_study import STATIC, StepClock, load
from benchmarks.study_output import add_outputs, write
from lighter_freezers import Lisa
from lighter_freezers.reports import results_file

STUDY = "policies-smollm2"  # in the marks of its page


@dataclass(frozen=True)
class Way:
    """How SmolLM2 is fine-tuned.

    Attributes:
        title: What the table calls it.
        rates: Learning rates to try.
        policies: Builds the callbacks beside those that measure.
        overrides: Of the config.
    """

    title: str
    rates: tuple[float, ...]
    policies: Callable[[], list[pl.Callback]] = list
    overrides: tuple[str, ...] = ("model::lora=null",)


def ways(options: argparse.Namespace) -> list[Way]:
    """Full training, LoRA as the config has it, and LISA with a new draw in each quarter of the run."""
    window = max(1, options.steps // 4)
    return [
        Way("full training", (1.0e-4, 3.0e-4)),
        Way("LoRA, rank 8", (5.0e-4, 1.5e-3), overrides=()),
        Way("Lisa, 2 blocks", (1.0e-4, 3.0e-4), lambda: [Lisa(2, window)]),
    ]


def learn(way: Way, rate: float | None, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Fine-tune once, or not at all for a rate of None; loss on answers not seen, and what it cost."""
    pl.seed_everything(0, verbose=False)
    asked = [f"trainer::max_steps={options.steps}", "trainer::logger=false", "trainer::callbacks=null"]
    asked += ["trainer::val_check_interval=null", "trainer::enable_checkpointing=false"]
    asked += [f"model::learning_rate={rate or 1.0e-4}", *way.overrides, *options.overrides]
    config = load(STATIC, folder, *asked)
    module, trainer, data = (config.resolve(part) for part in ("model", "trainer", "data"))
    costs, clock = Costs(), StepClock()
    if rate is not None:
        trainer.limit_val_batches = 0
        trainer.callbacks += [*way.policies(), costs, clock]
        trainer.fit(module, data)
        trainer.limit_val_batches = 1.0
    [logged] = trainer.validate(module, data, verbose=False)
    figures = {"loss": float(logged["val/loss"])}
    if rate is None:
        return figures
    seconds = {"seconds": statistics.mean(clock.seconds), "flops": costs.flops / options.steps}
    return {**figures, **seconds, "optimizer": costs.peak("optimizer"), "gradients": costs.peak("gradient")}


def study(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All ways at all rates."""
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    with fits.quiet(), tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run" / "version"
        rows["as downloaded"] = {"by_rate": {"": learn(ways(options)[0], None, options, folder)}}
        for way in ways(options):
            by_rate = {f"{rate:g}": learn(way, rate, options, folder) for rate in way.rates[: options.rates]}
            rows[way.title] = {"by_rate": by_rate}
            print(line(way.title, rows[way.title]), flush=True)
    return rows


def line(title: str, row: Mapping[str, Any]) -> str:
    """A row of the table, at the best rate, with the losses at the others."""
    by_rate: Mapping[str, Mapping[str, float]] = row["by_rate"]
    rate, best = min(by_rate.items(), key=lambda item: item[1]["loss"])
    others = ", ".join(f"{found['loss']:.3f}" for other, found in by_rate.items() if other != rate)
    cells = [title, rate, f"{best['loss']:.3f}", others]
    if "flops" in best:
        cells += [f"{best['flops'] / 1e9:.0f}", f"{best['optimizer'] / 1e6:,.0f}"]
        cells += [f"{best['gradients'] / 1e6:,.0f}", f"{best['seconds']:.1f}"]
    return f"| {' | '.join([*cells, *[''] * (8 - len(cells))])} |"


def page(result: Mapping[str, Any]) -> str:
    """The table, and what it was measured with."""
    head = ["way", "rate", "loss on new answers", "at other rates", "GFLOP of a step"]
    head += ["optimizer MB", "gradients MB", "CPU seconds of a step"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [line(title, row) for title, row in result["rows"].items()]
    measured = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"`{result['command']}`: {result['method']}.", f"With {measured}."])


def parser() -> argparse.ArgumentParser:
    """The options of this study."""
    options = argparse.ArgumentParser("benchmarks.policy_smollm2", description=__doc__)
    options.add_argument("--steps", type=int, default=16, help="of each run")
    options.add_argument("--rates", type=int, default=2, help="how many of its learning rates each way tries")
    add_outputs(options)
    options.add_argument("overrides", nargs="*", help="of the config, such as data::num_val_sequences=64")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study, print its table, and write it where it belongs."""
    options = parser().parse_args(arguments)
    numbers = {"steps": options.steps, "rates": options.rates}
    given = [f"--{key} {value}" for key, value in numbers.items() if value != parser().get_default(key)]
    result = {
        "command": " ".join(["python -m benchmarks.policy_smollm2", *given, *options.overrides]),
        "method": f"SmolLM2-135M-Instruct on docstrings, {options.steps} steps of 4 rows of at most 96 "
        "tokens, AdamW, one seed; optimizer and gradients are the peaks, FLOPs the mean of a step",
        "versions": versions() | results_file.versions(),
        "rows": study(options),
    }
    print(page(result))
    write(options, result, STUDY, page(result))
    return result


if __name__ == "__main__":
    main()
