"""Phases of LoRA training without writing each out: strategies by name, and configs from a few numbers."""

from collections.abc import Sequence

from lighter_freezers import arguments
from lighter_freezers.arguments import checked
from lighter_freezers.lora.phases import STRATEGIES
from lighter_freezers.selection.names import closest_names

__all__ = ["create_layerwise_lora_config", "create_phased_lora_config", "parse_strategy"]

Steps = Sequence[int | None] | None
BOTH = ("attention", "mlp")


@checked
def create_phased_lora_config(
    phase1_steps: Steps = (0, 100),
    phase2_steps: Steps = (100, 200),
    phase3_steps: Steps = (200, None),
    phase1_modules: Sequence[str] | None = None,
    phase2_modules: Sequence[str] | None = None,
    phase3_modules: Sequence[str] | None = None,
) -> list[dict[str, object]]:
    """Up to three phases over kinds of layers, for `LoraPhases(phases=...)`.

    Args:
        phase1_steps: First step, and the step at which the phase ends or None; None for no such phase.
        phase2_steps: The same for the second.
        phase3_steps: The same for the third.
        phase1_modules: What trains in it. None for `[attention]`.
        phase2_modules: None for `[mlp]`.
        phase3_modules: None for `[attention, mlp]`.

    Returns:
        The phases, as plain values.

    Example:
        ```python
        from lighter_freezers import LoraPhases, create_phased_lora_config

        phases = create_phased_lora_config((0, 300), (300, 600), (600, None), ["attention", "mlp"])
        callback = LoraPhases(phases=phases)
        ```
    """
    chosen = [
        (phase1_steps, ("attention",) if phase1_modules is None else phase1_modules),
        (phase2_steps, ("mlp",) if phase2_modules is None else phase2_modules),
        (phase3_steps, BOTH if phase3_modules is None else phase3_modules),
    ]
    return [
        _as_config(index, steps, modules)
        for index, (steps, modules) in enumerate(chosen, start=1)
        if steps is not None
    ]


@checked
def create_layerwise_lora_config(
    num_layers: int = 22,
    phase1_steps: Steps = (0, 200),
    phase2_steps: Steps = (200, None),
    modules: Sequence[str] | None = None,
) -> list[dict[str, object]]:
    """Two phases over the depth of a model, the lower half of its blocks and then the upper.

    Args:
        num_layers: Blocks in the model, at least 2.
        phase1_steps: First step of the lower half, and the step at which it ends.
        phase2_steps: The same for the upper half; None as its end means until the run ends.
        modules: What trains in either. None for `[attention, mlp]`.

    Returns:
        The phases, as plain values.

    Example:
        ```python
        from lighter_freezers import LoraPhases, create_layerwise_lora_config

        callback = LoraPhases(phases=create_layerwise_lora_config(22, (0, 200), (200, None)))
        ```
    """
    number = arguments.count("num_layers", num_layers) or 0
    if number < 2:
        raise ValueError(f"num_layers must be at least 2, to be cut in halves. Got {num_layers!r}.")
    ranges = ([0, number // 2 - 1], [number // 2, number - 1])
    return [
        _as_config(index, steps, BOTH if modules is None else modules, layer_range)
        for index, steps, layer_range in zip((1, 2), (phase1_steps, phase2_steps), ranges, strict=True)
        if steps is not None
    ]


def _as_config(
    index: int, steps: Sequence[int | None], modules: Sequence[str], layer_range: list[int] | None = None
) -> dict[str, object]:
    if not modules:
        raise ValueError(f"phase{index}_modules must name what trains in the phase. Got {modules!r}.")
    if len(steps) != 2:
        raise ValueError(f"phase{index}_steps must be a pair (first step, end step or None). Got {steps!r}.")
    start, end = steps
    names = list(modules)
    return {"start_step": start, "end_step": end, "active_modules": names, "layer_range": layer_range}


def parse_strategy(
    strategy: str | None, phase1_end: int | str | None, phase2_end: int | str | None, *, has_phases: bool
) -> tuple[str, list[int]]:
    """The strategy and the steps at which its phases end; "" where phases are given instead.

    Raises:
        ValueError: The strategy is unknown, or its steps do not fit it.
    """
    given = {"strategy": strategy, "phase1_end": phase1_end, "phase2_end": phase2_end}
    if has_phases:
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"phases says what trains when; {', '.join(extra)} would too. Give one of them.")
        return "", []
    if strategy is None or strategy not in STRATEGIES:
        close, known = closest_names(str(strategy), STRATEGIES, 1)[0], ", ".join(STRATEGIES)
        raise ValueError(f"Unknown strategy {strategy!r}. Closest: '{close}'. All: {known}. Or give phases.")
    ends = [arguments.bound(name, given[name]) for name in ("phase1_end", "phase2_end")]
    wanted = len(STRATEGIES[strategy]) - 1
    bounds = [end for end in ends[:wanted] if end]
    if len(bounds) < wanted:
        raise ValueError(
            f"'{strategy}' has {wanted + 1} phases: give "
            f"{' and '.join(['phase1_end', 'phase2_end'][:wanted])}, steps above 0."
        )
    if ends[wanted:] != [None] * (2 - wanted):
        raise ValueError(f"'{strategy}' has two phases, the second lasts to the end: leave phase2_end out.")
    if bounds != sorted(set(bounds)):
        raise ValueError(f"phase1_end={bounds[0]} is not before phase2_end={bounds[1]}. Put it before.")
    return strategy, bounds
