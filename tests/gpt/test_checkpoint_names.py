"""Names of checkpoints: what wrappers add is dropped, and what a format leaves out is put back."""

from pathlib import Path

import pytest
import torch

from lighter_freezers.gpt.pretrained import load_pretrained
from tests.gpt.checkpoints import logits_of, saved, small


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "_orig_mod.",
        "module.",
        "model.",
        "network.",
        "network._orig_mod.",
        "model.module._orig_mod.",
        "module.network.model.",
    ],
)
def test_prefixes_of_wrappers_are_dropped(prefix: str, tmp_path: Path) -> None:
    """In any nesting."""
    source, model = small(seed=5), small()
    path = saved(
        {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "w.pth"
    )
    load_pretrained(model, path)

    assert torch.equal(logits_of(model), logits_of(source))


def test_compiled_and_averaged_models_are_understood_on_both_sides(tmp_path: Path) -> None:
    """What torch's own wrappers save is loaded, and so is a wrapped model; blocks may be compiled alone."""
    from torch.optim.swa_utils import AveragedModel

    source = small(seed=5)
    averaged = saved({"state_dict": AveragedModel(torch.compile(source)).state_dict()}, tmp_path / "a.pt")
    model = torch.compile(small())
    load_pretrained(model, averaged)
    assert torch.equal(logits_of(model._orig_mod), logits_of(source))

    source.transformer.h[1] = torch.compile(source.transformer.h[1])
    report = load_pretrained(model := small(), saved(source.state_dict(), tmp_path / "b.pt"))
    assert torch.equal(
        model.transformer.h[1].mlp.c_fc.weight, source.transformer.h[1]._orig_mod.mlp.c_fc.weight
    )
    assert not report.left_over


def test_safetensors_that_keep_one_name_of_a_tied_weight(tmp_path: Path) -> None:
    """save_model drops the token embedding for lm_head; save_file of a whole dictionary keeps both."""
    from safetensors.torch import save_file, save_model

    source = small(seed=5)
    save_model(source, str(tmp_path / "one.safetensors"))
    save_file(
        {name: tensor.clone() for name, tensor in source.state_dict().items()}, tmp_path / "both.safetensors"
    )
    for file in ("one.safetensors", "both.safetensors"):
        model = small()
        load_pretrained(model, tmp_path / file)
        assert torch.equal(logits_of(model), logits_of(source))


def test_two_models_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    """A student and its average, for example: it is unknown which one is meant."""
    weights = {f"network.{name}": tensor for name, tensor in small(seed=5).state_dict().items()}
    weights |= {f"model.{name}": tensor for name, tensor in small(seed=6).state_dict().items()}

    with pytest.raises(ValueError, match=r"'network\.\S+' and 'model\.\S+' both map to"):
        load_pretrained(small(), saved({"state_dict": weights}, tmp_path / "two.ckpt"))
