"""A callback that only reports never ends a run: a full or read-only disk is one warning each."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import Freezer, FreezeStateLogger, GradientNormMonitor, PhaseRecorder, ResultsSummary
from tests.lab import NAMESPACES, batches, recorder, regression, trainer


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
