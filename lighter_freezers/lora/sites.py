"""Where a model has LoRA: the layers of PEFT, their two factors, the names they go by. Changes nothing."""

import math
import re
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from lighter_freezers._extras import require
from lighter_freezers.lora.peft_configs import PeftModule, refuse_other_tuners, usual_adapter
from lighter_freezers.lora.resize import ZeroFactor
from lighter_freezers.selection.layer_names import components, parameters_of_layer
from lighter_freezers.selection.names import canonical_parameters, closest_names, named_aliases, walk

__all__ = [
    "LoraFactors",
    "LoraSite",
    "PeftModule",
    "find_lora_sites",
    "is_tied",
    "lora_layers",
    "matches_pattern",
    "refuse_unsupported",
    "required_sites",
    "select_sites",
    "why_unsupported",
]


@dataclass(frozen=True)
class LoraFactors:
    """The factors of one adapter of a PEFT layer, which adds s B A x to what its base layer gives.

    Shapes: A (r, n) and B (m, r) for Linear, Conv1D and Embedding; A (r, inputs, *kernel), B (m, r, 1, ...)
    for convolutions, where n is the number of inputs times the size of the kernel. At rank 0 they are empty,
    but torch refuses that for a convolution: it has one component of zeros, which cannot learn.

    Attributes:
        layer: PEFT's layer.
        adapter_name: PEFT's name of the adapter.
    """

    layer: PeftModule
    adapter_name: str = "default"

    @property
    def is_embedding(self) -> bool:
        """Whether the factors are those of an embedding, where A starts from zeros."""
        return self.adapter_name in self.layer.lora_embedding_A

    @property
    def zero_factor(self) -> ZeroFactor:
        """The factor that PEFT initialises with zeros."""
        return "A" if self.is_embedding else "B"

    @property
    def owners(self) -> tuple[tuple[nn.Module, str], tuple[nn.Module, str]]:
        """For A and B the module that owns the parameter, and its name there."""
        name = self.adapter_name
        if self.is_embedding:
            return (self.layer.lora_embedding_A, name), (self.layer.lora_embedding_B, name)
        return (self.layer.lora_A[name], "weight"), (self.layer.lora_B[name], "weight")

    @property
    def parameters(self) -> tuple[Parameter, Parameter]:
        """A and B as they are."""
        (owner_A, name_A), (owner_B, name_B) = self.owners
        A, B = owner_A._parameters[name_A], owner_B._parameters[name_B]
        assert A is not None, "A without B"
        assert B is not None, "B without A"
        return A, B

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): outputs and inputs of the product."""
        A, B = self.parameters
        return B.shape[0], math.prod(A.shape[1:])

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r)."""
        A, B = self.parameters
        m, n = self.shape
        return A.detach().reshape(-1, n)[: self.rank], B.detach().reshape(m, A.shape[0])[:, : self.rank]

    @property
    def rank(self) -> int:
        """The components there are now."""
        return int(self.layer.r[self.adapter_name])

    @property
    def scaling(self) -> float:
        """s: alpha / r as the adapter was configured, alpha / sqrt(r) for rsLoRA. It never changes."""
        return float(self.layer.scaling[self.adapter_name])

    @property
    def has_more(self) -> bool:
        """Whether the adapter does something at rank 0 too: DoRA's magnitudes, or a bias of B."""
        has_bias = not self.is_embedding and self.layer.lora_B[self.adapter_name].bias is not None
        return has_bias or self.adapter_name in self.layer.lora_magnitude_vector


@dataclass(frozen=True)
class LoraSite:
    """One adapter of one layer in a model.

    Attributes:
        name: Canonical path of the layer, such as `network.transformer.h.0.attn.c_attn`.
        layer: The component it is in, such as `attn.0`.
        title: What logs call it: the component, and the layer's own name where a component has several.
        factors: What it learns.
    """

    name: str
    layer: str
    title: str
    factors: LoraFactors


def find_lora_sites(model: nn.Module, adapter_name: str | None = None) -> dict[str, LoraSite]:
    """Every layer of a model that has this adapter and can change its rank, by name, in model order.

    Args:
        model: A network with LoRA layers of PEFT in it, whether a `PeftModel` or not, or a LightningModule
            around one.
        adapter_name: PEFT's name of the adapter. None: see `usual_adapter`.
    """
    adapter_name = adapter_name or usual_adapter(model)
    layers = {
        name: layer
        for name, layer in lora_layers(model, adapter_name).items()
        if not why_unsupported(layer, adapter_name)
    }
    homes = _homes(model, layers, adapter_name)
    titles = _titles(homes)
    return {
        name: LoraSite(name, homes[name], titles[name], LoraFactors(layer, adapter_name))
        for name, layer in layers.items()
    }


def required_sites(model: nn.Module, adapter_name: str) -> dict[str, LoraSite]:
    """`find_lora_sites`, where there has to be some.

    Raises:
        ValueError: There is none; the message says what there is instead.
    """
    refuse_other_tuners(model)
    sites = find_lora_sites(model, adapter_name)
    if sites:
        return sites
    kind = type(model).__name__
    for name, layer in lora_layers(model, adapter_name).items():
        raise ValueError(f"The rank of '{name}' cannot change: {why_unsupported(layer, adapter_name)}.")
    if lora_layers(model, usual := usual_adapter(model)):
        raise ValueError(f"{kind} has no LoRA adapter '{adapter_name}'. Write adapter_name: {usual}.")
    raise ValueError(
        f"{kind} has no layers of PEFT with an adapter '{adapter_name}'. Put lighter_freezers.apply_lora "
        "around the network."
    )


def select_sites(model: nn.Module, sites: Mapping[str, LoraSite], pattern: str) -> list[LoraSite]:
    """The layers with LoRA that a key of a rank pattern means.

    Args:
        model: The model they are in.
        sites: Those it has, from `find_lora_sites`.
        pattern: A short name (`attn.3`, `attn.0-3`, `mlp.*`, `block.2`, `wte`), which stands for every layer
            with LoRA in it; or a key as PEFT's `rank_pattern` has them: a regular expression for the end of a
            layer's full name.

    Raises:
        ValueError: It means no layer with LoRA; the message says which there are.
    """
    try:
        ids = set(map(id, parameters_of_layer(model, pattern).values()))
    except ValueError as error:
        ids, reason = set(), str(error)
    else:
        reason = f"'{pattern}' is a layer of {type(model).__name__}, but there is no LoRA in it."
    chosen = [site for site in sites.values() if id(site.factors.parameters[0]) in ids]
    if not chosen:
        chosen = [site for name, site in sites.items() if matches_pattern(pattern, name)]
    if not chosen:
        raise ValueError(_explained(model, sites, pattern, reason))
    return chosen


def why_unsupported(layer: PeftModule, adapter_name: str) -> str:
    """Why the rank of a PEFT layer cannot change; empty if it can."""
    kind = type(layer).__name__
    if "adalora" in type(layer).__module__:
        return "it is a layer of AdaLoRA, another tuner than LoRA"
    if kind in ("MultiheadAttention", "ParamWrapper"):
        return f"PEFT computes the update of {kind} in a way of its own"
    if adapter_name in vars(layer).get("unknown_initials", ()):  # `getattr` of a module is slow
        return (
            "its initialisation changed the base weight, and what it took from there is not known any more "
            "(LoftQ quantises; the factors of others have trained since). Use lighter_freezers.apply_lora, "
            "or call install_rank_restore(model) right after get_peft_model"
        )
    variant = getattr(layer, "lora_variant", {}).get(adapter_name)
    if variant is not None and "Dora" not in type(variant).__name__:
        return f"it is a {type(variant).__name__}, which depends on the rank"
    if adapter_name in layer.lora_embedding_A:
        return ""
    factor = layer.lora_A[adapter_name]
    if isinstance(factor, _ConvNd):
        return "" if layer.get_base_layer().groups == 1 else "it is a grouped convolution"
    return "" if type(factor) is nn.Linear else f"its factors are of the class {type(factor).__name__}"


def refuse_unsupported(model: nn.Module, ids: Container[int], adapter_name: str) -> None:
    """Raise where LoRA sits on one of these parameters, but its rank cannot change or it has another name.

    Raises:
        ValueError: So it is.
    """
    from peft.tuners.lora import LoraLayer

    for path, module in walk(model):
        if not isinstance(module, LoraLayer) or not any(id(p) in ids for p in module.parameters()):
            continue
        if reason := why_unsupported(module, adapter_name) if adapter_name in module.r else "":
            raise ValueError(f"The rank of '{path}' cannot change: {reason}.")
        if adapter_name not in module.r:
            there = ", ".join(f"'{name}'" for name in module.r)
            raise ValueError(
                f"'{path}' has LoRA with another adapter ({there}), not '{adapter_name}'. Say adapter_name."
            )


def is_tied(model: nn.Module, weight: Tensor) -> bool:
    """Whether more than one layer of a model uses a weight, as a tied head does."""
    aliases = [parameter for _, parameter in named_aliases(model) if _is_same_memory(parameter, weight)]
    return len(aliases) > 1


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    pointers = one.untyped_storage().data_ptr(), other.untyped_storage().data_ptr()
    return pointers[0] == pointers[1] != 0


def lora_layers(model: nn.Module, adapter_name: str) -> dict[str, PeftModule]:
    """Every layer of PEFT with this adapter by its canonical path, also those whose rank cannot change."""
    require("LoRA", "peft")
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer

    layers: dict[str, PeftModule] = {}
    seen: set[int] = set()
    for path, module in walk(model):
        if "lora_A" not in module._modules or id(module) in seen:  # cheaper than PEFT's abstract classes
            continue
        seen.add(id(module))
        if not isinstance(module, LoraLayer) or isinstance(module, AdaLoraLayer):  # factors of another kind
            continue
        if adapter_name in module.lora_A or adapter_name in module.lora_embedding_A:
            layers[path] = module
    return layers


def _homes(model: nn.Module, layers: Mapping[str, PeftModule], adapter_name: str) -> dict[str, str]:
    """The component that each layer is in."""
    parameters = canonical_parameters(model)
    homes = {
        id(parameters[name]): component for component, names in components(model).items() for name in names
    }
    return {path: homes[id(LoraFactors(layer, adapter_name).parameters[0])] for path, layer in layers.items()}


def _titles(homes: Mapping[str, str]) -> dict[str, str]:
    """The shortest of component, component and own name, or full name that is like no other."""
    titles = dict(homes)
    for lengthen in (lambda path: f"{homes[path]}.{path.rpartition('.')[2]}", lambda path: path):
        counts = Counter(titles.values())
        titles = {path: lengthen(path) if counts[title] > 1 else title for path, title in titles.items()}
    return titles


def matches_pattern(pattern: str, name: str) -> bool:
    """Whether PEFT would match a key of a rank pattern with a name."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error:
        return False


def _explained(model: nn.Module, sites: Mapping[str, LoraSite], pattern: str, reason: str) -> str:
    adapter_names = {site.factors.adapter_name for site in sites.values()}
    if not sites:
        return f"{type(model).__name__} has no LoRA. Put lighter_freezers.apply_lora around the network."
    for name, layer in lora_layers(model, *adapter_names).items():
        if name not in sites and matches_pattern(pattern, name):
            return f"The rank of '{name}' cannot change: {why_unsupported(layer, *adapter_names)}."
    known = [*dict.fromkeys(site.layer for site in sites.values()), *sites]
    close = ", ".join(f"'{name}'" for name in closest_names(pattern, known))
    return (
        f"{reason} With LoRA: {close} and {len(known)} names in all: add it to target_modules, or choose one."
    )
