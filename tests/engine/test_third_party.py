"""Three policies of a third party, from public names: run, resumed, on two ranks, in YAML, planned."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lighter_freezers import plan
from tests.distributed.run_ranks import run_ranks
from tests.engine.third_party import OneAtATime, SteepestBlocks, TopDown
from tests.lab import adamw, batches, recorder, regression, trainer
from tests.policies.policy_lab import LONE, NUM_STEPS, Run, Tower, look, parts

ROOT = Path(__file__).parents[2]
STEPS = (1, 3, 4, 5, 6)  # at the end of a window of three, inside one, and at the end of an epoch
POLICIES: dict[str, Callable[[], Any]] = {
    "SteepestBlocks": lambda: SteepestBlocks(every_n_steps=3),
    "OneAtATime": lambda: OneAtATime(every_n_steps=3),
    "TopDown": lambda: TopDown(every_n_steps=3),
}

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")


def blocks_at(run: Run) -> list[list[str]]:
    """The blocks that train at each step."""
    return [[part for part in parts(names) if part.isdecimal()] for names, _ in run.seen]


def resumed(name: str, folder: str) -> list[bool]:
    """In a process that has not seen the run: whether each resumed one is the whole one, to the bit."""
    whole = Run([POLICIES[name]()])
    paths = [(step, Path(folder) / f"{step}.ckpt") for step in STEPS]
    return [Run([POLICIES[name]()], ckpt_path=path).equals(whole, step) for step, path in paths]


@pytest.mark.parametrize("name", POLICIES)
def test_a_new_process_goes_on_from_any_step(name: str, tmp_path: Path) -> None:
    """Weights, optimizer state and rates, also where the loss of the last step decides the next."""
    whole = Run([POLICIES[name]()], save=[(step, tmp_path / f"{step}.ckpt") for step in STEPS])
    assert len(whole.seen) == NUM_STEPS
    assert len({tuple(each) for each in blocks_at(whole)}) > 1
    [equal] = run_ranks(resumed, tmp_path, 1, name, str(tmp_path))
    assert equal == [True] * len(STEPS)


def two_ranks() -> dict[str, Any]:
    """Each policy in turn: the blocks that train at each step, and the weights at the end."""
    from pytorch_lightning.strategies import DDPStrategy

    torch.set_num_threads(1)
    runs = {}
    for name, policy in POLICIES.items():
        seen = recorder(LONE, look)
        strategy = DDPStrategy(process_group_backend="gloo")
        runner = trainer(LONE, callbacks=[policy(), seen], max_epochs=3, devices=2, strategy=strategy)
        module = regression(LONE, Tower, adamw)
        runner.fit(module, batches(32, int(os.environ["RANK"]), 2), batches())
        weights = {key: each.detach().clone() for key, each in module.named_parameters()}
        runs[name] = {"seen": [parts(names) for names, _ in seen.seen], "weights": weights}
    return runs


def test_two_ranks_agree(tmp_path: Path) -> None:
    """On what trains, by measured gradients and losses too, and so on every weight."""
    first, second = run_ranks(two_ranks, tmp_path, 2)
    for name, run in first.items():
        assert run["seen"] == second[name]["seen"]
        assert len({tuple(each) for each in run["seen"]}) > 1
        assert all(torch.equal(each, second[name]["weights"][key]) for key, each in run["weights"].items())


def test_a_plan_shows_them() -> None:
    """Together in one run, by the loss of its steps too; what the data decide is an example."""
    runner = trainer(LONE, callbacks=[policy() for policy in POLICIES.values()], max_epochs=3)
    planned = plan(runner, regression(LONE, Tower, adamw), batches(), batches(), num_rounds=1, num_timed=0)
    text = str(planned)
    assert "for example SteepestBlocks trains" in text
    assert "OneAtATime trains block" in text
    assert "never acts" not in text
    assert "never thaws" not in text


@pytest.mark.wide
def test_they_run_from_yaml(tmp_path: Path) -> None:
    """`lighter fit` in a fresh process, with the policies in a module of the user's."""
    pytest.importorskip("lighter")
    (tmp_path / "my_policies.py").write_text((ROOT / "tests/engine/third_party.py").read_text())
    (tmp_path / "my_parts.py").write_text(
        "import pytorch_lightning as pl\n"
        "from tests.lab import adamw, batches, regression\n"
        "from tests.policies.policy_lab import Tower\n"
        "def model():\n    return regression('pytorch_lightning', Tower, adamw)\n"
        "class Data(pl.LightningDataModule):\n"
        "    def train_dataloader(self):\n        return batches()\n"
        "    def val_dataloader(self):\n        return batches()\n"
    )
    names = ("SteepestBlocks", "OneAtATime", "TopDown")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    config = {
        "trainer": {
            "_target_": "pytorch_lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 2,
            **quiet,
            "callbacks": [{"_target_": f"my_policies.{name}", "every_n_steps": 3} for name in names],
        },
        "model": {"_target_": "my_parts.model"},
        "data": {"_target_": "my_parts.Data"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).parent / "lighter"), "fit", "config.yaml"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "COLUMNS": "300"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    assert "step 3: SteepestBlocks trains" in said
    assert "step 3: OneAtATime trains block" in said
    assert "TopDown" in said


def test_they_use_public_names_only() -> None:
    lines = (ROOT / "tests/engine/third_party.py").read_text().splitlines()
    imports = [line for line in lines if line.startswith(("from ", "import "))]
    assert imports == ["from lighter_freezers.engine import ("]
