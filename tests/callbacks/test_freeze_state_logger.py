"""FreezeStateLogger: real fits, read back from event files and CSV files."""

import copy
import csv
import io
import logging
import pickle
import re
import threading
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
def test_scalars_are_written_at_transitions_and_while_tensorboard_settles(namespace, tmp_path):
    """Eleven points from the start and from the thaw on, the step before it and the end, no others."""
    freezer = Freezer(name_starts_with=["network.h.0.attn."], until_step=20)
    fit(namespace, tensorboard(namespace, tmp_path), freezer, FreezeStateLogger(), max_epochs=9)
    read, start, settling = events(tmp_path), range(11), range(20, 31)
    before = [(step, 0.0) for step in (*start, 19)]
    assert points(read, "trainable_share/attn.0") == [*before, *((step, 1.0) for step in (*settling, 36))]
    assert points(read, "trainable_share/mlp.1") == [(step, 1.0) for step in (*start, 36)]
    totals = [*((step, 257) for step in (*start, 19)), *((step, 329) for step in (*settling, 36))]
    assert points(read, "freeze/trainable_parameters") == totals
    assert points(read, "freeze/frozen_share")[0] == (0, 72 / 329)


@BOTH
def test_the_log_ends_with_the_command_that_shows_the_run(namespace, tmp_path, caplog):
    """For TensorBoard, the only logger that has one."""
    caplog.set_level(logging.INFO, logger="lighter_freezers")
    fit(namespace, [csv_logger(namespace, tmp_path), tensorboard(namespace, tmp_path)], FreezeStateLogger())
    shown = [record.message for record in caplog.records if "--logdir" in record.message]
    assert shown == [f"See what was frozen, and when: tensorboard --logdir {tmp_path / 'tb'}"]


def test_a_thaw_right_after_a_thaw_repeats_no_point(tmp_path):
    """One point for each step, and each curve is a step where its own layer thaws."""
    first = Freezer(name_starts_with=["network.h.0.attn."], until_step=4)
    second = Freezer(name_starts_with=["network.h.1.attn."], until_step=5)
    fit(PL, tensorboard(PL, tmp_path), first, second, FreezeStateLogger())
    read = events(tmp_path)
    totals = [step for step, _ in points(read, "freeze/trainable_parameters")]
    assert totals == list(range(13))
    assert points(read, "trainable_share/attn.1") == [(step, float(step >= 5)) for step in range(13)]


def test_state_without_any_freezer_is_logged(tmp_path):
    """Alone in a Trainer it shows what the user froze, from the first step to the last."""
    module = lab.regression(PL, BlockNet)
    module.network.h[0].requires_grad_(False)
    trainer = lab.trainer(PL, logger=tensorboard(PL, tmp_path), callbacks=[FreezeStateLogger()])
    trainer.fit(module, lab.batches(), lab.batches())
    read = events(tmp_path)
    assert points(read, "trainable_share/attn.0") == [(step, 0.0) for step in range(5)]
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


def test_lora_only_is_a_state_of_its_own_in_picture_and_table(tmp_path):
    """A layer of which only LoRA factors train is neither frozen, trainable nor partial."""
    from peft import LoraConfig, inject_adapter_in_model

    module = lab.regression(PL, BlockNet)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn"]), module.network)
    loggers = [tensorboard(PL, tmp_path), csv_logger(PL, tmp_path)]
    callbacks = [Freezer(name_starts_with="network.h.0.attn.", until_step=5), FreezeStateLogger()]
    trainer = lab.trainer(PL, logger=loggers, callbacks=callbacks, max_epochs=3)
    trainer.fit(module, lab.batches(), lab.batches())

    (_, first), (_, second) = texts(events(tmp_path))
    states = [dict(re.findall(r"^\| (\S+) \| ([^|]+) \|", text, re.M)) for text in (first, second)]
    assert [each["attn.0"] for each in states] == ["frozen", "LoRA only"]
    assert [each["attn.1"] for each in states] == ["LoRA only"] * 2
    assert states[1]["mlp.0"] == "user-frozen"
    colours = Image.open(tmp_path / "csv/0/freeze_timeline.png").convert("RGB").getcolors(1 << 24)
    drawn = {colour: number for number, colour in colours}
    assert drawn[0xCC, 0x79, 0xA7] > drawn[0x2F, 0x6D, 0xAA] > 1000  # LoRA only, frozen


def test_image_at_a_checkpoint_after_a_change_and_at_the_end(tmp_path):
    """Of eight checkpoints the first and the one after the thaw draw, on another thread; then the end."""
    callback = import_module(f"{PL}.callbacks").ModelCheckpoint
    checkpoints = callback(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    freezer = Freezer(name_starts_with=["network.h.0."], until_step=5)
    logger = tensorboard(PL, tmp_path)
    drawing: list[str] = []
    add_image = logger.experiment.add_image

    def note(*arguments: Any, **options: Any) -> None:
        drawing.append(threading.current_thread().name)
        add_image(*arguments, **options)

    logger.experiment.add_image = note
    pause = Pause()
    fit(PL, logger, FreezeStateLogger(), freezer, checkpoints, pause, enable_checkpointing=True, max_epochs=4)
    images = events(tmp_path).Images("freeze/timeline")
    assert [image.step for image in images] == [2, 6, 16]
    assert "MainThread" not in drawing
    assert Image.open(io.BytesIO(images[-1].encoded_image_string)).size == (
        images[-1].width,
        images[-1].height,
    )


class Pause(import_module(f"{PL}").Callback):
    """Waits after each batch until no other thread works."""

    def on_train_batch_end(self, *_: Any) -> None:
        for thread in threading.enumerate():
            if "freeze/timeline" in thread.name:
                thread.join()


@pytest.mark.parametrize("is_card", [True, False])
def test_a_logger_that_fails_to_take_the_picture_does_not_end_the_run(is_card, tmp_path, caplog):
    """One warning with the cause, and the run goes on to its end."""
    logger = tensorboard(PL, tmp_path) if is_card else csv_logger(PL, tmp_path)
    if is_card:
        logger.experiment.add_image = lambda *_, **__: 1 / 0
    else:
        assert logger.experiment  # it warns of a folder that is not empty
        (tmp_path / "csv/0/freeze_timeline.png").mkdir(parents=True)
    trainer = fit(PL, logger, FreezeStateLogger())
    assert trainer.global_step == 12
    assert "freeze/timeline was not written: " in caplog.text


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
        "attention": ["run-trainable_share/attn.0", "run-trainable_share/attn.1"],
        "norms": ["run-trainable_share/ln_1.0", "run-trainable_share/ln_1.1"],
        "mlp": ["run-trainable_share/mlp.0", "run-trainable_share/mlp.1"],
        "embeddings & head": ["run-trainable_share/lm_head"],
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
    assert rows(tmp_path, "trainable_share/attn.0") == [(0, 0.0), (4, 0.0), (5, 1.0), (12, 1.0)]
    assert rows(tmp_path, "trainable_share/mlp.1") == [(0, 1.0), (12, 1.0)]
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


class Client:
    """The methods of an MLflow or Comet client that show pictures and texts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def log_image(self, *arguments: Any, **options: Any) -> None:
        self.calls.append(("image", arguments, options))

    def log_text(self, *arguments: Any, **options: Any) -> None:
        self.calls.append(("text", arguments, options))


@pytest.mark.parametrize("run_id", ["run1", None])
def test_mlflow_and_comet_get_picture_and_table_by_their_own_methods(run_id, tmp_path):
    """`MlflowClient.log_image(run_id, image, artifact_file)`, `Experiment.log_image(image, name, step)`."""
    client = Client()

    class Remote(import_module(f"{PL}.loggers").CSVLogger):
        experiment = client
        log_metrics = save = lambda *_, **__: None

    logger = Remote(tmp_path)
    logger.run_id = run_id
    fit(PL, logger, FreezeStateLogger(), Freezer(name_starts_with=["network.h.0."], until_step=5))
    (kind, image_at, image_options) = client.calls[-1]
    texts_at = [call for call in client.calls if call[0] == "text"]
    assert (kind, len(texts_at)) == ("image", 2)
    assert "| mlp.0 | trainable | 72 | 72 |" in texts_at[1][1][1 if run_id else 0]
    if run_id:
        assert (image_at[0], image_at[2]) == ("run1", "freeze/timeline.png")
        assert (texts_at[1][1][0], texts_at[1][1][2]) == ("run1", "freeze/state/step_5.md")
    else:
        assert image_options == {"name": "freeze/timeline", "step": 12}
        assert texts_at[1][2] == {"step": 5, "metadata": {"key": "freeze/state"}}
    assert not list(tmp_path.rglob("*.png"))


def test_a_logger_with_tables_gets_the_table(tmp_path):
    """`log_table(key, columns, data, step)`, as Weights & Biases has it."""
    tables = []

    class Tables(import_module(f"{PL}.loggers").CSVLogger):
        def log_table(self, key: str, columns: Any, data: Any, step: int) -> None:
            tables.append((key, columns, data, step))

    freezer = Freezer(name_starts_with=["network.h.0."], until_step=5)
    fit(PL, Tables(tmp_path, name="csv", version="0"), FreezeStateLogger(), freezer)
    (_, _, _, first), (key, columns, data, step) = tables
    assert (key, columns[0], first, step) == ("freeze/state", "component", 0, 5)
    assert ["mlp.0", "trainable", "72", "72"] in data


def test_without_a_logger_the_table_is_all(caplog, monkeypatch):
    """With `logger=False` and `show_table` the start shows all layers, and the thaw what changed."""
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    with caplog.at_level(logging.INFO):
        fit(PL, False, FreezeStateLogger(True), Freezer(name_starts_with=["network.h.0."], until_step=5))
    start, thaw = (text.splitlines() for text in caplog.messages if "by layers" in text)
    assert start[0] == "step 0, by layers:"
    assert [line.split()[:2] for line in start[2:]] == [["frozen", "h.0"], ["trainable", "h.1,"]]
    assert thaw[0] == "step 5, by layers:"
    assert [line.split()[:4] for line in thaw[2:]] == [["frozen", "->", "trainable", "h.0"]]


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
    expected = [(8, 0.0), (9, 0.0), (10, 1.0), (11, 1.0), (12, 1.0)]
    assert points(events(tmp_path), "trainable_share/attn.1") == expected


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


def test_after_a_fit_it_can_be_pickled_and_copied(tmp_path):
    """It holds neither the model nor functions of the run then, and a copy goes on with the timeline."""
    logger = FreezeStateLogger()
    fit(PL, tensorboard(PL, tmp_path), logger, Freezer(name_starts_with=["network.h.0."], until_step=5))
    pickled, copied = pickle.loads(pickle.dumps(logger)), copy.deepcopy(logger)
    assert len(pickle.dumps(logger)) < 10_000
    assert pickled.state_dict() == copied.state_dict() == logger.state_dict()
    fit(PL, csv_logger(PL, tmp_path), copied)


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
