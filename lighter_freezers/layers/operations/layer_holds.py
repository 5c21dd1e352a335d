"""The layers that operations froze or thawed: one holder, and the latest operation on a parameter counts."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import ledger
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.terms import Terms
from lighter_freezers.selection.adapters import adapters_in, is_adapted
from lighter_freezers.selection.element_counts import is_empty, num_elements
from lighter_freezers.selection.layer_names import components, parameters_of_layer
from lighter_freezers.selection.names import canonical_parameters
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["LayerHolds", "parameters_of_layers"]

_USUAL = Terms()


def parameters_of_layers(model: nn.Module, layers: str) -> dict[str, Parameter]:
    """Canonical name -> parameter of `attn.2`, `attn.0-3`, `mlp.*`, `wte`, or below the path of a module.

    Raises:
        ValueError: The model has no such layer; the message says which it has.
    """
    try:
        return parameters_of_layer(model, layers)
    except ValueError as error:
        try:
            return ParameterSelector(prefixes=(f"{layers}.",)).select(model)
        except ValueError:
            raise error from None  # its message lists the layers


class LayerHolds:
    """What the operations of one run hold frozen, and what they made trainable.

    Args:
        title: The holder's name in logs and errors.
        on_intrusion: Called when other code switches a held parameter on.
        terms: What else is asked for while layers are held.
    """

    def __init__(self, title: str, on_intrusion: Callable[[], None], terms: Terms = _USUAL) -> None:
        self._terms = terms
        self._title = title
        self._on_intrusion = on_intrusion
        self.holds: list[Hold] = []
        self._thawed: dict[int, Parameter] = {}  # trainable though the user had frozen them
        self._resolved: dict[str, tuple[tuple[str, ...], str]] = {}  # layers -> names, other name where tied
        self._fixed: dict[str, tuple[dict[str, Parameter], str]] = {}  # the same with the parameters

    def resolve(self, model: nn.Module, layers: str) -> tuple[dict[str, Parameter], str]:
        """The parameters of layers by name, and the other name of a tied layer.

        Names are found once, which takes longer than a transition; call it for all layers before the run.
        """
        if layers in self._fixed:
            return self._fixed[layers]
        now = canonical_parameters(model)
        if not now.keys() >= set(self._resolved.get(layers, ((), ""))[0]) or layers not in self._resolved:
            named = parameters_of_layers(model, layers)
            self._resolved[layers] = tuple(named), _tie(model, layers, named)
            return named, self._resolved[layers][1]
        names, tie = self._resolved[layers]
        return {name: now[name] for name in names}, tie

    def fix(self, model: nn.Module) -> None:
        """Training starts: where no adapter can change, the layers resolved so far keep their parameters."""
        fixed = [] if is_adapted(model) else list(self._resolved)
        self._fixed = {layers: self.resolve(model, layers) for layers in fixed}

    def freeze(self, model: nn.Module, layers: str) -> str:
        """Hold all parameters of layers. A LoRA factor of rank 0 is skipped: once it has a rank, it trains.

        Returns:
            The effect in words.
        """
        held = {id(parameter) for hold in self.holds for parameter in hold.parameters}
        named, tie = self.resolve(model, layers)
        fresh = [p for p in named.values() if not is_empty(p) and id(p) not in held]
        frozen = self._hold(fresh)
        return (_counted("froze", frozen) or "no effect, it was frozen already") + tie

    def unfreeze(self, model: nn.Module, layers: str) -> str:
        """Release layers, and thaw what the user had frozen in them.

        In a layer with adapters only these are set free: the weights that they adapt stay as they are.

        Returns:
            The effect in words.
        """
        named, tie = self.resolve(model, layers)
        thawed = self._let_go(named.values())
        names = list(named) if layers in self._fixed else adapters_in(model).free(named, named)
        free = [named[name] for name in names]
        asked = [p for p in free if ledger.is_user_frozen(p)]
        self._thawed.update((id(p), p) for p in asked)
        thawed += ledger.thaw(asked, self._title)
        return (_counted("thawed", thawed) or _why_nothing_thawed(free)) + tie

    def state(self, model: nn.Module) -> dict[str, list[str]]:
        """The names of what is held and of what was made trainable."""
        held = {id(parameter) for hold in self.holds for parameter in hold.parameters}
        named = canonical_parameters(model)
        return {
            "held": [name for name, parameter in named.items() if id(parameter) in held],
            "thawed": [name for name, parameter in named.items() if id(parameter) in self._thawed],
        }

    def restore(self, model: nn.Module, state: Mapping[str, Sequence[str]]) -> None:
        """Hold and thaw what `state` names."""
        named = canonical_parameters(model)
        thawed = [named[name] for name in state["thawed"] if name in named]
        self._thawed = {id(parameter): parameter for parameter in thawed}
        ledger.thaw(thawed, self._title)
        self._hold([named[name] for name in state["held"] if name in named])

    def leave(self) -> None:
        """Stop holding, and leave the flags as they are."""
        for hold in self.holds:
            hold.abandon()
        self.holds, self._thawed = [], {}

    def _hold(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        if not parameters:
            return []
        hold = Hold(parameters, self._title, self._terms)
        hold.watch(self._on_intrusion)
        self.holds.append(hold)
        return hold.take()

    def _let_go(self, parameters: Iterable[Parameter]) -> list[Parameter]:
        leaving, thawed = {id(parameter) for parameter in parameters}, []
        for hold in list(self.holds):
            rest = [parameter for parameter in hold.parameters if id(parameter) not in leaving]
            if len(rest) == len(hold.parameters):
                continue
            self._hold(rest)  # first, so that nothing of the rest thaws in between
            self.holds.remove(hold)
            thawed += hold.let_go()
            hold.abandon()
        return thawed


def _tie(model: nn.Module, layer: str, named: Mapping[str, Parameter]) -> str:
    """The other name of a layer whose weight is tied: the parameter is frozen or thawed under both names."""
    homes = [
        component for component, names in components(model).items() if not named.keys().isdisjoint(names)
    ]
    is_one_layer = not layer.endswith("*") and not layer.rpartition(".")[2][:1].isdecimal()
    return f" (tied to {', '.join(homes)})" if is_one_layer and homes and layer not in homes else ""


def _counted(verb: str, parameters: Sequence[Parameter]) -> str:
    return f"{verb} {num_elements(parameters):,} parameters" if parameters else ""


def _why_nothing_thawed(parameters: Sequence[Parameter]) -> str:
    holders = sorted({holder for parameter in parameters for holder in ledger.holders(parameter)})
    return f"no effect yet, held by {', '.join(holders)}" if holders else "no effect, it trained already"
