"""Pretrained weights: the same logits as their source, the whole trunk or an error, and heads that fit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, GPTConfig
from lighter_freezers.gpt.pretrained import LoadReport, config_from_checkpoint, load_pretrained
from tests import lab
from tests.gpt.checkpoints import (
    SMALL,
    gpt2,
    logits_of,
    logits_of_gpt2,
    nanogpt_checkpoint,
    saved,
    small,
    tokens,
)

WTE, WPE, HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"


@pytest.mark.parametrize("bias", [False, True])
def test_logits_equal_those_of_a_nanogpt_checkpoint(bias: bool, tmp_path: Path) -> None:
    """Its sizes are taken from the file, which does not say that its GELU is the exact one."""
    reference, content = nanogpt_checkpoint(bias)
    path = saved(content, tmp_path / "ckpt.pt")
    config = config_from_checkpoint(path)
    model = GPT(GPTConfig(**config, exact_gelu=True))
    report = load_pretrained(model, path)

    assert config == {**SMALL, "bias": bias, "use_rotary_embeddings": False, "tie_weights": True}
    assert torch.allclose(logits_of(model), logits_of(reference), atol=1e-5)
    assert set(report.loaded) == set(model.state_dict())
    assert report == LoadReport(str(path), report.loaded, (), (), (), (), ())


FOLDERS: dict[str, Callable[[Any, Path], Any]] = {
    "safetensors": lambda model, path: model.save_pretrained(path),
    "sharded": lambda model, path: model.save_pretrained(path, max_shard_size="4KB"),
    "without a head": lambda model, path: model.transformer.save_pretrained(path),
    "bin": lambda model, path: saved_as_bin(model, path),
}


def saved_as_bin(model: Any, path: Path) -> None:
    """The older format of transformers, with the masks that it used to hold."""
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 16, 16).tril() for n in range(2)}
    masks |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
    path.mkdir()
    model.config.save_pretrained(path)
    torch.save({**model.state_dict(), **masks}, path / "pytorch_model.bin")


@pytest.mark.parametrize("save", FOLDERS.values(), ids=FOLDERS)
def test_logits_equal_those_of_a_folder_of_transformers(
    save: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    """One file, several, a bare trunk, a pickle; an untied head gets the embedding, which is GPT-2's head."""
    reference = gpt2()
    save(reference, tmp_path / "gpt2")
    config = config_from_checkpoint(str(tmp_path / "gpt2"))
    for changes in ({}, {"tie_weights": False}):
        model = GPT(GPTConfig(**{**config, **changes}))
        report = load_pretrained(model, str(tmp_path / "gpt2"))

        assert torch.allclose(logits_of(model), logits_of_gpt2(reference), atol=1e-5)
        assert report.missing + report.left_over + report.mismatched == ()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_both_formulas_of_the_gelu_are_taken_over(activation: str, tmp_path: Path) -> None:
    """config.json says which, and a model with the other one is refused: its logits would be others."""
    reference = gpt2(activation_function=activation)
    reference.save_pretrained(tmp_path)
    config = config_from_checkpoint(tmp_path)
    model = GPT(GPTConfig(**config))
    load_pretrained(model, tmp_path)

    assert torch.allclose(logits_of(model), logits_of_gpt2(reference), atol=1e-5)
    is_exact = activation == "gelu"
    with pytest.raises(ValueError, match=rf"exact_gelu={is_exact} \(here {not is_exact}\)"):
        load_pretrained(GPT(GPTConfig(**{**config, "exact_gelu": not is_exact})), tmp_path)


def test_a_checkpoint_of_lightning_is_understood(tmp_path: Path) -> None:
    """A real Trainer writes it, of a module that holds the GPT as `network`."""
    from pytorch_lightning import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = small(seed=5)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.network(batch, batch)[1]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.network.parameters(), lr=1.0e-2)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["model_args"] = SMALL

    module = Module()
    trainer = lab.trainer("pytorch_lightning", max_steps=2)
    trainer.fit(module, torch.utils.data.DataLoader(tokens(), batch_size=1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = small()
    report = load_pretrained(model, tmp_path / "last.ckpt")

    assert torch.equal(logits_of(model), logits_of(module.network))
    assert not report.left_over
    assert config_from_checkpoint(tmp_path / "last.ckpt").items() >= SMALL.items()
    assert not torch.equal(logits_of(model), logits_of(small(seed=5))), (
        "the Trainer must have changed something"
    )


@pytest.mark.parametrize("tie_weights", [False, True])
def test_the_vocabulary_may_grow(tie_weights: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Old rows are copied, new rows keep their initial values and are named."""
    source, model = small(seed=5, tie_weights=tie_weights), small(vocab_size=64, tie_weights=tie_weights)
    new_rows = model.lm_head.weight[61:].clone()
    with caplog.at_level("INFO", logger="lighter_freezers"):
        report = load_pretrained(model, saved(source.state_dict(), tmp_path / "w.pt"))

    assert torch.equal(model.transformer.wte.weight[:61], source.transformer.wte.weight)
    assert torch.equal(model.lm_head.weight[:61], source.lm_head.weight)
    assert torch.equal(model.lm_head.weight[61:], new_rows)
    assert torch.equal(logits_of(model)[..., :61], logits_of(source))
    assert report.grown == (f"{WTE}[61:64]",) + (() if tie_weights else (f"{HEAD}[61:64]",))
    assert f"{WTE}[61:64]" in caplog.text


def test_a_longer_checkpoint_is_cropped(tmp_path: Path) -> None:
    """The first positions are the ones that a shorter model has."""
    source, model = small(seed=5, block_size=32), small(block_size=16)
    report = load_pretrained(model, saved(source.state_dict(), tmp_path / "w.pt"))

    assert report.cropped == (f"{WPE}[:16]",)
    assert torch.equal(logits_of(model), logits_of(source))


def test_parameters_stay_the_same_objects_with_their_dtype_and_flags(tmp_path: Path) -> None:
    """Optimizers, ties and holds refer to them; a half-precision file is widened, a wide one is rounded."""
    weights = small(seed=5).state_dict()
    half = saved({name: tensor.bfloat16() for name, tensor in weights.items()}, tmp_path / "half.pt")
    model = small()
    model.freeze_layer("attn.0")
    before = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    load_pretrained(model, half)

    assert {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()} == before
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.transformer.wpe.weight, weights[WPE].bfloat16().float())
    load_pretrained(model.half(), saved(weights, tmp_path / "full.pt"))
    assert torch.equal(model.transformer.wpe.weight, weights[WPE].half())


def test_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    """A quantised file has the right shapes, and needs its scales."""
    weights = small(seed=5).state_dict()
    weights["transformer.h.0.mlp.c_fc.weight"] = weights["transformer.h.0.mlp.c_fc.weight"].to(torch.int8)

    with pytest.raises(ValueError, match=r"c_fc\.weight \(64, 16\) torch\.int8 there"):
        load_pretrained(small(), saved(weights, tmp_path / "int8.pt"))


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    """Copying into the meta device would do nothing, silently."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**SMALL))

    with pytest.raises(RuntimeError, match="meta device"):
        load_pretrained(model, saved(small().state_dict(), tmp_path / "w.pt"))
    with pytest.raises(TypeError, match=r"lighter_freezers\.GPT. Got Linear"):
        load_pretrained(nn.Linear(2, 2), tmp_path / "w.pt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "is_logged"), [({}, True), ({"LOCAL_RANK": "0"}, True), ({"RANK": "1"}, False)]
)
def test_one_process_logs(
    environment: Mapping[str, str],
    is_logged: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every process builds its model."""
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with caplog.at_level("INFO", logger="lighter_freezers"):
        load_pretrained(small(), saved(small().state_dict(), tmp_path / "w.pt"))

    assert len(caplog.records) == int(is_logged)
