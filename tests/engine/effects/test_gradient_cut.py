"""Where the backward pass ends in real Trainers: what a step costs, and that nothing else changes."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lighter_freezers import GPT, Freezer, LayerOperations
from lighter_freezers.planning.costs.step_cost import StepMeter
from tests.lab import NAMESPACES, ResumableLoader, recorder, resuming, trainer

LONE = "pytorch_lightning"
V, B, T, C, N = 24, 2, 16, 32, 4
NUM_STEPS = 6
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]


def tokens(num_batches: int = NUM_STEPS) -> torch.utils.data.DataLoader[Any]:
    data = torch.randint(0, V, (num_batches * B, T), generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(data, batch_size=B)  # type: ignore[arg-type]


def language_model(namespace: str) -> Any:
    base = import_module(namespace).LightningModule

    class LanguageModel(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = GPT({"vocab_size": V, "block_size": T, "n_layer": N, "n_embd": C, "n_head": 2})

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return self.network(batch, batch)[1]

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return LanguageModel()


def meter(namespace: str) -> Any:
    """A callback that notes the operations of each step."""

    class Meter(import_module(namespace).Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.now = StepMeter(pl_module, batch)
            self.now.__enter__()

        def on_train_batch_end(self, *_: Any) -> None:
            self.now.__exit__(None, None, None)
            self.seen.append(self.now.cost().flops)

    return Meter()


def fit(callbacks: Sequence[Any], namespace: str = LONE, **options: Any) -> Any:
    module = language_model(namespace)
    trainer(namespace, callbacks=list(callbacks), **options).fit(module, tokens())
    return module


def below(num_blocks: int, **options: Any) -> Freezer:
    """The first blocks and the position embedding, but not the token embedding, which the head shares."""
    blocks = [f"transformer.h.{index}." for index in range(num_blocks)]
    return Freezer(name_starts_with=[*blocks, "transformer.wpe"], **options)


def flops_of_attention_backward() -> int:
    """Of one block, as this version of torch counts it: some count none for the kernel of a CPU."""
    q, k, v = (torch.randn(B, 2, T, C // 2, requires_grad=True) for _ in range(3))
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_each_phase_costs_what_it_trains(namespace: str) -> None:
    """Two steps with three frozen blocks, two with one, two with none: the limit, in a real loop."""
    freezers = [
        below(1, until_step=4),
        Freezer(name_starts_with=["transformer.h.1.", "transformer.h.2."], until_step=2),
    ]
    measured = meter(namespace)
    module = fit([*freezers, measured], namespace)
    plain = meter(namespace)
    fit([plain], namespace)
    whole, saved = plain.seen[0], [plain.seen[0] - flops for flops in measured.seen]
    block = 2 * B * T * 12 * C * C  # one product with each weight of a block

    assert plain.seen == [whole] * NUM_STEPS
    assert saved[4:] == [0, 0]
    assert saved[0] == saved[1] == 3 * saved[2] == 3 * saved[3]
    assert saved[2] == 2 * block + flops_of_attention_backward()
    assert not module.network.transformer.h[0]._forward_pre_hooks


def test_the_freezer_can_leave_it_alone() -> None:
    """`cut_gradient: never`: the embedding learns through frozen blocks, at their price."""
    auto, never = meter(LONE), meter(LONE)
    modules = [fit([below(2), auto]), fit([below(2, cut_gradient="never"), never])]
    weights = [module.network.transformer.wte.weight for module in modules]

    assert auto.seen[0] < 0.9 * never.seen[0]
    assert not torch.equal(*weights)


def test_operations_can_leave_it_alone() -> None:
    """The same for `LayerOperations` on a tied model: as a Freezer that holds the same layers, either way."""
    layers = ["wpe", *(f"{part}.{index}" for index in (0, 1) for part in ("attn", "mlp", "ln_1", "ln_2"))]
    weights = {}
    for cut in ("auto", "never"):
        frozen = [{"name": "freeze_layer", "value": layer, "max_wait_iters": 0} for layer in layers]
        seen = [meter(LONE), meter(LONE)]
        by_operations = fit([LayerOperations(frozen, cut_gradient=cut), seen[0]])
        by_freezer = fit([below(2, cut_gradient=cut), seen[1]])
        assert seen[0].seen == seen[1].seen
        weights[cut] = by_operations.network.transformer.wte.weight
        assert torch.equal(weights[cut], by_freezer.network.transformer.wte.weight)
    assert not torch.equal(weights["auto"], weights["never"])


def test_by_hand_it_is_the_same() -> None:
    """Bit-equal to a training loop of one's own whose embeddings are detached while the prefix is frozen."""
    module = fit([below(2, until_step=3)])
    own = language_model(LONE)
    trunk = own.network.transformer
    optimizer = own.configure_optimizers()
    frozen = [*trunk.wpe.parameters(), *trunk.h[0].parameters(), *trunk.h[1].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    hook = trunk.h[0].register_forward_pre_hook(lambda _, arguments: (arguments[0].detach(), *arguments[1:]))
    for index, batch in enumerate(tokens()):
        if index == 3:
            hook.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)
        optimizer.zero_grad()
        own.training_step(batch, index).backward()
        optimizer.step()

    for one, other in zip(module.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_is_cut_as_the_whole_one(tmp_path: Path) -> None:
    """From every step, two of them in the phase with the cut."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    results = {}
    for start in (0, 1, 2, 4):
        saver = ModelCheckpoint(tmp_path / str(start), "{step}", save_top_k=-1, every_n_train_steps=1)
        module = language_model(LONE)
        fitting = trainer(
            LONE, callbacks=[below(2, until_step=3), saver], max_steps=NUM_STEPS, enable_checkpointing=True
        )
        path = tmp_path / "0" / f"step={start}.ckpt" if start else None
        fitting.fit(module, ResumableLoader(tokens(4 * NUM_STEPS).dataset), **resuming(fitting, path))
        results[start] = [parameter.detach() for parameter in module.parameters()]

    assert all(
        torch.equal(one, other)
        for start in (1, 2, 4)
        for one, other in zip(results[start], results[0], strict=True)
    )


def test_a_loss_of_the_gain_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position embedding trains below two frozen blocks."""
    import logging

    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    fit([Freezer(name_starts_with=["transformer.h.0.", "transformer.h.1."])])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]

    assert len(warnings) == 1
    assert "the frozen h.0-1 because wpe below trains" in warnings[0].replace("network.transformer.", "")


def test_nothing_is_hooked_where_nothing_is_frozen() -> None:
    """A Freezer that waits costs nothing in the model."""
    seen = recorder(LONE, lambda _, m: sum(len(module._forward_pre_hooks) for module in m.modules()))
    fit([below(2, from_step=3), seen])

    assert seen.seen == [0, 0, 0, 1, 1, 1]


def test_the_argument_is_checked() -> None:
    """A typo is an error with the choices."""
    with pytest.raises(ValueError, match="cut_gradient.*auto.*never"):
        below(1, cut_gradient="always")
