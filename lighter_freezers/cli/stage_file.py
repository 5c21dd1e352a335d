"""The stages of a gradual unfreezing as a file for its `schedule`, with a comment on what each does."""

from collections.abc import Mapping, Sequence

import yaml
from torch import nn

from lighter_freezers.callbacks.gradual_unfreezing import GradualUnfreezing
from lighter_freezers.cli.callback_comments import described
from lighter_freezers.cli.config_text import Commented, as_list
from lighter_freezers.cli.strategies import GRADUAL, selection_of
from lighter_freezers.layers.stage_list import Entry
from lighter_freezers.layers.thaw_plan import ExplicitStage

__all__ = ["gradual_arguments", "stage_entries", "stage_file"]


def gradual_arguments(text: str) -> Entry | None:
    """The arguments of the GradualUnfreezing that a config has; None where it has none, or a file of stages.

    Raises:
        ValueError: It has the stages themselves.
    """
    trainer = (yaml.safe_load(text) or {}).get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    for callback in callbacks if isinstance(callbacks, list) else []:
        if isinstance(callback, Mapping) and str(callback.get("_target_")).endswith(".GradualUnfreezing"):
            found = {str(key): value for key, value in callback.items() if key != "_target_"}
            if "stages" in found:
                raise ValueError(
                    "The config has its stages written out already: edit them there, or move them to a file "
                    "for schedule:, where they are a list below stages:."
                )
            return None if "schedule" in found else found
    return None


def stage_file(arguments: Entry, model: nn.Module, path: str) -> str:
    """The text of a file with the stages that a GradualUnfreezing makes for one model.

    Args:
        arguments: Of the callback.
        model: The module that will train.
        path: Of the file, for the comment that says how to use it.

    Raises:
        ValueError: There is one stage only.
    """
    entries = stage_entries(arguments, model)
    head = f"# Use it in the callbacks of a config:\n#   - _target_: {GRADUAL}\n#     schedule: {path}\n\n"
    return f"{head}stages:\n{as_list(entries, 2)}"


def stage_entries(arguments: Entry, model: nn.Module) -> list[Commented]:
    """The same as entries of its list.

    Raises:
        ValueError: There is one stage only.
    """
    explicit = GradualUnfreezing(**arguments).explicit_stages(model)
    if len(explicit) < 2:
        raise ValueError("Nothing would thaw later, so there is one stage only. Choose another strategy.")
    return [_entry(stage, model) for stage in explicit]


def _entry(stage: ExplicitStage, model: nn.Module) -> Commented:
    names = [name for layer in stage.layers for name in layer.names]
    value: dict[str, object] = {}
    if names:
        value["thaw"] = _words(model, names)
    if stage.factors and len(stage.layers) == 1:
        value["unfreeze_lr_factor"] = stage.factors[0]
    elif stage.factors:
        value["unfreeze_lr_factor"] = {
            word: factor
            for layer, factor in zip(stage.layers, stage.factors, strict=True)
            for word in _words(model, layer.names)
        }
    what = described(names, model) if names else "nothing"
    return Commented((f"thaws {what}",), {**value, **stage.rest})


def _words(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Paths of modules and names that select these parameters and no others."""
    chosen = selection_of(model, names)
    return [*(path.rstrip(".") for path in chosen.get("name_starts_with", [])), *chosen.get("names", [])]
