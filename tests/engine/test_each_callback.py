"""What holds for a Freezer holds for GradualUnfreezing and LayerOperations, in both namespaces."""

import contextlib
import logging
import re
import warnings
from collections import OrderedDict
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader

from lighter_freezers import (
    Freezer,
    FreezeStateLogger,
    GradientNormMonitor,
    GradualUnfreezing,
    LayerOperations,
    PhaseRecorder,
    ResultsSummary,
)
from tests.engine.effects.test_frozen_is_bit_equal import Lookahead, Sam
from tests.engine.test_unusual_modules import Blocks, frozen_blocks, history, three, waiting
from tests.lab import NAMESPACES, WIDTH, Stream, batches, first_now, recorder, regression, trainer

KINDS = ("freezer", "gradual", "operations")
USUAL = {kind: [True] * steps + [False] * (12 - steps) for kind, steps in zip(KINDS, (2, 8, 2), strict=True)}
FIRST, *OTHERS = product(NAMESPACES, KINDS)
WIDE = [pytest.param(*case, marks=pytest.mark.wide) for case in OTHERS]
each = pytest.mark.parametrize(("namespace", "kind"), [FIRST, *WIDE])
LIMITS = ({"max_epochs": 3}, {"max_epochs": -1, "max_steps": 12})


def of_block_0(seen: list[list[bool]]) -> list[bool]:
    return [frozen[0] for frozen in seen]


@each
@pytest.mark.parametrize("monitor", first_now(["acc", "val/los"]))
def test_a_metric_that_nothing_logs_is_an_error_once_it_is_due(
    namespace: str, kind: str, monitor: str
) -> None:
    """After the first epoch, where no sanity check has told before."""
    with pytest.raises(RuntimeError, match=f"waits for the metric '{monitor}', .* never logged. Closest: "):
        history(namespace, regression(namespace, Blocks), waiting(monitor)[kind])


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@each
def test_a_metric_that_the_trainer_lets_nothing_log_is_told(namespace: str, kind: str, caplog: Any) -> None:
    """`barebones`: no error, since steps may do as well; without validation there is one, which says so."""
    bare = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "barebones"), None
    )
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"), contextlib.suppress(RuntimeError):
        history(namespace, regression(namespace, Blocks), waiting("acc")[kind], **{**bare, "barebones": True})
    told = "waits for the metric 'acc', and Trainer(barebones=True) lets nothing log one"
    assert len([each for each in caplog.messages if told in each]) == 1
    with pytest.raises(RuntimeError, match="'acc', but it was never logged, and this run has no validation"):
        history(namespace, regression(namespace, Blocks), waiting("acc")[kind], limit_val_batches=0)


@each
def test_a_metric_is_found_without_epoch(namespace: str, kind: str) -> None:
    """`val/acc/epoch`, as lighter logs it, is `val/acc`; it is above the threshold from epoch 1 on."""
    module = regression(namespace, Blocks)

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val/acc/epoch", 0.9 if self.current_epoch else 0.1)

    type(module).validation_step = validation_step
    options = {"max_epochs": 4, "num_sanity_val_steps": 1}
    seen = of_block_0(history(namespace, module, waiting("val/acc")[kind], **options))

    change = {"freezer": 8, "gradual": 12, "operations": 4}[kind]
    assert seen == [kind != "operations"] * change + [kind == "operations"] * (16 - change)


def without_experiment(namespace: str, _: Path) -> Any:
    """A Logger with the abstract methods alone, which notes the names."""

    class Own(import_module(f"{namespace}.loggers.logger").Logger):  # type: ignore[misc]
        name, version = "own", 0

        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.names |= metrics.keys()

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

    return Own()


def client(name: str, package: str, **options: Any) -> Any:
    def build(namespace: str, folder: Path) -> Any:
        pytest.importorskip(package, reason=f"{name} needs {package}")
        values = {key: str(value).format(folder=folder) for key, value in options.items()}
        return getattr(import_module(f"{namespace}.loggers"), name)(**{**options, **values})

    return build


LOGGERS = {
    "own": without_experiment,
    "CSV": client("CSVLogger", "csv", save_dir="{folder}"),
    "TensorBoard": client("TensorBoardLogger", "tensorboard", save_dir="{folder}"),
    "W&B": client("WandbLogger", "wandb", save_dir="{folder}", mode="offline", project="freezers"),
    "MLflow": client("MLFlowLogger", "mlflow", experiment_name="freezers", tracking_uri="file:{folder}/runs"),
    "Comet": client("CometLogger", "comet_ml", offline_directory="{folder}", project="freezers"),
}


@pytest.mark.filterwarnings("ignore")  # of the clients
@each
@pytest.mark.parametrize("name", first_now(LOGGERS))
def test_every_logger_takes_what_is_logged(
    name: str, namespace: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that reports is in the run, and names are those that MLflow and W&B accept."""
    for variable in ("WANDB_SILENT", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(variable, "true")
    monkeypatch.setenv("COMET_START_ONLINE", "false")
    logger = LOGGERS[name](namespace, tmp_path)
    rates = import_module(f"{namespace}.callbacks").LearningRateMonitor()
    reports = [FreezeStateLogger(), GradientNormMonitor(1, dirpath=str(tmp_path)), ResultsSummary(), rates]
    seen = recorder(namespace, frozen_blocks)
    options = {"logger": logger, "default_root_dir": tmp_path, "max_epochs": 3, "log_every_n_steps": 1}
    run = trainer(namespace, callbacks=[three()[kind], *reports, seen], **options)
    run.fit(regression(namespace, Blocks), batches(), batches())
    if name in ("W&B", "Comet"):
        logger.experiment.finish() if name == "W&B" else logger.experiment.end()

    assert of_block_0(seen.seen) == USUAL[kind]
    if name == "own":
        assert all(re.fullmatch(r"[/\w.\- :]+", each) for each in logger.names)
        assert {"gradient_norm/blocks.0", "trainable_share/blocks.0"} <= logger.names


def oddly_named() -> Any:
    layers = {"in (8), a=1": nn.Linear(WIDTH, WIDTH), "out['y']#2": nn.Linear(WIDTH, 1)}
    return nn.Sequential(OrderedDict(layers))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_layers_of_any_name_are_logged_as_every_logger_takes_them(namespace: str, tmp_path: Path) -> None:
    """Without the characters that MLflow refuses; the files keep the names."""
    logger = without_experiment(namespace, tmp_path)
    rates = import_module(f"{namespace}.callbacks").LearningRateMonitor()
    freezer = Freezer(name_starts_with="in (8), a=1.", until_step=2, unfreeze_lr=0.01)
    reports = [FreezeStateLogger(), GradientNormMonitor(1, dirpath=str(tmp_path)), rates]
    options = {"logger": logger, "default_root_dir": tmp_path, "max_epochs": 1, "log_every_n_steps": 1}
    module = regression(namespace, oddly_named)
    trainer(namespace, callbacks=[freezer, *reports], **options).fit(module, batches(), batches())

    assert {"gradient_norm/in 8 a 1", "trainable_share/out y 2"} <= logger.names
    assert all(re.fullmatch(r"[/\w.\- :]+", each) for each in logger.names)
    assert "in (8), a=1" in (tmp_path / "gradient_analysis.group_norms.csv").read_text()


@each
@pytest.mark.parametrize("keeps", first_now([(), ("stem",), ("stem", "head")]), ids=str)
def test_layers_of_configure_model_are_found(namespace: str, kind: str, keeps: tuple[str, ...]) -> None:
    """As if they had been there from the start, whatever part of the model was."""
    module = regression(namespace, Blocks)
    late = {name: child for name, child in module.network.named_children() if name not in keeps}
    for name in late:
        delattr(module.network, name)

    def configure_model(self: Any) -> None:
        for name, child in late.items():
            setattr(self.network, name, child)

    type(module).configure_model = configure_model
    assert of_block_0(history(namespace, module, three()[kind])) == USUAL[kind]


def with_state(optimizer_state: Any) -> dict[str, Any]:
    operations = [
        {"name": "freeze_layer", "value": "block.0", "max_wait_iters": 0},
        {"name": "unfreeze_layer", "value": "block.0", "max_wait_iters": 2},
    ]
    return {
        "freezer": Freezer(name_starts_with="blocks.0.", until_step=2, optimizer_state=optimizer_state),
        "gradual": GradualUnfreezing(every_n_epochs=1, optimizer_state=optimizer_state),
        "operations": LayerOperations(operations, optimizer_state=optimizer_state),
    }


@each
@pytest.mark.parametrize("wrapper", [Lookahead, Sam])
@pytest.mark.parametrize("state", ["keep", "reset", "free"])
def test_a_wrapper_goes_on_or_is_refused(namespace: str, kind: str, wrapper: Any, state: Any) -> None:
    module, callback = regression(namespace, Blocks, wrapper), with_state(state)[kind]
    if state == "keep":
        assert of_block_0(history(namespace, module, callback)) == USUAL[kind]
        return
    with pytest.raises(RuntimeError, match=f"'{state}' drops .* {wrapper.__name__} wraps another .*'keep'"):
        history(namespace, module, callback)


@each
@pytest.mark.parametrize("limits", first_now(LIMITS), ids=str)
def test_a_stream_brings_no_false_warning(namespace: str, kind: str, limits: Any, caplog: Any) -> None:
    seen = recorder(namespace, frozen_blocks)
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        run = trainer(namespace, callbacks=[three()[kind], seen], **limits)
        run.fit(regression(namespace, Blocks), DataLoader(Stream(), batch_size=None), batches())

    assert of_block_0(seen.seen) == USUAL[kind]
    assert [text for text in caplog.messages if "gradient flows" not in text] == []


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_early_stopping_before_the_next_stage_is_told(namespace: str, caplog: Any) -> None:
    """Before the first step."""
    stopping = import_module(f"{namespace}.callbacks").EarlyStopping(monitor="val/loss", patience=1)
    told = recorder(namespace, lambda *_: caplog.text, "on_train_epoch_start")
    callbacks = [GradualUnfreezing(every_n_epochs=2), stopping, told]
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        run = trainer(namespace, callbacks=callbacks)
        run.fit(regression(namespace, Blocks), batches(), batches())

    assert "EarlyStopping ends the run after 1 checks of val/loss without progress" in told.seen[0]


@each
def test_a_disk_that_cannot_be_written_ends_no_run(namespace: str, kind: str) -> None:
    """One warning of each that reports. Not even root can create a folder there."""
    reports = [GradientNormMonitor(1), PhaseRecorder(num_timed=0), ResultsSummary(), FreezeStateLogger()]
    seen = recorder(namespace, frozen_blocks)
    callbacks = [three()[kind], *reports, seen]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(namespace, callbacks=callbacks, default_root_dir="/proc/reports", max_epochs=3)
        run.fit(regression(namespace, Blocks), batches(), batches())

    assert of_block_0(seen.seen) == USUAL[kind]
    said = [str(each.message).split()[0] for each in caught if "writes nothing more" in str(each.message)]
    assert sorted(said) == ["GradientNormMonitor", "PhaseRecorder", "ResultsSummary"]
