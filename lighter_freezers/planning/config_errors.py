"""Turns what goes wrong with a config file into one message that says what to write."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules

from lighter_freezers.selection.names import closest_names

__all__ = [
    "clear_errors",
    "missing_part",
    "refuse_lightning_cli",
    "refuse_non_callbacks",
    "refuse_non_mapping",
    "unused_variables",
]

_UNEXPECTED = re.compile(r"component '([\w.]+)\.(\w+)'.*unexpected keyword argument '(\w+)'", re.DOTALL)
_NOWHERE = re.compile(r"Cannot locate class or function: '(\w+)(\.[\w.]+)'")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Raise errors of YAML and of sparkwheel as ValueErrors that say what a misspelt word may mean.

    Raises:
        ValueError: The file is no YAML, or what it describes cannot be built.
    """
    from sparkwheel.utils.exceptions import BaseError
    from yaml import YAMLError

    try:
        yield
    except YAMLError as error:
        raise ValueError(f"The file is no YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"The file is no text: {error}") from error
    except SyntaxError as error:
        if error.filename not in ("<unknown>", "<string>", None):  # in a module that it imports
            raise
        raise ValueError(f"'${(error.text or '').strip()}' is no Python expression: {error.msg}.") from error
    except BaseError as error:
        cause = _of_expression(error.__cause__) if isinstance(error.__cause__, AttributeError) else ""
        raise ValueError(f"{str(error).rstrip()}{cause}{_suggestion(str(error))}") from error


def missing_part(config: Mapping[str, object], part: str) -> str:
    """What to say of a config without trainer, model or data."""
    close = closest_names(part, [str(key) for key in config], 1, cutoff=0.6)
    meant = "".join(f" Is '{key}' meant?" for key in close)
    return f"The config has no '{part}'. lighter needs trainer and model, and data for batches.{meant}"


def refuse_non_mapping(inputs: Iterable[object]) -> None:
    """Refuse a config file with a list or a single value at its top.

    Raises:
        ValueError: With the name of the file.
    """
    from yaml import MappingNode, SequenceNode, compose

    for file in [each for each in inputs if isinstance(each, str) and os.path.isfile(each)]:
        with Path(file).open() as stream:  # whose name is in the error
            node = compose(stream)
        if node is not None and not isinstance(node, MappingNode):
            found = "a list" if isinstance(node, SequenceNode) else "one value"
            raise ValueError(f"{file} is no config: it has {found} at its top, not trainer, model and data.")


def refuse_non_callbacks(callbacks: Iterable[object]) -> None:
    """Refuse texts and mappings among the callbacks, which Lightning takes and then fails at.

    Raises:
        ValueError: With what to write.
    """
    for each in callbacks:
        if isinstance(each, (str, Mapping)):
            name = each if isinstance(each, str) else "package.Class"
            raise ValueError(f"trainer::callbacks has {each!r}, no callback. Write `- _target_: {name}`.")


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


def _of_expression(error: AttributeError) -> str:
    """What an expression asked for, and what the object has that is spelt alike."""
    close = closest_names(error.name, dir(error.obj), 1, cutoff=0.6) if error.name else []
    return f"\n  From AttributeError: {error}" + "".join(f"\nDid you mean `{name}`?" for name in close)


def _suggestion(message: str) -> str:
    """What a class or an argument that does not exist may mean."""
    nowhere = _NOWHERE.search(message)
    if nowhere is not None and find_spec(nowhere[1]) is None:
        packages = [each.name for each in iter_modules()]
        close = closest_names(nowhere[1], packages, 1, cutoff=0.6)
        return "".join(f"\nDid you mean `{package}{nowhere[2]}`?" for package in close)
    found = _UNEXPECTED.search(message)
    built = getattr(import_module(found[1]), found[2], None) if found else None
    if found is None or not callable(built):
        return ""
    known = [name for name in signature(built).parameters if name not in ("args", "kwargs")]
    close = closest_names(found[3], known, 1, cutoff=0.6)
    return f"\nDid you mean `{close[0]}`?" if close else f"\nIt takes {', '.join(known)}."
