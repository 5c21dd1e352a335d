"""Names of parameters and modules, free of the segments that compile, FSDP, DDP and checkpointing add.

`layer_names.py` maps names to layers of a transformer, `select.py` decides which names a rule selects.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeAlias

from torch import nn

__all__ = [
    "any_parameter",
    "canonical_name",
    "canonical_parameters",
    "closest_names",
    "join",
    "layout",
    "loggable",
    "each_module",
    "named_aliases",
    "spellings",
    "unwrapped",
    "walk",
    "without_wrapper",
]

TECHNICAL_SEGMENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
ROOT_SEGMENTS = TECHNICAL_SEGMENTS | {"module"}  # where DDP, DataParallel and AveragedModel hold the model
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
Layout: TypeAlias = tuple[Mapping[str, nn.Parameter | None], Mapping[str, nn.Module | None]]
_MOST_COMPARED = 100  # names, letter by letter
WRAPPERS = ("network", "model")  # LighterModule and most LightningModules hold the model under one of these


@lru_cache(maxsize=10_000)
def loggable(name: str) -> str:
    """A name with a space in place of what loggers refuse, such as MLflow the brackets of a module's name."""
    return " ".join(re.sub(r"[^\w.\-/:]+", " ", name).split())


def canonical_name(name: str) -> str:
    """Drop the segments that wrappers add, so that a name survives compile, DDP, FSDP and checkpointing.

    Args:
        name: A name from `named_parameters`, `named_modules` or a state dict.

    Returns:
        The name without `_orig_mod`, `_fsdp_wrapped_module` and `_checkpoint_wrapped_module` anywhere, and
        without `module` at its start.
    """
    segments = [segment for segment in name.split(".") if segment not in TECHNICAL_SEGMENTS]
    while len(segments) > 1 and segments[0] == "module":
        del segments[0]
    return ".".join(segments)


def without_wrapper(name: str) -> str:
    """Drop a leading `network.` or `model.`."""
    head, _, rest = name.partition(".")
    return rest if rest and head in WRAPPERS else name


def spellings(rule: str) -> Iterator[str]:
    """A rule as it is, behind each wrapper, without its own wrapper, and behind the other wrapper instead."""
    yield rule  # first of all, since what matches so has nothing that a canonical name lacks
    canonical = canonical_name(rule)
    if canonical != rule:
        yield canonical
    for wrapper in WRAPPERS:
        yield f"{wrapper}.{canonical}"
    head, dot, rest = canonical.partition(".")
    if head not in WRAPPERS:
        return
    if rest:
        yield rest
    for wrapper in WRAPPERS:
        if wrapper != head:
            yield f"{wrapper}{dot}{rest}"


def join(path: str, name: str) -> str:
    """Path of what a module calls `name`; the model itself has the path ""."""
    return f"{path}.{name}" if path else name


def layout(module: nn.Module, at_root: bool = False) -> Layout:
    """Own parameters and children of a module under their canonical names: wrappers are looked through.

    Args:
        module: Any module.
        at_root: Whether the module is the model itself, where a child called `module` is a wrapper too.

    Returns:
        The parameters, then the children; like in the module itself, values may be None.
    """
    technical = ROOT_SEGMENTS if at_root else TECHNICAL_SEGMENTS
    if technical.isdisjoint(module._modules):
        return module._parameters, module._modules
    parameters, children = dict(module._parameters), {}
    for name, child in module._modules.items():
        if name not in technical or child is None:
            children[name] = child
            continue
        inner_parameters, inner_children = layout(child, at_root)
        _refuse_clash(name, [*parameters, *children, *module._modules], [*inner_parameters, *inner_children])
        parameters.update(inner_parameters)
        children.update(inner_children)
    return parameters, children


def any_parameter(around: Layout, names: Iterable[str]) -> bool:
    """Whether any of some names of a module is a parameter, or a child with parameters."""
    parameters, children = around
    return any(parameters.get(name) is not None or _has_parameters(children.get(name)) for name in names)


def _has_parameters(module: nn.Module | None) -> bool:
    """Whether there is a parameter in a module; `next(module.parameters())` takes ten times as long."""
    if module is None:
        return False
    for parameter in module._parameters.values():
        if parameter is not None:
            return True
    return any(map(_has_parameters, module._modules.values()))


def _refuse_clash(wrapper: str, outer: Iterable[str], inner: Iterable[str]) -> None:
    clash = sorted(set(outer) & set(inner) - ROOT_SEGMENTS)
    if clash:
        raise ValueError(
            f"'{clash[0]}' and '{wrapper}.{clash[0]}' become one name when '{wrapper}', which wrappers add, "
            f"is dropped. Rename one of the two attributes of the model."
        )


def walk(module: nn.Module, path: str = "", at_root: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its canonical path, in model order; a module that occurs twice comes twice.

    Args:
        module: Where to begin.
        path: Canonical path of that module, "" for the model itself.
        at_root: Whether the module is the model itself, or a wrapper right around it.

    Yields:
        Path and module; a wrapper and what it wraps have the same path.
    """
    left = [(path, module, at_root)]
    while left:  # a generator for each level would cost as much as the depth for each module
        path, module, at_root = left.pop()
        yield path, module
        technical = ROOT_SEGMENTS if at_root else TECHNICAL_SEGMENTS
        left.extend(
            (path, child, at_root) if name in technical else (join(path, name), child, False)
            for name, child in reversed(module._modules.items())
            if child is not None
        )


def each_module(model: nn.Module) -> Iterator[nn.Module]:
    """Every module in model order, repeated if it is registered twice; `modules` looks each up."""
    left: list[nn.Module | None] = [model]
    while left:
        if (module := left.pop()) is not None:
            yield module
            left.extend(reversed(module._modules.values()))


def named_aliases(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter under every name it has, in model order: a tied weight comes once for each alias."""
    for path, module in walk(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield join(path, name), parameter


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, in model order, under the first of its canonical names."""
    first_names: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in named_aliases(model):
        first_names.setdefault(id(parameter), (name, parameter))
    return dict(first_names.values())


def unwrapped(module: nn.Module, at_root: bool = False) -> nn.Module:
    """The module inside compile, FSDP and checkpoint wrappers; at the root also inside DDP."""
    technical = ROOT_SEGMENTS if at_root and isinstance(module, PARALLEL) else TECHNICAL_SEGMENTS
    inner = next((child for name, child in module._modules.items() if name in technical), None)
    return module if inner is None else unwrapped(inner, at_root)


def closest_names(asked: str, names: Iterable[str], count: int = 4, *, cutoff: float = 0.0) -> list[str]:
    """The names closest to the requested one, ignoring wrappers, best first."""
    full_names: dict[str, str] = {}
    for name in names:
        full_names.setdefault(without_wrapper(name), name)
    short, likely = without_wrapper(asked), list(full_names)
    if len(likely) > _MOST_COMPARED:  # difflib is slow: at 15,000 names it takes a second
        likely = _alike(short, likely)
    close = difflib.get_close_matches(short, likely, n=count, cutoff=cutoff)
    return [full_names[short] for short in close]


def _alike(asked: str, names: list[str]) -> list[str]:
    """The names that share most letters with the requested one, wherever they stand."""
    import numpy as np  # not at the top: the command line starts without it

    letters = np.array(names)[:, None].view(np.uint32)  # (names, the longest length)
    shared = np.zeros(len(names))
    for letter, count in Counter(asked).items():
        shared += np.minimum(np.count_nonzero(letters == ord(letter), axis=1), count)
    scores = shared / (len(asked) + 1 + np.count_nonzero(letters, axis=1))
    return [names[place] for place in np.argsort(-scores, kind="stable")[:_MOST_COMPARED]]
