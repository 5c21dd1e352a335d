"""What PEFT trains and what it keeps frozen, read from the modules that it puts around others.

By structure alone, so that it holds for adapters of any kind and name: LoRA, IA3, LoHa, AdaLoRA, trainable
tokens, experts by `target_parameters`, `modules_to_save`. The LoRA layers themselves are in `lora/`.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lighter_freezers.selection.element_counts import is_empty
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["Adapters", "adapters_in", "is_adapted"]

_KEPT = ("base_layer", "original_module")  # what PEFT's modules call that which they adapt or stand for


class Adapters:
    """The parameters of the adapters of a model, and those below them.

    Args:
        trained: Ids of what PEFT trains.
        kept: Ids of what it keeps frozen.
    """

    def __init__(self, trained: set[int], kept: set[int]) -> None:
        self.trained = trained
        self.kept = kept - trained

    def free(self, named: Mapping[str, nn.Parameter], names: Iterable[str]) -> list[str]:
        """Of the names of one layer those that may train: where it has adapters these, else all not kept."""
        listed = list(names)
        adapters = [name for name in listed if id(named[name]) in self.trained]
        return adapters or [name for name in listed if id(named[name]) not in self.kept]


def adapters_in(model: nn.Module) -> Adapters:
    """Find the adapters of a model that have components; one of rank 0 is not there yet."""
    trained, kept = set[int](), set[int]()
    for module in model.modules():
        below = [child for name in _KEPT if (child := module._modules.get(name)) is not None]
        if not below or not _is_of_peft(module):
            continue
        inside = {id(p) for child in below for p in child.parameters()}
        own = {id(p) for p in module.parameters() if not is_empty(p)} - inside
        if own:
            trained |= own
            kept |= inside
    biases = _trained_biases(model, kept) if kept else set()
    return Adapters(trained | biases, kept)


def is_adapted(model: nn.Module) -> bool:
    """Whether there is a module of PEFT's, perhaps with adapters that have no components yet."""
    return any(map(_is_of_peft, model.modules()))


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def _trained_biases(model: nn.Module, kept: set[int]) -> set[int]:
    """The biases that a config with `bias: all` or `bias: lora_only` trains."""
    configs: Sequence[object] = [
        config
        for module in model.modules()
        if isinstance(found := getattr(module, "peft_config", None), dict)
        for config in found.values()
    ]
    modes = {getattr(config, "bias", "none") for config in configs}
    if modes <= {"none"}:
        return set()
    named = canonical_parameters(model)
    biases = {id(p) for name, p in named.items() if name.rpartition(".")[2] == "bias"}
    return biases if "all" in modes else biases & kept
