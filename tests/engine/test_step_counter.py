"""The counter that is read after each batch is `trainer.global_step`, whatever steps the optimizers."""

from typing import Any

import pytest
import torch

from lighter_freezers.engine import trainer_clock
from tests.lab import batches, recorder, regression, trainer


@pytest.mark.parametrize(
    ("is_manual", "options"),
    [(False, {}), (False, {"accumulate_grad_batches": 3}), (False, {"precision": "bf16-mixed"}), (True, {})],
)
def test_it_is_the_global_step(is_manual: bool, options: dict[str, Any]) -> None:
    """Under manual optimization, with two optimizers that step twice in every other batch."""
    module = regression("pytorch_lightning")
    if is_manual:
        step_by_hand(module)
    counters: list[Any] = []

    def look(trainer: Any, module: Any) -> tuple[int, int]:
        counters.append(counters[0] if counters else trainer_clock.step_counter(trainer, module))
        return counters[0](), trainer.global_step

    seen = recorder("pytorch_lightning", look, "on_train_batch_end")
    trainer("pytorch_lightning", callbacks=[seen], max_epochs=2, limit_val_batches=0, **options).fit(
        module, batches(), batches()
    )
    assert seen.seen
    assert all(ours == theirs for ours, theirs in seen.seen)
    assert seen.seen[-1][0] > 1


def test_it_is_what_a_subclass_of_trainer_says() -> None:
    """One that counts rounds of two optimizers, as a GAN does."""
    run = trainer("pytorch_lightning", max_epochs=1, limit_val_batches=0)
    kind = type(run)
    rounds = property(lambda of: kind.global_step.fget(of) // 2)
    run.__class__ = type("Rounds", (kind,), {"global_step": rounds})
    module = regression("pytorch_lightning")
    run.fit(module, batches(), batches())
    assert trainer_clock.step_counter(run, module)() == run.global_step == 2


def step_by_hand(module: Any) -> None:
    module.automatic_optimization = False

    def configure_optimizers() -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(module.parameters(), lr=1e-3) for _ in range(2)]

    def training_step(batch: Any, batch_idx: int) -> None:
        for optimizer in module.optimizers():
            for _ in range(1 + batch_idx % 2):
                optimizer.zero_grad()
                module.manual_backward(module.network(batch[0]).square().mean())
                optimizer.step()

    module.configure_optimizers, module.training_step = configure_optimizers, training_step
