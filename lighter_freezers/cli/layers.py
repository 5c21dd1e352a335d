"""`lighter-freezers layers`: what the layers of a model are, and what rules call them."""

import argparse
import os
import sys
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Show towers, blocks, embeddings, norms and heads of a model, each with the address that `layers:` rules "
    "take, its parameters and their share, ties, and what is uncertain. Nothing is trained."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of this command."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="config.yaml",
        help="config files and overrides, or a model as package.module:name, an object or what makes one",
    )
    parser.add_argument(
        "--batch",
        action="store_true",
        help="run one forward pass on a batch of the config's data, or on the model's example_input_array",
    )
    for name in ("blocks", "head", "embeddings"):
        parser.add_argument(f"--{name}", nargs="+", metavar="PATH", help=f"what the {name} are, by path")


def run(arguments: argparse.Namespace) -> int:
    """Find the model, look, print."""
    from lighter_freezers.layers.layer_addresses import describe_layers

    model, data = _model_and_data(arguments.inputs)
    example = _example(model, data) if arguments.batch else None
    said = {name: getattr(arguments, name) for name in ("blocks", "head", "embeddings")}
    print(describe_layers(model, example, **{name: paths for name, paths in said.items() if paths}))
    return 0


def _model_and_data(inputs: list[str]) -> tuple[nn.Module, object]:
    module, colon, name = inputs[0].partition(":")
    if len(inputs) == 1 and colon and name.isidentifier():
        sys.path.insert(0, os.getcwd())  # a console script does not look there
        found = getattr(import_module(module), name, None)
        if found is None:
            raise ValueError(f"'{module}' has no '{name}': write package.module:name of a model.")
        model = found if isinstance(found, nn.Module) else found()
        if not isinstance(model, nn.Module):
            raise TypeError(f"'{inputs[0]}' is no model: it makes a {type(model).__name__}.")
        return model, None
    from lighter_freezers.planning.from_config import built_from_config

    model, _, data, _ = built_from_config(inputs)
    return model, data


# Any: a data module or loader of either namespace, and a batch of it
def _example(model: nn.Module, data: Any) -> Any:
    """What the model is called with: the input of the first batch, or `example_input_array`."""
    if data is None or not hasattr(data, "train_dataloader"):
        example = getattr(model, "example_input_array", None)
        if example is None:
            raise ValueError("--batch needs data in the config, or a model with example_input_array.")
        return example
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    if isinstance(batch, dict):
        taken = signature(model.forward).parameters
        return batch.get("input", {key: value for key, value in batch.items() if key in taken})
    return batch[0] if isinstance(batch, (list, tuple)) else batch
