"""The summary of a run: what it says, where it stands, and that it is never written over another."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, GradientNormMonitor, ResultsSummary
from tests import lab
from tests.distributed.run_ranks import run_ranks


def fit(folder: Path, namespace: str, *callbacks: Any, **options: Any) -> tuple[Any, Any, list[float]]:
    """A run of two epochs in its own `version_N`; with the losses of its batches."""
    loggers = import_module(f"{namespace}.loggers")
    losses: list[float] = []

    class Losses(import_module(namespace).Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    module = lab.regression(namespace)
    trainer = import_module(namespace).Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=loggers.CSVLogger(folder, name="run"),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, Losses()],
        default_root_dir=folder,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, lab.batches(), lab.batches(8))
    return trainer, module, losses


def read(path: Path) -> dict[str, Any]:
    """Strictly: no NaN, no infinity."""
    return dict(json.loads(path.read_text(), parse_constant=pytest.fail))


@pytest.mark.parametrize("namespace", lab.NAMESPACES)
@pytest.mark.parametrize("window", [1, 2])
def test_the_summary_of_a_fit(namespace: str, window: int, tmp_path: Path) -> None:
    """Losses as they were before Lightning divided them, cost, the last metrics, gradient norms, versions."""
    monitor = GradientNormMonitor(every_n_steps=1)
    freezer = Freezer(name_starts_with=["layer1."], until_epoch=1)
    trainer, module, losses = fit(
        tmp_path, namespace, ResultsSummary(), freezer, monitor, accumulate_grad_batches=window
    )

    summary = read(tmp_path / "run/version_0/results_summary.json")
    assert summary["optimizer_steps"] == 8 / window
    assert summary["epochs"] == 2
    assert summary["train_loss"] == pytest.approx(sum(losses) / 8)
    assert summary["final_train_loss"] == pytest.approx(sum(losses) / 8)  # there are fewer than ten
    assert summary["parameters"] == sum(p.numel() for p in module.parameters())
    assert summary["parameters"] - summary["trainable_parameters"] == 8 * 8 + 8
    assert summary["final_trainable_parameters"] == summary["parameters"]
    assert summary["metrics"]["val/loss"] == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    norms = tmp_path / "run/version_0/gradient_analysis.summary.json"
    assert summary["gradient_stats"] == {"gradient_analysis": read(norms)}
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert 0 < summary["train_seconds"] < 60


def test_the_last_loss_is_the_mean_of_ten_batches(tmp_path: Path) -> None:
    """Of however many there were; those before count in the mean of all."""
    summary = ResultsSummary()
    trainer, _, losses = fit(tmp_path, "pytorch_lightning", ResultsSummary(), max_steps=-1)
    outputs = [{"loss": torch.tensor(float(i))} for i in range(2500)]
    model = torch.nn.Module()
    summary.on_train_start(trainer, model)
    for output in outputs:
        summary.on_train_batch_end(trainer, model, output, None, 0)

    assert len(losses) == 8
    means = {"train_loss": 1249.5, "first_train_loss": 0.0, "final_train_loss": 2494.5}
    assert summary._mean_losses(trainer) == means
    assert len(summary._losses) <= 1000


@pytest.mark.parametrize("namespace", lab.NAMESPACES)
def test_a_run_without_a_loss_is_closed(namespace: str, tmp_path: Path, caplog: Any) -> None:
    """Under manual optimization `training_step` may return nothing."""
    made = lab.regression(namespace)

    class Manual(type(made)):  # type: ignore[misc]
        automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            self.optimizers().step()

    made.__class__ = Manual
    made.automatic_optimization = False
    trainer = lab.trainer(namespace, callbacks=[ResultsSummary()], default_root_dir=tmp_path)
    with caplog.at_level("INFO", "lighter_freezers"):
        trainer.fit(made, lab.batches(), lab.batches(8))

    assert "The run: 4 optimizer steps" in caplog.text
    assert "first batch" not in caplog.text


def test_the_figures_of_a_test_are_added(tmp_path: Path) -> None:
    """To the file of the fit, of which nothing else changes; also by a later process that tests there."""
    summary = ResultsSummary()
    trainer, module, _ = fit(tmp_path, "pytorch_lightning", summary)
    path = tmp_path / "run/version_0/results_summary.json"
    before = read(path)
    module.test_step = lambda batch, batch_idx: module.log("test/error", module.loss(batch))
    trainer.test(module, lab.batches(), verbose=False)

    after = read(path)
    error = float(trainer.callback_metrics["test/error"])
    assert after == {**before, "evaluation": {"error": pytest.approx(error)}}

    later = ResultsSummary()  # knows nothing of the fit
    path.write_text(json.dumps(before))
    later.on_test_end(trainer, module)
    assert read(path) == after


def test_a_second_fit_in_a_folder_keeps_the_first(tmp_path: Path) -> None:
    """Without a logger all runs share one folder; and each logger's version has its own."""
    fit(tmp_path, "pytorch_lightning", ResultsSummary())
    fit(tmp_path, "pytorch_lightning", ResultsSummary())
    assert (tmp_path / "run/version_1/results_summary.json").exists()

    for _ in range(2):
        trainer = lab.trainer(
            "pytorch_lightning",
            max_steps=2,
            callbacks=[ResultsSummary()],
            default_root_dir=tmp_path / "shared",
        )
        trainer.fit(lab.regression("pytorch_lightning"), lab.batches(), lab.batches(8))
    names = sorted(path.name for path in (tmp_path / "shared").glob("*.json"))
    assert names == ["results_summary.json", "results_summary_1.json"]


def test_the_config_is_that_of_the_module(tmp_path: Path) -> None:
    """What `lighter` keeps there under `config`, or else every hyperparameter."""
    for kept, expected in (({"config": {"a": 1}, "b": 2}, {"a": 1}), ({"width": 8}, {"width": 8})):
        module = lab.regression("pytorch_lightning")
        module.save_hyperparameters(kept)
        folder = tmp_path / "-".join(kept)
        trainer = lab.trainer(
            "pytorch_lightning", max_steps=1, callbacks=[ResultsSummary()], default_root_dir=folder
        )
        trainer.fit(module, lab.batches(), lab.batches(8))
        assert read(folder / "results_summary.json")["config"] == expected


def minutes_left_on_ranks(folder: Path) -> float:
    """In the bar of one of two processes, which logs in batches and at the end of the same epoch."""
    strategy = import_module("pytorch_lightning.strategies").DDPStrategy(process_group_backend="gloo")
    options = {"strategy": strategy, "devices": 2, "max_epochs": 3, "log_every_n_steps": 2}
    options |= {"default_root_dir": folder}
    run = lab.trainer("pytorch_lightning", callbacks=[ResultsSummary()], **options)
    run.fit(lab.regression("pytorch_lightning"), lab.batches(), lab.batches(8))
    return float(run.progress_bar_metrics["minutes_left"])


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore")
def test_two_processes_show_the_same_minutes_left(tmp_path: Path) -> None:
    assert run_ranks(minutes_left_on_ranks, tmp_path, 2, tmp_path) == [0.0, 0.0]


def test_the_bar_shows_the_minutes_left_of_several_epochs(tmp_path: Path) -> None:
    """From the first logged batch on, falling to 0; in no logger and no file, and not of one epoch."""
    seen = lab.recorder(
        "pytorch_lightning", lambda trainer, _: trainer.progress_bar_metrics.get("minutes_left")
    )
    trainer, *_ = fit(tmp_path / "two", "pytorch_lightning", ResultsSummary(), seen, log_every_n_steps=2)

    assert seen.seen[0] is None
    assert min(seen.seen[1:-1]) > 0
    assert trainer.progress_bar_metrics["minutes_left"] == 0
    assert "minutes_left" not in trainer.logged_metrics
    assert "minutes_left" not in read(tmp_path / "two/run/version_0/results_summary.json")["metrics"]
    trainer, *_ = fit(tmp_path / "one", "pytorch_lightning", ResultsSummary(), max_steps=4)
    assert "minutes_left" not in trainer.progress_bar_metrics
