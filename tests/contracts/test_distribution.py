"""What is installed: dependencies, extras, and the wheel in an environment made from nothing."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import lighter_freezers
from lighter_freezers import (
    GPT,
    CausalLMModule,
    _extras,
    apply_lora,
    load_pretrained,
    save_adapter,
    set_layer_lora_rank,
)
from lighter_freezers.planning.from_config import built_from_config
from lighter_freezers.reports.plots.canvas import new_figure

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = {"torch", "lightning", "pillow", "pyyaml", "rich", "tensorboard"}
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "rouge-score": "rouge_score",
}
# Brought by Lightning, which names them as its own requirements.
BROUGHT = {"fsspec", "numpy", "pytorch_lightning", "torchmetrics", "typing_extensions"}


def name_of(requirement: str) -> str:
    """The name of a distribution in a requirement."""
    return re.split(r"[^A-Za-z0-9-]", requirement, maxsplit=1)[0]


def imported() -> set[str]:
    """The packages that the code imports anywhere, and does not take from `sys.modules`."""
    found: set[str] = set()
    for path in (ROOT / "lighter_freezers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"lighter_freezers"}


def test_a_plain_install_asks_for_six_packages() -> None:
    """The callbacks in any Trainer and TensorBoard need no more."""
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} == CORE


def test_every_import_is_a_dependency_or_names_its_extra() -> None:
    """A package that may be missing is in the table from which the message is made."""
    core = {MODULES.get(name, name) for name in CORE}
    optional = imported() - core - BROUGHT

    assert optional - {"gguf", "bitsandbytes"} == set(_extras._EXTRAS)  # gguf: see smollm2.INSTALL


def test_the_extra_in_a_message_installs_the_package() -> None:
    """The table of messages agrees with pyproject.toml."""
    for package, extra in _extras._EXTRAS.items():
        names = {MODULES.get(name_of(line), name_of(line)) for line in EXTRAS[extra]}
        assert package in names or package == "sparkwheel"  # which lighter requires


def test_all_and_test_hold_everything() -> None:
    """`test` needs what any user may have, `all` every extra but the one for quantised models."""
    assert EXTRAS["all"] == ["lighter-freezers[lighter,lora,plots,experiments]"]
    assert EXTRAS["test"][0] == "lighter-freezers[all]"


def test_the_lowest_versions_are_the_floors() -> None:
    """`.ci/lowest.txt` installs what pyproject.toml promises."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / ".ci/lowest.txt").read_text().splitlines()]
    lowest = dict(line.split("==") for line in lines if line)
    promised = [
        *PROJECT["dependencies"],
        *(line for name in ("lighter", "lora", "plots", "experiments") for line in EXTRAS[name]),
    ]

    for requirement in promised:
        floor = re.search(r">=([\d.]+)", requirement)
        if floor:
            assert re.match(rf"{re.escape(floor[1])}(\.|$)", lowest[name_of(requirement)]), requirement


NETWORK = GPT({"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 8, "block_size": 4})
USES: list[tuple[str, Callable[[], object], str]] = [
    (
        "peft",
        lambda: apply_lora(NETWORK, {"target_modules": ["c_attn"]}),
        "LoRA needs peft, .*[lora]",
    ),
    ("peft", lambda: set_layer_lora_rank(NETWORK, "attn.0", 2), "LoRA needs peft, .*[lora]"),
    ("peft", lambda: save_adapter(NETWORK, "there"), "LoRA needs peft, .*[lora]"),
    ("matplotlib", lambda: new_figure(1, 1), "A plot needs matplotlib, .*[plots]"),
    (
        "huggingface_hub",
        lambda: load_pretrained(NETWORK, "some/gpt"),
        "some/gpt' needs huggingface_hub, .*[e",
    ),
    (
        "transformers",
        lambda: CausalLMModule("some/model"),
        "language model needs transformers, .*[experiments]",
    ),
    ("lighter", lambda: built_from_config(["x.yaml"]), "A config needs lighter, .*[lighter]"),
]


@pytest.mark.parametrize(("package", "use", "message"), USES, ids=[message for _, _, message in USES])
def test_a_missing_package_is_named_with_its_command(
    package: str, use: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is first needed, in one line, and as an ImportError."""
    monkeypatch.setattr(_extras, "find_spec", lambda name: None if name == package else find_spec(name))

    with pytest.raises(ImportError, match=message.replace("[", r"\[")):
        use()


def test_a_public_name_whose_module_needs_a_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from lighter_freezers import TextDataModule` without tokenizers; other errors stay as they are."""

    def fails(package: str) -> Callable[[str], object]:
        def import_module(name: str) -> object:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)

        return import_module

    monkeypatch.delitem(vars(lighter_freezers), "TextDataModule", raising=False)
    monkeypatch.setattr(lighter_freezers, "import_module", fails("tokenizers.models"))
    with pytest.raises(ImportError, match=r"TextDataModule needs tokenizers, .*\[experiments\]"):
        _ = lighter_freezers.TextDataModule

    monkeypatch.setattr(lighter_freezers, "import_module", fails("package_of_a_user"))
    with pytest.raises(ModuleNotFoundError, match="^No module named 'package_of_a_user'$"):
        _ = lighter_freezers.TextDataModule


def test_on_a_python_without_lighter_no_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none that works."""
    monkeypatch.setattr("sys.version_info", (3, 13, 0))
    monkeypatch.setattr(_extras, "find_spec", lambda name: None)

    with pytest.raises(
        ImportError, match=r"cannot be installed on Python 3\.13: it requires numpy below 2"
    ) as error:
        _extras.require("A config", "lighter")
    assert "pip install" not in str(error.value)


def test_the_workflows_and_templates_are_yaml() -> None:
    """What GitHub reads."""
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) == 5
    for file in [*files, ROOT / "CITATION.cff"]:
        assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_the_version_stands_in_every_place() -> None:
    """Package, pyproject.toml, CITATION.cff and the changelog agree."""
    from lighter_freezers import __version__

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert PROJECT["version"] == __version__ == cited
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


IN_A_PLAIN_INSTALL = """
import os
from importlib import import_module
import torch
import lighter_freezers, lighter_freezers.lightning

homes = {"pytorch_lightning": lighter_freezers, "lightning.pytorch": lighter_freezers.lightning}
for namespace, ours in homes.items():
    pl, frozen = import_module(namespace), []

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

        def training_step(self, batch, index):
            frozen.append(not self.backbone.weight.requires_grad)
            return self.head(self.backbone(batch)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)

    callbacks = [ours.Freezer(name_starts_with="backbone.", until_step=2), ours.FreezeStateLogger()]
    callbacks += [ours.GradientNormMonitor(), ours.ResultsSummary(), ours.PhaseRecorder(), ours.PrefixCache()]
    logger = ours.TensorBoardLogger(namespace)
    pl.Trainer(max_steps=4, accelerator="cpu", logger=logger, callbacks=callbacks).fit(Net())
    assert frozen == [True, True, False, False]
    assert [name for _, _, names in os.walk(namespace) for name in names if "tfevents" in name]
    try:
        ours.TextDataModule
    except ImportError as error:
        print(error)
"""
WHEEL = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w"]


@pytest.mark.wide
def test_the_wheel_works_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh environment: callbacks in any Trainer; with extras `init` and a short `lighter fit`."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/lighter_freezers")
    run([*WHEEL, tmp_path, ROOT], tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "lighter_freezers/configs/quickstart.yaml" in names
    assert "lighter_freezers/py.typed" in names
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "Project-URL: Homepage, https://github.com/someone/lighter_freezers" in metadata
    assert not re.search(r"\]\((?!https?://|#)[^)\s]", metadata)

    run([sys.executable, "-m", "venv", "fresh"], tmp_path)
    bin_ = tmp_path / "fresh" / "bin"
    run([bin_ / "python", "-m", "pip", "install", "-q", wheel], tmp_path)
    assert "needs tokenizers, which" in run([bin_ / "python", "-c", IN_A_PLAIN_INSTALL], tmp_path)
    run([bin_ / "python", "-m", "pip", "install", "-q", f"{wheel}[lighter,experiments]"], tmp_path)
    listed = run([bin_ / "lighter-freezers", "init"], tmp_path)
    assert "quickstart" in listed
    run([bin_ / "lighter-freezers", "init", "quickstart"], tmp_path)
    short = ["trainer::max_steps=4", "trainer::val_check_interval=2", "trainer::limit_val_batches=1"]
    run([bin_ / "lighter", "fit", "configs/quickstart.yaml", *short], tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.wide
def test_the_source_distribution_builds_the_same_wheel(tmp_path: Path) -> None:
    """Tests, docs and configs are in it, and its wheel has the same files."""
    build = [
        sys.executable,
        "-c",
        "import sys; from hatchling.build import *; print(build_sdist(sys.argv[1]))",
    ]
    run([*build, str(tmp_path)], ROOT)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = next((tmp_path / "unpacked").iterdir())
    assert (unpacked / "tests/contracts/test_distribution.py").exists()
    for root, into in ((ROOT, "checkout"), (unpacked, "sdist")):
        run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / into), str(root)],
            tmp_path,
        )
    first, second = (
        sorted(zipfile.ZipFile(next((tmp_path / into).glob("*.whl"))).namelist())
        for into in ("checkout", "sdist")
    )
    assert first == second


def run(command: list[str | Path], folder: Path) -> str:
    """The output of a command that succeeds."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
