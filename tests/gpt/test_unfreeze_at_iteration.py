"""`unfreeze_at_iteration` thaws the trunk in a GPTModule; elsewhere it says that it does not."""

import warnings
from importlib import import_module
from typing import Any

import pytest
import torch

from lighter_freezers import GPT, GPTConfig
from tests.lab import NAMESPACES, trainer

SHAPES = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 30, "block_size": 8}
MODES: dict[str, dict[str, Any]] = {
    "token_classifier": {"num_token_classes": 3},
    "language_model": {"tie_weights": False},
}


def network(mode: str) -> GPT:
    return GPT(
        GPTConfig(**SHAPES, **MODES[mode], mode=mode, freeze_transformer=True, unfreeze_at_iteration=2)
    )


def told(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught if "unfreeze_at_iteration" in str(each.message)]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("call", ["forward", "loss"])
def test_a_module_of_ones_own_is_told(namespace: str, mode: str, by_hand: bool, call: str) -> None:
    """Once, after the iteration, unless it thaws the trunk itself."""

    class Net(import_module(namespace).LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network(mode)

        def training_step(self, tokens: Any, index: int) -> Any:
            if by_hand and self.global_step == 2:
                self.network.unfreeze_transformer_weights()
            if call == "loss":
                return self.network.loss(tokens, tokens % 3)
            return self.network(tokens, tokens % 3)[1]

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    module = Net()
    loader = torch.utils.data.DataLoader(torch.randint(30, (32, 8)), batch_size=4)
    said = told(lambda: trainer(namespace, max_epochs=2).fit(module, loader))
    assert len(said) == (0 if by_hand else 1)
    assert by_hand or "train it in a GPTModule" in said[0]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("mode", MODES)
def test_a_gpt_module_thaws(namespace: str, mode: str) -> None:
    package = import_module(
        "lighter_freezers" if namespace == "pytorch_lightning" else "lighter_freezers.lightning"
    )
    module = package.GPTModule(network(mode))
    rows = [{"input_ids": row, "targets": row % 3} for row in torch.randint(30, (40, 8))]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    said = told(lambda: trainer(namespace, max_steps=5, limit_val_batches=0).fit(module, loader, loader))
    assert said == []
    assert not module.network.get_frozen_status()
