"""The rooms of the package: what lives where, who imports whom, and how large things may grow."""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "lighter_freezers"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}

ROOMS = ("selection", "engine", "reports", "lora", "prefix", "planning", "layers", "gpt", "callbacks")
ROOMS += ("policies", "experiments")
BASE = ("_log", "_extras", "_lightning", "arguments")  # below all rooms
DOORS = ("__init__", "lightning")  # above them: they re-export
ORDER = (*((module,) for module in BASE), *((room,) for room in ROOMS), DOORS, ("cli", "__main__"))
CROSS_ROOM_PRIVATES = {"_log", "_extras", "_lightning"}
LAZY = {"peft", "transformers", "datasets", "matplotlib", "torchvision", "tensorboard", "pandas"}
LAZY |= {"gguf", "nltk", "pyarrow", "rouge_score", "sacrebleu"}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
PLOTTERS = ("cli/plots.py", "cli/compare.py", "callbacks/plots_at_end.py")
TEXT_ROOMS = ("experiments/",)  # it cuts up texts and file names, never parameter names


def _is_attribute(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in names


def _is_call_of(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and _is_attribute(node.func, *names)


def _targets(node: ast.AST) -> list[ast.expr]:
    """What an assignment assigns to, tuples taken apart."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    nested = [getattr(target, "elts", [target]) for target in targets]
    return [leaf for leaves in nested for leaf in leaves]


def _sets_a_flag(node: ast.AST) -> bool:
    is_assignment = isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
    if is_assignment and any(_is_attribute(target, "requires_grad", "grad") for target in _targets(node)):
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
        return "requires_grad" in {getattr(argument, "value", None) for argument in node.args}
    return _is_call_of(node, "requires_grad_", "zero_grad")


def _compares_with_a_threshold(node: ast.AST) -> bool:
    if not isinstance(node, ast.Compare):
        return False
    if not any(isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for operator in node.ops):
        return False  # `below is None` only asks whether there is one
    names = {getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(node)}
    return bool(names & {"below", "above", "min_delta", "patience", "trigger_loss"})


def _is_minus_hundred(node: ast.AST) -> bool:
    is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    return is_negative and getattr(node.operand, "value", None) == 100


def _spells_a_part(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in ("self_attn", "input_layernorm", "embed_tokens")


def _names_ddp(node: ast.AST) -> bool:
    is_imported = isinstance(node, ast.alias) and node.name == "DistributedDataParallel"
    return is_imported or _is_attribute(node, "DistributedDataParallel")


class Home(NamedTuple):
    """A kind of line, the files it may stand in, and an example of it."""

    kind: str
    is_one: Callable[[ast.AST], bool]
    files: tuple[str, ...]  # a name that ends in "/" is a folder
    example: str


LEDGER = ("engine/ledger.py",)
HOMES = [
    Home(
        "writes a file",
        lambda node: _is_call_of(node, "write_text", "write_bytes"),
        ("reports/whole_files.py",),
        "path.write_text('half of it')",
    ),
    Home("sets requires_grad", _sets_a_flag, LEDGER, "for p in ps: p.requires_grad = False"),
    Home("sets requires_grad by a method", _sets_a_flag, LEDGER, "model.requires_grad_(False)"),
    Home(
        "sets requires_grad by its name",
        _sets_a_flag,
        LEDGER,
        "setattr(p, 'requires_grad', True)",
    ),
    Home("clears .grad", _sets_a_flag, LEDGER, "a, p.grad = 1, None"),
    Home(
        "matches a prefix of a name",
        lambda node: _is_call_of(node, "startswith"),
        ("selection/select.py", *TEXT_ROOMS),
        "[n for n in names if n.startswith(prefix)]",
    ),
    Home(
        "knows what transformers call their parts",
        _spells_a_part,
        ("selection/layer_names.py", "lora/sites.py", "gpt/pretrained.py"),
        "part = {'self_attn': 'attn'}",
    ),
    Home(
        "reads a Trainer's counters and metrics",
        lambda node: _is_attribute(node, "global_step", "current_epoch", "callback_metrics"),
        ("engine/trainer_clock.py",),
        "if trainer.global_step >= 5: pass",
    ),
    Home(
        "compares a metric with a threshold",
        _compares_with_a_threshold,
        ("engine/triggers.py",),
        "is_met = value < self.below",
    ),
    Home(
        "touches optimizer groups",
        lambda node: _is_attribute(node, "param_groups", "add_param_group"),
        (
            "engine/effects/",
            "gpt/lr_schedules/",
            "planning/costs/optimizer_state.py",
        ),  # a scheduler writes rates
        "optimizer.param_groups[0]['lr'] = 0.1",
    ),
    Home(
        "touches the DDP wrapper",
        lambda node: _is_attribute(node, "_setup_model", "_register_ddp_hooks", "_ddp_kwargs"),
        ("engine/effects/ddp_wrapper.py",),
        "strategy.model = strategy._setup_model(module)",
    ),
    Home(
        "recognises the DDP wrapper",  # selection/names.py looks through it, to the names inside
        _names_ddp,
        (
            "engine/effects/ddp_wrapper.py",
            "selection/names.py",
        ),
        "from torch.nn.parallel import DistributedDataParallel",
    ),
    Home(
        "writes -100",
        _is_minus_hundred,
        (
            "experiments/data/batches.py",
            "gpt/config.py",
        ),  # data that has it, and the default of a model that knows no data
        "labels[mask] = -100",
    ),
]


def _is_home(path: str, home: Home) -> bool:
    return any(path == file or (file.endswith("/") and path.startswith(file)) for file in home.files)


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.kind)
def test_a_kind_of_line_stands_in_its_home_only(home: Home) -> None:
    """The table of DESIGN: each kind of line lives in one room."""
    elsewhere = [
        f"{path}:{getattr(node, 'lineno', 0)}"
        for path, tree in TREES.items()
        if not _is_home(path, home)
        for node in ast.walk(tree)
        if home.is_one(node)
    ]

    assert elsewhere == []


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.kind)
def test_the_check_sees_such_a_line(home: Home) -> None:
    """A check that finds nothing anywhere would always pass."""
    assert any(home.is_one(node) for node in ast.walk(ast.parse(home.example)))


def _imports(tree: ast.AST, at_module_level: bool) -> Iterator[str]:
    """Dotted names of imports: all, or without those in functions and for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (at_module_level and _runs_later(node)):
            yield from _imports(node, at_module_level)


def _runs_later(node: ast.AST) -> bool:
    is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    return is_for_types or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


class OwnImport(NamedTuple):
    """One import of this package: which file, and which name of it (None for the module itself)."""

    file: str
    name: str | None


MODULES = {
    f"{PACKAGE.name}/{path}".removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
    for path in SOURCES
}


def _own_imports(tree: ast.AST, at_module_level: bool = True) -> set[OwnImport]:
    """The files and names of this package that a module imports."""
    names = {name for name in _imports(tree, at_module_level) if name.partition(".")[0] == PACKAGE.name}
    found = set()
    for name in names:
        module, _, last = name.rpartition(".")
        found.add(OwnImport(MODULES[name], None) if name in MODULES else OwnImport(MODULES[module], last))
    return found


def _room(path: str) -> str:
    return path.removesuffix(".py").split("/")[0]


def _height(path: str) -> int:
    return next(height for height, level in enumerate(ORDER) if _room(path) in level)


def _upward(path: str, tree: ast.AST) -> list[str]:
    """What a file imports from rooms above it, in functions and for type checkers too."""
    own = _own_imports(tree, at_module_level=False)
    return sorted(item.file for item in own if _height(item.file) > _height(path))


@pytest.mark.parametrize("path", SOURCES)
def test_imports_run_downwards(path: str) -> None:
    """A room knows those below it, and none above."""
    assert _upward(path, TREES[path]) == []


def test_the_check_sees_an_import_upwards() -> None:
    """In a function and for a type checker, too."""
    local = "def f():\n    from lighter_freezers.callbacks.freezer import Freezer"
    for_types = "if TYPE_CHECKING:\n    from lighter_freezers.engine import engine"

    assert _upward("engine/engine.py", ast.parse(local)) == ["callbacks/freezer.py"]
    assert _upward("selection/select.py", ast.parse(for_types)) == ["engine/engine.py"]


def _circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of files that reach one another by imports."""
    reachable: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set(), [*graph[start]]
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += graph[file]
        reachable[start] = seen
    groups = [frozenset(b for b in reachable[a] if a in reachable[b]) for a in graph if a in reachable[a]]
    return [set(group) for group in dict.fromkeys(groups)]


def test_no_imports_run_in_circles() -> None:
    """Local imports and those for type checkers count: a circle is one thought in two files."""
    graph = {
        path: {item.file for item in _own_imports(tree, at_module_level=False)} - {path}
        for path, tree in TREES.items()
    }

    assert _circles(graph) == []


def test_the_check_sees_a_circle() -> None:
    """Of any length."""
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def _foreign_privates(path: str, tree: ast.AST) -> list[str]:
    """Private names of other rooms that a file imports, or reads from a module that it imports."""
    foreign = {item for item in _own_imports(tree, at_module_level=False) if _room(item.file) != _room(path)}
    names = {item.name for item in foreign if item.name} | {Path(item.file).stem for item in foreign}
    modules = {Path(item.file).stem for item in foreign if item.name is None}
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    private = {name for name in names | read if name[0] == "_" and not name.endswith("__")}
    return sorted(private - CROSS_ROOM_PRIVATES)


@pytest.mark.parametrize("path", SOURCES)
def test_no_private_name_crosses_a_room(path: str) -> None:
    """An underscore means: of this room."""
    assert _foreign_privates(path, TREES[path]) == []


def test_the_check_sees_a_private_name() -> None:
    """Imported, or read from a module."""
    imported = "from lighter_freezers.engine.ledger import _marks"
    read = "from lighter_freezers.engine import ledger\nledger._marks"

    assert _foreign_privates("reports/timeline.py", ast.parse(imported)) == ["_marks"]
    assert _foreign_privates("reports/timeline.py", ast.parse(read)) == ["_marks"]
    assert _foreign_privates("engine/rules.py", ast.parse(imported)) == []


def _imports_any(path: str, places: tuple[str, ...], at_module_level: bool = True) -> list[str]:
    """Files in any of these rooms, folders or files that a file imports."""
    own = _own_imports(TREES[path], at_module_level)
    return sorted(item.file for item in own if item.file.startswith(places))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("callbacks/")])
def test_no_callback_imports_another(path: str) -> None:
    """What two of them share lives in a room below."""
    assert _imports_any(path, ("callbacks/",), at_module_level=False) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("gpt/")])
def test_the_gpt_needs_no_ledger_to_be_built(path: str) -> None:
    """Its methods that freeze delegate with an import of their own."""
    above_names = (
        "selection/select",
        "selection/anatomy",
        "engine/",
        "_lightning",
        "layers/",
        "lora/",
        "planning/",
    )
    assert _imports_any(path, above_names) == []


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_imports_the_plots(path: str) -> None:
    """They read files; only a command, and a callback when its run is over, ask for them, in a function."""
    plots = "reports/plots/"
    assert path.startswith(plots) or _imports_any(path, (plots,)) == []
    assert (
        path.startswith(plots)
        or path in PLOTTERS
        or _imports_any(path, (plots,), at_module_level=False) == []
    )


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("reports/plots/")])
def test_the_plots_import_nothing_of_ours(path: str) -> None:
    """They know files and how one is written whole, and no package that wrote what they read."""
    own = {item.file for item in _own_imports(TREES[path], at_module_level=False)}
    own -= {"reports/whole_files.py", "_extras.py"}
    assert [file for file in own if not file.startswith("reports/plots/")] == []


@pytest.mark.parametrize("path", SOURCES)
def test_heavy_packages_are_imported_where_they_are_used(path: str) -> None:
    """An import that is not used costs nothing."""
    roots = {name.split(".")[0] for name in _imports(TREES[path], at_module_level=True)}

    assert roots & LAZY == set()


@pytest.mark.parametrize("path", SOURCES)
def test_lightning_comes_in_by_its_doors(path: str) -> None:
    """The bench and the verbs are plain torch."""
    roots = {name.split(".")[0] for name in _imports(TREES[path], at_module_level=False)}

    assert roots & LIGHTNING == set() or path.startswith(("_lightning", "lightning", "experiments/training/"))


@pytest.mark.parametrize("path", SOURCES)
def test_files_and_functions_stay_small(path: str) -> None:
    """At most 350 lines a file and 40 a function body, and no room for odds and ends."""
    long = [
        f"{node.name}: {size} lines"
        for node in ast.walk(TREES[path])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (size := _body_length(node)) > 40
    ]

    assert long == []
    assert len(SOURCES[path].splitlines()) <= 350
    assert not {"util", "utils", "helper", "helpers", "misc"} & set(path.removesuffix(".py").split("/"))


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_there_is_something_to_check() -> None:
    """The package was found, and it has the rooms that the rules are about."""
    assert len(SOURCES) > 25
    assert {_room(path) for path in SOURCES} == {*BASE, *ROOMS, *DOORS, "cli", "__main__"}
