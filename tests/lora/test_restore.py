"""Weights of other ranks: they load into layers that take on their shapes."""

import copy
import pickle
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import GPT, GPTModule, apply_lora, resize_lora_layer
from lighter_freezers.lora.restore import install_rank_restore
from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import adamw, batches, regression, trainer
from tests.lora.lora_lab import KINDS, VARIANTS, adapted, inputs, mixed, trained


@pytest.mark.parametrize("rank", [0, 1, 5, 12])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_any_rank_load(kind: str, variant: str, rank: int) -> None:
    """The function is the one that was saved; scaling, optimizer and flags are those that were there."""
    model, twin = trained(kind, **VARIANTS[variant]), adapted(kind, **VARIANTS[variant])
    resize_lora_layer(model.target, rank)
    optimizer = torch.optim.AdamW(twin.parameters())
    install_rank_restore(twin)
    install_rank_restore(twin)
    twin.load_state_dict(model.state_dict())

    assert torch.equal(twin(inputs(kind)), model(inputs(kind)))
    assert twin.target.scaling == model.target.scaling
    assert twin.target.r == model.target.r
    known = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert {id(p) for p in twin.parameters()} <= known
    if rank:
        assert twin.target.lora_alpha == model.target.lora_alpha


def test_without_it_the_shapes_do_not_fit() -> None:
    """What every other way of changing ranks runs into."""
    model, twin = trained("Linear"), adapted("Linear")
    resize_lora_layer(model.target, 5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        twin.load_state_dict(model.state_dict())


def test_a_copy_and_a_pickle_restore_themselves() -> None:
    """The hooks travel with their layer."""
    model = apply_lora(
        GPT({"n_layer": 1, "n_embd": 16, "vocab_size": 64}), {"r": 4, "target_modules": ["c_attn"]}
    )
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    resize_lora_layer(model.transformer.h[0].attn.c_attn, 7)
    for twin in twins:
        twin.load_state_dict(model.state_dict())
        assert [site.factors.rank for site in find_lora_sites(twin).values()] == [7]
    assert [site.factors.rank for site in find_lora_sites(model).values()] == [7]


def test_weights_without_the_adapter_leave_it_alone() -> None:
    """A checkpoint from before LoRA, loaded with strict=False."""
    model = apply_lora(
        GPT({"n_layer": 1, "n_embd": 16, "vocab_size": 64}), {"r": 4, "target_modules": ["c_attn"]}
    )
    model.load_state_dict({}, strict=False)

    assert [site.factors.rank for site in find_lora_sites(model).values()] == [4]


def sizes() -> dict[str, Any]:
    return {"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}


def test_load_from_checkpoint(tmp_path: Path) -> None:
    """Without a Trainer or a callback."""
    config = {"r": 4, "target_modules": ["c_attn", "wte"]}
    module = GPTModule(network=apply_lora(GPT(sizes()), config))
    for site, rank in zip(find_lora_sites(module).values(), (0, 7, 2), strict=True):
        resize_lora_layer(site.factors.layer, rank)
    fit = trainer("pytorch_lightning")
    fit.strategy.connect(module)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    knows = signature(GPTModule.load_from_checkpoint).parameters  # lightning 2.6 does
    safely = {"weights_only": True} if "weights_only" in knows else {}
    loaded = GPTModule.load_from_checkpoint(
        tmp_path / "a.ckpt", network=apply_lora(GPT(sizes()), config), **safely
    )

    x = torch.randint(64, (2, 16))
    assert [site.factors.rank for site in find_lora_sites(loaded).values()] == [0, 7, 2]
    assert torch.equal(loaded(x), module(x))


def test_validate_from_a_checkpoint(tmp_path: Path) -> None:
    """The same metric as at the end of the fit, with the callback and without."""
    from lighter_freezers import LoraRankScheduler

    def scheduler() -> Any:
        return LoraRankScheduler([{"step": 1, "rank_pattern": {"wte": 5, "h.0.fc": 0, "conv": 2}}])

    fit = trainer("pytorch_lightning", callbacks=[scheduler()], max_epochs=1)
    fit.fit(regression("pytorch_lightning", network=mixed, optimizer=adamw), batches(), batches())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    for callbacks in ([scheduler()], []):
        module = regression("pytorch_lightning", network=mixed)
        again = trainer("pytorch_lightning", callbacks=callbacks)
        ignored = pytest.warns(UserWarning, match="callbacks") if not callbacks else None
        if ignored is None:
            (metrics,) = again.validate(module, batches(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
        else:
            with ignored:
                (metrics,) = again.validate(module, batches(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
        assert metrics["val/loss"] == fit.callback_metrics["val/loss"]
