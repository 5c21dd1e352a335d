"""Static LoRA against phases against a rank schedule: SmolLM2-135M on docstrings, several seeds.

Each run is one of `configs/experiments/smollm2_*.yaml` as it stands, but for its seed and its folder: a real
Trainer trains and tests it, and what its callbacks and the test leave in its folder are the figures. A run
that is finished is not repeated: stop the study and start it again. The clock is the CPU time of the training
loop without validation, torch on one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks import fits
from benchmarks.measure import cpu_seconds, versions
from benchmarks.study_output import add_outputs, filled, write
from lighter_freezers.reports import results_file

ROOT = Path(__file__).parents[1]
STUDY = "smollm2"  # in the marks of its page
TEST_BATCH_SIZE = 16
CLOCK = "step_seconds.json"

Figures = dict[str, float]


@dataclass(frozen=True)
class Way:
    """How SmolLM2 is fine-tuned.

    Attributes:
        name: Of its config, without `smollm2_`, and of its folder.
        title: What the tables call it.
    """

    name: str
    title: str


STATIC = Way("static", "static: rank 8 on all layers")
WAYS = (STATIC, Way("phases", "phases: both->mlp->attn"), Way("ranks", "ranks: 4, 8, 12"))
COLUMNS = {
    "perplexity": "test perplexity",
    "rouge_l": "ROUGE-L",
    "bleu_1": "BLEU-1",
    "bleu": "BLEU",
    "final_train_loss": "training loss, last 10 steps",
    "step_seconds": "CPU seconds a step",
    "trainable_parameters": "parameters that train first",
    "final_trainable_parameters": "and last",
}


class StepClock(pl.Callback):
    """Takes the CPU seconds of each training step, with what callbacks do in it, and without validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._last = cpu_seconds()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seconds.append(cpu_seconds() - self._last)
        self._last = cpu_seconds()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._last = cpu_seconds()


def load(way: Way, folder: Path, *overrides: str) -> Any:
    """The config of a way, writing into a folder."""
    from lighter.engine.runner import ConfigLoader

    logger = [f"trainer::logger::{key}={value}" for key, value in _logger(folder).items()]
    return ConfigLoader.load(
        [str(ROOT / f"configs/experiments/smollm2_{way.name}.yaml"), *logger, *overrides]
    )


def _logger(folder: Path) -> dict[str, str]:
    return {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}


def learn(way: Way, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Train and test once; everything about it is in the folder then."""
    pl.seed_everything(seed, verbose=False)
    config = load(way, folder, f"data::seed={seed}", *options.overrides)
    module, trainer, data = (config.resolve(part) for part in ("model", "trainer", "data"))
    module.save_hyperparameters({"config": config.get()})
    clock = StepClock()
    trainer.callbacks.append(clock)
    trainer.fit(module, data)
    (folder / CLOCK).write_text(json.dumps(clock.seconds))
    test(trainer, module, way, folder, options)


def test(trainer: Any, module: Any, way: Way, folder: Path, options: argparse.Namespace) -> None:
    """Answer the test questions, in larger batches than those of training."""
    batches = load(way, folder, *options.overrides, f"data::batch_size={TEST_BATCH_SIZE}")
    trainer.test(module, batches.resolve("data"), verbose=False)


def untrained(folder: Path, options: argparse.Namespace) -> None:
    """Test the model as it was downloaded."""
    config = load(STATIC, folder, *options.overrides, "model::lora=null")
    module, trainer = config.resolve("model"), config.resolve("trainer")
    test(trainer, module, STATIC, folder, options)


def finished(runs: Path, name: str, seed: int) -> Path | None:
    """The folder of a run that was trained and tested."""
    found = sorted(runs.glob(f"{name}/seed_{seed}*/evaluation_results.json"))
    return found[0].parent if found else None


def unused(runs: Path, name: str, seed: int) -> Path:
    """A folder for a run: another one than that of a run that was stopped."""
    attempt = sum(1 for _ in runs.glob(f"{name}/seed_{seed}*"))
    return runs / name / (f"seed_{seed}" if not attempt else f"seed_{seed}_{attempt}")


def run_all(options: argparse.Namespace) -> None:
    """All runs that are missing, seed after seed, so that a study that is stopped has all ways."""
    torch.set_num_threads(1)
    with fits.quiet():
        if finished(options.runs, "untrained", 0) is None:
            untrained(unused(options.runs, "untrained", 0), options)
        for seed in range(options.seeds):
            for way in WAYS:
                if finished(options.runs, way.name, seed) is None:
                    start = time.monotonic()
                    learn(way, seed, unused(options.runs, way.name, seed), options)
                    print(f"{way.name}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)


def figures(folder: Path) -> Figures:
    """What a run has left behind."""
    read: dict[str, Any] = json.loads((folder / "evaluation_results.json").read_text())["scores"]
    summary = folder / "results_summary.json"
    if summary.exists():
        read |= json.loads(summary.read_text())
    if (folder / CLOCK).exists():
        read["step_seconds"] = statistics.mean(json.loads((folder / CLOCK).read_text()))
    return {name: float(read[name]) for name in COLUMNS if read.get(name) is not None}


def collect(options: argparse.Namespace) -> dict[str, list[Figures]]:
    """The figures of all finished runs, by way and in the order of the seeds."""
    names = ["untrained", *(way.name for way in WAYS)]
    folders = {name: [finished(options.runs, name, seed) for seed in range(options.seeds)] for name in names}
    return {name: [figures(folder) for folder in found if folder] for name, found in folders.items()}


def table(results: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: mean over the seeds, and the least and the most of them."""
    titles = {"untrained": "as downloaded", **{way.name: way.title for way in WAYS}}
    lines = [f"| way | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for name, runs in results.items():
        cells = [_cell([run[column] for run in runs if column in run]) for column in COLUMNS]
        lines.append(f"| {titles[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(results: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: each way minus static LoRA, seed by seed."""
    columns = list(COLUMNS)[:6]
    headings = [COLUMNS[column] for column in columns]
    lines = [f"| minus static | {' | '.join(headings)} |", f"|{'---|' * (len(columns) + 1)}"]
    for way in WAYS[1:]:
        pairs = list(zip(results[way.name], results[STATIC.name], strict=False))
        cells = [", ".join(f"{one[column] - base[column]:+.3g}" for one, base in pairs) for column in columns]
        lines.append(f"| {way.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    if statistics.mean(values) >= 1000:
        return f"{statistics.mean(values):,.0f}"
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


def page(result: Mapping[str, Any]) -> str:
    """Both tables, and what they were measured with."""
    measured = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n\n".join(
        [
            table(result["runs"]),
            "Seed by seed:",
            differences(result["runs"]),
            f"`{result['command']}`: {result['method']}.\nWith {measured}.",
        ]
    )


def method(runs: Mapping[str, Sequence[Figures]], options: argparse.Namespace) -> str:
    """How much was trained and tested, from the config, and how many runs are finished."""
    config = load(STATIC, options.runs / STATIC.name / "seed", *options.overrides)
    steps, data = config.get("trainer::max_steps"), config.get("data")
    finished_runs = ", ".join(f"{len(found)} of {name}" for name, found in runs.items())
    return (
        f"{steps} steps of {data['batch_size']} rows of at most {data['max_length']} tokens, tested on "
        f"{data['num_test_sequences']} questions; finished runs: {finished_runs}; mean "
        "over the seeds, with the least and the most of them"
    )


def fill(text: str, result: Mapping[str, Any]) -> str:
    """A page with the tables between its marks."""
    return filled(text, STUDY, page(result))


def parser() -> argparse.ArgumentParser:
    """The options of this study."""
    options = argparse.ArgumentParser("benchmarks.smollm2_study", description=__doc__)
    options.add_argument("--seeds", type=int, default=3, help="runs of each way")
    options.add_argument(
        "--runs", type=Path, default=Path("outputs/smollm2_study"), help="folder of the runs"
    )
    options.add_argument("--only-collect", action="store_true", help="train nothing, read what is finished")
    add_outputs(options)
    options.add_argument("overrides", nargs="*", help="of the configs, such as trainer::max_steps=200")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, print the tables, and write them where they belong."""
    options = parser().parse_args(arguments)
    if not options.only_collect:
        run_all(options)
    runs = collect(options)
    given = [] if options.seeds == parser().get_default("seeds") else [f"--seeds {options.seeds}"]
    command = " ".join(["python -m benchmarks.smollm2_study", *given, *options.overrides])
    measured_with = versions() | results_file.versions()
    result = {"command": command, "method": method(runs, options), "versions": measured_with, "runs": runs}
    print(page(result))
    write(options, result, STUDY, page(result))
    return result


if __name__ == "__main__":
    main()
