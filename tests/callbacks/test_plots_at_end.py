"""PlotsAtEnd in real fits."""

from pathlib import Path

import pytest

from lighter_freezers import Freezer, GradientNormMonitor, PlotsAtEnd
from tests.lab import NAMESPACES, batches, frozen_layers, recorder, regression, trainer


def fit(namespace: str, folder: Path, *callbacks: object, **options: object) -> None:
    monitor = GradientNormMonitor(1, dirpath=str(folder))
    run = trainer(namespace, callbacks=[*callbacks, monitor], **options)
    run.fit(regression(namespace), batches(), batches())


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_pictures_are_there_when_the_run_is_over(namespace: str, tmp_path: Path) -> None:
    """Beside the files of the run, in whatever order the callbacks stand, with the last row in them."""
    fit(namespace, tmp_path, PlotsAtEnd())

    assert {"gradient_norms.png", "training_loss.png", "experiment_summary.json"} <= {
        path.name for path in (tmp_path / "plots").iterdir()
    }


def test_only_the_run_itself_is_drawn(tmp_path: Path) -> None:
    """Not the others in its folder; and into another folder if asked."""
    fit(NAMESPACES[0], tmp_path / "norms")
    fit(NAMESPACES[0], tmp_path / "norms", PlotsAtEnd(dirpath=str(tmp_path / "pictures")))
    report = (tmp_path / "pictures" / "experiment_summary.json").read_text()

    assert report.count('"attention_mean"') == 1
    assert not (tmp_path / "norms" / "plots").exists()


def test_a_picture_that_fails_ends_no_run(tmp_path: Path) -> None:
    """It is a warning: nothing was measured here."""
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not draw"):
        fit(NAMESPACES[0], tmp_path, PlotsAtEnd())

    assert (tmp_path / "gradient_analysis.summary.json").exists()


def test_without_a_monitor_it_says_so_before_training() -> None:
    """There would be nothing to draw."""
    run = trainer(NAMESPACES[0], callbacks=[PlotsAtEnd()])
    with pytest.raises(RuntimeError, match="Add lighter_freezers.GradientNormMonitor"):
        run.fit(regression(NAMESPACES[0]), batches(), batches())


def test_a_freezer_behind_it_freezes(tmp_path: Path) -> None:
    """The engine of the rules is set up wherever the first callback of ours stands."""
    seen = recorder(NAMESPACES[0], lambda _, module: frozen_layers(module))
    callbacks = [PlotsAtEnd(), Freezer(name_starts_with="layer2"), seen]
    fit(NAMESPACES[0], tmp_path, *callbacks)

    assert seen.seen == [["layer2"]] * 4
    assert not list(tmp_path.glob("*-v1*"))


def test_a_dirpath_that_is_no_string_is_an_error() -> None:
    """As YAML may pass one."""
    with pytest.raises(TypeError, match="dirpath"):
        PlotsAtEnd(dirpath=3)  # type: ignore[arg-type]
