"""Which parameters are the trunk's and which the head's."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, GPTConfig
from lighter_freezers.gpt.lr_schedules import TransferLearningScheduler, trunk_and_head_groups

SIZE: dict[str, Any] = {
    "block_size": 8,
    "vocab_size": 17,
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 8,
    "bias": True,
}


def untied() -> GPT:
    return GPT(GPTConfig(**SIZE, tie_weights=False))


def test_a_gpt_has_a_trunk_and_a_head() -> None:
    """Every parameter is in exactly one group, frozen ones too."""
    model = untied()
    model.freeze_layer("attn.0")
    trunk, head = trunk_and_head_groups(model)

    assert (trunk["name"], head["name"]) == ("trunk", "head")
    assert {id(p) for p in trunk["params"]} == {id(p) for p in model.transformer.parameters()}
    assert [id(p) for p in head["params"]] == [id(model.lm_head.weight)]


def test_weight_decay_is_for_matrices() -> None:
    """Vectors have a group without it; empty groups are left out."""
    groups = {group["name"]: group for group in trunk_and_head_groups(untied(), weight_decay=0.1)}

    assert list(groups) == ["trunk", "trunk-vectors", "head"]
    assert [group["weight_decay"] for group in groups.values()] == [0.1, 0.0, 0.1]
    assert all(p.ndim > 1 for p in groups["trunk"]["params"])
    assert all(p.ndim == 1 for p in groups["trunk-vectors"]["params"])


def test_the_groups_suit_an_optimizer_and_its_scheduler() -> None:
    """Vectors have the rate of their part."""
    optimizer = torch.optim.AdamW(trunk_and_head_groups(untied(), weight_decay=0.1))
    TransferLearningScheduler(optimizer, feature_extraction_iters=0, warmup_iters=0)

    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-6, 5e-6, 5e-4])


def test_tied_weights_leave_no_head() -> None:
    """The error says why, and what to do."""
    with pytest.raises(
        ValueError, match="tied weights lm_head and the token embedding are one.*tie_weights=False"
    ):
        trunk_and_head_groups(GPT(GPTConfig(**SIZE)))


def test_another_network_is_told_what_a_trunk_is() -> None:
    """A linear layer has no `transformer`."""
    with pytest.raises(ValueError, match="Linear has no `transformer`.*name: trunk"):
        trunk_and_head_groups(nn.Linear(2, 2))


def test_a_weight_decay_in_quotes_is_refused() -> None:
    """As YAML makes of 1e-2."""
    with pytest.raises(TypeError, match="weight_decay must be a number"):
        trunk_and_head_groups(untied(), weight_decay="1e-2")  # type: ignore[arg-type]
