"""A policy in a module outside the package: run, from YAML, planned, on two ranks, resumed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lighter_freezers.engine
from lighter_freezers import Freezer, plan
from lighter_freezers.engine import Action, ActionResult, EngineCallback
from tests.callbacks.block_net import BlockNet
from tests.distributed.run_ranks import run_ranks
from tests.engine.drawn_blocks import DrawnBlocks
from tests.lab import (
    NAMESPACES,
    ResumableLoader,
    adamw,
    batches,
    recorder,
    regression,
    trainer,
)

ROOT = Path(__file__).parents[2]
LONE = "pytorch_lightning"
POLICY = ROOT / "tests/engine/drawn_blocks.py"


def trained_blocks(_: Any, module: Any) -> list[int]:
    return [index for index, block in enumerate(module.network.blocks) if block.weight.requires_grad]


def fit(
    namespace: str = LONE, folder: str = "", max_epochs: int = 2, num_ranks: int = 1, **options: Any
) -> dict[str, Any]:
    """Four steps an epoch, a draw every three."""
    from pytorch_lightning.strategies import DDPStrategy

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    strategy = {"strategy": DDPStrategy(process_group_backend="gloo")} if num_ranks > 1 else {}
    seen = recorder(namespace, trained_blocks)
    callbacks = [DrawnBlocks(num_blocks=2, every_n_steps=3, seed=5), seen]
    runner = trainer(namespace, callbacks=callbacks, max_epochs=max_epochs, devices=num_ranks, **strategy)
    module = regression(namespace, BlockNet, adamw)
    loader = ResumableLoader(batches().dataset) if num_ranks == 1 else batches(32, rank, num_ranks)
    runner.fit(module, loader, batches(), **options)
    if folder:
        runner.save_checkpoint(f"{folder}/middle.ckpt")
    return {
        "seen": seen.seen,
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "moments": str(runner.optimizers[0].state_dict()["state"]),
    }


def resumed(folder: str) -> dict[str, Any]:
    return fit(ckpt_path=f"{folder}/middle.ckpt")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_it_trains_what_it_draws(namespace: str) -> None:
    seen = fit(namespace)["seen"]
    assert [len(each) for each in seen] == [2] * 8
    assert [seen[0], seen[3], seen[6]] == [seen[2], seen[5], seen[7]]
    assert len({tuple(seen[step]) for step in (0, 3, 6)}) > 1


def test_a_new_process_goes_on_in_the_middle_of_a_window(tmp_path: Path) -> None:
    """Saved at step 4 of the window from 3 to 5, and bit-equal at the end: weights and optimizer state."""
    fit(folder=str(tmp_path), max_epochs=1)
    [rest] = run_ranks(resumed, tmp_path, 1, str(tmp_path))
    whole = fit()
    assert rest["seen"] == whole["seen"][4:]
    assert rest["moments"] == whole["moments"]
    assert all(torch.equal(value, whole["weights"][name]) for name, value in rest["weights"].items())


def two_ranks() -> dict[str, Any]:
    return fit(num_ranks=2)


def test_two_ranks_draw_the_same(tmp_path: Path) -> None:
    first, second = run_ranks(two_ranks, tmp_path, 2)
    assert first["seen"] == second["seen"] == fit()["seen"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


def test_a_plan_shows_its_phases() -> None:
    runner = trainer(LONE, callbacks=[DrawnBlocks(num_blocks=1, every_n_steps=3, seed=5)], max_epochs=2)
    planned = plan(runner, regression(LONE, BlockNet, adamw), train_dataloaders=batches(), num_timed=0)
    text = str(planned)
    assert text.count("DrawnBlocks trains blocks") == 2  # at steps 3 and 6; the first draw is the start
    assert "never acts" not in text
    assert "but the run ends" not in text


def test_a_plan_says_may_of_what_depends_on_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engine.drawn_blocks._Draw.depends_on_data", True)
    runner = trainer(LONE, callbacks=[DrawnBlocks(num_blocks=1, every_n_steps=3, seed=5)], max_epochs=2)
    planned = plan(runner, regression(LONE, BlockNet, adamw), train_dataloaders=batches(), num_timed=0)
    start, *later = planned.phases
    assert [change for change in start.changes if "may" in change] == []
    assert later
    for phase in later:
        note, *changes = phase.changes
        assert note.startswith("for example DrawnBlocks trains blocks")
        assert all(change.startswith(("may freeze ", "may thaw ")) for change in changes)
    assert any("DrawnBlocks decides by what it measures" in warning for warning in planned.warnings)


def test_a_plan_does_not_say_may_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same step a rule and an action that no data decides are certain."""

    class Says(Action):
        title = kind = "Says"
        is_done = False

        def next_step(self, moment: Any) -> int | None:
            return None if self.is_done else 3

        def is_due(self, moment: Any) -> bool:
            return not self.is_done and moment.optimizer_step >= 3

        def apply(self, context: Any) -> ActionResult:
            self.is_done = True
            return ActionResult(notes=("Says so",))

    class Saying(EngineCallback):
        def actions(self) -> list[Action]:
            return [Says()]

    monkeypatch.setattr("tests.engine.drawn_blocks._Draw.depends_on_data", True)
    freezer = Freezer(name_starts_with="network.head.", until_step=3)
    runner = trainer(LONE, callbacks=[DrawnBlocks(1, 3, seed=5), Saying(), freezer], max_epochs=1)
    planned = plan(runner, regression(LONE, BlockNet, adamw), train_dataloaders=batches(), num_timed=0)
    example, *changes = planned.phases[1].changes
    assert example.startswith("for example DrawnBlocks trains blocks")
    assert [change for change in changes if "may" not in change] == ["Says so", "thaws head"]
    assert any(change.startswith("may thaw ") for change in changes)


def test_it_runs_from_yaml(tmp_path: Path) -> None:
    """`lighter fit` in a fresh process, with the policy in a module of the user's."""
    (tmp_path / "my_policy.py").write_text(POLICY.read_text())
    (tmp_path / "my_model.py").write_text(
        "import torch\n"
        "from tests.lab import adamw, batches, regression\n"
        "from tests.callbacks.block_net import BlockNet\n"
        "def model():\n    return regression('pytorch_lightning', BlockNet, adamw)\n"
        "import pytorch_lightning as pl\n"
        "class Seen(pl.Callback):\n"
        "    def on_train_batch_end(self, trainer, module, *_):\n"
        "        trained = [i for i, b in enumerate(module.network.blocks) if b.weight.requires_grad]\n"
        "        print('step', trainer.global_step, 'trained', *trained)\n"
        "class Data(pl.LightningDataModule):\n"
        "    def train_dataloader(self):\n        return batches()\n"
        "    def val_dataloader(self):\n        return batches()\n"
    )
    config = {
        "trainer": {
            "_target_": "pytorch_lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "callbacks": [
                {"_target_": "my_policy.DrawnBlocks", "num_blocks": 2, "every_n_steps": 3, "seed": 5},
                {"_target_": "my_model.Seen"},
            ],
        },
        "model": {"_target_": "my_model.model"},
        "data": {"_target_": "my_model.Data"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    pytest.importorskip("lighter")
    command = [str(Path(sys.executable).parent / "lighter"), "fit", "config.yaml"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    trained = [line.split("trained ")[1].strip() for line in run.stdout.splitlines() if "trained" in line]
    assert trained == [" ".join(map(str, blocks)) for blocks in fit()["seen"]]


def test_it_is_short_and_uses_public_names_only() -> None:
    lines = POLICY.read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40
    assert {line.split(" import ")[0] for line in lines if "lighter_freezers" in line} == {
        "from lighter_freezers.engine"
    }


def test_the_guide_shows_this_policy() -> None:
    assert POLICY.read_text() in (ROOT / "docs/guides/own_policy.md").read_text()


def test_rules_and_actions_load_no_lightning() -> None:
    callbacks = {"Engine", "EngineCallback"}
    names = [name for name in lighter_freezers.engine.__all__ if name not in callbacks]
    code = f"from lighter_freezers.engine import {', '.join(names)}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "torch" in loaded
    assert not loaded & {"pytorch_lightning", "lightning", "lightning_fabric", "peft", "transformers"}


def test_importing_the_engine_loads_torch_at_most() -> None:
    code = "import lighter_freezers.engine\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"torch", "pytorch_lightning", "lightning", "peft", "transformers"}


def test_type_checkers_know_the_same_names() -> None:
    stub = (ROOT / "lighter_freezers/engine/__init__.pyi").read_text()
    assert sorted(word for word in lighter_freezers.engine.__all__ if f"{word} as {word}" in stub) == sorted(
        lighter_freezers.engine.__all__
    )
    assert stub.count(" as ") == len(lighter_freezers.engine.__all__)


def test_the_default_kind_serves_one_action_only() -> None:
    """Two would take each other's state after their callbacks changed places."""
    from lighter_freezers.engine import Action, EngineCallback

    class Unnamed(Action):
        title = "Unnamed"

        def is_due(self, moment: Any) -> bool:
            return False

    class Policy(EngineCallback):
        def actions(self) -> list[Action]:
            return [Unnamed()]

    runner = trainer(LONE, callbacks=[Policy()])
    runner.fit(regression(LONE), batches(), batches())
    with pytest.raises(ValueError, match=r"2 actions of this run \(Unnamed\) have the default kind 'action'"):
        trainer(LONE, callbacks=[Policy(), Policy()]).fit(regression(LONE), batches(), batches())
