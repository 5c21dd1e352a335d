"""What model a checkpoint needs: another architecture is refused, with the values that would fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers.gpt.pretrained import config_from_checkpoint, load_pretrained
from tests.gpt.checkpoints import gpt2, logits_of, nanogpt_checkpoint, saved, small

WTE = "transformer.wte.weight"
ROTARY = {"use_rotary_embeddings": True}

MISFITS = {
    "fewer layers in the model": ({"n_layer": 4}, {}, ["Left over: h.2-3.", "n_layer=4 (here 2)"]),
    "more layers in the model": ({}, {"n_layer": 4}, ["Missing in it: h.2-3.", "n_layer=2 (here 4)"]),
    "another width": ({"n_embd": 32}, {}, [f"{WTE} (61, 32) there, (61, 16) here", "n_embd=32 (here 16)"]),
    "a larger vocabulary": ({"vocab_size": 64}, {}, ["vocab_size=64 or more (here 61)"]),
    "fewer positions": ({"block_size": 8}, {}, ["block_size=8 or less (here 16)"]),
    "biases in the file": ({"bias": True}, {}, ["Left over: ", "bias=True (here False)"]),
    "biases in the model": ({}, {"bias": True}, ["Missing in it: ", "bias=False (here True)"]),
    "positions in the file": ({}, ROTARY, ["Left over: wpe", "use_rotary_embeddings=False (here True)"]),
    "rotary in the file": (ROTARY, {}, ["Missing in it: wpe", "use_rotary_embeddings=True (here False)"]),
    "an untied head": ({"tie_weights": False}, {}, ["tie_weights=False (here True)"]),
}  # fmt: skip


@pytest.mark.parametrize(("there", "here", "expected"), MISFITS.values(), ids=MISFITS)
def test_another_architecture_is_refused_with_what_it_needs(
    there: Mapping[str, Any], here: Mapping[str, Any], expected: list[str], tmp_path: Path
) -> None:
    """The message names what differs, and the model stays as it was."""
    model = small(**here)
    before = logits_of(model)
    with pytest.raises(ValueError, match="does not fit this GPT, so nothing was loaded") as caught:
        load_pretrained(model, saved(small(seed=5, **there).state_dict(), tmp_path / "w.pt"))

    assert [phrase for phrase in expected if phrase not in str(caught.value)] == []
    assert len(str(caught.value)) < 900
    assert torch.equal(logits_of(model), before)


def test_another_number_of_heads_is_refused_where_the_file_says_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shapes do not show it, and the logits would be others; a bare state dict is trusted, and logged."""
    _, content = nanogpt_checkpoint(bias=False)
    with pytest.raises(ValueError, match=r"n_head=2 \(here 4\)"):
        load_pretrained(small(n_head=4), saved(content, tmp_path / "ckpt.pt"))

    bare = saved(content["model"], tmp_path / "bare.pt")
    with caplog.at_level("INFO", logger="lighter_freezers"):
        load_pretrained(small(n_head=4), bare)
    assert "taken on trust: n_head=4, exact_gelu=False" in caplog.text
    with pytest.raises(ValueError, match=r"Give the one it was trained with"):
        config_from_checkpoint(bare)
    assert config_from_checkpoint(bare, n_head=2)["n_head"] == 2
    with pytest.raises(ValueError, match="has n_head=2, not 4"):
        config_from_checkpoint(tmp_path / "ckpt.pt", n_head=4)


def test_a_file_inside_a_transformers_folder_knows_its_heads(tmp_path: Path) -> None:
    """config.json lies beside it."""
    gpt2().save_pretrained(tmp_path)

    assert config_from_checkpoint(tmp_path / "model.safetensors")["n_head"] == 2
    with pytest.raises(ValueError, match=r"n_head=2 \(here 4\)"):
        load_pretrained(small(bias=True, n_head=4), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 1e-6},
        {"n_inner": 24},
        {"scale_attn_weights": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_gpt2_that_computes_something_else_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    """Its tensors might fit; its logits would not be ours."""
    gpt2(**changes).save_pretrained(tmp_path / "gpt2")
    ((name, value),) = changes.items()

    with pytest.raises(ValueError, match=f"cannot be, by {name}={value!r}"):
        load_pretrained(small(bias=True), tmp_path / "gpt2")


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    """By its config.json, or by its names where there is none."""
    (tmp_path / "llama").mkdir()
    weights = {"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}
    saved(weights, tmp_path / "llama" / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"has nothing of a GPT, .* tensors called model\.layers\.0\.self_attn"
    ):
        load_pretrained(small(), tmp_path / "llama")

    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type='llama'"):
        load_pretrained(small(), tmp_path / "llama")
