"""`lighter-freezers schedule --strategy stages` on a file that the user has edited: refused, or merged."""

from pathlib import Path

import pytest
import yaml

from lighter_freezers.cli.main import main
from tests.cli import small_run

COMMAND = ["schedule", "small.yaml", "--strategy", "stages", "--output", "stages.yaml"]
STAGES = Path("stages.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config and the file of stages that the command wrote for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(small_run.CONFIG)
    assert main(COMMAND) == 0
    return tmp_path


def edit() -> str:
    """What a user does to the file: comments at all places, another bound, a rate."""
    text = STAGES.read_text().replace("stages:\n", "# for the second paper\nstages: # five\n")
    before = "  # thaws blocks.3 (72 parameters, 18.7%)\n  - thaw: [blocks.3]\n    until_epoch: 2\n"
    after = "  # the top block is new\n  # thaws blocks.3 (9 parameters, 99%)\n  - thaw: [blocks.3] # alone\n"
    assert before in text
    STAGES.write_text(
        text.replace(before, f"{after}    until_epoch: 7 # later\n    unfreeze_lr: 0.5\n") + "  # end\n"
    )
    return STAGES.read_text()


def test_an_edited_file_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an option, with a message that names both."""
    edited = edit()

    assert main(COMMAND) == 2
    assert STAGES.read_text() == edited
    assert (
        "or --force to overwrite it, or --merge to keep your stages and comments" in capsys.readouterr().err
    )


def test_the_same_stages_keep_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line of it; only sizes that the command wrote are brought up to date."""
    edited = edit()

    assert main([*COMMAND, "--merge"]) == 0
    assert STAGES.read_text() == edited.replace("(9 parameters, 99%)", "(72 parameters, 18.7%)")
    assert "as comments" not in capsys.readouterr().err


def test_new_stages_stand_at_their_places(caplog: pytest.LogCaptureFixture) -> None:
    """Of a shorter run, whose stages are larger; what no stage thaws any more is said."""
    edit()

    assert main([*COMMAND, "--merge", "--epochs", "3"]) == 0
    text = STAGES.read_text()
    thaws = [stage["thaw"] for stage in yaml.safe_load(text)["stages"]]
    assert thaws == [["norm", "head"], ["blocks.3", "blocks.2"], ["blocks.1", "blocks.0", "stem"]]
    assert "# for the second paper\nstages: # five\n  # thaws norm, head (25" in text
    assert (
        "the same as the one of blocks.3 now: it stands at the end of stages.yaml as comments" in caplog.text
    )
    assert "\n  # - thaw: [blocks.3] # alone\n  #   until_epoch: 7 # later\n  #   unfreeze_lr: 0.5\n" in text
    assert main([*COMMAND, "--merge", "--epochs", "3"]) == 0
    assert STAGES.read_text() == text


def test_a_model_that_has_grown(folder: Path) -> None:
    """Its new block gets a stage, and the others keep theirs."""
    edit()
    grown = small_run.CONFIG.replace("tests.callbacks.block_net.BlockNet", f"{__name__}.deeper")
    assert grown != small_run.CONFIG
    (folder / "small.yaml").write_text(grown)

    assert main([*COMMAND, "--merge", "--epochs", "6"]) == 0
    stages = yaml.safe_load(STAGES.read_text())["stages"]
    assert [stage["thaw"] for stage in stages][:3] == [["norm", "head"], ["blocks.4"], ["blocks.3"]]
    assert stages[2] == {"thaw": ["blocks.3"], "until_epoch": 7, "unfreeze_lr": 0.5}
    assert "  # the top block is new\n" in STAGES.read_text()


def deeper() -> object:
    """Five blocks."""
    from torch import nn

    from tests.callbacks.block_net import BlockNet
    from tests.lab import WIDTH

    network = BlockNet()
    network.blocks.append(nn.Linear(WIDTH, WIDTH))
    return network


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("stages: [{thaw: head}, {thaw: '*'}]\n", ["--merge"], "behind a dash on a line of its own"),
        ("stages:\n  - thaw: [a\n", ["--merge"], "stages.yaml"),
        ("other: 1\n", ["--merge"], "--merge needs a file with stages:"),
        ("", ["--merge", "--force"], "not allowed with"),
    ],
)
def test_what_cannot_be_merged(
    text: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, and the file is as it was."""
    STAGES.write_text(text)

    try:
        status = main([*COMMAND, *words])
    except SystemExit as stopped:  # of argparse
        status = int(stopped.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert STAGES.read_text() == text


def test_other_strategies_do_not_merge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "small.yaml", "--strategy", "gradual", "--merge"]) == 2
    assert "--merge is for stages, not for gradual" in capsys.readouterr().err


def test_stages_in_the_config_are_not_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config that has its stages written out gets no others."""
    config = yaml.safe_load(small_run.CONFIG)
    stages = [{"thaw": "head", "until_epoch": 1}, {"thaw": "*"}]
    ours = {"_target_": "lighter_freezers.GradualUnfreezing", "stages": stages}
    config["trainer"].setdefault("callbacks", []).append(ours)
    (folder / "small.yaml").write_text(yaml.safe_dump(config))

    assert main([*COMMAND, "--force"]) == 2
    assert "has its stages written out already" in capsys.readouterr().err
