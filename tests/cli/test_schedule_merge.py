"""`lighter-freezers schedule --strategy stages` on a file that the user has edited: refused, or merged."""

from pathlib import Path

import pytest
import yaml

from lighter_freezers.callbacks.gradual_unfreezing import GradualUnfreezing
from lighter_freezers.cli.main import main
from tests.cli import small_run

COMMAND = ["schedule", "small.yaml", "--strategy", "stages", "--output", "stages.yaml"]
STAGES = Path("stages.yaml")
HEAD = "stages:\n  - thaw: [head, norm]\n    until_epoch: 1\n"


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
    assert "no new stage stands for the one that thaws blocks.3: it is at the end as comments" in caplog.text
    assert "\n  # - thaw: [blocks.3] # alone\n  #   until_epoch: 7 # later\n  #   unfreeze_lr: 0.5\n" in text
    assert main([*COMMAND, "--merge", "--epochs", "3"]) == 0
    assert STAGES.read_text() == text


def test_stages_that_thaw_the_same_are_all_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Of two that thaw nothing neither is lost, and of two of one block the first one stays a stage."""
    text = STAGES.read_text()
    ours = "  - freeze: [stem]\n    until_epoch: 6\n  - freeze: [head]\n    until_epoch: 7\n"
    again = "  - thaw: [blocks.3]\n    until_epoch: 8\n"
    last = "  # thaws stem"
    STAGES.write_text(text.replace(last, ours + again + last))

    assert main([*COMMAND, "--merge"]) == 0
    merged = STAGES.read_text()
    assert merged[: len(text)] == text
    for lines in (
        "- freeze: [stem]\n  #   until_epoch: 6",
        "- freeze: [head]\n  #   until_epoch: 7",
        "- thaw: [blocks.3]\n  #   until_epoch: 8",
    ):
        assert f"  # no new stage stands for this one:\n  # {lines}\n" in merged
    assert caplog.text.count("the one that thaws nothing") == 2
    assert caplog.text.count("the one that thaws blocks.3") == 1


def test_a_last_stage_that_is_not_the_last_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """It gets the bound of the new stage, below its keys and above what stands at the end of the file."""
    STAGES.write_text(
        "stages:\n  - thaw: [norm, head]\n    until_epoch: 1\n"
        "  - thaw: [blocks.3] # ours\n    unfreeze_lr: 0.5\n# end"
    )

    assert main([*COMMAND, "--merge"]) == 0
    text = STAGES.read_text()
    assert "  - thaw: [blocks.3] # ours\n    unfreeze_lr: 0.5\n    until_epoch: 2\n  # thaws blocks.2" in text
    assert text.endswith("  - thaw: [blocks.0, stem]\n# end\n")
    assert "blocks.3 is not the last now: it got {'until_epoch': 2}" in caplog.text
    GradualUnfreezing(schedule=str(STAGES))


def test_a_stage_that_is_the_last_now(caplog: pytest.LogCaptureFixture) -> None:
    """Its bounds, of one line or several, become comments."""
    until = "    until_epoch: 5 # long\n    until_metric:\n      monitor: val/loss\n      below: 0.5\n"
    STAGES.write_text(f"{STAGES.read_text()}{until}    desc: all\n  - freeze: [stem]\n")

    assert main([*COMMAND, "--merge"]) == 0
    assert (
        "  - thaw: [blocks.0, stem]\n    # until_epoch: 5 # long\n    # until_metric:\n"
        "    #   monitor: val/loss\n    #   below: 0.5\n    desc: all\n  # no new stage"
    ) in STAGES.read_text()
    assert "ends with the run: until_epoch, until_metric became a comment" in caplog.text
    GradualUnfreezing(schedule=str(STAGES))


def test_comments_of_the_user_are_not_the_commands() -> None:
    """Of all that begins with the same word, only what the command writes, right above the dash, changes."""
    size = "  # thaws blocks.3 (72 parameters, 18.7%)\n"
    old = "  # thaws blocks.3 (9 parameters, 9.0%)\n"
    ours = f"{old}  # thaws late, as the paper says\n"
    alone = "  # thaws blocks.2 (72 parameters, 18.7%)\n"
    text = STAGES.read_text()
    assert size in text
    assert alone in text
    STAGES.write_text(text.replace(size, ours + old).replace(alone, "  # thaws blocks.2 (slowly)\n"))

    assert main([*COMMAND, "--merge"]) == 0
    assert STAGES.read_text() == text.replace(size, ours + size).replace(
        alone, "  # thaws blocks.2 (slowly)\n"
    )


def test_comments_further_left_keep_their_letters() -> None:
    """Where their stage becomes a comment."""
    last = "  # thaws stem"
    ours = "# written late\n  - freeze: [stem]\n    until_epoch: 6\n"
    STAGES.write_text(STAGES.read_text().replace(last, ours + last))

    assert main([*COMMAND, "--merge"]) == 0
    assert "  # # written late\n  #   - freeze: [stem]\n  #     until_epoch: 6\n" in STAGES.read_text()


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
        ("stages: [{thaw: head}, {thaw: '*'}]\n", ["--merge"], "right behind the dash"),
        (
            "stages:\n  -\n    thaw: head\n    until_epoch: 1\n  - thaw: '*'\n",
            ["--merge"],
            "right behind the dash",
        ),
        ("stages:\n  - {thaw: [head, norm]}\n", ["--merge"], "the stage that thaws head, norm ends. Write"),
        (
            f"{HEAD}  - until_epoch: 3\n    thaw: [blocks.0, stem]\n",
            ["--merge"],
            "Edit the stage that thaws blocks.0, stem in stages.yaml, or give --force",
        ),
        (
            f"{HEAD}  - thaw: [blocks.3]\n    until_epoch: two\n",
            ["--merge"],
            "Edit the stage that thaws blocks.3 in stages.yaml, or give --force",
        ),
        (
            "stages:\n  - &one\n    thaw: [head, norm]\n    until_epoch: 1\n  - *one\n  - thaw: [blocks.3]\n",
            ["--merge"],
            "would thaw something else. Edit the stage that thaws head, norm in stages.yaml",
        ),
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
