"""What one fit leaves to the next: with the same Trainer, module and step > 0 it goes on."""

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.tuner import Tuner

from lighter_freezers import (
    BlockCycling,
    FreezeOut,
    Freezer,
    FreezeStateLogger,
    GradualUnfreezing,
    LayerOperations,
    Lisa,
    Misa,
    apply_lora,
)
from lighter_freezers.engine.engine import Engine
from tests.lab import TinyNet, adamw, batches, frozen_layers, recorder, regression, trainer

LONE = "pytorch_lightning"
MET_AT_ONCE = {"monitor": "val/loss", "below": 1e9}  # by the first validation


def operations() -> LayerOperations:
    return LayerOperations(
        [
            {"name": "freeze_layer", "value": "layer10", "max_wait_iters": 2},
            {"name": "unfreeze_layer", "value": "layer10", "max_wait_iters": 4},
        ]
    )


def callbacks() -> list[Any]:
    rate = {"unfreeze_lr": 1e-3, "warmup_steps": 6}
    return [Freezer(name_starts_with="layer2", until_metric=MET_AT_ONCE, **rate), operations()]


def state(fit: Any, module: Any) -> tuple[list[str], list[float]]:
    groups = [group for group in fit.optimizers[0].param_groups if group["params"]]
    return frozen_layers(module), [group["lr"] for group in groups]


def fit(runner: Any, module: Any, max_epochs: int) -> None:
    runner.fit_loop.max_epochs = max_epochs
    runner.fit(module, batches(), batches())


def test_a_second_fit_goes_on() -> None:
    """Latches, rates, warm-ups and operations, as in one fit of the same length; validation in between."""
    seen = {}
    for kind in ("whole", "parts"):
        seen[kind] = recorder(LONE, state)
        runner = trainer(LONE, callbacks=[*callbacks(), seen[kind]], max_epochs=3)
        module = regression(LONE, TinyNet, adamw)
        for max_epochs in (3,) if kind == "whole" else (1, 2, 3):
            fit(runner, module, max_epochs)
            engine = next(each for each in runner.callbacks if isinstance(each, Engine))
            saved = engine.state_dict()
            runner.validate(module, batches(), verbose=False)
            assert engine.state_dict() == saved
    assert seen["parts"].seen == seen["whole"].seen
    assert seen["whole"].seen[3][0] == ["layer10", "layer2"]
    assert seen["whole"].seen[11][0] == []


@pytest.mark.parametrize("other", ["module", "trainer"])
def test_anything_else_starts_anew(other: str) -> None:
    """Cross-validation with one list of callbacks: another module, or another Trainer."""
    ours = callbacks()
    runs = []
    module, runner = regression(LONE, TinyNet, adamw), None
    for _ in range(2):
        seen = recorder(LONE, lambda _, each: frozen_layers(each))
        if runner is None or other == "trainer":
            runner = trainer(LONE, callbacks=[*ours, seen], max_epochs=2)
        else:
            runner.callbacks[runner.callbacks.index(runs[0])] = seen
            runner.fit_loop.epoch_progress.reset()
        fit(runner, module, 2 if other == "trainer" else runner.current_epoch + 2)
        runs.append(seen)
        if other == "module":
            module = regression(LONE, TinyNet, adamw)
    assert runs[0].seen[0] == runs[1].seen[0] == ["layer2"]


@pytest.mark.wide
@pytest.mark.parametrize("how", ["finder", "tuner", "batch size"])
def test_searching_a_rate_or_a_batch_size_leaves_no_trace(how: str, tmp_path: Any) -> None:
    class Module(pl.LightningModule):
        lr, batch_size = 1e-3, 8

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = TinyNet()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.network(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(batches().dataset, batch_size=self.batch_size)

    seen = recorder(LONE, lambda _, module: frozen_layers(module))
    ours = [Freezer(name_starts_with="layer2", until_step=3), operations()]
    finder = [LearningRateFinder(num_training_steps=6, update_attr=False)] if how == "finder" else []
    module = Module()
    runner = trainer(LONE, callbacks=[*ours, *finder], max_epochs=2, default_root_dir=str(tmp_path))
    if how == "tuner":
        Tuner(runner).lr_find(module, num_training=6, update_attr=False)
    elif how == "batch size":
        Tuner(runner).scale_batch_size(module, steps_per_trial=6, max_trials=1, init_val=8)
        module.batch_size = 8
    runner.callbacks.append(seen)
    runner.fit(module)
    steps = seen.seen[-8:]
    assert steps == [["layer2"]] * 2 + [["layer10", "layer2"]] + [["layer10"]] * 3 + [[]] * 2


def test_a_fast_dev_run_leaves_no_trace() -> None:
    ours = callbacks()
    module = regression(LONE, TinyNet, adamw)
    trainer(LONE, callbacks=ours, fast_dev_run=True).fit(module, batches(), batches())
    seen = recorder(LONE, lambda _, each: frozen_layers(each))
    fit(trainer(LONE, callbacks=[*ours, seen], max_epochs=2), module, 2)
    assert seen.seen[:4] == [["layer2"]] * 2 + [["layer10", "layer2"]] * 2


def test_a_copied_list_of_callbacks_is_an_error_before_training() -> None:
    class Copying(pl.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            trainer.callbacks = list(trainer.callbacks)

    runner = trainer(LONE, callbacks=[Copying(), Freezer(name_starts_with="layer2")], max_epochs=1)
    with pytest.raises(RuntimeError, match=r"Freezer would do nothing.*replaced `trainer.callbacks`"):
        runner.fit(regression(LONE), batches(), batches())


def test_a_setup_without_super_is_an_error_before_training() -> None:
    class Own(Freezer):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None: ...

    runner = trainer(LONE, callbacks=[Own(name_starts_with="layer2")], max_epochs=1)
    with pytest.raises(RuntimeError, match=r"Own would do nothing.*super\(\)\.setup"):
        runner.fit(regression(LONE), batches(), batches())


def test_after_an_interrupt_all_is_in_order() -> None:
    class Interrupting(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                raise KeyboardInterrupt

    ours = [Freezer(name_starts_with="layer2", until_step=3, restore_on_end=True)]
    module = regression(LONE, TinyNet, adamw)
    with pytest.raises(SystemExit):
        trainer(LONE, callbacks=[*ours, Interrupting()], max_epochs=1).fit(module, batches(), batches())
    assert frozen_layers(module) == []
    seen = recorder(LONE, lambda _, each: frozen_layers(each))
    fit(trainer(LONE, callbacks=[*ours, seen], max_epochs=1), module, 1)
    assert seen.seen == [["layer2"]] * 3 + [[]]


def saved_and_loaded(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), saved_and_loaded]
)
@pytest.mark.parametrize("when", ["in the run", "after the run"])
def test_a_copied_network_thaws(twin_of: Any, when: str) -> None:
    """What the user froze by hand stays frozen in the copy; what a Freezer froze trains after the release."""
    twins = []
    module = regression(LONE, TinyNet, adamw)
    module.network.layer1.requires_grad_(False)
    copying = recorder(LONE, lambda _, each: twins.append(twin_of(each.network)))
    ours = [Freezer(name_starts_with="layer2", until_step=99)]
    fit(trainer(LONE, callbacks=[*ours, copying], max_epochs=1), module, 1)
    twin = twins[-1] if when == "in the run" else twin_of(module.network)

    again = regression(LONE, TinyNet, adamw)
    again.network = twin
    trainer(LONE, callbacks=ours).validate(again, batches(), verbose=False)
    assert frozen_layers(again) == ["layer1", "layer2"]
    seen = recorder(LONE, lambda _, each: frozen_layers(each))
    both = Freezer(name_starts_with=["layer1.", "layer2."], until_step=2)
    fit(trainer(LONE, callbacks=[both, seen], max_epochs=1), again, 1)
    assert seen.seen == [["layer1", "layer2"]] * 2 + [["layer1"]] * 2


def seen_frozen(module: Any, *callbacks: Any) -> list[list[str]]:
    """What is frozen in each step of a run of two epochs."""
    seen = recorder(LONE, lambda _, each: frozen_layers(each))
    trainer(LONE, callbacks=[*callbacks, seen], max_epochs=2).fit(module, batches(), batches())
    return list(seen.seen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Freezer(name_starts_with="layer2.", from_step=5),
        lambda: Freezer(name_starts_with="layer2.", windows=[[2, 4], [6, 99]]),
        lambda: LayerOperations([{"name": "freeze_layer", "value": "layer2", "max_wait_iters": 2}]),
        lambda: BlockCycling(3, "ascending", blocks=["layer1", "layer2", "layer10"]),
        lambda: FreezeOut(6, every_n_steps=2, blocks=["layer1", "layer2", "layer10"]),
    ],
    ids=["freezer", "windows", "operations", "cycling", "freeze out"],
)
def test_what_a_run_left_frozen_follows_the_schedule_of_the_next(make: Any) -> None:
    """With the same callback and with a new one; what the next selects nothing of is left alone."""
    module, ours = regression(LONE), make()
    runs = [seen_frozen(module, each) for each in (ours, ours, make())]
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][-1]
    assert seen_frozen(module, Freezer(names="head.bias", until_step=1))[-1] == runs[0][-1]


@pytest.mark.parametrize(
    "callback",
    [
        Freezer(name_starts_with="layer2.", from_step=5),
        Freezer(name_starts_with="layer2.", windows=[[2, 4]]),
        LayerOperations([{"name": "freeze_layer", "value": "layer2", "max_wait_iters": 2}]),
    ],
    ids=["from", "windows", "operations"],
)
@pytest.mark.parametrize("targets", [["layer1"], ["layer1", "layer2"]], ids=str)
def test_what_lora_keeps_is_not_thawed_after_a_run_that_left_it_frozen(callback: Any, targets: Any) -> None:
    """PEFT freezes all but its adapters, in whatever state it finds them."""
    module = regression(LONE)
    seen_frozen(module, Freezer(name_starts_with="layer2."))
    apply_lora(module.network, {"r": 2, "target_modules": targets})
    trains = recorder(LONE, lambda _, each: [n for n, p in each.named_parameters() if p.requires_grad])
    trainer(LONE, callbacks=[callback, trains], max_epochs=2).fit(module, batches(), batches())
    assert all("lora" in name for name in trains.seen[0])


@pytest.mark.parametrize("make", [lambda **which: Lisa(1, 3, **which), lambda **which: Misa(0.2, **which)])
def test_what_a_policy_does_not_choose_from_stays_as_a_run_left_it(make: Any) -> None:
    """With `rest: train`, which means as before."""
    module = regression(LONE)
    seen_frozen(module, Freezer(names="head.bias"))
    policy = make(blocks=["layer1", "layer2"], rest="train")
    bias = recorder(LONE, lambda _, each: each.network.head.bias.requires_grad)
    trainer(LONE, callbacks=[policy, bias], max_epochs=2).fit(module, batches(), batches())
    assert not any(bias.seen)


@pytest.mark.parametrize("when", ["before", "after"])
def test_callbacks_can_be_pickled(when: str, tmp_path: Any) -> None:
    """For a pool of processes: before a fit and after one, they keep nothing of the module."""
    stages = GradualUnfreezing(stages=[{"thaw": "head.", "until_step": 3}, {"thaw": "layer2."}])
    ours = [[*callbacks(), BlockCycling(3, blocks=["layer1", "layer2"])], [stages, FreezeStateLogger()]]
    once = partial(trainer, LONE, max_epochs=1, default_root_dir=tmp_path)
    for each in ours:
        if when == "after":
            once(callbacks=each).fit(regression(LONE), batches(), batches())
        twins = pickle.loads(pickle.dumps(each))
        assert [str(twin) for twin in twins[:1]] == [str(one) for one in each[:1]]
        once(callbacks=twins).fit(regression(LONE), batches(), batches())
