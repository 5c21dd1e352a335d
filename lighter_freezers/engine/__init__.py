"""When something changes and what follows: rules, actions, triggers, ledger and the engine itself.

The names in `__all__` are those to build on. They are resolved on first use: rules, schedules, triggers and
actions are plain values that load torch and no Lightning; only `Engine` and `EngineCallback` load Lightning.
"""

from importlib import import_module

_NAMES = {  # module -> its public names
    "engine.actions": "Action",
    "engine.effects.learning_rates": "LearningRateRequest RateFactor",
    "engine.engine": "Engine EngineCallback",
    "engine.ledger": "Hold",
    "engine.rules": "FreezeRule",
    "engine.run_shares": "RunShares",
    "engine.step_context": "ActionResult StepContext",
    "engine.terms": "Terms",
    "engine.transition": "Transition",
    "engine.triggers": "LossOrWait MetricBelow Moment Plateau Schedule",
    "selection.anatomy.block_modules": "parameters_of_blocks",
    "selection.select": "ParameterSelector",
}
_HOMES = {name: f"lighter_freezers.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'lighter_freezers.engine' has no attribute {name!r}. Public names: {', '.join(__all__)}"
        )
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
