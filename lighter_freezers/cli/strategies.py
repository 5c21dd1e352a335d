"""Ways to freeze a model, as callbacks for a config. Writes no text."""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from lighter_freezers.layers.thaw_order import Layer, Layers, layers_of
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters, without_wrapper
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["GRADUAL", "STRATEGIES", "Options", "selection_of", "strategy_callbacks"]

GRADUAL = "lighter_freezers.GradualUnfreezing"
Callbacks = list[dict[str, object]]


@dataclass(frozen=True)
class Options:
    """The options of a strategy.

    Attributes:
        epochs: Length of the run; None where it is counted in steps.
        steps: Length of the run in optimizer steps; None where it is counted in epochs.
        freeze_ratio: Share of the blocks that `lp-lora` freezes, from 0 to 1.
        lr_decay: Rate of a layer relative to the one below it, at least 1; None for equal rates.
        train_embeddings: Whether `lp-lora` lets the embeddings train.
    """

    epochs: int | None = None
    steps: int | None = None
    freeze_ratio: float = 0.5
    lr_decay: float | None = None
    train_embeddings: bool = False


def strategy_callbacks(strategy: str, model: nn.Module, options: Options) -> Callbacks:
    """The callbacks of a strategy for one model, as they stand in a config.

    Raises:
        ValueError: The model has no blocks, or the run is too short for the strategy.
    """
    return STRATEGIES[strategy](model, layers_of(model), options)


def _gradual(model: nn.Module, layers: Layers, options: Options) -> Callbacks:
    """One callback, which thaws the blocks evenly over the run."""
    decay = {} if options.lr_decay is None else {"lr_decay": options.lr_decay}
    if options.epochs is not None:
        _refuse_short(options.epochs, "epochs")
        return [{"_target_": GRADUAL, "total_epochs": options.epochs, **decay}]
    steps = _refuse_short(options.steps, "steps")
    num_blocks = len(layers.blocks)
    per_stage = max(1, math.ceil(num_blocks / (steps - 1)))
    num_stages = math.ceil(num_blocks / per_stage) + 1
    pace = {"every_n_steps": steps // num_stages}
    if per_stage > 1:
        pace["layers_per_stage"] = per_stage
    return [{"_target_": GRADUAL, **pace, **decay}]


def _top_down(model: nn.Module, layers: Layers, options: Options) -> Callbacks:
    """The same written out: a Freezer for each block, with stages of equal length."""
    unit, length = ("epoch", options.epochs) if options.epochs is not None else ("step", options.steps)
    length = _refuse_short(length, f"{unit}s")
    blocks = layers.blocks if layers.can_begin_with_head else layers.blocks[1:]
    until: dict[int, list[Layer]] = {}
    for index, block in enumerate(blocks, 1):
        until.setdefault(min(max(1, index * length // (len(blocks) + 1)), length - 1), []).append(block)
    if layers.embeddings is not None:
        until.setdefault(max(until, default=1), []).append(layers.embeddings)
    if not until:
        raise ValueError("Only one layer has anything that can train, so none can thaw later.")
    return [
        _freezer(model, {name for layer in group for name in layer.names}, {f"until_{unit}": begin, **rate})
        for begin, held in until.items()
        for group, rate in _by_rate(held, options.lr_decay)
    ]


def _by_rate(held: Sequence[Layer], decay: float | None) -> list[tuple[Sequence[Layer], dict[str, float]]]:
    """Groups of layers that can share a Freezer, with its learning-rate argument."""
    if decay is None:
        return [(held, {})]
    return [([layer], {"unfreeze_lr_factor": float(f"{decay**-layer.depth:.4g}")}) for layer in held]


def _lp_lora(model: nn.Module, layers: Layers, options: Options) -> Callbacks:
    """A Freezer that holds the lower blocks and the embeddings for the whole run."""
    anatomy = anatomy_of(model)
    num_frozen = int(len(anatomy.blocks) * options.freeze_ratio + 1e-9)
    held = {name for block in anatomy.blocks[:num_frozen] for name in block}
    held.update(() if options.train_embeddings else anatomy.embeddings)
    if not held:
        raise ValueError(
            f"A freeze ratio of {options.freeze_ratio} freezes no block of {len(anatomy.blocks)}. Raise it."
        )
    return [_freezer(model, held, {})]


def _discriminative(model: nn.Module, layers: Layers, options: Options) -> Callbacks:
    """Nothing is frozen; each layer has a lower rate than the one above it."""
    return [{"_target_": GRADUAL, "lr_decay": options.lr_decay or 2.6}]


STRATEGIES: Mapping[str, Callable[[nn.Module, Layers, Options], Callbacks]] = {
    "gradual": _gradual,
    "stages": _gradual,
    "top-down": _top_down,
    "lp-lora": _lp_lora,
    "discriminative": _discriminative,
}


def _refuse_short(length: int | None, unit: str) -> int:
    if length is None:
        raise ValueError("Say how long the run is, with --epochs or --steps: the config does not.")
    if length < 2:
        raise ValueError(
            f"A run of {length} {unit} is one stage, and nothing could thaw in it. Give --epochs or --steps "
            "of at least 2, or choose another strategy."
        )
    return length


def _freezer(model: nn.Module, held: Set[str], rest: Mapping[str, object]) -> dict[str, object]:
    names = [name for name in canonical_parameters(model) if name in held]
    return {"_target_": "lighter_freezers.Freezer", **selection_of(model, names), **rest}


def selection_of(model: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Arguments of a Freezer that select these parameters and no others: whole modules, and what is left."""
    every = canonical_parameters(model).keys()
    whole = NameSummary(list(every)).whole_modules(names)
    found = {
        "name_starts_with": [f"{without_wrapper(path)}." for path in whole if path not in every],
        "names": [without_wrapper(name) for name in whole if name in every],
    }
    arguments = {argument: values for argument, values in found.items() if values}
    selected = ParameterSelector.from_arguments(**arguments).select(model)
    return arguments if selected.keys() == set(names) else {"names": list(names)}
