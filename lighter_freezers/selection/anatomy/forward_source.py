"""In which order a module runs its children, read from the source of its `forward`: nothing is run.

The reader follows `self.method(...)`, properties, loops over lists and `getattr(self, f"layer{i}")`, and
notes which child's output reaches which other child. Where there is no source, registration order stands.
"""

import ast
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from torch import nn

from lighter_freezers.selection.anatomy.forward_syntax import falls, gets_no_data, parsed

__all__ = ["CONTAINERS", "Reading", "read_forward"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MAX_DEPTH = 8  # of methods that call methods
# Their arguments are looked at, not run; what they return is the modules they were given.
_PASS_ON = frozenset(("zip", "enumerate", "reversed", "list", "tuple", "iter", "dict", "getattr", "next"))
_ASK = frozenset(("len", "isinstance", "hasattr", "range", "type", "id", "print", "callable"))
_FACTS = frozenset(("dtype", "device", "shape", "config", "ndim", "training", "is_causal"))
_MEMBERS = frozenset(("values", "items", "children", "named_children"))  # of a list, or of all
_TABLES = frozenset(("get_input_embeddings", "get_output_embeddings", "get_encoder", "get_decoder"))


class _Value(NamedTuple):
    """Children that an expression stands for, and children whose output is in it."""

    modules: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    parts: tuple["_Value", ...] = ()  # of a tuple, a value for each


_NOTHING = _Value()


@dataclass
class Reading:
    """What a `forward` says about the children of its module.

    Attributes:
        order: Names of children and own parameters by first use; "layer*" for a name made by an f-string,
            "*" for all children.
        feeds: Child to the children whose output reaches it.
        loops: Children that one loop runs in turns.
        looped: What a loop runs.
        chained: What runs on its own output.
        indices: Lists whose members are named one by one, and with which numbers or keys.
        backwards: Lists that run from the last member to the first.
        called: What is called, and not only read for its weight.
    """

    order: list[str] = field(default_factory=list)
    feeds: dict[str, set[str]] = field(default_factory=dict)
    loops: list[list[str]] = field(default_factory=list)
    looped: set[str] = field(default_factory=set)
    chained: set[str] = field(default_factory=set)
    indices: dict[str, set[int | str]] = field(default_factory=dict)
    backwards: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)

    @property
    def parallel(self) -> set[str]:
        """What a loop runs, or index after index, and never on its own output."""
        indexed = {name for name, indices in self.indices.items() if len(indices) > 1}
        return (self.looped | indexed) - self.chained


@lru_cache(maxsize=4096)
def read_forward(module_class: type[nn.Module]) -> Reading:
    """Read `forward` of a class, or `training_step` of a LightningModule that has none."""
    if module_class.forward in (nn.Module.forward, *(base.forward for base in CONTAINERS)):
        entry = "training_step"
    else:
        entry = "forward"
    reader = _Reader(module_class)
    if not issubclass(module_class, CONTAINERS) or entry == "forward":
        reader.call_method(module_class.__mro__, entry, ())
    return reader.reading


class _Reader:
    def __init__(self, module_class: type[nn.Module]) -> None:
        self.reading = Reading()
        self._class = module_class
        self._frames: list[tuple[type, str]] = []
        self._scope: dict[str, _Value] = {}
        self._returned: list[_Value] = []
        self._loops: list[list[str]] = []
        self._indices: set[str] = set()
        self._down: set[str] = set()  # numbers that fall
        self._self = "self"

    def call_method(
        self, mro: Sequence[type], name: str, arguments: Sequence[tuple[str | int, _Value]]
    ) -> _Value:
        """Read a method as if it were called; what it returns."""
        owner = next((cls for cls in mro if name in vars(cls)), None)
        if (
            owner is None
            or owner is nn.Module
            or (owner, name) in self._frames
            or len(self._frames) > _MAX_DEPTH
        ):
            return _NOTHING
        found = vars(owner)[name]
        # Any: what a class holds under a name
        function: Any = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        tree = parsed(function)
        if tree is None:
            return _NOTHING
        scope, returned, own = self._scope, self._returned, self._self
        parameters = [each.arg for each in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)]
        self._scope, self._returned, self._self = {}, [], parameters[0] if parameters else ""
        for key, value in arguments:
            place = key if isinstance(key, str) else parameters[key + 1] if key + 1 < len(parameters) else ""
            self._scope[place] = value
        self._frames.append((owner, name))
        self._run(tree.body)
        self._frames.pop()
        result = _union(self._returned)
        self._scope, self._returned, self._self = scope, returned, own
        return result

    def _run(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            value = self._value(node.value)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                self._bind(target, value, is_added=isinstance(node, ast.AugAssign))
        elif isinstance(node, ast.Return) and node.value is not None:
            self._returned.append(self._value(node.value))
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self._run_loop(node)
        elif isinstance(node, ast.If):
            self._run_branches(node)
        elif isinstance(node, ast.FunctionDef):
            self._run(node.body)
        elif not gets_no_data(node):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self._statement(child)
                elif isinstance(child, ast.expr):
                    self._value(child)
                elif isinstance(child, (ast.withitem, ast.ExceptHandler, ast.match_case)):
                    self._parts(child)

    def _run_branches(self, node: ast.If) -> None:
        """Either of two, so that a variable is what it is after the one or after the other."""
        self._value(node.test)
        before = dict(self._scope)
        self._run(node.body)
        one, self._scope = self._scope, before
        self._run(node.orelse)
        for name, value in one.items():
            other = self._scope.get(name, value)
            self._scope[name] = value if other == value else _union([value, other])

    def _run_loop(self, node: ast.For | ast.AsyncFor) -> None:
        """Twice: what the body computes may reach it again."""
        self._bind_loop(node.target, node.iter)
        self._loops.append([])
        self._run(node.body)
        self._run(node.body)
        self.reading.loops.append(self._loops.pop())
        self._run(node.orelse)

    def _parts(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child)
            elif isinstance(child, ast.expr):
                self._value(child)

    def _bind(self, target: ast.expr, value: _Value, is_added: bool = False) -> None:
        if isinstance(target, (ast.Tuple, ast.List)) and len(target.elts) == len(value.parts):
            for each, part in zip(target.elts, value.parts, strict=True):
                self._bind(each, part)
            return
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and node.id != self._self:
                is_part = is_added or not isinstance(target, (ast.Name, ast.Tuple, ast.List))
                old = self._scope.get(node.id, _NOTHING) if is_part else _NOTHING
                self._scope[node.id] = value if old == _NOTHING else _union([old, value])

    def _bind_loop(self, target: ast.expr, source: ast.expr) -> None:
        """Bind the variables of a loop, each of a `zip` to its own list."""
        name = source.func.id if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) else ""
        pair = target.elts if isinstance(target, (ast.Tuple, ast.List)) else []
        if isinstance(source, ast.Call) and name == "enumerate" and len(pair) == 2 and source.args:
            self._indices.add(getattr(pair[0], "id", ""))
            self._bind_loop(pair[1], source.args[0])
        elif isinstance(source, ast.Call) and name == "zip" and len(pair) == len(source.args):
            for each, inner in zip(pair, source.args, strict=True):
                self._bind_loop(each, inner)
        elif isinstance(source, ast.Call) and name == "zip":
            values = [self._value(each) for each in source.args]
            self._bind(target, _union(values)._replace(parts=tuple(values)))
        else:
            if isinstance(target, ast.Name) and (name == "range" or falls(source)):
                self._indices.add(target.id)
                (self._down.add if falls(source) else self._down.discard)(target.id)
            self._bind(target, self._value(source))

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Name):
            return self._scope.get(node.id, _NOTHING)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            self._value(node.slice)
            value = self._value(node.value)
            if self._is_backwards(node.slice):
                self.reading.backwards |= value.modules - {*self.reading.order}
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, (int, str)):
                for name in value.modules:
                    self.reading.indices.setdefault(name, set()).add(node.slice.value)
            if isinstance(node.slice, ast.Name) and node.slice.id in self._indices and self._loops:
                return _Value(value.modules, value.outputs - {*self._loops[-1]})  # x[i] = branch(x[i])
            return value
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            for generator in node.generators:
                self._bind_loop(generator.target, generator.iter)
            elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            self._loops.append([])
            result = _union([self._value(element) for element in elements])
            self.reading.loops.append(self._loops.pop())
            return result
        if isinstance(node, ast.Lambda):
            return self._value(node.body)
        values = [self._value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if isinstance(node, ast.BinOp):  # a parameter that is added or multiplied
            return self._use(_union(values))
        return _NOTHING if isinstance(node, ast.Compare) else _union(values)

    def _attribute(self, node: ast.Attribute) -> _Value:
        if isinstance(node.value, ast.Name) and node.value.id == self._self:
            found = inspect.getattr_static(self._class, node.attr, None)
            if isinstance(found, property):
                return self.call_method(self._class.__mro__, node.attr, ())
            return _NOTHING if callable(found) else _Value(frozenset((node.attr,)))
        return _NOTHING if node.attr in _FACTS else self._value(node.value)

    def _call(self, node: ast.Call) -> _Value:
        arguments: list[tuple[str | int, _Value]] = [
            (index, self._value(each.value if isinstance(each, ast.Starred) else each))
            for index, each in enumerate(node.args)
        ]
        arguments += [(each.arg or "", self._value(each.value)) for each in node.keywords]
        given = _union(value for _, value in arguments)
        function = node.func
        if isinstance(function, ast.Name) and function.id in _ASK:
            return _NOTHING
        if isinstance(function, ast.Name) and function.id in _PASS_ON:
            if function.id == "reversed":
                self.reading.backwards |= given.modules - {*self.reading.order}
            return _union([given, self._made_up_name(node)])
        if isinstance(function, ast.Attribute):
            if function.attr in _TABLES or function.attr == "keys":
                return _NOTHING
            if function.attr in _MEMBERS and not arguments:
                return self._members(function.value)
            if isinstance(function.value, ast.Name) and function.value.id == self._self:
                if callable(inspect.getattr_static(self._class, function.attr, None)):
                    return self.call_method(self._class.__mro__, function.attr, arguments)
            elif isinstance(function.value, ast.Call) and getattr(function.value.func, "id", "") == "super":
                mro = self._class.__mro__
                behind = mro[mro.index(self._frames[-1][0]) + 1 :] if self._frames else ()
                return self.call_method(behind, function.attr, arguments)
            elif isinstance(function.value, ast.Name) and given != _NOTHING:  # features.append(x)
                self._bind(function.value, _Value(outputs=given.outputs), is_added=True)
        target = self._value(function)
        owner = function.value if isinstance(function, ast.Attribute) else None
        if not (isinstance(owner, ast.Attribute) and owner.attr == "weight"):
            self.reading.called |= target.modules
        run = self._use(_Value(target.modules | given.modules, given.outputs))
        return _Value(outputs=run.outputs | target.outputs)

    def _members(self, owner: ast.expr) -> _Value:
        """What is in a list or a dictionary; all children for `self.children()`."""
        if isinstance(owner, ast.Name) and owner.id == self._self:
            return _Value(frozenset("*"))
        value = self._value(owner)
        return value._replace(modules=frozenset("*")) if value.modules == {"_modules"} else value

    def _is_backwards(self, index: ast.expr) -> bool:
        """Whether `[::-1]`, or a number that falls while a loop runs: `[-i]`, or `[i]` of a falling range."""
        if isinstance(index, ast.Slice):
            return index.step is not None and ast.unparse(index.step) == "-1"
        for node in ast.walk(index):
            below = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else None
            below = node.right if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) else below
            if below is not None and any(getattr(e, "id", "") in self._indices for e in ast.walk(below)):
                return True
        return isinstance(index, ast.Name) and index.id in self._down

    def _made_up_name(self, node: ast.Call) -> _Value:
        """`getattr(self, f"layer{i}")` stands for every child whose name begins so."""
        if getattr(node.func, "id", "") != "getattr" or len(node.args) < 2:
            return _NOTHING
        first, name = node.args[:2]
        if getattr(first, "id", "") != self._self:
            return _NOTHING
        if isinstance(name, ast.Constant):
            return _Value(frozenset((str(name.value),)))
        parts = name.values if isinstance(name, ast.JoinedStr) else [name]
        texts = [str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts]
        return _NOTHING if texts == ["*"] else _Value(frozenset(("".join(texts),)))

    def _use(self, value: _Value) -> _Value:
        """Note that modules run, with outputs of others as their input."""
        for name in sorted(value.modules):
            if name not in self.reading.order:
                self.reading.order.append(name)
            self.reading.feeds.setdefault(name, set()).update(value.outputs - {name})
            if name in value.outputs:
                self.reading.chained.add(name)
            for loop in self._loops:
                self.reading.looped.add(name)
                if name not in loop:
                    loop.append(name)
        return _Value(outputs=value.outputs | value.modules)


def _union(values: Iterable[_Value]) -> _Value:
    listed = list(values)
    return _Value(
        frozenset().union(*(value.modules for value in listed)),
        frozenset().union(*(value.outputs for value in listed)),
    )
