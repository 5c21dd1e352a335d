"""`lighter-freezers compare`: tables and pictures of finished runs, by the real command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import GradientNormMonitor, ResultsSummary
from lighter_freezers.cli.main import main
from tests import lab

STEP = "step,attention_norm,total_norm\n0,1.0,2.0\n1,0.5,1.0\n"


def write_run(folder: Path, config: dict[str, Any] | None, **summary: Any) -> Path:
    """The summary of a run, as `ResultsSummary` writes it."""
    folder.mkdir(parents=True)
    (folder / "results_summary.json").write_text(json.dumps({"config": config, **summary}))
    return folder


def write_scores(folder: Path, name: str = "evaluation_results.json", **scores: float) -> None:
    """An evaluation, as `lighter test` writes it."""
    (folder / name).write_text(json.dumps({"scores": scores}))


def table(printed: str, heading: str) -> dict[str, list[str]]:
    """The rows of a printed table, by their names; values hold no blanks."""
    lines = printed[printed.index(heading) :].split("\n\n")[0].splitlines()[2:]
    rows = [line.split("  ", 1) for line in lines if "  " in line]
    return {name: values.split() for name, values in rows}


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs in one experiment, of which one was tested twice."""
    callbacks = [{"_target_": "x.LoraPhases", "strategy": "a"}, {"_target_": "x.Saver", "every": 3}]
    first = write_run(
        tmp_path / "mlp/version_0",
        {"model": {"lora": {"r": 8}, "lr": 0.1}, "trainer": {"callbacks": callbacks}},
        optimizer_steps=60,
        train_loss=1.23456,
        metrics={"val/loss": 2.0},
        trainable_parameters=2_442_240,
        gradient_stats={"gradient_analysis": {"mlp": {"mean": 0.25}, "embed": {"mean": None}}},
    )
    write_scores(first, rouge_l=20.5)
    for number in (2, 10):
        write_scores(first, f"evaluation_results_{number}.json", rouge_l=float(number))
    second = write_run(
        tmp_path / "attention/version_0",
        {"model": {"lora": {"r": 4}, "lr": 0.1}, "trainer": {"callbacks": callbacks[1:]}},
        optimizer_steps=60,
        evaluation={"rouge_l": 19.0},
    )
    return [str(first), str(second)]


def test_the_settings_that_differ_and_all_figures(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A column for each run, a dash for what it lacks, the latest evaluation."""
    assert main(["compare", "--no-plots", *runs]) == 0

    printed = capsys.readouterr().out
    assert "mlp/version_0  attention/version_0" in printed
    assert table(printed, "settings that differ") == {
        "model::lora::r": ["8", "4"],
        "trainer::callbacks::LoraPhases::_target_": ["x.LoraPhases", "-"],
        "trainer::callbacks::LoraPhases::strategy": ["a", "-"],
    }
    assert table(printed, "results") == {
        "optimizer_steps": ["60", "60"],
        "train_loss": ["1.235", "-"],
        "val/loss": ["2", "-"],
        "trainable_parameters": ["2,442,240", "-"],
        "mlp gradient norm": ["0.25", "-"],
        "rouge_l": ["10", "19"],
    }


def test_two_resnets_fit_on_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40 lines of 110 characters: of 160 layers those with the largest norms, long settings cut."""
    for run, factor in (("one", 1.0), ("two", 2.0)):
        norms = {f"layer{n // 9 + 1}.{n % 9}.conv1": {"mean": factor * n} for n in range(160)}
        norms["total"] = {"mean": 0.5}
        callbacks = [{"_target_": "lighter_freezers.GradientNormMonitor", "every_n_steps": int(factor)}]
        weights = f"/a/folder/of/weights/that/has/a/long/name/of/{run}/resnet50.pt"
        config = {"trainer": {"callbacks": callbacks}, "model": {"network": {"weights": weights}}}
        write_run(tmp_path / run, config, train_loss=1.0, gradient_stats={"gradient_analysis": norms})

    assert main(["compare", "--no-plots", str(tmp_path / "one"), str(tmp_path / "two")]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 110
    assert lines[-1] == "and 152 smaller gradient norms, in the *.summary.json of the runs"
    rows = table("\n".join(lines), "results")
    assert [name for name in rows if "layer" in name][-1] == "layer18.6.conv1 gradient norm"
    assert {"total gradient norm", "layer18.0.conv1 gradient norm"} < rows.keys()
    assert "layer17.7.conv1 gradient norm" not in rows


def test_a_run_without_a_config_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a model that was only tested; one run alone has none either."""
    one = write_run(tmp_path / "one", {"lr": 0.1}, train_loss=1.5)
    (tmp_path / "other").mkdir()
    write_scores(tmp_path / "other", bleu=3.0)

    assert main(["compare", "--no-plots", str(one), str(tmp_path / "other")]) == 0
    printed = capsys.readouterr().out
    assert "settings that differ" not in printed
    assert table(printed, "results") == {"train_loss": ["1.5", "-"], "bleu": ["-", "3"]}


def test_real_runs_are_drawn_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By what the callbacks of two fits wrote; the pictures are where the command says."""
    for name in ("one", "two"):
        trainer = lab.trainer(
            "pytorch_lightning",
            callbacks=[GradientNormMonitor(every_n_steps=1), ResultsSummary()],
            default_root_dir=tmp_path / name,
        )
        trainer.fit(lab.regression("pytorch_lightning"), lab.batches(), lab.batches(8))
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0

    printed = capsys.readouterr().out
    pictures = [Path(line) for line in printed.splitlines() if line.endswith(".png")]
    assert [picture.name for picture in pictures] == ["gradient_norms.png", "training_loss.png"]
    assert {picture.parent for picture in pictures} == {tmp_path / "comparison"}
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    losses = table(printed, "results")["train_loss"]
    assert losses[0] == losses[1]


def test_runs_that_measured_nothing_are_not_drawn(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints that there are none."""
    assert main(["compare", *runs]) == 0
    assert "No plots: no run has *.group_norms.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "There is no folder nowhere."),
        (["mlp"], "mlp is not the folder of one run. Runs in it: mlp/version_0"),
        (["empty"], "Add lighter_freezers.ResultsSummary"),
        (["mlp/version_0", "mlp/../mlp/version_0"], "given twice"),
        (["broken"], "is not JSON"),
    ],
)
def test_mistakes_are_answered(
    words: list[str],
    message: str,
    runs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a sentence on stderr, with status 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "broken", {})
    (tmp_path / "broken/results_summary.json").write_text('{"config": ')

    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
