"""Published figures name the code they were measured with, and say where it has changed since."""

import json
from pathlib import Path

import pytest

from benchmarks import code_versions, render
from benchmarks.code_versions import MEASURES, PAGE, RESULTS

FILES = sorted(path.stem for path in RESULTS.glob("*.json"))
WAY_OUT = "Run the command of its table again with --json, or `python -m benchmarks.code_versions --mark`."


@pytest.mark.parametrize("name", FILES)
def test_a_figure_is_of_the_code_of_today_or_says_what_has_changed(name: str) -> None:
    """What a benchmark measures is listed, file by file; comments and docstrings do not count."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    assert name in MEASURES, f"List what {name} measures in benchmarks/code_versions.py."
    changed = code_versions.changed(name, result)
    assert set(changed) <= set(result.get("changed", ())), f"{name}: {changed} changed. {WAY_OUT}"


def test_the_page_shows_the_results() -> None:
    """Its tables are those of the files, with what has changed since."""
    page = PAGE.read_text()
    assert render.fill(page, render.results(RESULTS)) == page, "python -m benchmarks.code_versions --mark"


def test_a_version_is_that_of_the_code_alone(tmp_path: Path) -> None:
    """A changed number counts; comments, docstrings and blank lines do not."""
    file, texts = tmp_path / "part.py", ["x = 1\n", '"""Doc."""\n\n# why\nx = 1\n', "x = 2\n"]
    versions = []
    for text in texts:
        file.write_text(text)
        versions.append(code_versions.version(file))
    assert versions[0] == versions[1] != versions[2]
    assert code_versions.version(tmp_path) != versions[2]


def test_a_result_of_unknown_code_counts_as_changed() -> None:
    """As do those that were measured before the code was recorded."""
    assert code_versions.changed("prefix_cache", {}) == ["benchmarks/prefix_cache.py", "prefix"]
    assert not code_versions.changed("prefix_cache", {"code": code_versions.current("prefix_cache")})
