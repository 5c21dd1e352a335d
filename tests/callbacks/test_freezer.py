"""What a Freezer holds and when, in real fits of both namespaces."""

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer
from tests.lab import (
    NAMESPACES,
    NormNet,
    batches,
    frozen_at_each_step,
    frozen_layers,
    recorder,
    regression,
    trainer,
)

LONE = "pytorch_lightning"  # where the namespace does not matter


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_freezers_compose_in_any_order(namespace: str, is_reversed: bool) -> None:
    """Overlapping Freezers: each layer thaws once its last holder releases it."""
    freezers = [
        Freezer(name_starts_with=["layer1.", "layer2"], until_step=3),
        Freezer(name_starts_with="layer2", until_epoch=1),
    ]
    seen = frozen_at_each_step(namespace, freezers[::-1] if is_reversed else freezers, max_epochs=2)

    assert seen == [["layer1", "layer2"]] * 3 + [["layer2"]] + [[]] * 4


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"until_step": 3}, [0, 1, 2]),
        ({"until_epoch": 1}, [0, 1, 2, 3]),
        ({"until_step": 6, "until_epoch": 1}, [0, 1, 2, 3]),
        ({"until_step": 2, "until_epoch": 1}, [0, 1]),
        ({"from_step": 5}, [5, 6, 7]),
        ({"from_epoch": 1}, [4, 5, 6, 7]),
        ({"from_step": 1, "until_step": 3}, [1, 2]),
        ({"windows": [[0, 2], [5, 6]]}, [0, 1, 5]),
        ({}, list(range(8))),
    ],
)
def test_when_a_freezer_holds(arguments: dict[str, Any], steps: list[int]) -> None:
    """Two epochs of four steps: bounds count optimizer steps and epochs from 0 and are half-open."""
    seen = frozen_at_each_step(LONE, [Freezer(name_starts_with="layer2", **arguments)], max_epochs=2)

    assert [step for step, layers in enumerate(seen) if layers] == steps


@pytest.mark.parametrize("accumulate", [2, 3])
def test_steps_are_optimizer_steps_not_batches(accumulate: int) -> None:
    """With accumulation a step is several batches; the last window of an epoch may be short."""
    seen = frozen_at_each_step(
        LONE,
        [Freezer(name_starts_with="layer2", until_step=3)],
        max_epochs=2,
        accumulate_grad_batches=accumulate,
    )

    assert seen == [["layer2"]] * (6 if accumulate == 2 else 7) + [[]] * (2 if accumulate == 2 else 1)


def test_a_change_of_accumulation_between_epochs_is_followed() -> None:
    """Lightning's scheduler makes windows of two batches from epoch 1 on."""
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    freezer = Freezer(name_starts_with="layer2", until_step=5)
    seen = frozen_at_each_step(LONE, [freezer, GradientAccumulationScheduler({0: 1, 1: 2})], max_epochs=2)

    assert seen == [["layer2"]] * 6 + [[]] * 2


def test_it_is_frozen_before_the_sanity_check_and_the_optimizer() -> None:
    """`setup` already holds, so the summary, the sanity check and the optimizer see it."""
    module = regression(LONE)
    seen: list[list[str]] = []
    sanity = recorder(LONE, lambda _, module: frozen_layers(module), when="on_sanity_check_start")
    configure = module.configure_optimizers
    module.configure_optimizers = lambda: (seen.append(frozen_layers(module)), configure())[1]
    fit = trainer(
        LONE, callbacks=[Freezer(name_starts_with="layer2", until_step=1), sanity], num_sanity_val_steps=1
    )
    fit.fit(module, batches(), batches())

    assert seen + sanity.seen == [["layer2"], ["layer2"]]


def test_a_second_fit_with_the_same_instance_works() -> None:
    """Another model, the same model, the same Trainer: the schedule starts where the step counter stands."""
    freezer, first = Freezer(name_starts_with="layer2", until_step=2), regression(LONE)
    for module in (first, first, regression(LONE)):
        seen = recorder(LONE, lambda _, module: frozen_layers(module))
        trainer(LONE, callbacks=[freezer, seen]).fit(module, batches(), batches())
        assert seen.seen == [["layer2"], ["layer2"], [], []]

    same = trainer(LONE, callbacks=[Freezer(name_starts_with="layer2", until_step=6)], max_epochs=1)
    module = regression(LONE)
    same.fit(module, batches(), batches())
    assert frozen_layers(module) == ["layer2"]
    same.fit_loop.max_epochs = 2
    same.fit(module, batches(), batches())
    assert frozen_layers(module) == []


def test_a_run_that_ends_frozen_can_be_thawed_by_the_next() -> None:
    """The flags stay as in the last step, but the ledger remembers that the layer trained."""
    module = regression(LONE)
    trainer(LONE, callbacks=[Freezer(name_starts_with="layer2")]).fit(module, batches(), batches())
    assert frozen_layers(module) == ["layer2"]
    trainer(LONE, callbacks=[Freezer(name_starts_with="layer2", until_step=1)]).fit(
        module, batches(), batches()
    )

    assert frozen_layers(module) == []


def test_restore_on_end_gives_the_flags_back() -> None:
    """Also when the run fails."""
    for steps in (None, RuntimeError("on purpose")):
        module = regression(LONE)
        if steps is not None:
            module.on_train_epoch_end = _raise(steps)
        fit = trainer(LONE, callbacks=[Freezer(name_starts_with="layer2", restore_on_end=True)])
        if steps is None:
            fit.fit(module, batches(), batches())
        else:
            with pytest.raises(RuntimeError, match="on purpose"):
                fit.fit(module, batches(), batches())
        assert frozen_layers(module) == []


def _raise(error: Exception) -> Any:
    def hook() -> None:
        raise error

    return hook


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_alone_in_a_list_and_several_equal_ones(namespace: str) -> None:
    """A Trainer takes one callback without a list, and two equal ones do not collide."""
    equal = [Freezer(name_starts_with="layer2", until_step=2) for _ in range(2)]
    for callbacks in (equal[0], equal):
        module = regression(namespace)
        fit = trainer(namespace, callbacks=callbacks)
        fit.fit(module, batches(), batches())
        assert frozen_layers(module) == []


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_it_pickles_and_copies_before_and_after_a_fit(namespace: str) -> None:
    """Spawning strategies pickle callbacks; sweeps copy them."""
    freezer = Freezer(name_starts_with="layer2", until_step=1)
    trainer(namespace, callbacks=[freezer]).fit(regression(namespace), batches(), batches())
    for twin in (pickle.loads(pickle.dumps(freezer)), copy.deepcopy(freezer)):
        assert twin.state_key == freezer.state_key
        assert frozen_at_each_step(namespace, [twin]) == [["layer2"], [], [], []]


@pytest.mark.parametrize("wrapper", ["network", "model", "backbone"])
def test_names_match_with_or_without_the_wrapper(wrapper: str) -> None:
    """`network.` and `model.` may be left out, or stand for each other as in lighter's older guides."""
    for name in (
        ("layer2", f"{wrapper}.layer2", "model.layer2") if wrapper != "backbone" else ("backbone.layer2",)
    ):
        module = regression(LONE, wrapper=wrapper)
        trainer(LONE, callbacks=[Freezer(name_starts_with=name)]).fit(module, batches(), batches())
        assert [n for n, p in module.named_parameters() if not p.requires_grad] == [
            f"{wrapper}.layer2.weight",
            f"{wrapper}.layer2.bias",
        ]


def test_a_transition_in_the_middle_of_an_accumulation_window_waits() -> None:
    """A metric met after batch 1 of 3 takes effect at the next window: no partial accumulation is applied."""
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "val/loss", "below": 1e9})
    seen = frozen_at_each_step(LONE, [freezer], accumulate_grad_batches=3, val_check_interval=1)

    assert seen == [["layer2"]] * 3 + [[]]


def test_one_log_line_per_transition(caplog: pytest.LogCaptureFixture) -> None:
    """What changed, how much is frozen, and who holds it."""
    caplog.set_level(logging.INFO, logger="lighter_freezers")
    freezers = [
        Freezer(name_starts_with=["layer1.", "layer2"], until_step=2),
        Freezer(name_starts_with="layer2", until_step=3),
    ]
    frozen_at_each_step(LONE, freezers)

    assert [record.message for record in caplog.records if record.name == "lighter_freezers"] == [
        "step 0: starts with frozen layer1, layer2 (144 parameters), 64 % frozen, "
        "held by Freezer['layer1.', 'layer2' until step 2], Freezer['layer2' until step 3]",
        "step 2: thawed layer1 (72 parameters), 32 % frozen, held by Freezer['layer2' until step 3]",
        "step 3: thawed layer2 (72 parameters), 0 % frozen",
    ]


@pytest.mark.parametrize("mode", ["eval", "stats", "train"])
def test_norm_layers_of_a_frozen_backbone(mode: Any) -> None:
    """Their buffers stand still, through validation and `self.train()`, and move again after the thaw."""
    module = regression(LONE, network=NormNet)
    module.on_train_batch_start = lambda *_: module.train() and None
    statistics = recorder(LONE, lambda _, module: [b.clone() for b in module.network.backbone.buffers()])
    freezer = Freezer(name_starts_with="backbone", until_step=4, frozen_norms=mode)
    trainer(LONE, callbacks=[freezer, statistics], max_epochs=2, val_check_interval=1).fit(
        module, batches(), batches()
    )
    moves = [
        any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        for before, after in zip(statistics.seen, statistics.seen[1:], strict=False)
    ]

    assert moves == [mode == "train"] * 3 + [True] * 4
    assert all(layer.training for layer in module.network.backbone)


def test_torch_compile_keeps_the_names() -> None:
    """A compiled network has `_orig_mod.` in its names; the rule need not."""
    module = regression(LONE, network=lambda: torch.compile(NormNet(), backend="eager"))
    trainer(LONE, callbacks=[Freezer(name_starts_with="backbone")]).fit(module, batches(), batches())

    assert isinstance(module.network._orig_mod, nn.Module)
    assert frozen_layers(module.network) == ["_orig_mod"]


def test_a_module_built_in_configure_model_is_found_late() -> None:
    """There are no parameters in `setup` yet; they are held before the first batch all the same."""
    module = regression(LONE)
    network = module.network
    del module.network

    def configure_model(self: Any) -> None:
        self.network = network

    type(module).configure_model = configure_model
    seen = recorder(LONE, lambda _, module: frozen_layers(module))
    trainer(LONE, callbacks=[Freezer(name_starts_with="layer2", until_step=2), seen]).fit(
        module, batches(), batches()
    )

    assert seen.seen == [["layer2"], ["layer2"], [], []]
