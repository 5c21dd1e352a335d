"""What an import loads, in fresh interpreters: the module sets of benchmark B13."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEVER = {"peft", "torchvision", "tensorboard", "pandas"}
BOTH = "import pytorch_lightning, lightning.pytorch"
CALLBACKS = (
    "Freezer",
    "FreezeStateLogger",
    "LoraRankScheduler",
    "LayerOperations",
    "LoraPhases",
    "PhaseRecorder",
    "GradualUnfreezing",
    "GradientNormMonitor",
    "PlotsAtEnd",
    "ResultsSummary",
    "Lisa",
)
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}


@lru_cache
def loaded(statement: str) -> frozenset[str]:
    """The modules in `sys.modules` of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return frozenset(run.stdout.splitlines())


@lru_cache
def added_to_lightning() -> dict[str, frozenset[str]]:
    """What each callback alone adds to the modules of both Lightnings, which stand under `BOTH`."""
    if not hasattr(os, "fork"):  # on Windows
        added = {
            name: loaded(f"{BOTH}\nfrom lighter_freezers import {name}") - loaded(BOTH) for name in CALLBACKS
        }
        return {**added, BOTH: loaded(BOTH)}
    code = f"""
import json, os, sys
{BOTH}
before = set(sys.modules)
print(json.dumps([{BOTH!r}, sorted(before)]), flush=True)
for name in {CALLBACKS}:
    if os.fork() == 0:  # as fresh as its parent, without the seconds that Lightning takes to load
        exec(f"from lighter_freezers import {{name}}")
        print(json.dumps([name, sorted(set(sys.modules) - before)]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return {name: frozenset(modules) for name, modules in map(json.loads, run.stdout.splitlines())}


def roots(modules: frozenset[str]) -> set[str]:
    """Top-level names."""
    return {name.split(".")[0] for name in modules}


def test_the_package_alone_loads_the_standard_library_only() -> None:
    """`import lighter_freezers` loads no torch, no Lightning, no numpy, and none of its own rooms."""
    modules = loaded("import lighter_freezers") - loaded("pass")

    assert roots(modules) - set(sys.stdlib_module_names) == {"lighter_freezers"}
    assert {name for name in modules if name.startswith("lighter_freezers")} == {"lighter_freezers"}


def test_listing_the_names_loads_nothing() -> None:
    """`dir()` and `__all__` are for completion, not for importing."""
    listed = "import lighter_freezers; dir(lighter_freezers); lighter_freezers.__all__"

    assert "torch" not in roots(loaded(listed))


def test_the_gpt_loads_torch_and_no_lightning() -> None:
    """The model is a plain module: it adds nothing to `import torch` but itself and the standard library."""
    modules = loaded("from lighter_freezers.gpt import GPT")

    assert "torch" in roots(modules)
    assert roots(modules) & (LIGHTNING | NEVER | {"lighter", "transformers"}) == set()


def test_the_freezer_adds_nothing_to_lightning() -> None:
    """`from lighter_freezers import Freezer` loads both namespaces and its own rooms, nothing else."""
    assert loaded("from lighter_freezers import Freezer") >= added_to_lightning()[BOTH]
    assert roots(added_to_lightning()["Freezer"]) == {"lighter_freezers"}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_never_loads_what_it_does_not_use(name: str) -> None:
    """Beyond Lightning no peft, torchvision, tensorboard or pandas, and no models or texts of ours."""
    modules = added_to_lightning()[name]

    assert roots(modules) & NEVER == set()
    rooms = (
        "lighter_freezers.gpt",
        "lighter_freezers.experiments.training",
        "lighter_freezers.experiments.tasks",
    )
    assert not [module for module in modules if module.startswith(rooms)]


def test_a_module_that_is_loaded_is_seen() -> None:
    """The measurement itself: what a statement imports turns up."""
    assert "tensorboard" in roots(loaded("import tensorboard"))


@pytest.mark.parametrize(
    "order",
    [
        ("lighter_freezers.engine", "pytorch_lightning", "lightning.pytorch"),
        pytest.param(
            ("pytorch_lightning", "lighter_freezers.engine", "lightning.pytorch"), marks=pytest.mark.wide
        ),
        pytest.param(
            ("pytorch_lightning", "lightning.pytorch", "lighter_freezers.engine"), marks=pytest.mark.wide
        ),
        pytest.param(
            ("lightning.pytorch", "lighter_freezers.engine", "pytorch_lightning"), marks=pytest.mark.wide
        ),
        pytest.param(
            ("lightning.pytorch", "pytorch_lightning", "lighter_freezers.engine"), marks=pytest.mark.wide
        ),
        pytest.param(
            ("lighter_freezers.engine", "lightning.pytorch", "pytorch_lightning"), marks=pytest.mark.wide
        ),
    ],
    ids=" ".join,
)
def test_a_callback_is_one_of_both_namespaces_in_any_order_of_imports(order: tuple[str, ...]) -> None:
    """A Trainer takes it bare and in a list, and so does `isinstance`."""
    imports = [
        "from lighter_freezers import Freezer; ours = Freezer(names='weight')"
        if name == "lighter_freezers.engine"
        else f"import {name}"
        for name in order
    ]
    checks = """
import sys
import lightning.pytorch, pytorch_lightning
for namespace in (pytorch_lightning, lightning.pytorch):
    assert isinstance(ours, namespace.Callback)
    for given in (ours, [ours]):
        options = dict(accelerator="cpu", logger=False, enable_checkpointing=False)
        assert ours in namespace.Trainer(callbacks=given, **options).callbacks
"""
    code = "\n".join([*imports, checks])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
