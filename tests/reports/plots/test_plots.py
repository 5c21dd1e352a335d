"""The pictures: what is on them, pixel by pixel where it matters, and what they say when a file is amiss."""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lighter_freezers.reports.plots import (
    canvas,
    find_runs,
    generate_summary_report,
    plot_everything,
    plot_gradient_evolution,
    plot_gradient_norms,
    plot_layer_comparison,
    plot_layer_heatmap,
    plot_training_loss,
)
from lighter_freezers.reports.plots.canvas import smoothed
from lighter_freezers.reports.plots.groups import largest
from lighter_freezers.reports.plots.runs import Mark, StepTable
from tests.lab import first_now

ROOT = Path(__file__).parents[2]
BLUE, GREY = (0x00, 0x72, 0xB2), (0xD0, 0xD0, 0xD0)  # attention; no gradient
NUM_LAYERS, NUM_ROWS = 3, 40
Trains = Callable[[int, str], bool]


def write_run(folder: Path, trains: Trains = lambda step, kind: True, scale: float = 1.0) -> Path:
    """The files of a run of forty measurements, ten steps apart, on three layers."""
    folder.mkdir(parents=True)
    kinds = ("attention", "mlp")
    columns = [f"layer_{layer}_{kind}" for layer in range(NUM_LAYERS) for kind in kinds]
    groups = ["step,embed_norm,attention_norm,mlp_norm,lm_head_norm,total_norm"]
    layers, losses = [",".join(["step", *columns])], ["step,train_loss,val_loss"]
    for step in range(0, 10 * NUM_ROWS, 10):
        norms = [_norm(step, kind, scale) if trains(step, kind) else "" for kind in kinds]
        groups.append(f"{step},,{norms[0]},{norms[1]},,{scale * 4}")
        layers.append(",".join([str(step), *(norms[index % 2] for index in range(len(columns)))]))
        losses += [f"{step},{3 - step / 400},", f"{step},,{3.5 - step / 400}"]
    changes = ["step,frozen,thawed,holders,notes", "200,attn,,LoraPhases(phase 2 of 2: mlp),"]
    written = {"group_norms": groups, "layer_norms": layers, "losses": losses, "transitions": changes}
    for kind, lines in written.items():
        (folder / f"gradient_analysis.{kind}.csv").write_text("\n".join(lines) + "\n")
    return folder


def _norm(step: int, kind: str, scale: float) -> str:
    return str(scale * (2 + math.cos(step)) * (0.5 if kind == "mlp" else 1))


def frozen_late(step: int, kind: str) -> bool:
    """The attention freezes at step 200."""
    return kind != "attention" or step < 200


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"))


def share(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> float:
    return float((picture == colour).all(axis=2).mean())


def test_a_line_has_a_gap_where_nothing_had_a_gradient(tmp_path: Path) -> None:
    """The attention's blue stops at the middle of its panel; it does not fall to zero."""
    frozen = pixels(plot_gradient_norms(write_run(tmp_path / "a", frozen_late), tmp_path / "a.png", window=1))
    whole = pixels(plot_gradient_norms(write_run(tmp_path / "b"), tmp_path / "b.png", window=1))
    panel = slice(None), slice(None, frozen.shape[1] // 2)  # the left one; the legend has as much in both
    spans = [np.count_nonzero((one[panel] == BLUE).all(axis=2).any(axis=0)) for one in (frozen, whole)]

    assert spans[0] < 0.6 * spans[1]


def test_the_heatmap_is_grey_where_nothing_had_a_gradient(tmp_path: Path) -> None:
    """A quarter of all cells: half of the steps of one of two kinds."""
    frozen = share(
        pixels(plot_layer_heatmap(write_run(tmp_path / "a", frozen_late), tmp_path / "a.png")), GREY
    )
    whole = share(pixels(plot_layer_heatmap(write_run(tmp_path / "b"), tmp_path / "b.png")), GREY)

    assert whole < 0.01
    assert frozen > 0.08


def test_a_mean_does_not_cross_a_mark_or_a_gap() -> None:
    """What a freeze changed at a step shows at that step."""
    table = StepTable(Path("x"), [0, 1, 2, 3, 4], {"a": [1.0, 1.0, 9.0, math.nan, 5.0]})
    means = smoothed(table, "a", 3, [Mark(2, "froze b")])

    assert means[:3] == [1.0, 1.0, 9.0]
    assert math.isnan(means[3])
    assert means[4] == 5.0


@pytest.mark.parametrize("num_runs", first_now([1, 2]))
def test_everything_is_drawn(num_runs: int, tmp_path: Path) -> None:
    """Of one run, and of several against each other: pictures that are not empty."""
    for number in range(num_runs):
        write_run(tmp_path / "runs" / f"run{number}", frozen_late, scale=number + 1)
    written = plot_everything(tmp_path / "runs", tmp_path / "plots")
    pictures = [path for path in written if path.suffix == ".png"]

    assert {path.stem for path in pictures} == {
        *("gradient_norms", "gradient_norms_log", "layer_heatmap", "layer_comparison"),
        *("layer_comparison_log", "gradient_evolution", "gradient_evolution_log", "training_loss"),
        "experiment_comparison",
    }
    assert all(len(Image.open(path).convert("RGB").getcolors(1 << 24)) > 20 for path in pictures)


def test_the_report_holds_the_statistics_of_the_columns(tmp_path: Path) -> None:
    """And the ratio of attention to MLP, of measured rows only."""
    write_run(tmp_path / "one", frozen_late)
    write_run(tmp_path / "two", scale=2.0)
    report = json.loads(generate_summary_report([tmp_path / "one", tmp_path / "two"], tmp_path).read_text())
    values = [2 + math.cos(step) for step in range(0, 200, 10)]
    attention = report["experiments"]["one"]["attention"]

    assert attention["mean"] == pytest.approx(statistics.fmean(values))
    assert attention["std"] == pytest.approx(statistics.pstdev(values))
    assert attention["peak_step"] == 10 * values.index(max(values))
    assert report["experiments"]["one"]["embed"]["mean"] is None
    assert report["comparison"]["two"]["attention_to_mlp_ratio"] == pytest.approx(2.0)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    """Not by what all of them share; version_2 comes before version_10."""
    for name in ("static/version_0", "phases/version_0"):
        write_run(tmp_path / "outputs" / name)
    for number in (10, 2):
        write_run(tmp_path / "many" / f"version_{number}")

    assert [run.label for run in find_runs([tmp_path / "outputs"])] == ["phases", "static"]
    assert [run.label for run in find_runs([tmp_path / "many"])] == ["version_2", "version_10"]


def test_marks_say_what_froze_and_which_phase_began(tmp_path: Path) -> None:
    """In the words of the file; what was frozen from the start is no mark."""
    folder = write_run(tmp_path / "run")
    (folder / "gradient_analysis.transitions.csv").write_text(
        "step,frozen,thawed,holders,notes\n0,wte,,Freezer,\n5,attn,mlp,,\n7,,,,attn.0 to rank 8\n"
    )

    assert find_runs([folder])[0].marks() == [Mark(5, "froze attn, thawed mlp"), Mark(7, "attn.0 to rank 8")]


@pytest.mark.parametrize(
    ("plot", "kind"),
    [
        (plot_layer_heatmap, "layer_norms"),
        (plot_layer_comparison, "layer_norms"),
        (plot_gradient_evolution, "layer_norms"),
        (plot_training_loss, "losses"),
        (plot_gradient_norms, "group_norms"),
    ],
)
def test_a_missing_file_is_an_error_that_names_it(plot: Any, kind: str, tmp_path: Path) -> None:
    """And nothing is drawn."""
    folder = write_run(tmp_path / "run")
    (folder / f"gradient_analysis.{kind}.csv").unlink()

    with pytest.raises(FileNotFoundError, match=kind):
        plot(folder, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("group_norms", "step,attention_norm\n0,1\n", "no column total_norm"),
        ("group_norms", "a,b\n1,2\n", "first column is step"),
        ("group_norms", "step,total_norm\n0,one\n", "'one' is not a number"),
        ("group_norms", "step,total_norm\n", "no rows yet"),
        ("layer_norms", "step,block_0\n0,1\n", "not layer_N_KIND"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_how(kind: str, text: str, message: str, tmp_path: Path) -> None:
    """With its path."""
    folder = write_run(tmp_path / "run")
    (folder / f"gradient_analysis.{kind}.csv").write_text(text)

    with pytest.raises(ValueError, match=message):
        plot_everything(folder, tmp_path / "plots")


def test_runs_without_layers_have_the_other_pictures(tmp_path: Path) -> None:
    """As of a model that is no transformer."""
    folder = write_run(tmp_path / "run")
    (folder / "gradient_analysis.layer_norms.csv").unlink()
    names = {path.name for path in plot_everything(folder, tmp_path)}

    assert {"gradient_norms.png", "training_loss.png"} <= names
    assert not any("layer" in name for name in names)


def test_infinite_norms_leave_a_gap(tmp_path: Path) -> None:
    """A step that overflowed is drawn nowhere, and the rest is."""
    folder = write_run(tmp_path / "run")
    for kind in ("group_norms", "layer_norms"):
        file = folder / f"gradient_analysis.{kind}.csv"
        lines = file.read_text().splitlines()
        head, *cells = lines[3].split(",")
        file.write_text("\n".join([*lines[:3], ",".join([head, *("inf" for _ in cells)]), *lines[4:]]))

    for plot in (plot_gradient_norms, plot_layer_heatmap):
        assert plot(folder, tmp_path / "x.png").exists()


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lighter_freezers", "plots", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_draws_beside_the_run(tmp_path: Path) -> None:
    """And prints the path of each file; it needs no torch."""
    done = command(write_run(tmp_path / "run"))

    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "run" / "plots" / "gradient_norms.png") in done.stdout.splitlines()
    code = "import sys, lighter_freezers.reports.plots as p; p.find_runs; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    """In one line, without a traceback, and with status 2."""
    done = command(tmp_path)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "GradientNormMonitor" in done.stderr


def drawn(monkeypatch: pytest.MonkeyPatch, plot: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The figure of a plot."""
    figures: list[Any] = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: figures.append(figure))
    plot(*arguments, **options)
    return figures[0]


def test_a_spike_is_drawn_as_high_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default no mean is taken: one measurement of 99 among others of 4 is a point of the line."""
    run = write_run(tmp_path / "a")
    file = run / "gradient_analysis.group_norms.csv"
    lines = file.read_text().splitlines()
    lines[20] = lines[20].rpartition(",")[0] + ",99"
    file.write_text("\n".join(lines) + "\n")
    total = drawn(monkeypatch, plot_gradient_norms, run).axes[1].lines[0]
    assert max(total.get_ydata()) == 99


@pytest.mark.parametrize(
    "plot",
    [
        plot_gradient_norms,
        plot_layer_heatmap,
        plot_layer_comparison,
        plot_gradient_evolution,
        plot_training_loss,
    ],
)
def test_panels_share_their_axes(
    plot: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands side by side can be compared: of one run and of two with other norms."""
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", scale=9.0)]
    panels = [axes for axes in drawn(monkeypatch, plot, runs).axes if axes.get_label() != "<colorbar>"]
    assert len(panels) > 1
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1


def test_a_change_stands_at_the_edge_of_the_cell_that_is_the_first_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured at 190 and 200, the cells meet at 195: the change of step 200 is there, not amid its cell."""
    figure = drawn(monkeypatch, plot_layer_heatmap, write_run(tmp_path / "a"))
    assert {tuple(line.get_xdata()) for line in figure.axes[0].lines} == {(195.0, 195.0)}


def test_no_two_series_have_one_colour() -> None:
    """Groups of any names, up to ten, and 32 runs by colour and dashes together."""
    names = ["norms", "attention", "conv1", "layer1", "layer2", "mlp", "layer3", "layer4", "fc", "total"]
    assert len(set(canvas.colours_of(names).values())) == 10
    assert canvas.colours_of(names)["attention"] == canvas.colours_of(["attention"])["attention"]
    assert len({tuple(canvas.run_style(index).values()) for index in range(32)}) == 32


def test_the_head_is_drawn_however_small_its_norm_is() -> None:
    """Of twelve groups eight are drawn, the last of the model among them."""
    columns = {f"layer{index}_norm": [float(12 - index)] for index in range(11)}
    table = StepTable(Path("x"), [0], {**columns, "fc_norm": [1e-6], "total_norm": [20.0]})
    assert largest(table) == [*(f"layer{index}" for index in range(7)), "fc"]
