"""Which layers train: the list, and the table of the document."""

import sys
from pathlib import Path

import pytest
from torch import nn

from lighter_freezers.layers import freeze_by_name, freeze_embeddings, freeze_first_n_layers, freeze_lm_head
from lighter_freezers.layers.layer_status import get_layer_status, print_layer_status
from tests.architectures import ARCHITECTURES


class Wide(nn.Module):
    """Thirty-two layers whose sizes are round numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 10)
        self.layers = nn.ModuleList(nn.Linear(100, 1000, bias=False) for _ in range(32))
        self.norm = nn.LayerNorm(10)
        self.lm_head = nn.Linear(10, 100, bias=False)


TABLE = """\
========================================
LAYER STATUS
========================================
Layer 0-15:  FROZEN  (1.6M params)
Layer 16-31: ACTIVE  (1.6M params)
----------------------------------------
Embeddings:  FROZEN  (1.0K params)
Final norm:  ACTIVE  (20 params)
LM Head:     ACTIVE  (1.0K params)
========================================
Total:       3.2M params, 50.0% trainable
========================================
"""


def printed(model: nn.Module, capsys: pytest.CaptureFixture[str], show_all: bool = False) -> str:
    capsys.readouterr()
    print_layer_status(model, show_all)
    return capsys.readouterr().out


def test_the_table_of_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Neighbouring layers in the same state share a line."""
    model = Wide()
    freeze_embeddings(model)
    freeze_first_n_layers(model, 16)

    assert printed(model, capsys) == TABLE


def test_every_layer_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """With its number of parameters in full."""
    model = Wide()
    freeze_first_n_layers(model, 1)
    lines = printed(model, capsys, show_all=True).splitlines()

    assert lines[3:5] == ["Layer 0:     FROZEN  (100,000 params)", "Layer 1:     ACTIVE  (100,000 params)"]
    assert len([line for line in lines if line.startswith("Layer ")]) == 32


def test_a_partly_frozen_layer_is_partial(capsys: pytest.CaptureFixture[str]) -> None:
    """It is neither ACTIVE nor FROZEN, and so are embeddings and heads."""
    model = ARCHITECTURES["bert-classifier"]()
    freeze_by_name(model, [r"layer\.1\.attention", r"word_embeddings", r"^classifier\.bias"])
    text = printed(model, capsys)

    assert [line.split()[:3] for line in text.splitlines()[3:6]] == [
        ["Layer", "0:", "ACTIVE"],
        ["Layer", "1:", "PARTIAL"],
        ["Layer", "2:", "ACTIVE"],
    ]
    assert "Embeddings:  PARTIAL" in text
    assert "Head:        PARTIAL" in text
    assert [layer["state"] for layer in get_layer_status(model)] == ["ACTIVE", "PARTIAL", "ACTIVE"]


def test_a_model_that_trains_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the head is tied, and where positions and tokens are called wte and wpe."""
    model = ARCHITECTURES["gpt2"]()
    text = printed(model, capsys)
    assert "FROZEN" not in text
    assert "Embeddings:  ACTIVE" in text
    assert "LM Head:     ACTIVE  (tied to the embeddings)" in text
    freeze_lm_head(model)
    text = printed(model, capsys)

    assert "Embeddings:  PARTIAL" in text  # wpe trains
    assert "LM Head:     FROZEN" in text


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("t5", ["encoder.0-1: ACTIVE", "decoder.0-2: ACTIVE"]),
        ("swin", ["layers.0.0:   ACTIVE", "layers.1.0-1: ACTIVE", "Head:         ACTIVE"]),
        ("albert", ["Layer 0:     ACTIVE  (600 params, runs 3 times)"]),
        ("torch", ["Others:      ACTIVE  (1 params)"]),
    ],
)
def test_models_of_several_parts(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides, all stages, shared layers, and what has no place."""
    text = printed(ARCHITECTURES[name](), capsys)

    assert [line for line in lines if line not in text] == []


def test_a_model_without_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    """The table says that there are none, and counts all parameters."""
    text = printed(nn.Linear(2, 2), capsys)

    assert "Linear has no blocks" in text
    assert "Total:       6 params, 100.0% trainable" in text
    assert get_layer_status(nn.Linear(2, 2)) == []
    assert "Total:       0 params, 0.0% trainable" in printed(nn.ReLU(), capsys)


def test_the_list() -> None:
    """Plain values for each layer, by the path that the model gives it."""
    model = ARCHITECTURES["bart"]()
    freeze_by_name(model, r"decoder\.layers\.0\.fc1")
    status = get_layer_status(model)
    layer = model.get_decoder().layers[0]
    total, frozen = (
        sum(p.numel() for p in layer.parameters()),
        layer.fc1.weight.numel() + layer.fc1.bias.numel(),
    )

    assert [entry["index"] for entry in status] == [0, 1, 2, 3, 4]
    assert status[2] == {
        "index": 2,
        "name": "model.decoder.layers.0",
        "total_params": total,
        "trainable_params": total - frozen,
        "frozen_params": frozen,
        "trainable": True,
        "frozen_pct": pytest.approx(100 * frozen / total),
        "state": "PARTIAL",
    }


def test_colours_in_a_terminal_and_none_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are the same."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    model = Wide()
    freeze_embeddings(model)
    freeze_first_n_layers(model, 16)
    with (tmp_path / "status.txt").open("w+") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print_layer_status(model)
    assert (tmp_path / "status.txt").read_text() == TABLE
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with (tmp_path / "terminal.txt").open("w+") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print_layer_status(model)
    coloured = (tmp_path / "terminal.txt").read_text()

    assert "\x1b[34mFROZEN\x1b[0m" in coloured
    assert "\x1b[33mACTIVE\x1b[0m" in coloured
