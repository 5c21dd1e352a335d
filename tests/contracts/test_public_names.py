"""What `lighter_freezers` promises to have, and that asking for it works."""

import ast
import inspect
from pathlib import Path

import pytest

import lighter_freezers
from lighter_freezers import _HOMES


def names_of_the_stub() -> dict[str, str]:
    """Public name -> module, as type checkers see it."""
    stub = ast.parse(Path(lighter_freezers.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or "": str(node.module) for node in imports for alias in node.names}


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


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """The error lists what there is."""
    with pytest.raises(AttributeError, match="no attribute 'Freezr'.*Freezer.*GPT"):
        _ = lighter_freezers.Freezr


def test_the_version_is_that_of_the_package() -> None:
    """`__version__` and the package's metadata agree."""
    from importlib.metadata import version

    assert lighter_freezers.__version__ == version("lighter-freezers")
