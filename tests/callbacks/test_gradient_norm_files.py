"""The files of GradientNormMonitor over several runs: killed, resumed, repeated, and of a GPT with LoRA."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, Freezer, GradientNormMonitor, LoraPhases, LoraRankScheduler, apply_lora
from tests.callbacks.test_gradient_norm_monitor import LONE, fit, norms_in, rows, steps_in, total_norm
from tests.lab import KILL, adamw, batches, recorder, regression, trainer

ROOT = Path(__file__).parents[2]
FILES = ["group_norms", "losses", "transitions"]
KILLED = """
import os, sys
from lighter_freezers import Freezer, GradientNormMonitor
from tests.lab import KILL, batches, recorder, regression, trainer

def die(fit, module):
    if fit.global_step == 6:
        os.kill(os.getpid(), KILL)

monitor = GradientNormMonitor(1, dirpath=sys.argv[1])
late = recorder("pytorch_lightning", die)
module = regression("pytorch_lightning")
trainer("pytorch_lightning", callbacks=[monitor, late], max_epochs=4).fit(module, batches(), batches())
"""


def half_and_resumed(first: Path, second: Path) -> None:
    """Two epochs with a checkpoint after the first, and once more from there."""
    checkpoint = first / "half.ckpt"
    callbacks = [Freezer(name_starts_with="layer2", from_step=2, until_step=4)]
    monitor = GradientNormMonitor(1, dirpath=str(first))
    module = regression(LONE)
    run = trainer(LONE, callbacks=[*callbacks, monitor], max_epochs=1)
    run.fit(module, batches(), batches())
    run.save_checkpoint(checkpoint)
    run.fit_loop.max_epochs = 2
    run.fit(module, batches(), batches())
    fit(second, callbacks, max_epochs=2, ckpt_path=checkpoint)


@pytest.mark.wide
def test_a_killed_process_loses_no_row(tmp_path: Path) -> None:
    """Every step before the signal is in the file, and every row is whole."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    found = norms_in(tmp_path)

    assert killed.returncode in (-KILL, KILL)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert all(float(row["total_norm"]) > 0 for row in found)


@pytest.mark.parametrize("is_same_folder", [True, False])
def test_a_resumed_run_goes_on_with_the_rows(is_same_folder: bool, tmp_path: Path) -> None:
    """As if it had never stopped: no step twice, none missing, in the same folder or in one of its own."""
    first, second = tmp_path / "first", tmp_path / "first" if is_same_folder else tmp_path / "second"
    half_and_resumed(first, second)
    fit(tmp_path / "whole", [Freezer(name_starts_with="layer2", from_step=2, until_step=4)], max_epochs=2)

    assert steps_in(second) == list(range(8))
    for kind in ("group_norms", "transitions"):
        name = f"gradient_analysis.{kind}.csv"
        assert (second / name).read_text() == (tmp_path / "whole" / name).read_text()
    losses = rows(second / "gradient_analysis.losses.csv")
    assert [row["step"] for row in losses if row["train_loss"]] == [str(step) for step in range(1, 9)]
    assert [row["step"] for row in losses if row["val_loss"]] == ["4", "8"]


def test_a_run_resumed_elsewhere_leaves_the_first_alone(tmp_path: Path) -> None:
    """The first one's files are read, never written."""
    half_and_resumed(tmp_path / "one", tmp_path / "one")
    before = {path: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    fit(tmp_path / "two", max_epochs=2, ckpt_path=tmp_path / "one" / "half.ckpt")

    assert {path: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before


def test_rows_past_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A crash came after the checkpoint, and a torn row at the very end."""
    half_and_resumed(tmp_path, tmp_path)
    file = tmp_path / "gradient_analysis.group_norms.csv"
    text = file.read_text()
    file.write_text(text + "8,1,1,1,1,1\n9,1,1")
    fit(
        tmp_path,
        [Freezer(name_starts_with="layer2", from_step=2, until_step=4)],
        max_epochs=2,
        ckpt_path=tmp_path / "half.ckpt",
    )

    assert file.read_text() == text


def test_a_new_run_takes_a_name_of_its_own(tmp_path: Path) -> None:
    """In the same folder, and with the files of the first untouched."""
    fit(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    fit(tmp_path, max_epochs=2)

    assert steps_in(tmp_path, "gradient_analysis-v1") == list(range(8))
    assert {path: path.read_bytes() for path in first} == first


def test_files_that_are_gone_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The resumed run begins new ones at its step."""
    half_and_resumed(tmp_path / "one", tmp_path / "one")
    (tmp_path / "one" / "gradient_analysis.group_norms.csv").unlink()
    fit(tmp_path / "two", max_epochs=2, ckpt_path=tmp_path / "one" / "half.ckpt")

    assert steps_in(tmp_path / "two") == [4, 5, 6, 7]
    assert "start at step 4" in caplog.text


def test_a_run_that_fails_has_its_summary(tmp_path: Path) -> None:
    """Written on the way out."""
    module = regression(LONE)
    step = type(module).training_step
    type(module).training_step = lambda self, batch, batch_idx: step(self, batch, 1 // (2 - batch_idx))
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, module=module)

    assert json.loads((tmp_path / "gradient_analysis.summary.json").read_text())["total"]["peak_step"] in (
        0,
        1,
    )


class Reader(nn.Module):
    """A GPT with LoRA that reads the regression batches as tokens."""

    def __init__(self) -> None:
        super().__init__()
        gpt = GPT({"vocab_size": 16, "block_size": 8, "n_layer": 4, "n_head": 2, "n_embd": 8})
        self.gpt = apply_lora(gpt, {"r": 2, "target_modules": ["c_attn", "c_fc"]})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x * 4).long() % 16
        return self.gpt(tokens, tokens)[0].mean(dim=(1, 2))[:, None]


@pytest.mark.parametrize("strategy", ["early->late", "both->mlp->attn"])
def test_layers_that_train_late_stand_in_their_own_rows(strategy: str, tmp_path: Path) -> None:
    """A row per step, and a number exactly where an adapter trained in it."""
    ends = {"phase1_end": 2} if strategy == "early->late" else {"phase1_end": 2, "phase2_end": 4}
    module: Any = regression(LONE, network=Reader)
    fit(tmp_path, [LoraPhases(strategy, **ends)], module=module, max_epochs=2)
    found = rows(tmp_path / "gradient_analysis.layer_norms.csv")
    filled = [{name for name, cell in row.items() if cell and name != "step"} for row in found]
    names = {
        "attention": {f"layer_{n}_attention" for n in range(4)},
        "mlp": {f"layer_{n}_mlp" for n in range(4)},
    }
    every = names["attention"] | names["mlp"]
    late = {name for name in every if name[6] in "23"}

    assert list(found[0]) == ["step", *(f"layer_{n}_{kind}" for n in range(4) for kind in names)]
    assert [int(row["step"]) for row in found] == list(range(8))
    if strategy == "early->late":
        assert filled == [every - late] * 2 + [late] * 6
    else:
        assert filled == [every] * 2 + [names["mlp"]] * 2 + [names["attention"]] * 4


def test_phases_are_noted_by_layers(tmp_path: Path) -> None:
    """In the words of layers, and with the phase among the holders."""
    fit(
        tmp_path, [LoraPhases("both->mlp->attn", 2, 4)], module=regression(LONE, network=Reader), max_epochs=2
    )
    found = rows(tmp_path / "gradient_analysis.transitions.csv")

    assert [(row["step"], row["frozen"], row["thawed"]) for row in found] == [
        ("2", "attn", ""),
        ("4", "mlp", "attn"),
    ]
    assert "phase 2 of 3: mlp" in found[0]["holders"]


def test_a_change_of_rank_is_followed(tmp_path: Path) -> None:
    """The new components are measured; without any, the cell is empty; the change itself is noted."""
    ranks = [
        {"step": 2, "rank_pattern": {"attn.0": 4}},
        {"step": 4, "rank_pattern": {"mlp.1": 0}},
    ]
    seen = recorder(LONE, lambda t, m: total_norm(m), "on_before_optimizer_step")
    module: Any = regression(LONE, network=Reader, optimizer=adamw)
    fit(tmp_path, [LoraRankScheduler(ranks), seen], module=module, max_epochs=2)
    layers = rows(tmp_path / "gradient_analysis.layer_norms.csv")
    totals = [float(row["total_norm"]) for row in norms_in(tmp_path)]

    assert totals == pytest.approx(seen.seen, rel=1e-5)
    assert all(row["layer_0_attention"] for row in layers)
    assert [bool(row["layer_1_mlp"]) for row in layers] == [True] * 4 + [False] * 4
    noted = rows(tmp_path / "gradient_analysis.transitions.csv")
    assert [row["step"] for row in noted if row["notes"]] == ["2", "4"]


@pytest.mark.wide
def test_the_config_measures_and_draws(tmp_path: Path) -> None:
    """By its own command: rows, phases, pictures, and norms in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = str(ROOT / "configs/experiments/gradient_norms.yaml")
    (tmp_path / "text.txt").write_text("def add(a, b):\n    return a + b\n\n\n" * 400)
    small = ["data::vocab_size=300", "model::network::network::config::vocab_size=300", "data::batch_size=2"]
    small += ["data::text=text.txt", f"data::cache_dir={tmp_path}", "data::num_val_sequences=2"]
    small += ["data::num_train_sequences=40", "trainer::max_steps=90"]
    pytest.importorskip("lighter")
    command = [str(Path(sys.executable).parent / "lighter"), "fit", config, *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    folder = tmp_path / "outputs/gradient_norms/version_0"

    assert done.returncode == 0, done.stderr[-3000:]
    found = norms_in(folder)
    assert [int(row["step"]) for row in found] == list(range(0, 90, 2))
    assert [bool(row["attention_norm"]) for row in found] == [True] * 20 + [False] * 20 + [True] * 5
    assert [bool(row["mlp_norm"]) for row in found] == [True] * 40 + [False] * 5
    assert {"gradient_norms.png", "layer_heatmap.png"} <= {path.name for path in (folder / "plots").iterdir()}
    events = EventAccumulator(str(folder))
    events.Reload()
    logged = [event.value for event in events.Scalars("gradient_norm/mlp.5")]
    layers = rows(folder / "gradient_analysis.layer_norms.csv")
    assert logged == pytest.approx([float(row["layer_5_mlp"]) for row in layers if row["layer_5_mlp"]])


def test_the_validation_loss_of_a_lighter_module_is_found(tmp_path: Path) -> None:
    """It is called `val/loss/epoch` there."""
    module = regression(LONE)
    module.validation_step = lambda batch, batch_idx: module.log("val/loss/epoch", 1.0)
    monitor = GradientNormMonitor(1, dirpath=str(tmp_path))
    trainer(LONE, callbacks=[monitor], max_epochs=1).fit(module, batches(), batches())

    assert [row["val_loss"] for row in rows(tmp_path / "gradient_analysis.losses.csv") if row["val_loss"]]


def test_a_missing_validation_loss_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two validations, one warning."""
    module = regression(LONE)
    module.validation_step = lambda batch, batch_idx: module.log("val/acc", 1.0)
    monitor = GradientNormMonitor(1, dirpath=str(tmp_path))
    trainer(LONE, callbacks=[monitor], max_epochs=2).fit(module, batches(), batches())

    assert caplog.text.count("finds no validation loss") == 1
