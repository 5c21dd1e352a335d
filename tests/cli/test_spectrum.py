"""`lighter-freezers spectrum` prints a Freezer that holds what the policy of the same name would."""

from pathlib import Path

import pytest
import yaml

from lighter_freezers import Freezer, Spectrum
from lighter_freezers.cli.main import main
from tests.policies.policy_lab import Run, parts

MODEL = """\
import torch
from tests.lab import adamw, regression
from tests.policies.policy_lab import Tower
def model():
    return regression("pytorch_lightning", Tower, adamw)
"""
CONFIG = {
    "trainer": {
        "_target_": "pytorch_lightning.Trainer",
        "accelerator": "cpu",
        "logger": False,
        "max_epochs": 1,
    },
    "model": {"_target_": "spectrum_model.model"},
}


def test_it_prints_the_choice_of_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spectrum_model.py").write_text(MODEL)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["spectrum", str(tmp_path / "config.yaml"), "--top", "25%"]) == 0
    text = capsys.readouterr().out
    [freezer] = yaml.safe_load(text)
    assert text.count("# trains: ") == 2  # one of four of each of two kinds
    assert "# blocks.up" in text or "# network.blocks.up" in text
    assert len(freezer["name_starts_with"]) == 6
    del freezer["_target_"]
    by_freezer, by_policy = Run([Freezer(**freezer)]), Run([Spectrum(top_percent=25)])
    assert by_freezer.training == by_policy.training
    assert parts(by_freezer.training[0]) == ["stem", "0", "1", "2", "3", "norm", "head"]


def test_a_share_that_is_none_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectrum", "config.yaml", "--top", "much"]) == 2
    assert "--top is a share such as 25%. Got 'much'" in capsys.readouterr().err
