"""What `lighter_freezers` promises to have, and that asking for it works."""

import ast
import inspect
import pickle
from pathlib import Path
from types import ModuleType

import pytest

import lighter_freezers
from lighter_freezers import _HOMES, lightning


def names_of_the_stub(module: ModuleType = lighter_freezers) -> dict[str, str]:
    """Public name -> module, as type checkers see it."""
    stub = ast.parse(Path(str(module.__file__)).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    found = {alias.asname: str(node.module) for node in imports for alias in node.names if alias.asname}
    return found | {node.name: module.__name__ for node in stub.body if isinstance(node, ast.ClassDef)}


def test_all_names_what_the_homes_know() -> None:
    """A public name stands in `__all__`, has a home and is in the stub; there are no others."""
    assert sorted(lighter_freezers.__all__) == sorted(_HOMES)
    assert names_of_the_stub() == _HOMES
    assert len(set(lighter_freezers.__all__)) == len(lighter_freezers.__all__)


@pytest.mark.parametrize("name", lighter_freezers.__all__)
def test_a_public_name_resolves_and_says_what_it_is(name: str) -> None:
    """It is what its home module exports under this name, with a docstring of its own."""
    value = getattr(lighter_freezers, name)

    assert value.__name__ == name
    assert value.__module__ == _HOMES[name]
    assert name in dir(lighter_freezers)
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert value.__doc__ is not None
    assert not value.__doc__.startswith(f"{name}(")  # what a dataclass writes by itself


def test_all_names_are_there_for_lightning_pytorch() -> None:
    """A class of Lightning is another, with the same arguments and of a name that can be pickled."""
    homes = names_of_the_stub(lightning)
    assert sorted(homes) == sorted(lightning.__all__) == sorted(lighter_freezers.__all__)

    for name, home in homes.items():
        value, other = getattr(lightning, name), getattr(lighter_freezers, name)
        assert (value is other) == (home == "lighter_freezers")
        assert inspect.signature(value) == inspect.signature(other)
        assert pickle.loads(pickle.dumps(value)) is value


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """The error lists what there is."""
    with pytest.raises(AttributeError, match="no attribute 'Freezr'.*Freezer.*GPT"):
        _ = lighter_freezers.Freezr


def test_the_version_is_that_of_the_package() -> None:
    """`__version__` and the package's metadata agree."""
    from importlib.metadata import version

    assert lighter_freezers.__version__ == version("lighter-freezers")
