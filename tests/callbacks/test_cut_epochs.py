"""What conditions on a training metric read in a run that was cut near the end of an epoch, or within one."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lighter_freezers import Freezer, LayerOperations
from tests.lab import (
    ResumableLoader,
    Stream,
    batches,
    first_now,
    frozen_layers,
    recorder,
    regression,
    trainer,
)

LONE = "pytorch_lightning"
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]
MONITORS = ("train/loss", "train/batch_loss", "train/both", "train/metric")


def module(namespace: str = LONE) -> Any:
    """It logs its loss as a mean of the epoch, of each batch, as both, and as a metric of torchmetrics."""
    built = regression(namespace)
    built.mean, step = MeanMetric(), built.training_step

    def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(batch, batch_idx)
        built.log("train/both", loss, on_step=True, on_epoch=True)
        built.mean.update(loss.detach())
        built.log("train/metric", built.mean, on_step=False, on_epoch=True)
        return loss

    built.training_step = training_step
    return built


def run(
    folder: Path,
    callbacks: list[Any],
    *,
    saves: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    namespace: str = LONE,
    validates: bool = True,
    is_stream: bool = False,
    **options: Any,
) -> tuple[dict[int, list[str]], list[str]]:
    """What was frozen at each optimizer step, and what was said about it."""
    torch.set_num_threads(1)
    checkpoint = import_module(f"{namespace}.callbacks").ModelCheckpoint
    seen = recorder(namespace, lambda run, m: (run.global_step, frozen_layers(m)), "on_train_batch_start")
    saver = [] if saves is None else [checkpoint(folder, filename="{step}", save_top_k=-1, **saves)]
    fit = trainer(
        namespace,
        callbacks=[*callbacks, seen, *saver],
        **{"max_epochs": 3, "enable_checkpointing": bool(saver), **options},
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loader = DataLoader(Stream(), None) if is_stream else ResumableLoader(batches().dataset)
        fit.fit(module(namespace), loader, batches() if validates else None, ckpt_path=ckpt_path)
    return dict(seen.seen), [str(each.message) for each in said if "Freezer" in str(each.message)]


def waiting(monitor: str) -> list[Any]:
    """A plateau of three, so that each value counts; the second epoch has the value for an operation."""
    plateau = {"monitor": monitor, "plateau": {"patience": 1, "min_delta": 1.0e9}}
    operation = {"name": "freeze_layer", "value": "layer10", "trigger_loss": 1.0e9}
    return [
        Freezer(name_starts_with="layer1.", until_metric=plateau),
        Freezer(name_starts_with="layer2", until_metric={"monitor": monitor, "below": 1.0e9}),
        LayerOperations([operation], monitor=monitor),
    ]


SAVES = {
    "batch end": {"every_n_train_steps": 4},
    "validation end": {"save_on_train_epoch_end": False},
    "epoch end": {"save_on_train_epoch_end": True},
}


@pytest.mark.parametrize("namespace", [LONE, pytest.param("lightning.pytorch", marks=pytest.mark.wide)])
@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("save", SAVES)
def test_the_end_of_an_epoch_is_seen_wherever_it_is_cut(
    save: str, monitor: str, namespace: str, tmp_path: Path
) -> None:
    """Before the validation, after it, or after the end: what thaws does so when it does in the whole run."""
    validates = save == "validation end"
    # with max_steps Lightning itself goes on within the epoch that has ended, if nothing validates
    is_endless = monitor == "train/both" and save != "epoch end"
    limits = {"max_steps": 12, "max_epochs": -1} if is_endless else {}
    options = {"namespace": namespace, "validates": validates, **limits}
    whole, _ = run(tmp_path, waiting(monitor), saves=SAVES[save], **options)
    assert [whole[0], whole[4], whole[8]] == [["layer1", "layer2"], ["layer1", "layer10"], ["layer10"]]
    for step in (4, 8):
        rest, said = run(tmp_path, waiting(monitor), ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert rest == {step: layers for step, layers in whole.items() if step in rest}
        assert min(rest) == step
        assert said == []


@pytest.mark.parametrize("monitor", first_now(MONITORS))
@pytest.mark.parametrize("save", SAVES)
def test_the_end_of_a_stream_is_seen_wherever_it_is_cut(save: str, monitor: str, tmp_path: Path) -> None:
    """Lightning counts batches on then, which is no cut within an epoch."""
    options = {"is_stream": True, "validates": save == "validation end"}
    whole, _ = run(tmp_path, waiting(monitor), saves=SAVES[save], **options)
    assert [whole[0], whole[4], whole[8]] == [["layer1", "layer2"], ["layer1", "layer10"], ["layer10"]]
    for step in (4, 8):
        rest, said = run(tmp_path, waiting(monitor), ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert rest == {each: layers for each, layers in whole.items() if each >= step}
        assert said == []


@pytest.mark.parametrize("monitor", MONITORS)
def test_a_mean_over_the_rest_of_an_epoch_is_named(monitor: str, tmp_path: Path) -> None:
    """The first batches of the epoch are in no checkpoint; the last batch's value needs none of them."""
    run(tmp_path, waiting(monitor), saves={"every_n_train_steps": 1}, max_epochs=1)
    for step, is_cut in ((2, True), (3, True), (4, False)):
        _, said = run(tmp_path, waiting(monitor), ckpt_path=tmp_path / f"step={step}.ckpt", max_epochs=2)
        named = [text for text in said if "resumed within epoch 0" in text and monitor in text]
        assert len(named) == (is_cut and monitor != "train/batch_loss"), step


def test_a_run_that_stops_within_an_epoch_reads_no_mean(tmp_path: Path) -> None:
    """One that goes on there has none to read, so the one that is resumed must not have read it either."""
    saves = {"save_on_train_epoch_end": True, "save_last": True}
    run(tmp_path, waiting("train/loss"), saves=saves, max_epochs=-1, max_steps=2)
    frozen, _ = run(tmp_path, waiting("train/loss"), ckpt_path=tmp_path / "step=2.ckpt", max_epochs=2)
    assert frozen[2] == frozen[3] == ["layer1", "layer2"]


LOST = "right before a validation, which"
CHECKS = [  # options of the Trainer, the steps at which the whole run validates
    ({"check_val_every_n_epoch": 2}, (8,)),
    ({"check_val_every_n_epoch": 2, "val_check_interval": 2}, (6, 8)),
    ({"check_val_every_n_epoch": None, "val_check_interval": 3}, (3, 6, 9)),
    pytest.param({"val_check_interval": 3}, (3, 7, 11), marks=pytest.mark.wide),
    pytest.param({"val_check_interval": 0.5}, (2, 4, 6, 8, 10), marks=pytest.mark.wide),
]


@pytest.mark.parametrize(("options", "steps"), CHECKS, ids=str)
def test_a_lost_validation_is_named_where_one_was_due(
    options: dict[str, Any], steps: tuple[int, ...], tmp_path: Path
) -> None:
    """The steps of all validations, and only these, whatever decides on them."""
    callbacks = [Freezer(name_starts_with="layer1.", until_metric={"monitor": "val/loss", "below": -1.0})]
    run(tmp_path, callbacks, saves={"every_n_train_steps": 1}, **options)
    named = []
    for step in range(1, 12):
        _, said = run(tmp_path, callbacks, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        named += [step] * any(LOST in text for text in said)
    assert tuple(named) == steps


@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 2}], ids=str)
def test_a_lost_validation_is_named_on_a_stream(options: dict[str, Any], tmp_path: Path) -> None:
    """Of unknown length: its last batch is known once it is there, and the next epoch begins at batch 0."""
    callbacks = [Freezer(name_starts_with="layer1.", until_metric={"monitor": "val/loss", "below": -1.0})]
    options = {"is_stream": True, **options}
    run(tmp_path, callbacks, saves={"every_n_train_steps": 4}, **options)
    named = []
    for step in (4, 8):
        seen, said = run(tmp_path, callbacks, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert min(seen) == step
        named += [step] * any(LOST in text for text in said)
    assert named == ([8] if "check_val_every_n_epoch" in options else [4, 8])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_a_second_fit_knows_where_it_is_cut(tmp_path: Path) -> None:
    """Of one Trainer, whose first fit ended with an epoch: the second is cut within one."""
    checkpoint = import_module(f"{LONE}.callbacks").ModelCheckpoint
    saver = checkpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    built = module()
    fit = trainer(LONE, callbacks=[*waiting("train/loss"), saver], enable_checkpointing=True)
    fit.fit(built, ResumableLoader(batches().dataset))
    fit.fit_loop.max_epochs = 2
    fit.fit(built, ResumableLoader(batches().dataset))

    for step, is_cut in ((6, True), (8, False)):
        _, said = run(
            tmp_path, waiting("train/loss"), ckpt_path=tmp_path / f"step={step}.ckpt", validates=False
        )
        assert any("resumed within epoch 1" in text for text in said) == is_cut, step


def test_a_checkpoint_of_a_run_that_fails_before_training_forgets_nothing(tmp_path: Path) -> None:
    """Saved between the load and the first step, where another callback fails: no operation runs twice."""
    from pytorch_lightning import Callback
    from pytorch_lightning.callbacks import OnExceptionCheckpoint

    class Failing(Callback):
        def on_train_start(self, *_: Any) -> None:
            raise RuntimeError("as planned")

    def callbacks() -> list[Any]:
        operations = [{"name": "scale_lr", "value": 0.5, "trigger_loss": 1.0e9}]
        return [LayerOperations(operations, monitor="train/loss"), *waiting("train/loss")[:2]]

    run(tmp_path, callbacks(), saves={"every_n_train_steps": 1}, max_epochs=2)
    rescue = OnExceptionCheckpoint(tmp_path, "rescued")
    first = tmp_path / "step=6.ckpt"
    with pytest.raises(RuntimeError, match="as planned"):
        run(tmp_path, [Failing(), *callbacks(), rescue], ckpt_path=first, enable_checkpointing=True)

    before, after = (torch.load(path, weights_only=True) for path in (first, tmp_path / "rescued.ckpt"))
    ours = "lighter_freezers.engine"
    assert after["callbacks"][ours] == before["callbacks"][ours]
    assert any(action["done"] for action in after["callbacks"][ours]["actions"].values())
