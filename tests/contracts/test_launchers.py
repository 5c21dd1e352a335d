"""Runs that others start: LightningCLI in both namespaces, Hydra, Ray Train."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lighter_freezers import Freezer, FreezeStateLogger

pytestmark = [
    pytest.mark.wide,
    pytest.mark.filterwarnings("default"),
]  # what these packages warn of is theirs
NAMESPACES = ["pytorch_lightning", "lightning.pytorch"]
FIRST_HALF_FROZEN = [True, True, False, False]


def network(namespace: str) -> Any:
    """A LightningModule that prints at each step whether its backbone is frozen."""
    pl = import_module(namespace)

    class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.backbone, self.head = torch.nn.Linear(width, width), torch.nn.Linear(width, 1)
            self.frozen: list[bool] = []

        def training_step(self, batch: Any, index: int) -> Any:
            self.frozen.append(not self.backbone.weight.requires_grad)
            print("frozen", self.frozen[-1], flush=True)
            loss = self.head(self.backbone(batch)).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return DataLoader(torch.randn(16, 4), batch_size=4)

    return Net


PROGRAM = """
from importlib import import_module
from tests.contracts.test_launchers import network
import_module("{namespace}.cli").LightningCLI(network("{namespace}"), save_config_callback=None)
"""
TRAINER = {
    "max_steps": 4,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "accelerator": "cpu",
}
UNIONS = [  # values of each kind that an argument takes
    {"name_starts_with": "backbone.", "until_step": 2},
    {"name_starts_with": ["backbone."], "until_step": 2, "on_overlap": "compose"},
    {"patterns": ["re:^backbone"], "windows": [[0, 2]]},
    {"names": ["backbone.weight"], "until_step": 2, "until_metric": {"monitor": "loss", "below": 0.0}},
]


def of_command(folder: Path, namespace: str, *arguments: str) -> str:
    """What a LightningCLI prints."""
    command = [sys.executable, "-c", PROGRAM.format(namespace=namespace), *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def frozen_in(printed: str) -> list[bool]:
    """Of each step."""
    return [word == "True" for word in re.findall(r"^frozen (\w+)$", printed, re.M)]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_lightning_cli(namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config that `--print_config` prints is the one it was given, and runs."""
    pytest.importorskip("jsonargparse")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    freezers = [{"class_path": "lighter_freezers.Freezer", "init_args": each} for each in UNIONS]
    callbacks = [*freezers, {"class_path": "lighter_freezers.FreezeStateLogger"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": {**TRAINER, "callbacks": callbacks}}))

    printed = of_command(tmp_path, namespace, "fit", "--config", "config.yaml", "--print_config")
    (tmp_path / "printed.yaml").write_text(printed)
    again = of_command(tmp_path, namespace, "fit", "--config", "printed.yaml", "--print_config")

    assert yaml.safe_load(printed) == yaml.safe_load(again)
    run = of_command(tmp_path, namespace, "fit", "--config", "printed.yaml")
    assert frozen_in(run) == FIRST_HALF_FROZEN


def test_lightning_cli_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each argument with its type and what the docstring says."""
    pytest.importorskip("jsonargparse")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    asked = "--trainer.callbacks.help=lighter_freezers.Freezer"
    printed = " ".join(of_command(tmp_path, NAMESPACES[0], "fit", asked).split())

    assert "--trainer.callbacks.until_step" in printed
    assert "What a batch-norm layer does while all its parameters are held" in printed


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_hydra(namespace: str) -> None:
    """Its lists and mappings are OmegaConf's."""
    hydra = pytest.importorskip("hydra.utils")
    from omegaconf import OmegaConf

    callbacks = [
        {"_target_": "lighter_freezers.Freezer", **UNIONS[3]},
        {"_target_": "lighter_freezers.Freezer", "name_starts_with": ["backbone."], "windows": [[0, 2]]},
        {"_target_": "lighter_freezers.FreezeStateLogger"},
    ]
    config = OmegaConf.create({"_target_": f"{namespace}.Trainer", **TRAINER, "callbacks": callbacks})
    model = network(namespace)()
    hydra.instantiate(config).fit(model)

    assert model.frozen == FIRST_HALF_FROZEN


def test_ray_train_with_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own strategy, environment and callback around a Trainer with a Freezer."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.train.lightning")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
    from ray.train.torch import TorchTrainer

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    def train() -> None:
        pl = import_module("lightning.pytorch")
        options = {**TRAINER, "strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()]}
        callbacks = [Freezer(name_starts_with="backbone.", until_step=2), FreezeStateLogger()]
        model = network("lightning.pytorch")()
        prepare_trainer(pl.Trainer(**options, devices="auto", callbacks=callbacks)).fit(model)
        (tmp_path / "frozen.txt").write_text(" ".join(map(str, model.frozen)))

    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    try:
        scaling, run = ScalingConfig(num_workers=1), RunConfig(storage_path=str(tmp_path / "ray"))
        TorchTrainer(train, scaling_config=scaling, run_config=run).fit()
    finally:
        ray.shutdown()
    assert (tmp_path / "frozen.txt").read_text() == "True True False False"
