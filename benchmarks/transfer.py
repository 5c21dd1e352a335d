"""What pretraining and freezing buy: the modes of the GPT from random and pretrained weights, several seeds.

A language model is pretrained on the standard library once. Then a token classifier (ten classes of tokens)
and a sequence scorer (share of documentation) learn from few labelled sequences, in five ways each, and are
tested on modules that none of them has seen. A real Trainer and the package's own modules do all of it. The
clock is the CPU time of the training loop, torch on one thread.
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
from benchmarks.measure import cpu_seconds, versions
from benchmarks.study_output import add_outputs, command_of, filled, write
from lighter_freezers import GPT, GPTModule, SequenceScoreDataModule, TextDataModule, TokenLabelDataModule

ROOT = Path(__file__).parents[1]
STUDY = "transfer"  # in the marks of its page
TRUNK_RATE, HEAD_RATE = 1.0e-3, 1.0e-2
SIZES = {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128, "use_rotary_embeddings": True}
VOCAB_SIZE = 1024
BATCH_SIZE = 16
NUM_TEST_SEQUENCES = 150

Figures = dict[str, float]


@dataclass(frozen=True)
class Way:
    """How a mode is learnt.

    Attributes:
        name: What the table calls it.
        is_pretrained: Whether its trunk begins with the language model's weights.
        thaws_at: The share of the steps after which the trunk trains; 0 from the start, None never.
    """

    name: str
    is_pretrained: bool
    thaws_at: float | None


WAYS = (
    Way("random, frozen", is_pretrained=False, thaws_at=None),
    Way("pretrained, frozen", is_pretrained=True, thaws_at=None),
    Way("pretrained, frozen, thawed midway", is_pretrained=True, thaws_at=0.5),
    Way("pretrained, never frozen", is_pretrained=True, thaws_at=0.0),
    Way("from scratch", is_pretrained=False, thaws_at=0.0),
)


@dataclass(frozen=True)
class Task:
    """A mode with its data.

    Attributes:
        mode: Of the GPT.
        title: Heading of its table.
        figures: What is tested, as the module logs it.
        config: What the GPT needs besides its size.
        data: Makes the data module, given the number of sequences to train on and a seed.
    """

    mode: str
    title: str
    figures: tuple[str, ...]
    config: Mapping[str, Any]
    data: Callable[[int, int], Any]


def label_data(num_sequences: int, seed: int) -> TokenLabelDataModule:
    """Tokens of the standard library with their classes."""
    return TokenLabelDataModule(
        vocab_size=VOCAB_SIZE,
        block_size=SIZES["block_size"],
        batch_size=BATCH_SIZE,
        num_train_sequences=num_sequences,
        num_test_sequences=NUM_TEST_SEQUENCES,
        seed=seed,
    )


def score_data(num_sequences: int, seed: int) -> SequenceScoreDataModule:
    """Sequences of the standard library with their share of documentation."""
    return SequenceScoreDataModule(
        cls_token_id=VOCAB_SIZE,
        vocab_size=VOCAB_SIZE,
        block_size=SIZES["block_size"],
        batch_size=BATCH_SIZE,
        num_train_sequences=num_sequences,
        num_test_sequences=NUM_TEST_SEQUENCES,
        seed=seed,
    )


CLASSIFIER = Task(
    "token_classifier",
    "Token classifier",
    ("accuracy", "macro_f1"),
    {"vocab_size": VOCAB_SIZE, "num_token_classes": 10},
    label_data,
)
SCORER = Task(
    "sequence_scorer",
    "Sequence scorer",
    ("r2", "pearson"),
    {"vocab_size": VOCAB_SIZE + 1, "cls_token_id": VOCAB_SIZE},
    score_data,
)


class Stopwatch(pl.Callback):
    """Takes the CPU seconds of the training loop."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = -cpu_seconds()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds += cpu_seconds()


def trainer(num_steps: int, folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    """A Trainer that only trains."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=num_steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )


def pretrain(num_steps: int, folder: Path) -> Path:
    """Train a language model and keep it.

    Returns:
        The checkpoint.
    """
    pl.seed_everything(0, verbose=False)
    module = GPTModule(GPT({**SIZES, "vocab_size": VOCAB_SIZE}), learning_rate=2.0e-3)
    data = TextDataModule(vocab_size=VOCAB_SIZE, block_size=SIZES["block_size"], batch_size=BATCH_SIZE)
    pretraining = trainer(num_steps, folder)
    pretraining.fit(module, data)
    checkpoint = folder / "pretrained.ckpt"
    pretraining.save_checkpoint(checkpoint)
    return checkpoint


def learn(task: Task, way: Way, seed: int, options: argparse.Namespace, checkpoint: Path) -> Figures:
    """Train and test once.

    Returns:
        The figures of the task, and the CPU seconds of the training loop.
    """
    pl.seed_everything(seed, verbose=False)
    thaw = None if way.thaws_at is None else round(way.thaws_at * options.steps)
    transfer = {
        "init_from_checkpoint": str(checkpoint) if way.is_pretrained else None,
        "freeze_transformer": thaw != 0,
        "unfreeze_at_iteration": thaw or None,
        "unfreeze_lr_multiplier": 1.0,
    }
    network = GPT({**SIZES, **task.config, "mode": task.mode, **transfer})
    module = GPTModule(network, learning_rate=TRUNK_RATE, head_learning_rate=HEAD_RATE)
    data = task.data(options.sequences, seed)
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        training = trainer(options.steps, Path(folder), watch)
        training.fit(module, data)
        tested = training.test(module, data, verbose=False)[0]
    return {"seconds": watch.seconds, **{name: float(tested[f"test/{name}"]) for name in task.figures}}


def majority(task: Task, options: argparse.Namespace) -> Figures:
    """Always the most frequent class, or the mean score, of the sequences to train on."""
    data = task.data(options.sequences, 0)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    train = torch.cat([batch["targets"].flatten() for batch in data.train_dataloader()])
    test = torch.cat([batch["targets"].flatten() for batch in data.test_dataloader()])
    if task is SCORER:
        error = (test - train.mean()).square().sum() / (test - test.mean()).square().sum()
        return {"r2": 1 - float(error), "pearson": 0.0}  # a constant goes along with nothing
    train, test = train[train >= 0], test[test >= 0]
    accuracy = float((test == train.mode().values).float().mean())
    num_occurring = len(test.unique())
    return {"accuracy": accuracy, "macro_f1": 2 * accuracy / (1 + accuracy) / num_occurring}


def study(options: argparse.Namespace) -> dict[str, Any]:
    """All ways of both tasks, with all seeds."""
    torch.set_num_threads(1)
    with fits.quiet(), tempfile.TemporaryDirectory() as name:
        checkpoint = options.checkpoint or pretrain(options.pretraining_steps, Path(name))
        results: dict[str, Any] = {"tasks": {}}
        for task in (CLASSIFIER, SCORER):
            rows: dict[str, list[Figures]] = {"majority": [majority(task, options)]}
            for way in WAYS:
                rows[way.name] = [
                    learn(task, way, seed, options, checkpoint) for seed in range(options.seeds)
                ]
            results["tasks"][task.mode] = rows
    return results


def table(task: Task, rows: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: mean over the seeds, and the least and the most of them."""
    names = [*task.figures, "seconds"]
    headings = ["way", *task.figures, "CPU seconds"]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for way, runs in rows.items():
        cells = [_cell([run[name] for run in runs if name in run]) for name in names]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


def page(result: Mapping[str, Any]) -> str:
    """Both tables, and what they were measured with."""
    parts = [
        f"{task.title}:\n\n{table(task, result['tasks'][task.mode])}"
        for task in (CLASSIFIER, SCORER)
        if task.mode in result["tasks"]
    ]
    measured = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts.append(f"`{result['command']}`: {result['method']}.\nWith {measured}.")
    return "\n\n".join(parts)


def fill(text: str, result: Mapping[str, Any]) -> str:
    """A page with the tables between its marks."""
    return filled(text, STUDY, page(result))


def parser() -> argparse.ArgumentParser:
    """The options of this study."""
    options = argparse.ArgumentParser("benchmarks.transfer", description=__doc__)
    options.add_argument("--seeds", type=int, default=3, help="runs of each way")
    options.add_argument("--sequences", type=int, default=48, help="labelled, to train on")
    options.add_argument("--steps", type=int, default=120, help="of each run")
    options.add_argument("--pretraining-steps", type=int, default=600)
    options.add_argument("--checkpoint", type=Path, help="of a language model; none is pretrained then")
    add_outputs(options)
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study, print its tables, and write them where they belong."""
    options = parser().parse_args(arguments)
    method = (
        f"{options.seeds} seeds, {options.sequences} labelled sequences of {SIZES['block_size']} tokens, "
        f"{options.steps} steps, tested on {NUM_TEST_SEQUENCES} sequences; "
        f"mean over the seeds, with the least and the most of them"
    )
    command = command_of(parser(), options)
    result = {"command": command, "method": method, "versions": versions(), **study(options)}
    print(page(result))
    write(options, result, STUDY, page(result))
    return result


if __name__ == "__main__":
    main()
