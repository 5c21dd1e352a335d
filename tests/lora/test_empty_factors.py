"""LoRA of rank 0 everywhere on a frozen base: what then has nothing to learn ends no run."""

from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraRankScheduler, apply_lora
from tests.engine.test_unusual_modules import Blocks, scaled, two_optimizers
from tests.lab import NAMESPACES, batches, first_now, recorder, regression, trainer

BOTH = ("blocks.0", "blocks.1")
ALL_ZERO = {
    "operations": lambda: LayerOperations(
        [
            {"name": "set_layer_lora_rank", "value": [layer, rank], "max_wait_iters": wait}
            for layer, rank, wait in (("block.0", 0, 1), ("block.1", 0, 0), ("block.1", 2, 3))
        ]
    ),
    "scheduler": lambda: LoraRankScheduler(
        [
            {"step": 1, "rank_pattern": dict.fromkeys(BOTH, 0)},
            {"step": 4, "rank_pattern": {"blocks.1": 2}},
        ]
    ),
}


def fit(
    namespace: str, callback: Any, optimizer: str = "Adafactor", pattern: Any = None, **options: Any
) -> list[bool]:
    """Whether an element of what trains moved in each step."""
    config = {"r": 4, "target_modules": list(BOTH), "rank_pattern": pattern or {}}
    module = regression(
        namespace,
        options.pop("network", lambda: apply_lora(Blocks(), config)),
        lambda p: getattr(torch.optim, optimizer)([each for each in p if each.requires_grad], lr=0.01),
    )
    values: list[list[torch.Tensor]] = []

    def note(_: Any, model: Any) -> None:
        values.append([p.detach().clone() for p in model.parameters() if p.requires_grad and p.numel()])

    before = recorder(namespace, note, "on_before_optimizer_step")
    after = recorder(namespace, note)
    run = trainer(namespace, callbacks=[callback, before, after], max_epochs=2, **options)
    run.fit(module, batches(), batches())
    pairs = zip(values[::2], values[1::2], strict=True)
    return [any(not torch.equal(a, b) for a, b in zip(old, new, strict=True)) for old, new in pairs]


@pytest.mark.parametrize("optimizer", [name for name in ("Adafactor", "Muon") if hasattr(torch.optim, name)])
@pytest.mark.parametrize("kind", ALL_ZERO)
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_steps_without_any_rank_do_nothing(namespace: str, kind: str, optimizer: str) -> None:
    """Under optimizers that divide by a size, too; a rank later on trains."""
    assert fit(namespace, ALL_ZERO[kind](), optimizer) == [True] + [False] * 3 + [True] * 4


@pytest.mark.parametrize(
    "callback",
    [Freezer(name_starts_with="stem.", until_step=2), GradualUnfreezing(every_n_epochs=1)],
    ids=["freezer", "gradual"],
)
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_a_head_that_trains_beside_rank_zero_trains_alone(namespace: str, callback: Any) -> None:
    """Switched on after `apply_lora`, which then saw nothing that trains."""

    def network() -> Any:
        config = {"r": 4, "target_modules": list(BOTH), "rank_pattern": dict.fromkeys(BOTH, 0)}
        model = apply_lora(Blocks(), config)
        model.head.weight.requires_grad_(True)
        return model

    assert fit(namespace, callback, network=network) == [True] * 8


class Late(Blocks):
    """Without its last block in the first three training steps."""

    num_calls = 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.num_calls += self.training
        if self.num_calls > 3:
            return super().forward(inputs)
        return self.head(torch.tanh(self.blocks[0](self.stem(inputs))))


def test_a_layer_of_rank_zero_may_come_in_later() -> None:
    """Its factors get their first gradient in step 3, long after the first look at them."""

    def network() -> Any:
        model = apply_lora(Late(), {"r": 4, "target_modules": list(BOTH), "rank_pattern": {BOTH[1]: 0}})
        del model.blocks[1].forward  # PEFT's own, as where nothing trained when the rank was set
        return model

    assert fit(NAMESPACES[0], Freezer(name_starts_with="stem."), network=network) == [True] * 8


@pytest.mark.parametrize("kind", ALL_ZERO)
def test_a_grad_scaler_goes_on_with_them(kind: str) -> None:
    """It has seen gradients that the optimizer does not get."""
    moved = fit(NAMESPACES[0], ALL_ZERO[kind](), plugins=[scaled(NAMESPACES[0])])
    assert moved == [True] + [False] * 3 + [True] * 4


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_grad_scaler_passes_over_an_optimizer_of_rank_zero(namespace: str) -> None:
    """Block 1 alone has the second optimizer, and gets a rank in step 4."""
    module = two_optimizers(namespace)
    config = {"r": 4, "target_modules": list(BOTH), "rank_pattern": {"blocks.1": 0}}
    module.network = apply_lora(module.network, config)
    type(module).configure_optimizers = lambda self: [
        torch.optim.SGD(block.parameters(), lr=0.1) for block in self.network.blocks
    ]
    sizes = recorder(namespace, lambda _, m: m.network.blocks[1].lora_A["default"].weight.numel())
    callbacks = [LoraRankScheduler([{"step": 4, "rank_pattern": {"blocks.1": 2}}]), sizes]
    run = trainer(namespace, callbacks=callbacks, plugins=[scaled(namespace)])
    run.fit(module, batches(), batches())

    assert sizes.seen == [0, 0, 16, 16]  # two optimizer steps a batch
    assert module.network.blocks[1].lora_B["default"].weight.any()


@pytest.mark.parametrize(
    "callback",
    [Freezer(name_starts_with="blocks.0.", until_step=2), GradualUnfreezing(every_n_epochs=1)],
    ids=["freezer", "gradual"],
)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_hold_of_all_but_rank_zero_is_refused(namespace: str, callback: Any) -> None:
    """Before the first step: factors without elements cannot learn."""
    with pytest.raises(RuntimeError, match="At the first step every parameter is frozen, so nothing trains"):
        fit(namespace, callback, pattern={"blocks.1": 0})
