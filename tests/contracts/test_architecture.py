"""The rooms of the package: what lives where, who imports whom, and how large things may grow."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "lighter_freezers"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}

VERBS = ("reports", "freezing", "operations", "lora", "costs")
SHELLS = ("_lightning", "lightning", "callbacks", "training", "gpt", "tasks", "losses", "evaluation", "plots")
SHELLS += ("planning",)  # only commands ask for it
LAZY = {"peft", "transformers", "datasets", "matplotlib", "torchvision", "tensorboard", "pandas"}
LAZY |= {"gguf", "nltk", "pyarrow", "rouge_score"}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
PLOTTERS = ("commands/plots.py", "commands/compare.py", "callbacks/plots_at_end.py")
TEXT_ROOMS = ("training/", "tasks/", "evaluation/")  # they cut up texts and file names, never parameter names


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


HOMES = [
    Home("sets requires_grad", _sets_a_flag, ("ledger.py",), "for p in ps: p.requires_grad = False"),
    Home("sets requires_grad by a method", _sets_a_flag, ("ledger.py",), "model.requires_grad_(False)"),
    Home("sets requires_grad by its name", _sets_a_flag, ("ledger.py",), "setattr(p, 'requires_grad', True)"),
    Home("clears .grad", _sets_a_flag, ("ledger.py",), "a, p.grad = 1, None"),
    Home(
        "matches a prefix of a name",
        lambda node: _is_call_of(node, "startswith"),
        ("selection.py", *TEXT_ROOMS),
        "[n for n in names if n.startswith(prefix)]",
    ),
    Home(
        "knows what transformers call their parts",
        _spells_a_part,
        ("layer_names.py", "lora/layers.py", "gpt/pretrained.py"),
        "part = {'self_attn': 'attn'}",
    ),
    Home(
        "reads a Trainer's counters and metrics",
        lambda node: _is_attribute(node, "global_step", "current_epoch", "callback_metrics"),
        ("callbacks/_clock.py",),
        "if trainer.global_step >= 5: pass",
    ),
    Home(
        "compares a metric with a threshold",
        _compares_with_a_threshold,
        ("triggers.py",),
        "is_met = value < self.below",
    ),
    Home(
        "touches optimizer groups",
        lambda node: _is_attribute(node, "param_groups", "add_param_group"),
        ("transitions/", "lr_schedules/"),  # the rates of a group are what an LR scheduler writes
        "optimizer.param_groups[0]['lr'] = 0.1",
    ),
    Home(
        "touches the DDP wrapper",
        lambda node: _is_attribute(node, "_setup_model", "_register_ddp_hooks", "_ddp_kwargs"),
        ("transitions/ddp_wrapper.py",),
        "strategy.model = strategy._setup_model(module)",
    ),
    Home(
        "recognises the DDP wrapper",  # parameter_names.py looks through it, to the names inside
        _names_ddp,
        (
            "transitions/ddp_wrapper.py",
            "parameter_names.py",
        ),
        "from torch.nn.parallel import DistributedDataParallel",
    ),
    Home(
        "writes -100",
        _is_minus_hundred,
        (
            "tasks/encode.py",
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
    """A check that finds nothing anywhere would pass for ever."""
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


def _own_imports(path: str, at_module_level: bool = True) -> set[str]:
    """What a file imports from this package, as paths such as `callbacks._clock.moment`."""
    names = _imports(TREES[path], at_module_level)
    return {name.partition(".")[2] for name in names if name.partition(".")[0] == "lighter_freezers"}


def _room(path: str) -> str:
    return path.removesuffix(".py").split("/")[0]


def _imports_any(path: str, rooms: tuple[str, ...], at_module_level: bool = True) -> list[str]:
    return sorted(name for name in _own_imports(path, at_module_level) if name.split(".")[0] in rooms)


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_downwards(path: str) -> None:
    """The bench imports neither verbs nor shells, verbs no shells, callbacks no models or texts."""
    room = _room(path)
    if room in ("__init__", "lightning", "cli", "commands"):  # the front doors
        return
    if room in VERBS:
        forbidden: tuple[str, ...] = SHELLS
    elif room == "callbacks":
        forbidden = ("lightning", "training", "gpt", "tasks", "losses", "evaluation", "plots", "planning")
    elif room == "planning":  # it plays a schedule with the callbacks' own conductor
        forbidden = ("lightning", "training", "gpt", "tasks", "losses", "evaluation", "plots")
    elif room == "training":
        forbidden = ("lightning", "plots", "planning")
    elif room in SHELLS:
        forbidden = ("_lightning", "lightning", "callbacks", "training", "plots", "planning")
    else:
        forbidden = (*VERBS, *SHELLS)

    assert _imports_any(path, tuple(set(forbidden) - {room})) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("callbacks/")])
def test_no_callback_imports_another(path: str) -> None:
    """The rooms between them have names that begin with an underscore."""
    imported = [name.split(".") for name in _own_imports(path, at_module_level=False)]
    callbacks = [parts[1] for parts in imported if parts[0] == "callbacks" and not parts[1].startswith("_")]

    assert callbacks == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("gpt/")])
def test_the_gpt_needs_no_ledger_to_be_built(path: str) -> None:
    """Its methods that freeze delegate with an import of their own."""
    assert _imports_any(path, ("ledger", "selection", "transitions", "_lightning", *VERBS)) == []


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_imports_the_plots(path: str) -> None:
    """They read files; only a command, and a callback when its run is over, ask for them, in a function."""
    asks = _room(path) == "plots" or path in PLOTTERS
    assert _room(path) == "plots" or _imports_any(path, ("plots",)) == []
    assert asks or _imports_any(path, ("plots",), at_module_level=False) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("plots/")])
def test_the_plots_import_nothing_of_ours(path: str) -> None:
    """They know files, and no package that wrote them."""
    own = {name.split(".")[0] for name in _own_imports(path, at_module_level=False)}
    assert own <= {"plots"}


@pytest.mark.parametrize("path", SOURCES)
def test_heavy_packages_are_imported_where_they_are_used(path: str) -> None:
    """An import that is not used costs nothing."""
    roots = {name.split(".")[0] for name in _imports(TREES[path], at_module_level=True)}

    assert roots & LAZY == set()


@pytest.mark.parametrize("path", SOURCES)
def test_lightning_comes_in_by_its_doors(path: str) -> None:
    """The bench and the verbs are plain torch."""
    roots = {name.split(".")[0] for name in _imports(TREES[path], at_module_level=False)}

    assert roots & LIGHTNING == set() or _room(path) in ("_lightning", "lightning", "training")


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
    assert {"ledger.py", "selection.py", "triggers.py", "callbacks/_clock.py"} <= set(SOURCES)
