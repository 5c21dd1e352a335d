"""What GradualUnfreezing refuses, and what its errors tell the user."""

import re
from typing import Any

import pytest

from lighter_freezers import Freezer, GradualUnfreezing
from tests.callbacks.block_net import BlockNet, moves
from tests.lab import NormNet, TinyNet, batches, regression, trainer

LONE = "pytorch_lightning"
PLATEAU = {"monitor": "val/loss", "patience": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Say when layers thaw: every_n_epochs, every_n_steps, total_epochs or plateau"),
        ({"every_n_epochs": 1, "every_n_steps": 5}, "every_n_epochs and every_n_steps each say when"),
        ({"total_epochs": 3, "plateau": PLATEAU}, "total_epochs and plateau each say when"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1. Got 0."),
        ({"total_epochs": -2}, "total_epochs counts from 0. Got -2."),
        ({"every_n_epochs": 1, "layers_per_stage": 0}, "layers_per_stage must be at least 1. Got 0."),
        ({"total_epochs": 9, "layers_per_stage": 2}, "total_epochs shares the blocks out by itself"),
        ({"every_n_epochs": 1, "direction": "down"}, "must be one of top-down, bottom-up. Got 'down'."),
        ({"every_n_epochs": 1, "lr_decay": 0.4}, "at least 1, 2.6 in the paper. Got 0.4."),
        (
            {"every_n_epochs": 1, "unfreeze_embeddings": "first"},
            "unfreeze_embeddings must be a whole number or one of last, never. Got 'first'",
        ),
        (
            {"lr_decay": 2.6, "warmup_steps": 5},
            "warmup_steps concerns what thaws, but lr_decay alone freezes",
        ),
        ({"lr_decay": 2.6, "unfreeze_embeddings": 3}, "unfreeze_embeddings concerns what thaws"),
        ({"plateau": {"patience": 2}}, "plateau needs 'monitor', the name of a logged metric"),
        ({"plateau": {"monitor": "val/loss"}}, "plateau needs 'patience', a number of checks"),
        ({"plateau": PLATEAU | {"below": 2}}, "plateau has no key 'below'. Keys: monitor, patience"),
        (
            {"plateau": PLATEAU | {"min_delta": float("inf")}},
            "plateau.min_delta must be at least 0 and finite",
        ),
        (
            {
                "stages": [
                    {"thaw": "head", "until_metric": {"monitor": "m", "below": float("nan")}},
                    {"thaw": "*"},
                ]
            },
            "until_metric: no value is below nan",
        ),
        ({"plateau": PLATEAU | {"mode": "least"}}, "plateau.mode must be 'min'"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    """An error at once, that says what to write."""
    with pytest.raises(ValueError, match=re.escape(message)):
        GradualUnfreezing(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_epochs": "1"}, "every_n_epochs must be a whole number. Got '1' (str). Remove the quotes."),
        ({"every_n_epochs": 1, "lr_decay": "26e-1"}, "YAML reads 5e-5 as a string: write 5.0e-5."),
        ({"plateau": "val/loss"}, "plateau must be a mapping. Got 'val/loss'"),
        (
            {"every_n_epochs": 1, "unfreeze_embeddings": None},
            "must be a whole number or one of last, never. Got None",
        ),
        (
            {"every_n_epochs": 1, "unfreeze_embeddings": True},
            "must be a whole number or one of last, never. Got True",
        ),
    ],
    ids=str,
)
def test_values_of_the_wrong_type(arguments: dict[str, Any], message: str) -> None:
    """As YAML may give them."""
    with pytest.raises(TypeError, match=re.escape(message)):
        GradualUnfreezing(**arguments)


def test_a_model_without_blocks() -> None:
    """An error before training that names the model and the way out."""
    for network in (TinyNet, NormNet):
        with pytest.raises(ValueError, match="no blocks that could thaw .* Use a Freezer"):
            trainer(LONE, callbacks=[GradualUnfreezing(every_n_epochs=1)]).fit(
                regression(LONE, network), batches(), batches()
            )


def test_a_misspelt_metric() -> None:
    """The closest name, and the argument in which to correct it."""
    callback = GradualUnfreezing(plateau={"monitor": "val/los", "patience": 1})

    with pytest.raises(RuntimeError, match=r"Closest: val/loss.* Correct plateau.monitor, or call self.log"):
        moves(LONE, [callback], 1, num_sanity_val_steps=1)


def test_a_head_that_somebody_else_holds() -> None:
    """Nothing would train in the first stage: an error before the first step."""
    callbacks = [GradualUnfreezing(every_n_epochs=1), Freezer(name_starts_with=["head", "norm"])]
    with pytest.raises(RuntimeError, match="every parameter is frozen, so nothing trains"):
        trainer(LONE, callbacks=callbacks).fit(regression(LONE, BlockNet), batches(), batches())
