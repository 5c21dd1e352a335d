"""What an action gets at a step: losses and gradient norms on the device, blocks, agreement of ranks."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers.engine import (
    Action,
    ActionResult,
    Engine,
    EngineCallback,
    LearningRateRequest,
    StepContext,
    Transition,
)
from tests.callbacks.block_net import BlockNet
from tests.distributed.run_ranks import run_ranks
from tests.engine.drawn_blocks import DrawnBlocks
from tests.lab import NAMESPACES, adamw, batches, recorder, regression, trainer

LONE = NAMESPACES[0]


class Look(Action):
    """Notes what its context offers, at every step, and changes nothing."""

    title, kind, wants_loss = "Look", "look", True

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Any] = []
        self.norms: list[torch.Tensor] = []
        self.agreed: list[Any] = []
        self.blocks: dict[str, int] = {}

    wants_gradients = True

    def next_step(self, moment: Any) -> int:
        return int(moment.optimizer_step) + 1

    def is_due(self, moment: Any) -> bool:
        return True

    def apply(self, context: StepContext) -> ActionResult:
        self.losses.append(context.loss)
        self.blocks = {title: len(block) for title, block in context.blocks.items()}
        rank = torch.tensor(float(os.environ.get("RANK", 0)))
        self.agreed.append((float(context.mean_over_ranks(rank)), context.of_rank_zero(f"rank {int(rank)}")))
        return ActionResult()

    def before_optimizer_step(self, context: StepContext, optimizer: Any) -> None:
        norm = context.gradient_norm(context.model.parameters())
        assert norm is not None
        self.norms.append(norm)


class Looking(EngineCallback):
    def __init__(self) -> None:
        super().__init__()
        self.look = Look()

    def actions(self) -> list[Action]:
        return [self.look]


def norm_of_all(_: Any, module: Any) -> torch.Tensor:
    grads = [each.grad.flatten() for each in module.parameters() if each.grad is not None]
    return torch.cat(grads).norm()


@pytest.mark.parametrize("accumulated", [1, 3])  # four batches an epoch: windows of 3 and 1
def test_losses_and_norms_stay_on_the_device(accumulated: int) -> None:
    looking, losses = Looking(), recorder(LONE, lambda *_: None)
    values: list[float] = []
    losses.on_train_batch_end = lambda t, m, outputs, *_: values.append(float(outputs["loss"]) * accumulated)
    norms = recorder(LONE, norm_of_all, "on_before_optimizer_step")
    runner = trainer(LONE, callbacks=[looking, losses, norms], accumulate_grad_batches=accumulated)
    runner.fit(regression(LONE, BlockNet, adamw), batches(), batches())
    look = looking.look
    means = [sum(values[:3]) / 3] if accumulated == 3 else values[:3]
    assert look.losses[0] is None
    assert all(isinstance(loss, torch.Tensor) for loss in look.losses[1:])
    assert torch.allclose(torch.stack(look.losses[1:]), torch.tensor(means))
    assert torch.allclose(torch.stack(look.norms), torch.stack(norms.seen))
    assert look.blocks == dict.fromkeys("0123", 2)


def test_without_gradients_there_is_no_norm() -> None:
    context = StepContext(trainer(LONE), torch.nn.Linear(2, 2), None)  # type: ignore[arg-type]
    assert context.gradient_norm(context.model.parameters()) is None


def test_the_loss_is_kept_only_for_who_wants_it() -> None:
    looking = Looking()
    looking.look.wants_loss = False  # type: ignore[misc]
    hooks = recorder(
        LONE, lambda t, _: next(c for c in t.callbacks if isinstance(c, Engine)).on_train_batch_end
    )
    trainer(LONE, callbacks=[looking, hooks]).fit(regression(LONE, BlockNet), batches(), batches())
    assert looking.look.losses == [None] * 4
    assert hooks.seen == [None] * 4


def agreed_on_ranks() -> list[Any]:
    from pytorch_lightning.strategies import DDPStrategy

    looking, rank = Looking(), int(os.environ["RANK"])
    strategy = DDPStrategy(process_group_backend="gloo")
    runner = trainer(LONE, callbacks=[looking], devices=2, strategy=strategy)
    runner.fit(regression(LONE, BlockNet), batches(32, rank, 2))
    return [looking.look.agreed, torch.stack(looking.look.norms)]


@pytest.mark.wide
def test_ranks_agree(tmp_path: Path) -> None:
    first, second = run_ranks(agreed_on_ranks, tmp_path, 2)
    assert first[0] == second[0] == [(0.5, "rank 0")] * 4
    assert torch.equal(first[1], second[1])


def saved_loss(folder: Path) -> tuple[list[float], float]:
    """The losses of a run of which only rank zero returns any, and what its checkpoint has."""
    from pytorch_lightning.strategies import DDPStrategy

    rank, losses = int(os.environ["RANK"]), [0.0]
    module = regression(LONE, BlockNet)
    module.automatic_optimization = False

    def training_step(batch: Any, batch_idx: int) -> Any:
        loss = module.loss(batch)
        module.optimizers().zero_grad()
        module.manual_backward(loss)
        module.optimizers().step()
        losses.append(float(loss))
        return None if rank else {"loss": loss.detach()}

    module.training_step = training_step
    strategy = DDPStrategy(process_group_backend="gloo")
    runner = trainer(LONE, callbacks=[Looking()], devices=2, strategy=strategy)
    saver = recorder(LONE, lambda t, _: t.save_checkpoint(folder / "saved.ckpt"), "on_train_epoch_end")
    runner.callbacks.append(saver)
    runner.fit(module, batches(32, rank, 2))
    saved = torch.load(folder / "saved.ckpt", weights_only=True)["callbacks"]["lighter_freezers.engine"]
    return losses, saved["loss"]


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_saved_loss_is_that_of_the_ranks_that_have_one(tmp_path: Path) -> None:
    (losses, saved), _ = run_ranks(saved_loss, tmp_path, 2, tmp_path)
    assert saved == pytest.approx(losses[-1])


def test_a_random_generator_depends_on_seed_and_window_alone() -> None:
    contexts = [StepContext(trainer(LONE), torch.nn.Linear(1, 1), None) for _ in range(2)]  # type: ignore[arg-type]
    torch.manual_seed(3)
    draws = [
        [each.random(seed, window).random() for seed in (0, 1) for window in (0, 1)] for each in contexts
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 4


def test_a_callback_of_lightning_may_listen_too() -> None:
    """Without any of ours before it: the engine is added behind it."""
    import pytorch_lightning as pl

    seen: list[Transition] = []

    class Listening(pl.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            Engine.of(trainer).add_listener(self)

        def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
            seen.append(transition)

    ours = DrawnBlocks(num_blocks=1, every_n_steps=2, seed=1)
    for callbacks in ([Listening()], [Listening(), ours]):
        trainer(LONE, callbacks=callbacks).fit(regression(LONE, BlockNet), batches(), batches())
    assert [each.is_initial for each in seen] == [True, True, False]
    assert [each.optimizer_step for each in seen] == [0, 0, 2]


def test_transitions_and_rates_are_public() -> None:
    """A third party learns of changes from the engine, and asks for rates in its rules."""
    seen: list[Transition] = []

    class Listening(Looking):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            Engine.of(trainer).add_listener(self)

        def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
            seen.append(transition)

    trainer(LONE, callbacks=[Listening()]).fit(regression(LONE, BlockNet), batches(), batches())
    assert [each.is_initial for each in seen] == [True]
    assert LearningRateRequest(factor=0.5).target(0.2) == 0.1
