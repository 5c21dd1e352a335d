"""A callback that only reports never ends a run: a full or read-only disk is one warning each."""

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import (
    Freezer,
    FreezeStateLogger,
    GradientNormMonitor,
    PhaseRecorder,
    PlotsAtEnd,
    ResultsSummary,
)
from tests.lab import NAMESPACES, batches, first_now, recorder, regression, trainer


def reports(folder: str) -> list[Any]:
    monitor = GradientNormMonitor(every_n_steps=1, dirpath=folder, save_format="json")
    return [monitor, PhaseRecorder(num_timed=0), ResultsSummary(), FreezeStateLogger()]


def fitted(namespace: str, folder: str, *more: Any, **options: Any) -> tuple[Any, list[str]]:
    """The Trainer after two epochs, and the warnings."""
    callbacks = [*more, Freezer(name_starts_with="layer2.", until_step=5), *reports(folder)]
    run = trainer(namespace, callbacks=callbacks, max_epochs=2, default_root_dir=folder, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(regression(namespace), batches(), batches())
    return run, [str(each.message) for each in caught]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_disk_that_cannot_be_written_is_one_warning(namespace: str) -> None:
    """Not even root can create a folder there."""
    run, said = fitted(namespace, "/proc/reports")

    assert run.global_step == 8
    for title in ("GradientNormMonitor", "PhaseRecorder", "ResultsSummary"):
        assert len([each for each in said if each.startswith(f"{title} writes nothing more")]) == 1, title


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_disk_that_becomes_full_is_one_warning(namespace: str, tmp_path: Path) -> None:
    """In the second epoch no file may grow beyond 400 bytes."""
    resource: Any = pytest.importorskip("resource")  # Windows has none
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(run: Any, _: Any) -> None:
        if run.current_epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))

    filler = recorder(namespace, fill, when="on_train_epoch_start")
    try:
        run, said = fitted(namespace, str(tmp_path), filler)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert run.global_step == 8
    for title in ("GradientNormMonitor", "PhaseRecorder", "ResultsSummary"):
        assert len([each for each in said if each.startswith(f"{title} writes nothing more")]) == 1, title
    assert (tmp_path / "gradient_analysis.group_norms.csv").read_text().count("\n") > 2


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_logger_that_cannot_write_is_one_warning(namespace: str, tmp_path: Path) -> None:
    class Full(import_module(f"{namespace}.loggers").CSVLogger):  # type: ignore[misc]
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if any(name.startswith(("freeze", "gradient")) for name in metrics):
                raise OSError(28, "No space left on device")

    run, said = fitted(namespace, str(tmp_path), logger=Full(tmp_path))

    assert run.global_step == 8
    assert len([each for each in said if each.startswith("Full cannot write: [Errno 28]")]) == 1


def test_a_later_run_writes_again(tmp_path: Path) -> None:
    callbacks = reports("/proc/reports")
    with pytest.warns(UserWarning, match="writes nothing more"):
        trainer(NAMESPACES[0], callbacks=callbacks, default_root_dir="/proc/reports").fit(
            regression(NAMESPACES[0]), batches(), batches()
        )
    callbacks[0].dirpath = tmp_path
    trainer(NAMESPACES[0], callbacks=callbacks, default_root_dir=tmp_path).fit(
        regression(NAMESPACES[0]), batches(), batches()
    )
    assert (tmp_path / "gradient_analysis.summary.json").exists()
    assert (tmp_path / "results_summary.json").exists()


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1]"])
def test_a_damaged_summary_of_norms_is_left_out(
    namespace: str, content: bytes, tmp_path: Path, caplog: Any
) -> None:
    """Whoever wrote it: the run has its own summary, and the warning names the file."""
    (tmp_path / "old.summary.json").write_bytes(content)
    fitted(namespace, str(tmp_path))

    assert caplog.text.count("old.summary.json is not a summary of a run, or it is damaged") == 1
    stats = json.loads((tmp_path / "results_summary.json").read_text())["gradient_stats"]
    assert stats.keys() == {"gradient_analysis"}


@pytest.mark.parametrize("phases", [[{"width": 3}], [3], None, {}])
def test_a_report_of_phases_from_elsewhere_ends_no_run(phases: Any, tmp_path: Path) -> None:
    """Another program's, or that of a version with other fields."""
    (tmp_path / "freeze_report.json").write_text(json.dumps({"num_steps": 3, "phases": phases}))
    run = trainer(NAMESPACES[0], callbacks=[ResultsSummary()], default_root_dir=tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(regression(NAMESPACES[0]), batches())

    said = [str(each.message) for each in caught if "freeze_report.json is not" in str(each.message)]
    assert len(said) == (phases != {})
    assert (tmp_path / "results_summary.json").exists()


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_a_damaged_summary_of_the_run_ends_no_test(namespace: str, tmp_path: Path) -> None:
    """It stays as it is."""
    (tmp_path / "results_summary.json").write_text("{")
    module = regression(namespace)
    module.test_step = lambda batch, batch_idx: module.log("test/loss", module.loss(batch))
    run = trainer(namespace, callbacks=[ResultsSummary()], default_root_dir=tmp_path)

    with pytest.warns(UserWarning, match="ResultsSummary writes nothing more.*results_summary.json is not a"):
        run.test(module, batches(), verbose=False)
    assert (tmp_path / "results_summary.json").read_text() == "{"


def no_text(content: bytes) -> bytes:
    return content[:-20] + b"\xff\x00\xfe" + content[-20:]


def no_step(content: bytes) -> bytes:
    return content.replace(b"\n3,", b"\nthree,")


def no_row(content: bytes) -> bytes:
    return content.replace(b"\n3,", b"\n\n3,")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize("damage", [no_text, no_step, no_row])
def test_damaged_rows_are_one_warning(namespace: str, damage: Any, tmp_path: Path) -> None:
    """In the run that writes them, and in one that would go on with them, with plots at their ends."""
    norms = tmp_path / "gradient_analysis.group_norms.csv"

    def hurt(run: Any, _: Any) -> None:
        if run.current_epoch == 1 and run.ckpt_path is None:
            norms.write_bytes(damage(norms.read_bytes()))

    keep = import_module(f"{namespace}.callbacks").ModelCheckpoint(tmp_path / "kept", save_last=True)
    for own in ({"max_epochs": 2, "enable_checkpointing": True}, {"max_epochs": 3}):
        options = {"default_root_dir": tmp_path, **own}
        is_resumed = options["max_epochs"] == 3
        callbacks = [*reports(str(tmp_path)), PlotsAtEnd(), recorder(namespace, hurt, "on_train_epoch_end")]
        run = trainer(namespace, callbacks=[*callbacks, *([] if is_resumed else [keep])], **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path = tmp_path / "kept" / "last.ckpt" if is_resumed else None
            run.fit(regression(namespace), batches(), batches(), ckpt_path=path)
        said = [str(each.message) for each in caught if "damaged" in str(each.message)]
        assert run.global_step == 4 * options["max_epochs"]
        titles = [text.split()[0] for text in said]
        assert titles in (["GradientNormMonitor"], ["GradientNormMonitor", "PlotsAtEnd"])
        assert f"{norms} is damaged: " in said[0]


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_a_logger_whose_server_is_gone_is_one_warning(namespace: str, tmp_path: Path) -> None:
    """Clients raise errors of their own."""

    class Gone(import_module(f"{namespace}.loggers").CSVLogger):  # type: ignore[misc]
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if any(name.startswith(("freeze", "gradient")) for name in metrics):
                raise RuntimeError("no server")

    run, said = fitted(namespace, str(tmp_path), logger=Gone(tmp_path))

    assert run.global_step == 8
    assert len([each for each in said if each.startswith("Gone cannot write: no server")]) == 1


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("option", ["limit_train_batches", "max_epochs", "max_steps"])
def test_a_run_without_a_step_has_a_summary(namespace: str, option: str, tmp_path: Path) -> None:
    """Of that run alone, also where the callback has seen a longer one before."""
    summary = ResultsSummary()
    for folder, own in ((tmp_path / "long", {"max_epochs": 1}), (tmp_path, {option: 0})):
        run = trainer(namespace, callbacks=[summary], default_root_dir=folder, **own)
        run.fit(regression(namespace), batches(), batches())

    found = json.loads((tmp_path / "results_summary.json").read_text())
    assert (found["optimizer_steps"], found["train_loss"], found["train_seconds"] < 60) == (0, None, True)
    assert found["parameters"] == found["final_trainable_parameters"] > 0
