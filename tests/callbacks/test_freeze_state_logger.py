"""FreezeStateLogger: real fits, read back from event files and CSV files."""

import csv
import io
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lighter_freezers import Freezer, FreezeStateLogger
from tests import lab

PL = "pytorch_lightning"
BOTH = pytest.mark.parametrize("namespace", lab.NAMESPACES)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(lab.WIDTH)
        self.attn = nn.Linear(lab.WIDTH, lab.WIDTH)
        self.mlp = nn.Linear(lab.WIDTH, lab.WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(torch.tanh(self.attn(self.ln_1(x))))


class BlockNet(nn.Module):
    """Two blocks with 72 elements each in `attn` and `mlp` and 16 in `ln_1`, and a head of 9."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Sequential(Block(), Block())
        self.lm_head = nn.Linear(lab.WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.h(x))


def tensorboard(namespace: str, folder: Path, **options: Any) -> Any:
    return import_module(f"{namespace}.loggers").TensorBoardLogger(folder, name="tb", version="0", **options)


def csv_logger(namespace: str, folder: Path, **options: Any) -> Any:
    return import_module(f"{namespace}.loggers").CSVLogger(folder, name="csv", version="0", **options)


def fit(namespace: str, logger: Any, *callbacks: Any, ckpt_path: str | None = None, **options: Any) -> Any:
    """Twelve optimizer steps of BlockNet unless told otherwise."""
    trainer = lab.trainer(namespace, logger=logger, callbacks=list(callbacks), **{"max_epochs": 3, **options})
    trainer.fit(lab.regression(namespace, BlockNet), lab.batches(), lab.batches(), ckpt_path=ckpt_path)
    return trainer


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tb" / "0"), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator: EventAccumulator, key: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(key)]


def rows(folder: Path, key: str) -> list[tuple[int, float]]:
    with open(folder / "csv" / "0" / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row[key]]


def texts(accumulator: EventAccumulator) -> list[tuple[int, str]]:
    read = accumulator.Tensors("freeze/state/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in read]


@BOTH
def test_scalars_are_written_at_transitions_only(namespace, tmp_path):
    """Twelve steps with one thaw: start, the step before, the thaw, the end, and nothing else."""
    freezer = Freezer(name_starts_with=["network.h.0.attn."], until_step=5)
    fit(namespace, tensorboard(namespace, tmp_path), freezer, FreezeStateLogger())
    read = events(tmp_path)
    assert points(read, "freeze/components/attn.0") == [(0, 0.0), (4, 0.0), (5, 1.0), (12, 1.0)]
    assert points(read, "freeze/components/mlp.1") == [(0, 1.0), (12, 1.0)]
    assert points(read, "freeze/trainable_parameters") == [(0, 257), (4, 257), (5, 329), (12, 329)]
    assert points(read, "freeze/frozen_share")[0] == (0, 72 / 329)


@BOTH
def test_the_log_ends_with_the_command_that_shows_the_run(namespace, tmp_path, caplog):
    """For TensorBoard, the only logger that has one."""
    caplog.set_level(logging.INFO, logger="lighter_freezers")
    fit(namespace, [csv_logger(namespace, tmp_path), tensorboard(namespace, tmp_path)], FreezeStateLogger())
    shown = [record.message for record in caplog.records if "--logdir" in record.message]
    assert shown == [f"See what was frozen, and when: tensorboard --logdir {tmp_path / 'tb'}"]


def test_a_thaw_right_after_a_thaw_repeats_no_point(tmp_path):
    """The point before a change is left out where the change before it already wrote one."""
    first = Freezer(name_starts_with=["network.h.0.attn."], until_step=4)
    second = Freezer(name_starts_with=["network.h.1.attn."], until_step=5)
    fit(PL, tensorboard(PL, tmp_path), first, second, FreezeStateLogger())
    totals = [step for step, _ in points(events(tmp_path), "freeze/trainable_parameters")]
    assert totals == [0, 3, 4, 5, 12]


def test_state_without_any_freezer_is_logged(tmp_path):
    """Alone in a Trainer it shows what the user froze, from the first step to the last."""
    module = lab.regression(PL, BlockNet)
    module.network.h[0].requires_grad_(False)
    trainer = lab.trainer(PL, logger=tensorboard(PL, tmp_path), callbacks=[FreezeStateLogger()])
    trainer.fit(module, lab.batches(), lab.batches())
    read = events(tmp_path)
    assert points(read, "freeze/components/attn.0") == [(0, 0.0), (4, 0.0)]
    assert "| attn.0 | user-frozen | 72 | 0 |" in texts(read)[0][1]


@BOTH
def test_text_is_a_table_for_each_transition(namespace, tmp_path):
    """TensorBoard's text tab gets the table with who holds what, at the start and at the thaw."""
    freezer = Freezer(name_starts_with=["network.h.0."], until_step=5)
    fit(namespace, tensorboard(namespace, tmp_path), FreezeStateLogger(), freezer)
    (start, before), (change, after) = texts(events(tmp_path))
    assert (start, change) == (0, 5)
    assert "held by Freezer" in before
    assert "| mlp.0 | frozen | 72 | 0 |" in before
    assert "| mlp.0 | trainable | 72 | 72 |" in after


def test_image_at_each_checkpoint_and_at_the_end(tmp_path):
    """One picture per checkpoint, the last one not twice, and it opens as a picture of that size."""
    callback = import_module(f"{PL}.callbacks").ModelCheckpoint
    checkpoints = callback(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1)
    freezer = Freezer(name_starts_with=["network.h.0."], until_step=5)
    logger = tensorboard(PL, tmp_path)
    fit(PL, logger, FreezeStateLogger(), freezer, checkpoints, enable_checkpointing=True)
    images = events(tmp_path).Images("freeze/timeline")
    assert [image.step for image in images] == [4, 8, 12]
    assert Image.open(io.BytesIO(images[-1].encoded_image_string)).size == (
        images[-1].width,
        images[-1].height,
    )


def test_layout_groups_the_components_into_charts(tmp_path):
    """The custom-scalars tab has a chart per kind, whose expressions match the logged keys and only those."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    fit(PL, tensorboard(PL, tmp_path, prefix="run"), FreezeStateLogger())
    read = events(tmp_path)
    (config,) = read.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0]).category
    tags = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    matched = {
        title: [k for k in read.Tags()["scalars"] if matches(tag[0], k)] for title, tag in tags.items()
    }
    assert matched == {
        "frozen share": ["run-freeze/frozen_share"],
        "attention": ["run-freeze/components/attn.0", "run-freeze/components/attn.1"],
        "norms": ["run-freeze/components/ln_1.0", "run-freeze/components/ln_1.1"],
        "mlp": ["run-freeze/components/mlp.0", "run-freeze/components/mlp.1"],
        "embeddings & head": ["run-freeze/components/lm_head"],
    }


def matches(expression: str, key: str) -> bool:
    return re.match(expression, key) is not None  # as TensorBoard's plugin does


def test_what_is_switched_off_is_not_written(tmp_path):
    """Without picture and layout there are only numbers and text."""
    fit(
        PL,
        [tensorboard(PL, tmp_path), csv_logger(PL, tmp_path)],
        FreezeStateLogger(log_image=False, log_layout=False),
    )
    tags = events(tmp_path).Tags()
    assert (tags["images"], tags["tensors"]) == ([], ["freeze/state/text_summary"])
    assert not list(tmp_path.rglob("*.png"))


@BOTH
@pytest.mark.parametrize("flush", [1, 3, 100])
def test_csv_rows_are_complete_and_aligned(namespace, flush, tmp_path):
    """Whenever the file is flushed and its header grows, no number is lost or in another column."""
    freezer = Freezer(name_starts_with=["network.h.0.attn."], until_step=5)
    logger = csv_logger(namespace, tmp_path, flush_logs_every_n_steps=flush)
    fit(namespace, logger, freezer, FreezeStateLogger(), log_every_n_steps=1)
    assert rows(tmp_path, "freeze/components/attn.0") == [(0, 0.0), (4, 0.0), (5, 1.0), (12, 1.0)]
    assert rows(tmp_path, "freeze/components/mlp.1") == [(0, 1.0), (12, 1.0)]
    assert [step for step, _ in rows(tmp_path, "train/loss")] == [3, 7, 11]
    with Image.open(tmp_path / "csv" / "0" / "freeze_timeline.png") as image:
        assert image.format == "PNG"


def test_a_logger_that_shows_images_gets_the_picture(tmp_path):
    """A logger with `log_image`, as Weights & Biases has, gets the picture there and no file."""

    class Gallery(import_module(f"{PL}.loggers").CSVLogger):
        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            images[0].save(tmp_path / f"{key.replace('/', '-')}-{step}.png")

    fit(PL, Gallery(tmp_path, name="csv", version="0"), FreezeStateLogger())
    assert [path.name for path in tmp_path.rglob("*.png")] == ["freeze-timeline-12.png"]


def test_without_a_logger_the_table_is_all(capsys):
    """With `logger=False` and `show_table` the table is printed at the start and at the thaw."""
    fit(PL, False, FreezeStateLogger(True), Freezer(name_starts_with=["network.h.0."], until_step=5))
    printed = capsys.readouterr().out
    assert printed.count("component") == 2
    assert "held by Freezer[" in printed
    assert "Optimizer step 5: 0.0% frozen" in printed


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    """Under `fast_dev_run` the Trainer's dummy logger takes everything."""
    monkeypatch.chdir(tmp_path)
    trainer = lab.trainer(PL, fast_dev_run=True, callbacks=[FreezeStateLogger()])
    trainer.fit(lab.regression(PL, BlockNet), lab.batches(), lab.batches())
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_resumed_run_goes_on_with_the_timeline(namespace, tmp_path):
    """Cut at step 8 and resumed, it has the thaw of step 5 from before and that of step 10 from after."""

    def callbacks() -> list[Any]:
        early = Freezer(name_starts_with=["network.h.0."], until_step=5)
        return [early, Freezer(name_starts_with=["network.h.1."], until_step=10), FreezeStateLogger()]

    path = str(tmp_path / "cut.ckpt")
    fit(namespace, False, *callbacks(), max_epochs=2).save_checkpoint(path)
    torch.load(path, weights_only=True)  # plain types only
    resumed = callbacks()
    fit(namespace, tensorboard(namespace, tmp_path), *resumed, ckpt_path=path)
    assert resumed[-1].state_dict()["steps"] == [0, 5, 10]
    assert points(events(tmp_path), "freeze/components/attn.1") == [(8, 0.0), (9, 0.0), (10, 1.0), (12, 1.0)]


def test_a_run_resumed_earlier_does_not_show_the_future(tmp_path):
    """The same callback, first fitted to the end and then resumed from step 4, forgets what came after."""
    path, logger = str(tmp_path / "cut.ckpt"), FreezeStateLogger()
    freezer = Freezer(name_starts_with=["network.h.0."], until_step=6)
    fit(PL, False, freezer, logger, max_epochs=1).save_checkpoint(path)
    fit(PL, False, freezer, logger, ckpt_path=path)
    assert logger.state_dict()["steps"] == [0, 6]
    fit(PL, False, freezer, logger, ckpt_path=path, max_epochs=1, max_steps=5)
    assert logger.state_dict()["steps"] == [0]


def test_another_model_starts_another_timeline():
    """A timeline whose components are not those of the model is not continued."""
    logger = FreezeStateLogger()
    logger.load_state_dict({"components": ["x"], "steps": [0], "changes": [{"x": "frozen"}]})
    fit(PL, False, logger)
    assert "attn.0" in logger.state_dict()["components"]


@pytest.mark.parametrize(
    "moment", ["train_batch_start", "train_batch_end", "before_zero_grad", "before_backward"]
)
def test_no_hook_runs_per_step(moment):
    """Lightning skips what is not callable, so a steady step costs nothing."""
    assert not callable(getattr(FreezeStateLogger, f"on_{moment}"))
    assert not callable(FreezeStateLogger.on_after_backward)
    assert not callable(FreezeStateLogger.on_before_optimizer_step)


def test_a_second_one_is_refused():
    """Two in one Trainer would write everything twice: the error says which to keep."""
    with pytest.raises(RuntimeError, match="more than one|Remove the others"):
        fit(PL, False, FreezeStateLogger(), FreezeStateLogger(True))
    trainer = lab.trainer(PL, callbacks=[FreezeStateLogger()])
    trainer.callbacks.append(FreezeStateLogger())
    with pytest.raises(RuntimeError, match="2 FreezeStateLogger callbacks.*Remove the others"):
        trainer.fit(lab.regression(PL), lab.batches(), lab.batches())


@pytest.mark.parametrize("argument", ["show_table", "log_image", "log_layout"])
def test_a_flag_must_be_true_or_false(argument):
    """A quoted 'false' from YAML is true in Python: it is refused with the argument's name."""
    with pytest.raises(TypeError, match=f"{argument} must be true or false.*'false'"):
        FreezeStateLogger(**{argument: "false"})


def test_state_key_does_not_depend_on_arguments():
    """A checkpoint's timeline is found again when the arguments change, and is not a Freezer's."""
    assert FreezeStateLogger(True).state_key == FreezeStateLogger(log_image=False).state_key
    assert FreezeStateLogger().state_key != Freezer(name_starts_with=["network."]).state_key
