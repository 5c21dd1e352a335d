"""LoRA ranks by the GPT's own methods, and the names of old that lead there."""

import pytest
import torch

from lighter_freezers import GPT
from lighter_freezers.lora.sites import find_lora_sites


def network(**options: object) -> GPT:
    torch.manual_seed(0)
    return GPT({"block_size": 8, "vocab_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16, **options})


def ranks(model: GPT) -> dict[str, int]:
    return {name: site.factors.rank for name, site in find_lora_sites(model).items()}


def test_a_rank_is_set_by_the_name_of_a_layer() -> None:
    """New LoRA changes nothing at first, its weight stands still, and rank 0 gives it back."""
    model, tokens = network(), torch.arange(8)[None]
    before = model(tokens)[0]
    model.set_layer_lora_rank("attn.1", 4)

    assert ranks(model) == {"transformer.h.1.attn.c_attn": 4}
    assert torch.equal(model(tokens)[0], before)
    assert not model.transformer.h[1].attn.c_attn.base_layer.weight.requires_grad
    model.set_layer_lora_rank("attn.1", 0)
    assert set(ranks(model).values()) <= {0}
    assert torch.allclose(model(tokens)[0], before, atol=1e-6)


def test_all_attentions_by_the_name_of_old() -> None:
    model = network()
    with pytest.warns(DeprecationWarning, match=r'set_layer_lora_rank\("attn.N", rank\)'):
        model.resize_lora_rank(2)

    assert ranks(model) == {f"transformer.h.{index}.attn.c_attn": 2 for index in (0, 1)}


def test_the_embedding_by_the_name_of_old() -> None:
    model = network(tie_weights=False)
    with pytest.warns(DeprecationWarning, match=r'set_layer_lora_rank\("wte", rank\)'):
        model.resize_embedding_rank(2)

    assert ranks(model) == {"transformer.wte": 2}


@pytest.mark.parametrize(
    ("method", "frozen"),
    [
        ("set_embedding_finetune_mode", {"ln_1.0", "attn.0", "ln_2.0", "mlp.0", "ln_f"}),
        ("set_embedding_freeze_mode", {"wte", "wpe"}),
    ],
)
def test_modes_of_old_freeze_and_thaw(method: str, frozen: set[str]) -> None:
    """What their names say, and nothing else."""
    model = network(n_layer=1, tie_weights=False)
    for is_enabled, expected in ((True, frozen), (False, set())):
        with pytest.warns(DeprecationWarning, match="freeze_layer and unfreeze_layer"):
            getattr(model, method)(is_enabled)
        counts = model.get_detailed_param_count()
        assert {name for name, count in counts.items() if count["frozen"] and name != "total"} == expected


@pytest.mark.parametrize(("layer", "rank"), [("attn.2", 4), ("attn.0", 17), ("attn.0", -1)])
def test_an_impossible_rank_is_refused(layer: str, rank: int) -> None:
    with pytest.raises(ValueError, match=r"attn\.[02]"):
        network().set_layer_lora_rank(layer, rank)
