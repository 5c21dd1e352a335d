"""`lighter-freezers schedule CONFIG --strategy NAME`: a first freezing schedule for any model, as YAML."""

import argparse
from pathlib import Path

import yaml

from lighter_freezers import arguments as checks
from lighter_freezers._log import log
from lighter_freezers.cli.callback_comments import comments_on, first_step
from lighter_freezers.cli.config_text import Commented, add_callbacks, indented
from lighter_freezers.cli.source_config import Source, read_source
from lighter_freezers.cli.stage_file import gradual_arguments, stage_entries, stage_file
from lighter_freezers.cli.stage_merge import merged_stages
from lighter_freezers.cli.strategies import STRATEGIES, Options, strategy_callbacks
from lighter_freezers.reports.whole_files import write_whole
from lighter_freezers.selection.anatomy import anatomy_of

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Write a config with a freezing schedule for the model of another. A whole config for `lighter fit` "
    "comes back with callbacks added, and runs as it is; around a model alone, the rest is marked FILL IN."
)
_WHAT_IT_DOES = {
    "gradual": "the head trains first, then the blocks thaw one after another, from the top",
    "stages": "the same as a file of stages to edit, for GradualUnfreezing(schedule=FILE); of the "
    "GradualUnfreezing that the config already has, if it has one",
    "top-down": "the same written out for editing by hand: a Freezer for each stage",
    "lp-lora": "the lower blocks and the embeddings are frozen for the whole run",
    "discriminative": "nothing is frozen; the deeper a layer, the lower its learning rate",
}
_USED_BY = {  # option -> the strategies that use it
    "freeze_ratio": ("lp-lora",),
    "train_embeddings": ("lp-lora",),
    "lr_decay": ("gradual", "stages", "top-down", "discriminative"),
    "epochs": ("gradual", "stages", "top-down"),
    "steps": ("gradual", "stages", "top-down"),
}
_DATA = """
data:
  _target_: my_project.MyDataModule       # FILL IN: a LightningDataModule
"""
_MODULE = """
model:
  _target_: my_project.MyModule           # FILL IN: a LightningModule or a lighter.LighterModule
  network:{network}
  optimizer:
    _target_: torch.optim.AdamW
    params: "$@model::network.parameters()"
    lr: 1.0e-4                            # FILL IN
"""
_EPOCHS = 10  # for a model alone, whose run is not described yet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `schedule`."""
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="a config for lighter, or a file with the _target_ of a model",
    )
    strategies = "; ".join(f"{name}: {text}" for name, text in _WHAT_IT_DOES.items())
    parser.add_argument("--strategy", required=True, choices=list(STRATEGIES), help=strategies)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where to write; - for the terminal; default: CONFIG_STRATEGY.yaml in this folder",
    )
    present = parser.add_mutually_exclusive_group()
    present.add_argument("--force", action="store_true", help="overwrite FILE")
    present.add_argument(
        "--merge",
        action="store_true",
        help="keep what FILE says of stages that thaw the same, with your comments",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=int, metavar="N", help="length of the run; default: that of the config"
    )
    length.add_argument("--steps", type=int, metavar="N", help="the same in optimizer steps")
    parser.add_argument(
        "--freeze-ratio",
        type=float,
        metavar="SHARE",
        help="share of the blocks that lp-lora freezes, from 0 to 1; default: 0.5",
    )
    parser.add_argument(
        "--train-embeddings", action="store_true", default=None, help="lp-lora does not freeze the embeddings"
    )
    parser.add_argument(
        "--lr-decay",
        type=float,
        metavar="FACTOR",
        help="a layer's learning rate is that of the layer below times this: 2.6 in ULMFiT",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build the model, find its blocks, and write the config."""
    for option, strategies in _USED_BY.items():
        if getattr(arguments, option) is not None and arguments.strategy not in strategies:
            raise ValueError(
                f"--{option.replace('_', '-')} is for {', '.join(strategies)}, not for {arguments.strategy}."
            )
    if arguments.merge and arguments.strategy != "stages":
        raise ValueError(f"--merge is for stages, not for {arguments.strategy}.")
    output = arguments.output or f"{arguments.config.stem}_{arguments.strategy}.yaml"
    if output != "-" and Path(output).exists() and not (arguments.force or arguments.merge):
        merging = ", or --merge to keep your stages and comments" if arguments.strategy == "stages" else ""
        raise ValueError(f"{output} exists. Give another --output, or --force to overwrite it{merging}.")
    source = read_source(arguments.config)
    text = _written(arguments, output, source)
    if output == "-":
        print(text, end="")
        return 0
    write_whole(output, text)
    seen = "Its first lines say how to use it" if arguments.strategy == "stages" else ""
    print(f"Wrote {output}. {seen or f'See what it does: lighter-freezers plan {output}'}")
    return 0


def _written(arguments: argparse.Namespace, output: str, source: Source) -> str:
    """The text of the new config."""
    if arguments.strategy == "stages":
        return _stages(arguments, output, source)
    options = _options(arguments, source)
    callbacks = strategy_callbacks(arguments.strategy, source.model, options)
    commented = [Commented(tuple(comments_on(callback, source.model)), callback) for callback in callbacks]
    about = [
        f"{arguments.strategy}: {_WHAT_IT_DOES[arguments.strategy]}.",
        f"In the first step trains {first_step(callbacks, source.model)}.",
    ]
    is_tied = anatomy_of(source.model).is_head_tied
    if arguments.strategy == "lp-lora" and is_tied and not options.train_embeddings:
        about.append(
            "The head is tied to an embedding and so frozen too; --train-embeddings lets both train."
        )
    if source.has_freezers:
        about.append("Callbacks of ours that were here before still apply: what either holds is frozen.")
    commented[0] = Commented((*about, *commented[0].comments), commented[0].value)
    text = add_callbacks(_whole(source, options), commented)
    present = yaml.safe_load(text)["trainer"]["callbacks"]
    assert present[: len(callbacks)] == callbacks
    return _header(arguments, "FILE" if output == "-" else output, source) + text


def _stages(arguments: argparse.Namespace, output: str, source: Source) -> str:
    """The text of a file of stages: of the callback that the config has, or of one as `gradual` writes it."""
    present = gradual_arguments(source.text)
    if present is not None and (given := _given(arguments)):
        raise ValueError(
            f"The stages are those of the config's GradualUnfreezing: leave out {', '.join(given)}."
        )
    if present is None:
        (callback,) = strategy_callbacks("stages", source.model, _options(arguments, source))
        present = {key: value for key, value in callback.items() if key != "_target_"}
    if arguments.merge and Path(output).exists():
        text, warnings = merged_stages(Path(output), stage_entries(present, source.model))
        for warning in warnings:
            log.warning("%s: %s", output, warning)
        return text
    written = f"# Written by: {_command(arguments)}\n"
    return written + stage_file(present, source.model, "FILE" if output == "-" else output)


def _whole(source: Source, options: Options) -> str:
    """A config with a `trainer` and a `model`: the given one, or one to fill in around the model."""
    if source.kind == "run":
        return source.text
    length = f"max_epochs: {options.epochs}" if options.epochs else f"max_steps: {options.steps}"
    trainer = f"trainer:\n  _target_: pytorch_lightning.Trainer\n  {length}\n\n"
    text = source.text.rstrip("\n") + "\n"
    keys = yaml.safe_load(text)
    if source.kind == "module":
        return trainer + text + _DATA * ("data" not in keys)
    if "network" in keys:
        return trainer + text + _MODULE.format(network=' "@network"') + _DATA
    return trainer.rstrip("\n") + "\n" + _MODULE.format(network="\n" + indented(text, 4).rstrip("\n")) + _DATA


def _header(arguments: argparse.Namespace, output: str, source: Source) -> str:
    """The comment at the top: what this file is, and the command that runs it."""
    lines = [
        f"Written by:   {_command(arguments)}",
        f"See it first: lighter-freezers plan {output}",
        f"Run it:       lighter fit {output}",
    ]
    if source.kind != "run":
        lines.insert(1, "To do:        what is marked with FILL IN")
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _given(arguments: argparse.Namespace) -> list[str]:
    """The options that were given, as on the command line."""
    given = {name: getattr(arguments, name) for name in _USED_BY if getattr(arguments, name) is not None}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
    return [option.replace("--train-embeddings True", "--train-embeddings") for option in options]


def _command(arguments: argparse.Namespace) -> str:
    """The command that writes this file."""
    words = ["lighter-freezers schedule", str(arguments.config), "--strategy", arguments.strategy]
    return " ".join([*words, *_given(arguments)])


def _options(arguments: argparse.Namespace, source: Source) -> Options:
    is_given = arguments.epochs is not None or arguments.steps is not None
    epochs, steps = (arguments.epochs, arguments.steps) if is_given else (source.epochs, source.steps)
    if source.kind != "run" and not is_given:
        epochs = _EPOCHS
    ratio, decay = arguments.freeze_ratio, arguments.lr_decay
    if decay is not None and not decay >= 1:
        raise ValueError(f"--lr-decay must be at least 1: deeper layers train more slowly. Got {decay}.")
    return Options(
        epochs=epochs,
        steps=steps,
        freeze_ratio=0.5 if ratio is None else checks.fraction("--freeze-ratio", ratio),
        lr_decay=decay,
        train_embeddings=bool(arguments.train_embeddings),
    )
