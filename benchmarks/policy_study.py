"""How well policies learn: a GPT pretrained on code, fine-tuned on English, at equal steps and equal FLOPs.

The language model is pretrained on the standard library once; then it learns the prose of this project's
documents in each way, with full training beside it. Each way has the best of three learning rates (of the
first seed, at equal steps), and runs again for as many steps as full training's FLOPs pay for.
The loss is that of documents that no run has seen.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks import fits
from benchmarks.measure import versions
from benchmarks.policy_costs import WAYS, Costs, Way, trainer
from benchmarks.study_output import add_outputs, command_of, filled, write
from lighter_freezers import GPT, GPTModule, TextDataModule

ROOT = Path(__file__).parents[1]
STUDY = "policies"  # in the marks of its page
RATES = (1.0e-3, 3.0e-3, 1.0e-2)
WIDTH, VOCAB_SIZE, BLOCK_SIZE = 64, 1024, 64
FULL = WAYS[0].name
SKIPPED = ("LoRA of 1 block's size", "BlockCycling, state kept", "Spectrum, 25 %")

Figures = dict[str, float]


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """The config of the GPT."""
    shape = {"n_layer": options.layers, "n_head": 4, "n_embd": WIDTH, "block_size": BLOCK_SIZE}
    return {**shape, "vocab_size": VOCAB_SIZE, "use_rotary_embeddings": True, "tie_weights": False}


def pretrain(options: argparse.Namespace, folder: Path) -> Path:
    """Train a language model on code; returns its checkpoint."""
    pl.seed_everything(0, verbose=False)
    module = GPTModule(GPT(sizes(options)), learning_rate=3.0e-3)
    data = TextDataModule(vocab_size=VOCAB_SIZE, block_size=BLOCK_SIZE, batch_size=options.batch)
    pretraining = trainer(options.pretraining_steps)
    pretraining.fit(module, data)
    pretraining.save_checkpoint(folder / "pretrained.ckpt")
    return folder / "pretrained.ckpt"


def prose(folder: Path) -> Path:
    """The documents of this project as text files."""
    for number, page in enumerate(sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])):
        (folder / f"{number:03}.txt").write_text(page.read_text())
    return folder


def learn(
    way: Way,
    rate: float,
    seed: int,
    num_steps: int,
    options: argparse.Namespace,
    checkpoint: Path,
    text: Path,
) -> Figures:
    """Fine-tune once; the validation loss, the FLOPs, and the peak of the optimizer's state."""
    pl.seed_everything(seed, verbose=False)
    network = way.prepared(GPT({**sizes(options), "init_from_checkpoint": str(checkpoint)}), WIDTH)
    module = GPTModule(network, optimizer=torch.optim.AdamW(network.parameters(), lr=rate))
    data = TextDataModule(
        text=text,
        tokenizer="standard_library",
        block_size=BLOCK_SIZE,
        batch_size=options.batch,
        num_val_sequences=options.val_sequences,
        seed=seed,
    )
    costs = Costs()
    training = trainer(num_steps, *way.callbacks(num_steps, options.layers), costs)
    training.fit(module, data)
    tested = trainer(0)
    tested.limit_val_batches = 1.0
    [logged] = tested.validate(module, data, verbose=False)
    return {"loss": float(logged["val/loss"]), "flops": costs.flops, "state": costs.peak("optimizer")}


def study(options: argparse.Namespace, ways: Sequence[Way] = WAYS) -> dict[str, dict[str, Any]]:
    """All ways: losses at equal steps for each rate and seed, then at equal FLOPs at the best rate."""
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    with fits.quiet(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prose").mkdir()
        text, checkpoint = prose(folder / "prose"), options.checkpoint or pretrain(options, folder)
        for way in ways:
            if way.name in SKIPPED:
                continue

            def runs(rate: float, seeds: Sequence[int], num_steps: int, way: Way = way) -> list[Figures]:
                return [learn(way, rate, seed, num_steps, options, checkpoint, text) for seed in seeds]

            by_rate = {rate: runs(rate, [0], options.steps) for rate in RATES[: options.rates]}
            rate = min(by_rate, key=lambda each: by_rate[each][0]["loss"])
            equal_steps = [*by_rate[rate], *runs(rate, range(1, options.seeds), options.steps)]
            budget = (rows[FULL]["equal_steps"] if rows else equal_steps)[0]["flops"]
            num_steps = round(options.steps * budget / equal_steps[0]["flops"])
            equal_flops = runs(rate, range(options.seeds), num_steps) if rows else equal_steps
            rows[way.name] = {
                "rate": rate,
                "equal_steps": equal_steps,
                "equal_flops": equal_flops,
                "num_steps": num_steps,
                "by_rate": {f"{each:g}": found for each, found in by_rate.items()},
            }
            print(line(way.name, rows[way.name], rows[FULL]), flush=True)
    return rows


def line(name: str, row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """A row of the table; a loss within noise of full training's has a tilde."""
    first = row["equal_steps"][0]
    cells = [name, f"{row['rate']:g}"]
    for kind in ("equal_steps", "equal_flops"):
        losses, others = ([run["loss"] for run in each[kind]] for each in (row, full))
        tilde = "~ " if row is not full and is_within_noise(losses, others) else ""
        cells.append(f"{tilde}{statistics.mean(losses):.3f} ({spread(losses):.3f})")
    cells += [f"{first['flops'] / 1e9:.0f}", f"{row['num_steps']}", f"{first['state'] / 1e3:,.0f}"]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> float:
    """The standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def is_within_noise(ours: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two means differ by less than two standard errors of their difference."""
    error = math.sqrt(spread(ours) ** 2 / len(ours) + spread(others) ** 2 / len(others))
    return abs(statistics.mean(ours) - statistics.mean(others)) <= 2 * error


def page(result: Mapping[str, Any]) -> str:
    """The table, and what it was measured with."""
    rows = result["rows"]
    head = ["way", "rate", "loss at equal steps", "loss at equal FLOPs"]
    head += ["GFLOP at equal steps", "steps at equal FLOPs", "optimizer kB"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [line(name, row, rows[FULL]) for name, row in rows.items()]
    measured = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"`{result['command']}`: {result['method']}.", f"With {measured}."])


def fill(text: str, result: Mapping[str, Any]) -> str:
    """A page with the table between its marks."""
    return filled(text, STUDY, page(result))


def parser() -> argparse.ArgumentParser:
    """The options of this study."""
    options = argparse.ArgumentParser("benchmarks.policy_study", description=__doc__)
    options.add_argument("--seeds", type=int, default=3, help="runs of each way at its best rate")
    options.add_argument("--rates", type=int, default=3, help=f"how many of {RATES} to try")
    options.add_argument("--steps", type=int, default=80, help="of each run at equal steps")
    options.add_argument("--pretraining-steps", type=int, default=300)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--val-sequences", type=int, default=128)
    options.add_argument("--checkpoint", type=Path, help="of a language model; none is pretrained then")
    add_outputs(options)
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study, print its table, and write it where it belongs."""
    options = parser().parse_args(arguments)
    method = (
        f"GPT of {options.layers} blocks of width {WIDTH}, pretrained {options.pretraining_steps} steps on "
        f"code, {options.steps} steps of {options.batch} x {BLOCK_SIZE} tokens of prose; mean of "
        f"{options.seeds} seeds (standard deviation); ~ marks what is within two standard errors "
        "of full training"
    )
    rows = study(options)
    result = {
        "command": command_of(parser(), options),
        "method": method,
        "versions": versions(),
        "rows": rows,
    }
    write(options, result, STUDY, page(result))
    return result


if __name__ == "__main__":
    main()
