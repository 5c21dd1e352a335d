"""LayerOperations in real Trainers: when each operation is done, what it does, what is said about it."""

import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer, FreezeStateLogger, LayerOperations
from tests.lab import NAMESPACES, NormNet, batches, frozen_layers, recorder, regression, sgd, trainer

LONE = "pytorch_lightning"
NOW = {"trigger_loss": math.inf, "max_wait_iters": 0}


def operation(name: str, value: Any = None, **when: Any) -> dict[str, Any]:
    return {"name": name, "value": value, **(when or NOW)}


def fit(
    operations: list[dict[str, Any]],
    losses: list[float] | None = None,
    namespace: str = LONE,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> tuple[Any, list[list[str]]]:
    """Train four batches an epoch; validation logs these losses. Returns the Trainer, and what was frozen."""
    module = regression(namespace)
    if losses is not None:
        values = iter(losses)
        module.validation_step = lambda batch, batch_idx: None
        module.on_validation_epoch_end = lambda: module.log("val/loss", next(values))
    seen = recorder(namespace, lambda _, m: frozen_layers(m))
    callbacks = [LayerOperations(operations, **arguments), seen]
    fitted = trainer(namespace, callbacks=callbacks, max_epochs=len(losses or [0]), **options or {})
    fitted.fit(module, batches(), batches())
    return fitted, seen.seen


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    caplog.set_level(logging.INFO, "lighter_freezers")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if "operation " in record.getMessage()]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_operations_are_done_in_their_order(namespace: str, log: pytest.LogCaptureFixture) -> None:
    """At once, because of the loss, after a wait; one line each."""
    operations = [
        operation("freeze_layer", "layer2"),
        operation("freeze_layer", "layer10", trigger_loss=2.5, max_wait_iters=100, desc="calmer"),
        operation("unfreeze_layer", "layer2", trigger_loss=2.5),
        operation("unfreeze_layer", "layer10", max_wait_iters=3),
        operation("freeze_layer", "head", trigger_loss=0.5),
    ]
    _, seen = fit(operations, [3.0, 2.4, 1.0, 1.0], namespace)

    assert seen == [["layer2"]] * 8 + [["layer10"]] * 3 + [[]] * 5
    assert lines(log) == [
        "step 0: operation 1 of 5, freeze_layer layer2: at once: froze 72 parameters",
        "step 8: operation 2 of 5, freeze_layer layer10: val/loss 2.4 < 2.5: froze 72 parameters (calmer)",
        "step 8: operation 3 of 5, unfreeze_layer layer2: val/loss 2.4 < 2.5: thawed 72 parameters",
        "step 11: operation 4 of 5, unfreeze_layer layer10: waited 3 steps: thawed 72 parameters",
    ]
    assert log.records[-1].getMessage() == (
        "LayerOperations: 1 of 5 operations were not reached; "
        "next was 'freeze_layer head', waits for val/loss < 0.5"
    )


def test_reevaluate_waits_for_a_loss_of_its_own() -> None:
    """Without it, the same loss serves all."""
    for reevaluate, steps in ((False, 4), (True, 8)):
        operations = [
            operation("freeze_layer", "layer2", trigger_loss=2.5, reevaluate=reevaluate),
            operation("freeze_layer", "layer10", trigger_loss=2.5),
        ]
        _, seen = fit(operations, [2.0, 2.0, 2.0])
        assert [("layer10" in frozen) for frozen in seen] == [False] * steps + [True] * (12 - steps)


def test_the_wait_counts_optimizer_steps_not_batches() -> None:
    """With two batches to a step."""
    _, seen = fit(
        [operation("freeze_layer", "layer2", max_wait_iters=3)],
        [1.0] * 3,
        options={"accumulate_grad_batches": 2},
    )

    assert seen == [[]] * 6 + [["layer2"]] * 6


def test_frozen_means_frozen() -> None:
    """Weights, batch norm, momentum and decay: bit-equal, no gradient; and in training again after."""
    module = regression(LONE, network=NormNet)
    backbone = module.network.backbone
    operations = [operation("freeze_layer", "backbone.0", max_wait_iters=2)] + [
        operation(name, "backbone.1", max_wait_iters=wait)
        for name, wait in (("freeze_layer", 0), ("unfreeze_layer", 4))
    ]
    seen = recorder(
        LONE, lambda *_: ([v.clone() for v in backbone.state_dict().values()], backbone[1].training)
    )
    trainer(LONE, callbacks=[LayerOperations(operations), seen], max_epochs=2).fit(
        module, batches(), batches()
    )
    states, modes = zip(*seen.seen, strict=True)
    same = [all(map(torch.equal, states[1][:7], state[:7])) for state in states]

    assert modes == (True, True, False, False, False, False, True, True)
    assert same == [False, True, True, True, True, True, False, False]
    assert backbone[0].weight.grad is None


def test_learning_rates() -> None:
    """Set, scaled and restarted; they apply at the step at which they are changed."""
    operations = [
        operation("set_lr", 0.2, max_wait_iters=2),
        operation("scale_lr", 0.5, max_wait_iters=2),
        operation("reset_lr_schedule", max_wait_iters=2),
    ]
    module = regression(
        LONE,
        scheduler=lambda o: {"scheduler": lrs.LambdaLR(o, lambda n: 0.5**n), "interval": "step"},
    )
    rates = recorder(LONE, lambda t, _: t.optimizers[0].param_groups[0]["lr"], "on_before_zero_grad")
    trainer(LONE, callbacks=[LayerOperations(operations), rates], max_epochs=2).fit(
        module, batches(), batches()
    )

    expected = [0.05, 0.025, 0.2 / 4, 0.2 / 8, 0.1 / 16, 0.1 / 32, 0.1, 0.05]
    assert rates.seen == pytest.approx(expected)


@pytest.mark.parametrize(("on_failure", "frozen"), [("stop", []), ("skip", ["layer2"])])
def test_what_fails_stops_the_run_or_is_skipped(
    on_failure: str, frozen: list[str], log: pytest.LogCaptureFixture
) -> None:
    """With its reason; it is tried once, and never counts as done."""
    operations = [operation("set_lr", 0.1, max_wait_iters=1), operation("freeze_layer", "layer2")]
    module = regression(LONE, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    callback = LayerOperations(operations, on_failure=on_failure)  # type: ignore[arg-type]
    states = recorder(LONE, lambda t, _: t.callbacks[1].state_dict(), "on_train_batch_end")
    fitted = trainer(LONE, callbacks=[callback, states])
    if on_failure == "stop":
        with pytest.raises(RuntimeError, match=r"operations\[0\] \(set_lr 0.1\) failed at step 1: .* rate 0"):
            fitted.fit(module, batches(), batches())
        assert fitted.global_step == 1
        (action,) = states.seen[-1]["actions"].values()
        assert action["records"] == []
    else:
        fitted.fit(module, batches(), batches())
        (action,) = states.seen[-1]["actions"].values()
        records = action["records"]
        assert [record["status"] for record in records] == ["skipped", "done"]
        assert len(lines(log)) == 2
        assert "FAILED and skipped: a parameter group has the learning rate 0" in lines(log)[0]
    assert frozen_layers(module) == frozen


@pytest.mark.parametrize(
    ("operations", "error", "message"),
    [
        (
            [operation("freeze_layer", "layr2")],
            ValueError,
            r"operations\[0\] \(freeze_layer layr2\).*'layer2'",
        ),
        ([operation("unfreeze_layer", "attn.0")], ValueError, "has no blocks"),
        ([operation("reset_lr_schedule")], RuntimeError, "there is no LR scheduler to restart"),
        ([operation("set_layer_lora_rank", ["layer2", 9])], ValueError, "LoRA rank 9 is impossible"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_training(
    operations: list[dict[str, Any]], error: type[Exception], message: str
) -> None:
    """As far as model and optimizers can tell."""
    module = regression(LONE)
    fitted = trainer(LONE, callbacks=[LayerOperations(operations)])
    with pytest.raises(error, match=message):
        fitted.fit(module, batches(), batches())

    assert fitted.global_step == 0


def test_a_loss_that_nobody_logs_is_an_error() -> None:
    """With the closest names; an operation that needs no loss needs no metric."""
    with pytest.raises(
        RuntimeError, match="LayerOperations waits for the metric 'val/los'.*Closest: val/loss"
    ):
        fit([operation("freeze_layer", "layer2", trigger_loss=1.0)], monitor="val/los")
    fit([operation("freeze_layer", "layer2", max_wait_iters=1)], monitor="val/los")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"monitor": 3}, TypeError, "monitor must be the name of a metric"),
        ({"average_over": 0}, ValueError, "average_over must be at least 1"),
        ({"average_over": "10"}, TypeError, "average_over must be a whole number"),
        ({"on_failure": "retry"}, ValueError, "on_failure must be one of stop, skip"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """Checked when the callback is made."""
    with pytest.raises(error, match=message):
        LayerOperations([operation("freeze_layer", "layer2")], **arguments)


def test_it_composes_with_a_freezer() -> None:
    """A parameter trains when neither holds it."""
    operations = [
        operation("freeze_layer", "layer2", max_wait_iters=1),
        operation("unfreeze_layer", "layer2", max_wait_iters=1),
    ]
    for is_reversed in (False, True):
        callbacks = [LayerOperations(operations), Freezer(name_starts_with="layer2", until_step=3)]
        seen = recorder(LONE, lambda _, m: frozen_layers(m))
        ordered = callbacks[::-1] if is_reversed else callbacks
        trainer(LONE, callbacks=[*ordered, seen]).fit(regression(LONE), batches(), batches())
        assert seen.seen == [["layer2"]] * 3 + [[]]


def test_what_thaws_is_in_the_optimizer() -> None:
    """Though the user had frozen it, and the optimizer was built without it."""
    module = regression(
        LONE, optimizer=lambda ps: torch.optim.SGD([p for p in ps if p.requires_grad], lr=0.05)
    )
    module.network.layer2.requires_grad_(False)
    weight = module.network.layer2.weight
    seen = recorder(LONE, lambda *_: weight.detach().clone())
    callback = LayerOperations([operation("unfreeze_layer", "layer2", max_wait_iters=2)])
    trainer(LONE, callbacks=[callback, seen]).fit(module, batches(), batches())

    moved = [not torch.equal(one, other) for one, other in zip(seen.seen, seen.seen[1:], strict=False)]
    assert moved == [False, True, True]


def test_somebody_who_switches_a_held_layer_on_is_corrected() -> None:
    """Before the optimizer moves it, and with one warning."""
    module = regression(LONE)
    weight = module.network.layer2.weight

    def intrude(t: Any, m: Any) -> torch.Tensor:
        if t.global_step == 1:
            weight.requires_grad_(True)
        return weight.detach().clone()

    seen = recorder(LONE, intrude)
    callback = LayerOperations([operation("freeze_layer", "layer2")])
    with pytest.warns(UserWarning, match=r"network\.layer2\.weight, held frozen by LayerOperations"):
        trainer(LONE, callbacks=[callback, seen]).fit(module, batches(), batches())
    assert all(torch.equal(seen.seen[0], later) for later in seen.seen)


def test_a_further_fit_goes_on(log: pytest.LogCaptureFixture) -> None:
    """Of the same Trainer; a new Trainer starts again."""
    operations = [
        operation("scale_lr", 0.5, max_wait_iters=2),
        operation("freeze_layer", "head", max_wait_iters=4),
    ]
    callback, module = LayerOperations(operations), regression(LONE)
    fitted = trainer(LONE, callbacks=[callback], max_epochs=1)
    fitted.fit(module, batches(), batches())
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, batches(), batches())
    assert [line.split(":")[0] for line in lines(log)] == ["step 2", "step 6"]
    trainer(LONE, callbacks=[callback], max_epochs=1).fit(regression(LONE), batches(), batches())

    assert [line.split(":")[0] for line in lines(log)] == ["step 2", "step 6", "step 2"]


def test_a_callback_travels_after_a_fit_too() -> None:
    """As Trainers that start processes need it."""
    callback = LayerOperations([operation("freeze_layer", "layer2")])
    trainer(LONE, callbacks=[callback]).fit(regression(LONE), batches(), batches())
    copy = pickle.loads(pickle.dumps(callback))
    seen = recorder(LONE, lambda _, m: frozen_layers(m))
    trainer(LONE, callbacks=[copy, seen]).fit(regression(LONE), batches(), batches())

    assert seen.seen == [["layer2"]] * 4


def test_manual_optimisation_without_a_loss_is_an_error() -> None:
    """Without a returned loss the training loss is unknown; where it is returned, it counts."""
    entry = operation("freeze_layer", "layer2", trigger_loss=1e9)
    for returns in (False, True):
        module = regression(LONE)
        module.automatic_optimization = False

        def training_step(batch: Any, batch_idx: int, module: Any = module, returns: bool = returns) -> Any:
            loss = module.loss(batch)
            module.optimizers().zero_grad()
            module.manual_backward(loss)
            module.optimizers().step()
            return {"loss": loss.detach()} if returns else None

        module.training_step = training_step
        fitted = trainer(LONE, callbacks=[LayerOperations([entry], monitor="training_loss", average_over=2)])
        if returns:
            fitted.fit(module, batches(), batches())
            assert frozen_layers(module) == ["layer2"]
        else:
            with pytest.raises(RuntimeError, match="gave no loss in 2 batches. Return it"):
                fitted.fit(module, batches(), batches())


def test_tensorboard_has_the_record(tmp_path: Path) -> None:
    """A table of what was done, and a curve of how much."""
    from pytorch_lightning.loggers import TensorBoardLogger

    operations = [
        operation("freeze_layer", "layer2", max_wait_iters=1),
        operation("set_lr", 0.01, trigger_loss=2.5, max_wait_iters=2),
    ]
    callbacks = [LayerOperations(operations), FreezeStateLogger()]
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    trainer(LONE, callbacks=callbacks, logger=logger).fit(regression(LONE), batches(), batches())
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    texts = events.Tensors("operations/log/text_summary")
    table = texts[-1].tensor_proto.string_val[0].decode().splitlines()

    done = [(e.step, e.value) for e in events.Scalars("operations/done")]
    assert done == [(1, 1), (2, 1), (3, 2)]
    assert table[2:] == [
        "| 1 | `freeze_layer layer2` | waited 1 step | done | froze 72 parameters |",
        "| 3 | `set_lr 0.01` | waited 2 steps | done | learning rate 0.05 -> 0.01 |",
    ]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_norm_that_an_operation_thaws_gathers_statistics_again(namespace: str) -> None:
    """Frozen at once and thawed two steps later: its buffers stand still for two steps, and then move."""
    operations = [
        operation("freeze_layer", "backbone"),
        operation("unfreeze_layer", "backbone.1", trigger_loss=0.0, max_wait_iters=2),
    ]
    buffers = recorder(namespace, lambda _, m: m.network.backbone[1].running_mean.clone())
    run = trainer(namespace, callbacks=[LayerOperations(operations), buffers], max_epochs=2)
    run.fit(regression(namespace, NormNet), batches(), batches())

    moves = [not torch.equal(one, two) for one, two in zip(buffers.seen, buffers.seen[1:], strict=False)]
    assert not moves[0]
    assert all(moves[3:])


def test_a_group_has_what_thaws_before_the_adapters() -> None:
    """A checkpoint names its parameters in this order, in which the norm of a clipped gradient is summed."""
    module = regression(
        LONE, optimizer=lambda every: sgd([each for each in every if each.requires_grad and each.numel()])
    )
    module.network.layer2.requires_grad_(False)
    wait = {"max_wait_iters": 1}
    operations = [
        operation("set_layer_lora_rank", ["layer1", 1], **wait),
        operation("unfreeze_layer", "layer2", **wait),
    ]

    def names(fit: Any, each: Any) -> list[str]:
        known = {id(parameter): name for name, parameter in each.network.named_parameters()}
        return [known[id(parameter)] for parameter in fit.optimizers[0].param_groups[-1]["params"]]

    seen = recorder(LONE, names)
    fitted = trainer(LONE, callbacks=[LayerOperations(operations), seen], max_epochs=2)
    fitted.fit(module, batches(), batches())
    adapters = ["layer1.lora_A.default.weight", "layer1.lora_B.default.weight"]
    assert seen.seen[-1] == ["layer2.weight", "layer2.bias", *adapters]
