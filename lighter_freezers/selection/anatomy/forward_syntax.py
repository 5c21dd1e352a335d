"""What the syntax of a `forward` says by itself; `forward_source.py` follows the values."""

import ast
import inspect
import textwrap
from collections.abc import Callable

__all__ = ["falls", "gets_no_data", "parsed"]


def falls(source: ast.expr) -> bool:
    """Whether a loop counts down: `reversed(range(n))`, `range(n - 1, -1, -1)`."""
    if not isinstance(source, ast.Call) or not isinstance(source.func, ast.Name) or not source.args:
        return False
    first, last = source.args[0], source.args[-1]
    if source.func.id == "reversed":
        return isinstance(first, ast.Call) and getattr(first.func, "id", "") == "range"
    return source.func.id == "range" and len(source.args) == 3 and ast.unparse(last) == "-1"


def gets_no_data(node: ast.stmt) -> bool:
    """Whether it is a call without arguments whose result is not used, such as `self._count_pass()`."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and not call.args and not call.keywords


def parsed(function: Callable[..., object]) -> ast.FunctionDef | None:
    """The definition of a function; None where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None
