"""LoRA phases as values: which adapters train from which step on, without gaps between phases."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lighter_freezers import arguments
from lighter_freezers._log import log
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.name_summary import first_few
from lighter_freezers.selection.names import canonical_parameters, closest_names

__all__ = [
    "STRATEGIES",
    "Adapter",
    "LoraPhase",
    "adapters_of",
    "check_phases",
    "parse_phases",
    "phases_of_strategy",
]

KEYS = ("start_step", "end_step", "active_modules", "layer_range")
PARTS: Mapping[str, str] = {"attn": "attention", "mlp": "mlp"}  # component -> its name in phases
STRATEGIES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "both->mlp->attn": (("attention", "mlp"), ("mlp",), ("attention",)),
    "attn->mlp->both": (("attention",), ("mlp",), ("attention", "mlp")),
    "both->mlp->both": (("attention", "mlp"), ("mlp",), ("attention", "mlp")),
    "early->late": (("attention", "mlp"), ("attention", "mlp")),
}


@dataclass(frozen=True)
class LoraPhase:
    """A part of a run, and the adapters that train in it.

    Attributes:
        start_step: Its first optimizer step.
        end_step: The first step of the next one; None for the last phase.
        modules: `attention`, `mlp`, or a layer outside the blocks such as `wte`.
        layer_range: First and last block, both included; None for all of them, and for layers outside.
    """

    start_step: int
    end_step: int | None
    modules: tuple[str, ...]
    layer_range: tuple[int, int] | None = None

    def trains(self, adapter: "Adapter") -> bool:
        """Whether an adapter trains in it."""
        if adapter.module not in self.modules:
            return False
        if adapter.block is None or self.layer_range is None:
            return True
        return self.layer_range[0] <= adapter.block <= self.layer_range[1]

    def __str__(self) -> str:
        modules = " and ".join(self.modules)
        return modules if self.layer_range is None else f"{modules} of blocks {_span(self.layer_range)}"


@dataclass(frozen=True)
class Adapter:
    """What LoRA put on one layer.

    Attributes:
        title: Its name in logs, such as `attn.3`.
        module: Its name in phases: `attention`, `mlp`, or its component outside the blocks.
        block: In which block it is; None outside.
        names: Canonical names of its parameters.
    """

    title: str
    module: str
    block: int | None
    names: tuple[str, ...]


def adapters_of(model: nn.Module, adapter_name: str) -> list[Adapter]:
    """The adapters of a model, in model order.

    Raises:
        ValueError: There are none, or the model has no blocks that phases could name.
    """
    from lighter_freezers.lora.sites import required_sites

    sites = required_sites(model, adapter_name).values()
    stacks = anatomy_of(model).stacks
    if len(stacks) != 1:
        raise ValueError(
            f"LoraPhases names adapters by block, but {type(model).__name__} has {len(stacks)} "
            "stacks of blocks. Use a Freezer for each phase instead, with patterns such as '*.lora_*'."
        )
    names = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
    return [
        Adapter(
            site.title,
            *_place(site.layer),
            tuple(names[id(p)] for p in _own_parameters(site.factors.layer, adapter_name)),
        )
        for site in sites
    ]


def _own_parameters(layer: nn.Module, adapter_name: str) -> Iterator[nn.Parameter]:
    """What PEFT added to a layer for one adapter: factors, magnitudes, biases."""
    for name, parameter in layer.named_parameters():
        segments = name.split(".")
        if segments[0] != "base_layer" and adapter_name in segments:
            yield parameter


def _place(layer: str) -> tuple[str, int | None]:
    """The name of a component in phases, and its block."""
    part, _, index = layer.rpartition(".")
    return (PARTS[part], int(index)) if part in PARTS and index.isdecimal() else (layer, None)


def phases_of_strategy(strategy: str, ends: Sequence[int], num_blocks: int) -> list[LoraPhase]:
    """The phases that a strategy stands for; what its name says, in this order, is what trains.

    Args:
        strategy: One of `STRATEGIES`.
        ends: The optimizer steps at which all phases but the last end.
        num_blocks: Of the model; `early->late` cuts them in halves.
    """
    bounds = [0, *ends, None]
    half = num_blocks // 2
    ranges: list[tuple[int, int] | None] = [None, None, None]
    if strategy == "early->late":
        ranges = [(0, half - 1), (half, num_blocks - 1)]
    return [
        LoraPhase(start or 0, end, modules, span)
        for start, end, modules, span in zip(bounds, bounds[1:], STRATEGIES[strategy], ranges, strict=False)
    ]


def parse_phases(config: object) -> list[LoraPhase]:
    """Read phases as they stand in YAML.

    Args:
        config: A list of `{start_step, end_step, active_modules, layer_range}`. A phase without `end_step`
            ends where the next begins, the last one never.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key is unknown, or the phases do not follow one another without gap or overlap.
    """
    if not isinstance(config, Sequence) or isinstance(config, str) or not config:
        raise TypeError(f"phases must be a list of phases with {', '.join(KEYS)}. Got {config!r}.")
    phases = [_phase(f"phases[{index}]", entry) for index, entry in enumerate(config)]
    ends = [phase.start_step for phase in phases[1:]]
    if phases[0].start_step != 0:
        raise ValueError("phases[0] must start at step 0, or nothing defines what trains before it.")
    for index, (phase, end) in enumerate(zip(phases, ends, strict=False)):
        _check_bounds(f"phases[{index}]", phase, end)
    if phases[-1].end_step is not None:
        raise ValueError(
            f"phases[{len(phases) - 1}].end_step: no phase defines what trains from step "
            f"{phases[-1].end_step} on. Leave it out: the last phase lasts until the run ends."
        )
    return [replace(phase, end_step=end) for phase, end in zip(phases, [*ends, None], strict=True)]


def check_phases(phases: Sequence[LoraPhase], adapters: Sequence[Adapter], num_blocks: int) -> None:
    """Check phases against what a model has; say which adapters train in none of them.

    Raises:
        ValueError: A phase names what has no adapter, or blocks that are not there.
    """
    known = list(dict.fromkeys(adapter.module for adapter in adapters))
    for number, phase in enumerate(phases, 1):
        for module in phase.modules:
            trained = [adapter for adapter in adapters if adapter.module == module and phase.trains(adapter)]
            if not trained:
                where = "" if phase.layer_range is None else f" in blocks {_span(phase.layer_range)}"
                raise ValueError(
                    f"Phase {number} trains '{module}', but there is no LoRA on it{where}. With LoRA: "
                    f"{', '.join(known)}. Closest: '{closest_names(module, known, 1)[0]}'. Add it to "
                    "target_modules, or choose another."
                )
        if phase.layer_range is not None and phase.layer_range[1] >= num_blocks:
            raise ValueError(
                f"Phase {number} trains blocks {_span(phase.layer_range)}, but there are {num_blocks}: "
                f"0 to {num_blocks - 1}."
            )
    idle = [adapter.title for adapter in adapters if not any(phase.trains(adapter) for phase in phases)]
    if idle:
        log.warning(
            "LoraPhases: LoRA on %s trains in no phase; name it in one, or remove it", first_few(idle, 4)
        )


def _check_bounds(argument: str, phase: LoraPhase, next_start: int) -> None:
    if next_start <= phase.start_step:
        raise ValueError(
            f"{argument} starts at step {phase.start_step}, the next at {next_start}: order them by step."
        )
    end = phase.end_step
    if end is not None and end != next_start:
        kind = "gap" if end < next_start else "overlap"
        raise ValueError(
            f"{argument} ends at step {end}, but the next starts at {next_start}: {kind} of "
            f"{abs(next_start - end)} steps. Give both the same step, or leave end_step out."
        )


def _phase(argument: str, entry: object) -> LoraPhase:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{argument} must be a mapping with {', '.join(KEYS)}. Got {entry!r}.")
    for key in entry:
        if key not in KEYS:
            raise ValueError(
                f"{argument} does not know '{key}'. Closest: {closest_names(str(key), KEYS, 1)[0]}."
            )
    start = arguments.bound(f"{argument}.start_step", entry.get("start_step"))
    if start is None:
        raise ValueError(f"{argument} needs start_step, the optimizer step at which it begins.")
    end = arguments.bound(f"{argument}.end_step", entry.get("end_step"))
    if end is not None and end <= start:
        raise ValueError(f"{argument} ends at step {end}, before or where it starts ({start}).")
    return LoraPhase(start, end, _modules(argument, entry.get("active_modules")), _range(argument, entry))


def _modules(argument: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{argument}.active_modules must be a list such as [attention, mlp] or [wte]. Got {value!r}."
        )
    return tuple(dict.fromkeys(names))


def _range(argument: str, entry: Mapping[str, object]) -> tuple[int, int] | None:
    value = entry.get("layer_range")
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{argument}.layer_range must be [first block, last block]. Got {value!r}.")
    first, last = (arguments.count(f"{argument}.layer_range", bound) for bound in value)
    if first is None or last is None or first > last:
        raise ValueError(f"{argument}.layer_range must be [first block, last block]. Got {list(value)}.")
    return first, last


def _span(layer_range: tuple[int, int]) -> str:
    first, last = layer_range
    return f"{first}" if first == last else f"{first}-{last}"
