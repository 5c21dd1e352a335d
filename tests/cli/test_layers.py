"""`lighter-freezers layers`: what a model's layers are, from a config or a Python path."""

from pathlib import Path

import pytest

from lighter_freezers.cli.main import main

ROOT = Path(__file__).parents[2]
MODULE = """
from torch import nn
net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
number = int
"""


def test_the_layers_of_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    """Each block has the address that a rule takes."""
    assert main(["layers", str(ROOT / "configs/quickstart.yaml")]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GPTModule: 4 blocks"
    assert [line.split()[0] for line in lines[3:7]] == ["block.0", "block.1", "block.2", "block.3"]


def test_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A console script does not look there by itself; what makes no model is answered in words."""
    (tmp_path / "nets_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    assert main(["layers", "nets_of_mine:net"]) == 0
    assert "block.1" in capsys.readouterr().out
    assert main(["layers", "nets_of_mine:number"]) == 2
    assert "is no model: it makes a int" in capsys.readouterr().err


def test_a_traced_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """One forward pass on the data of the config, and the same layers."""
    small = ["data::batch_size=2", "data::num_val_sequences=4"]
    assert main(["layers", str(ROOT / "configs/quickstart.yaml"), *small, "--batch"]) == 0
    assert "Uncertain" not in capsys.readouterr().out
