"""Each benchmark runs, prints its table and writes what it measured with."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import (
    code_versions,
    frozen_dtype,
    gpu,
    grad_norms,
    growth,
    hooks,
    host_reads,
    imports,
    logging_cost,
    loop,
    lora,
    measure,
    peers,
    prefix_cache,
    render,
    stages,
    switch,
)
from benchmarks.__main__ import main as run_all
from benchmarks.measure import Report, Row, Samples, interleave

pytestmark = pytest.mark.wide  # a benchmark from its command to its page

TINY_LORA = ["--large", "128", "256", "--layers", "1", "--width", "64"]
TINY_LORA += ["--rounds", "2", "--steps", "2", "--learn", "3", "--seeds", "1"]
TINY_PREFIX = ["--layers", "3", "--width", "12", "--time", "8", "--batch", "2", "--batches", "2"]
TINY_PREFIX += ["--rounds", "1", "--epochs", "2"]
TINY_HALF = ["--layers", "3", "--width", "12", "--time", "8", "--steps", "2", "--rounds", "1"]
TINY: list[tuple[ModuleType, str, list[str]]] = [
    (hooks, "B1", ["--params", "150", "300", "--calls", "20", "--rounds", "2"]),
    (loop, "B2", ["--steps", "2", "--rounds", "2", "--fits", "1"]),
    (switch, "B3", ["--params", "150", "--rounds", "2", "--fits", "1", "--set-ups", "0"]),
    (prefix_cache, "B5", TINY_PREFIX),
    (grad_norms, "B8", ["--shapes", "14x8", "--rounds", "2"]),
    (lora, "B11", TINY_LORA),
    (gpu, "B10", ["--device", "cpu", "--steps", "6"]),
    (host_reads, "B12", ["--steps", "30", "--average-over", "4", "--calls", "20", "--rounds", "2"]),
    (imports, "B13", ["--rounds", "1", "--light"]),
    (frozen_dtype, "B19", TINY_HALF),
    (growth, "B18", ["--scale", "0.01"]),
    (logging_cost, "B14", ["--params", "150", "--periods", "1", "--rounds", "2"]),
    (stages, "B17", ["--width", "8", "--layers", "2", "--rows", "32", "--rounds", "1"]),
]


def result(rows: list[Row], benchmark: str = "B1") -> dict[str, Any]:
    return json.loads(Report(benchmark, "title", "method", rows).as_json(["python"]))


@pytest.mark.parametrize(
    ("module", "number", "arguments"), TINY, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_benchmark_prints_a_table_and_writes_json(
    module: Any, number: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the versions, the command and the date; and Markdown can be made of it."""
    path = tmp_path / "result.json"
    report = measure.main(module.run, module.parser(), [*arguments, "--json", str(path)])
    written = json.loads(path.read_text())

    assert report.rows[0].what in capsys.readouterr().out
    assert written["benchmark"] == number
    assert {"python", "torch", "lightning", "lighter", "finetuning-scheduler", "platform"} <= written[
        "versions"
    ].keys()
    assert written["command"] == " ".join(["python", "-m", module.parser().prog, *arguments])
    assert all(row["is_met"] for row in written["rows"] if row["is_exact"] and row["target"] is not None)
    assert f"| {report.rows[0].what} |" in render.table(written)


@pytest.mark.parametrize("module", [hooks, loop, switch])
def test_a_peer_that_is_missing_is_skipped_visibly(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured, and the table says what is missing."""
    monkeypatch.setattr(peers, "lighter_freezer", lambda: None)
    monkeypatch.setattr(peers, "fts", lambda: None)
    arguments = next(arguments for each, _, arguments in TINY if each is module)
    measure.main(module.run, module.parser(), arguments)

    assert capsys.readouterr().out.count("not installed") == 2


def test_variants_take_turns_and_turn_round() -> None:
    """Every other round goes the other way."""
    order: list[str] = []

    def variant(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0  # type: ignore[func-returns-value]

    interleave({"a": variant("a"), "b": variant("b")}, 3)

    assert order == ["a", "b", "b", "a", "a", "b"]


def test_ratios_are_paired() -> None:
    """The median of the ratios, not the ratio of the medians."""
    samples = Samples({"a": [1.0, 10.0, 9.0], "b": [1.0, 5.0, 3.0]})

    assert samples.ratio("a", "b") == 2.0
    assert samples.added("a", "b") == 5.0


def test_a_missed_target_is_said() -> None:
    """In the terminal and in the page."""
    report = Report("B1", "title", "method", [Row("ours", 3.0, "x", 2.0)])

    assert "MISSED" in report.as_text()
    assert "| ours | 3 x | at most 2 x | **no** |" in render.table(json.loads(report.as_json(["python"])))


def test_tables_replace_those_of_the_last_time() -> None:
    """Filling a page twice leaves one table per benchmark, each at its place."""
    page = "# A\n\n<!-- results: B1 -->\n\n# B\n\n<!-- results: B2 -->\n"
    first = [result([Row("old", 1, "")]), result([Row("two", 2, "")], "B2")]
    filled = render.fill(render.fill(page, first), [result([Row("new", 3, "")])])

    assert "| old |" not in filled
    assert filled.index("| new | 3 |") < filled.index("# B") < filled.index("| two | 2 |")


def test_a_page_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="results: B1"):
        render.fill("# A\n", [result([])])


def test_modules_have_a_command_line() -> None:
    """Each says what it measures."""
    assert all(isinstance(module.parser(), ArgumentParser) and module.__doc__ for module, _, _ in TINY)


def test_one_command_runs_the_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a process; results get the code that they measured."""
    assert run_all(["host_reads", "--json", str(tmp_path)]) == 0

    assert "B12: " in capsys.readouterr().out
    written = json.loads((tmp_path / "host_reads.json").read_text())
    assert written["code"] == code_versions.current("host_reads")


def test_what_has_changed_since_is_said_below_a_table() -> None:
    """In the page, by file."""
    assert "Changed since, and not measured again: `prefix`." in render.table(
        {**result([Row("ours", 3.0, "x")]), "changed": ["prefix"]}
    )


def test_without_a_card_the_gpu_benchmark_says_so() -> None:
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    told = subprocess.check_output([*command, "--help"], text=True, env=without)
    assert "--device" in told
    done = subprocess.run(command, capture_output=True, text=True, env=without)
    assert done.returncode == 1
    assert done.stderr.startswith("No CUDA card here, so nothing was measured")
