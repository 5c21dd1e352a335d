"""What LoraRankScheduler refuses: all of it before the first batch, with the way out."""

from importlib import import_module
from typing import Any

import pytest
import torch

from lighter_freezers import LayerOperations, LoraRankScheduler
from lighter_freezers.engine.trainer_strategies import refuse_unsupported_strategy
from lighter_freezers.lora.rank_action import RankAction
from tests.lab import NAMESPACES, TinyNet, adamw, batches, first_now, regression, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"


def error_in_fit(scheduler: Any, *callbacks: Any, **arguments: Any) -> Any:
    options = arguments.pop("options", {})
    network = arguments.pop("network", mixed)
    namespace = arguments.pop("namespace", LONE)
    module = regression(namespace, network=network, **{"optimizer": adamw, **arguments})
    run = trainer(namespace, callbacks=[scheduler, *callbacks], **options)
    try:
        run.fit(module, batches(), batches())
    finally:
        assert run.global_step == 0


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({"wte": 13}, "13 is impossible here: the weight is 12 x 16, so give 0 to 12"),
        ({"wtee": 4}, "Closest|With LoRA: 'wte'"),
        ({"head": 4}, "there is no LoRA in it.*target_modules"),
        ({"attn.0": 4}, "'h.0.fc'"),
    ],
)
def test_names_and_ranks_are_checked_before_training(pattern: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        error_in_fit(LoraRankScheduler([{"step": 5, "rank_pattern": pattern}]))


SOON = [{"step": 1, "rank_pattern": {".*": 2}}]


def test_what_cannot_follow_is_refused_by_name() -> None:
    """Models without LoRA, optimizers, callbacks that average weights, strategies."""
    from pytorch_lightning.strategies import ModelParallelStrategy

    with pytest.raises(ValueError, match="no layers of PEFT with an adapter 'default'.*apply_lora"):
        error_in_fit(LoraRankScheduler(SOON), network=TinyNet)
    with pytest.raises(ValueError, match="adapter 'second'"):
        error_in_fit(LoraRankScheduler(SOON, "second"))
    parallel = ModelParallelStrategy(process_group_backend="gloo")
    with pytest.raises(RuntimeError, match="ModelParallelStrategy cannot change the rank of a layer"):
        refuse_unsupported_strategy(parallel, is_static=False, reshapes=RankAction.reshapes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on_zero": "drp"}, ValueError, "on_zero must be one of drop, merge, freeze"),
        ({"shrink": "svdd"}, ValueError, "shrink must be one of svd, kfac"),
        ({"monitor": ""}, TypeError, "monitor must be a name"),
        ({"adapter_name": 5}, TypeError, "adapter_name must be a name"),
        ({"average_over": 0}, ValueError, "at least 1"),
        ({"seed": "1"}, TypeError, "seed must be a whole number"),
        ({"optimizer_state": "drop"}, ValueError, "optimizer_state must be one of keep, reset, free"),
        ({"cut_gradient": "always"}, ValueError, "cut_gradient must be one of auto, never"),
    ],
)
def test_arguments_are_checked_when_they_are_read(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LoraRankScheduler(SOON, **arguments)


def changing_ranks() -> list[Any]:
    """Both callbacks that change ranks."""
    operation = {"name": "set_layer_lora_rank", "value": ["wte", 2], "max_wait_iters": 1}
    return [LoraRankScheduler(SOON), LayerOperations([operation])]


def like_sgd(name: str, *bases: type) -> Any:
    return type(name, (*bases, torch.optim.SGD), {})


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.LBFGS, type("Mine", (torch.optim.LBFGS,), {})]
    + [lambda p, n=name: like_sgd(n)(p, lr=0.1) for name in ("ZeroRedundancyOptimizer", "Lookahead")],
)
@pytest.mark.parametrize("callback", changing_ranks(), ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_an_optimizer_that_keeps_shapes_is_refused_before_training(
    namespace: str, callback: Any, optimizer: Any
) -> None:
    with pytest.raises(RuntimeError, match="lays parameters out once for all.*AdamW"):
        error_in_fit(callback, optimizer=optimizer, namespace=namespace)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("kind", ["StochasticWeightAveraging", "EMAWeightAveraging"])
@pytest.mark.parametrize("callback", changing_ranks(), ids=lambda each: type(each).__name__)
def test_an_average_of_fixed_shapes_is_refused_before_training(
    callback: Any, kind: str, namespace: str
) -> None:
    averaging = getattr(import_module(f"{namespace}.callbacks"), kind, None)
    if averaging is None:
        pytest.skip(f"{namespace} has no {kind}")
    options = {"swa_lrs": 0.1} if kind.startswith("Stochastic") else {}
    with pytest.raises(ValueError, match=f"{kind} averages weights"):
        error_in_fit(callback, averaging(**options), namespace=namespace)
