"""`lighter-freezers init`: the shipped configs, listed and copied."""

from pathlib import Path

import pytest
import yaml

from lighter_freezers.cli.main import main

ROOT = Path(__file__).parents[2]
NAMES = [
    path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_config_is_listed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The line is the first of the file."""
    assert main(["init"]) == 0

    listed = capsys.readouterr().out.splitlines()[: len(NAMES)]
    assert [line.split()[0] for line in listed] == NAMES
    assert all(len(line.split()) > 3 for line in listed)


def test_a_copy_lies_where_its_command_expects_it(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The token classifier starts from what the pretraining config writes, so both are copied."""
    assert main(["init", "gpt/token_classifier"]) == 0

    copied = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*.yaml"))
    assert copied == ["configs/gpt/pretrain.yaml", "configs/gpt/token_classifier.yaml"]
    assert (elsewhere / copied[1]).read_bytes() == (ROOT / copied[1]).read_bytes()
    assert "lighter fit configs/gpt/token_classifier.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_what_a_config_refers_to_is_copied_with_it(name: str, elsewhere: Path) -> None:
    """No copied file names a shipped one that is not there; nor a test's code, which is not installed."""
    assert main(["init", name]) == 0

    for path in (elsewhere / "configs").rglob("*.yaml"):
        text = path.read_text()
        assert yaml.safe_load(text)
        missing = [
            shipped
            for shipped in (ROOT / "configs").rglob("*.*")
            if (known := shipped.relative_to(ROOT).as_posix()) in text and not (elsewhere / known).exists()
        ]
        assert missing == []
        assert "_target_: tests." not in text


def test_an_edited_copy_is_kept(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call changes nothing in a file that its user has edited."""
    assert main(["init", "quickstart"]) == 0
    assert main(["init", "configs/quickstart.yaml"]) == 0  # the same content
    edited = elsewhere / "configs/quickstart.yaml"
    edited.write_text("mine")

    assert main(["init", "quickstart"]) == 2
    assert edited.read_text() == "mine"
    assert "exists and differs" in capsys.readouterr().err


def test_a_misspelt_name_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere."""
    assert main(["init", "quickstrat"]) == 2
    assert "Closest: quickstart" in capsys.readouterr().err
