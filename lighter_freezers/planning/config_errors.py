"""Turns what goes wrong with a config file into one message that says what to write."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature

from lighter_freezers.selection.names import closest_names

__all__ = ["clear_errors", "refuse_lightning_cli", "unused_variables"]

_UNEXPECTED = re.compile(r"component '([\w.]+)\.(\w+)'.*unexpected keyword argument '(\w+)'", re.DOTALL)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Raise errors of YAML and of sparkwheel as ValueErrors, with the argument that a misspelt one may mean.

    Raises:
        ValueError: The file is no YAML, or what it describes cannot be built.
    """
    from sparkwheel.utils.exceptions import BaseError
    from yaml import YAMLError

    try:
        yield
    except YAMLError as error:
        raise ValueError(f"The file is no YAML: {error}") from error
    except BaseError as error:
        raise ValueError(f"{str(error).rstrip()}{_suggestion(str(error))}") from error


def refuse_lightning_cli(config: Mapping[str, object]) -> None:
    """Refuse a config of LightningCLI, from which lighter builds nothing.

    Raises:
        ValueError: `trainer` or `model` is a mapping without `_target_`.
    """
    for key in ("trainer", "model"):
        part = config.get(key)
        if (
            isinstance(part, Mapping)
            and "_target_" not in part
            and ("class_path" in part or key == "trainer")
        ):
            raise ValueError(
                f"'{key}' has no _target_: this looks like a config of LightningCLI. lighter builds what "
                "`_target_` names, with the arguments beside it, instead of `class_path` and `init_args`. "
                "Write it so, or call lighter_freezers.plan(trainer, model) in Python."
            )


def unused_variables(config: object) -> list[str]:
    """A sentence for each of a config's `vars` that it uses nowhere, as a misspelt override makes them."""
    variables = config.get("vars") if isinstance(config, Mapping) else None
    text, said = str(config), []
    if not isinstance(variables, Mapping) or re.search(r"[@%]vars(?!::)", text):  # all of them are used
        return []
    used = set(re.findall(r"[@%]vars::(\w+)", text))
    for name in [str(each) for each in variables if str(each) not in used]:
        close = [f" Did you mean vars::{each}?" for each in closest_names(name, used, 1, cutoff=0.6)]
        said.append(f"vars::{name} is used nowhere in the config.{''.join(close)}")
    return said


def _suggestion(message: str) -> str:
    """The closest arguments of a class that got one it does not have."""
    found = _UNEXPECTED.search(message)
    if found is None:
        return ""
    built = getattr(import_module(found[1]), found[2], None)
    close = closest_names(found[3], signature(built).parameters, 1, cutoff=0.6) if callable(built) else []
    return "".join(f"\nDid you mean `{name}`?" for name in close)
