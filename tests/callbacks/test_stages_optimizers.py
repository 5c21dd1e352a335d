"""Stages with an optimizer and an LR scheduler of their own, compared with a loop in plain torch."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, StepLR

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, plan
from tests.callbacks.block_net import BlockNet, fit_saving_each_step, part_of
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.lab import NAMESPACES, ResumableLoader, adamw, batches, recorder, regression, resuming, trainer

LONE = "pytorch_lightning"
HEAD = {"thaw": ["norm", "head"], "until_step": 3}
TOP = {
    "thaw": "blocks.3",
    "until_step": 8,
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
    "scheduler": {
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5},
        "interval": "step",
    },
}
REST = {
    "thaw": "*",
    "optimizer": partial(SGD, lr=0.05, momentum=0.5),
    "optimizer_state": "carry",
    "scheduler": {"scheduler": partial(ExponentialLR, gamma=0.9), "interval": "step"},
    "earlier": "keep",
}


def stages(*entries: dict[str, Any], **arguments: Any) -> GradualUnfreezing:
    return GradualUnfreezing(stages=[*entries], **arguments)


def in_plain_torch(earlier: str, state: str) -> dict[str, torch.Tensor]:
    """Twelve steps in three stages: AdamW at 0.01, SGD at 0.1 halved every two steps, SGD from 0.05 down."""
    torch.manual_seed(0)
    network = BlockNet()
    parts = [
        [*network.norm.parameters(), *network.head.parameters()],
        [*network.blocks[3].parameters()],
        [*network.stem.parameters(), *network.blocks[:3].parameters()],
    ]
    first = AdamW(parts[0], lr=0.01)
    second = SGD([*parts[0], *parts[1]], lr=0.1, momentum=0.9)
    halved = StepLR(second, 2, 0.5)
    third = SGD([{"params": parts[2]}, {"params": [*parts[0], *parts[1]]}], lr=0.05, momentum=0.5)
    if earlier == "keep":  # the rate of the second stage's last schedule entry, for good
        third.param_groups[1]["lr"] = 0.1 * 0.5**2
    falling = LambdaLR(third, [lambda step: 0.9**step, lambda step: 1.0 if earlier == "keep" else 0.9**step])
    for step, (x, y) in enumerate([*batches()] * 3):
        for part, begin in zip(parts, (0, 3, 8), strict=True):
            for parameter in part:
                parameter.requires_grad = step >= begin
                parameter.grad = None
        nn.functional.mse_loss(network(x), y).backward()
        if step == 8 and state == "carry":
            third.state.update({p: dict(state) for p, state in second.state.items()})
        (first if step < 3 else second if step < 8 else third).step()
        if 3 <= step < 8:
            halved.step()
        if step >= 8:
            falling.step()
    return {f"network.{name}": value for name, value in network.state_dict().items()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("earlier", ["join", "keep"])
@pytest.mark.parametrize("state", ["drop", "carry"])
def test_each_stage_trains_as_a_loop_in_plain_torch(namespace: str, earlier: str, state: str) -> None:
    """Another class, another rate, another scheduler, momentum dropped or carried, earlier rates kept."""
    callback = stages(HEAD, TOP, REST | {"earlier": earlier, "optimizer_state": state})
    module = regression(namespace, BlockNet, adamw)
    trainer(namespace, callbacks=[callback], max_epochs=3).fit(module, batches(), batches())

    for name, value in in_plain_torch(earlier, state).items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_every_rate_is_the_one_in_force() -> None:
    """As LearningRateMonitor reads it: the Trainer has the new optimizer and its scheduler."""
    from pytorch_lightning.callbacks import LearningRateMonitor
    from pytorch_lightning.loggers import Logger

    class Memory(Logger):
        name, version = "memory", 0

        def __init__(self) -> None:
            self.seen: dict[int, dict[str, float]] = {}

        def log_hyperparams(self, *_: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            rates = {name: value for name, value in metrics.items() if name.startswith("lr-")}
            if rates and step is not None:
                self.seen[step] = rates

    memory = Memory()
    callbacks = [LearningRateMonitor("step"), stages(HEAD, TOP, REST)]
    options = {"callbacks": callbacks, "max_epochs": 3, "logger": memory, "log_every_n_steps": 1}
    trainer(LONE, **options).fit(regression(LONE, BlockNet, adamw), batches(), batches())

    assert [{name.split("/")[0] for name in rates} for rates in memory.seen.values()] == (
        [{"lr-AdamW"}] * 3 + [{"lr-SGD"}] * 9
    )
    found = [sorted({round(rate, 6) for rate in rates.values()}) for rates in memory.seen.values()]
    assert found[3:8] == [[0.1], [0.1], [0.05], [0.05], [0.025]]
    assert found[8:] == [[0.025, 0.05], [0.025, 0.045], [0.025, 0.0405], [0.025, 0.03645]]


@pytest.mark.parametrize("first", [{}, {"optimizer": partial(Adam, lr=0.02)}], ids=["own", "another"])
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
def test_a_run_resumed_in_each_stage_equals_an_uninterrupted_one(
    first: dict[str, Any], tmp_path: Path
) -> None:
    """Weights, the optimizer of the stage with its groups and state, bit for bit."""

    def fit(folder: Path, resume_from: Path | None = None) -> dict[str, Any]:
        top = TOP | {"unfreeze_lr_factor": 0.5, "warmup_steps": 3}
        callback = stages(HEAD | first, top, REST | {"unfreeze_lr_factor": {"blocks": 0.1}})
        return fit_saving_each_step(callback, folder, resume_from, partial(StepLR, step_size=1))

    whole = fit(tmp_path / "whole")
    for step in (1, 2, 3, 5, 6, 7, 9, 10, 11):
        resumed = fit(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step


def test_a_scheduler_alone_begins_anew_on_the_same_optimizer() -> None:
    """Rates go back to those that the optimizer was built with; its state stays."""
    cosine = {"scheduler": partial(CosineAnnealingLR, T_max=4), "interval": "step"}
    callback = stages(HEAD | {"until_step": 4}, {"thaw": "*", "scheduler": cosine})
    rates = recorder(LONE, lambda fit, _: fit.optimizers[0].param_groups[0]["lr"], "on_before_optimizer_step")
    states = recorder(
        LONE,
        lambda fit, m: fit.optimizers[0].state[m.network.head.weight]["step"].item(),
        "on_train_batch_end",
    )
    module = regression(LONE, BlockNet, adamw, partial(StepLR, step_size=1, gamma=0.1))
    trainer(LONE, callbacks=[callback, rates, states], max_epochs=2).fit(module, batches(), batches())

    expected = [0.5 * 0.01 * (1 + torch.cos(torch.tensor(torch.pi * k / 4)).item()) for k in range(4)]
    assert rates.seen == pytest.approx([0.01] * 4 + expected)
    assert states.seen == [float(step) for step in range(1, 9)]


def test_groups_keep_what_sets_them_apart() -> None:
    """No weight decay for biases, and rates in proportion to the highest; the rest is the new optimizer's."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        named = list(parameters)
        biases, weights = [p for p in named if p.ndim == 1], [p for p in named if p.ndim == 2]
        groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0, "lr": 0.001}]
        return AdamW(groups, lr=0.01, weight_decay=0.1)

    callback = stages(HEAD, {"thaw": "*", "optimizer": partial(SGD, lr=1.0, weight_decay=0.3)})
    fit = trainer(LONE, callbacks=[callback], max_epochs=1)
    fit.fit(regression(LONE, BlockNet, optimizer), batches(), batches())

    groups = fit.optimizers[0].param_groups[:2]
    assert [(each["lr"], each["weight_decay"]) for each in groups] == [(1.0, 0.3), (0.1, 0.0)]


def test_parts_of_a_scheduler_are_built_too(tmp_path: Path) -> None:
    """From a file: a warm-up, then a cosine, each a mapping of its own."""
    schedulers = "torch.optim.lr_scheduler"
    path = tmp_path / "stages.yaml"
    path.write_text(
        f"""
stages:
  - {{thaw: [norm, head], until_step: 4}}
  - thaw: "*"
    optimizer: {{_target_: torch.optim.SGD, lr: 1.0}}
    scheduler:
      interval: step
      scheduler:
        _target_: {schedulers}.SequentialLR
        milestones: [2]
        schedulers:
          - {{_target_: {schedulers}.LinearLR, start_factor: 0.5, total_iters: 2}}
          - {{_target_: {schedulers}.CosineAnnealingLR, T_max: 2}}
"""
    )
    rates = recorder(LONE, lambda fit, _: fit.optimizers[0].param_groups[0]["lr"], "on_before_optimizer_step")
    callbacks = [GradualUnfreezing(schedule=str(path)), rates]
    trainer(LONE, callbacks=callbacks, max_epochs=2).fit(
        regression(LONE, BlockNet, adamw), batches(), batches()
    )

    assert rates.seen[4:] == pytest.approx([0.5, 0.75, 1.0, 0.5])


def test_beside_freezers_and_operations() -> None:
    """A Freezer's rate and state, and an operation on rates, follow the optimizer of the stage."""
    freezer = Freezer(names="network.stem.bias", until_step=8, unfreeze_lr=0.5, optimizer_state="free")
    doubled = LayerOperations([{"name": "scale_lr", "value": 2.0, "max_wait_iters": 4}])
    callback = stages(HEAD, {"thaw": "*", "optimizer": partial(SGD, lr=0.1, momentum=0.9)})

    def read(fit: Any, module: Any) -> dict[str, float]:
        names = {id(parameter): part_of(name) for name, parameter in module.named_parameters()}
        names[id(module.network.stem.bias)] = "bias"
        groups = fit.optimizers[0].param_groups
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    rates = recorder(LONE, read, "on_before_optimizer_step")
    fit = trainer(LONE, callbacks=[freezer, doubled, callback, rates], max_epochs=3)
    fit.fit(regression(LONE, BlockNet, adamw), batches(), batches())

    assert [each["head"] for each in rates.seen] == [0.01] * 3 + [0.1] + [0.2] * 8
    assert rates.seen[-1]["bias"] == 0.5
    assert "bias" not in rates.seen[4]


def test_a_second_fit_goes_on_in_its_stage() -> None:
    callback = stages(HEAD, TOP, REST)
    module, fit = regression(LONE, BlockNet, adamw), trainer(LONE, callbacks=[callback], max_epochs=1)
    fit.fit(module, batches(), batches())
    fit.fit_loop.max_epochs = 3
    fit.fit(module, batches(), batches())

    assert isinstance(fit.optimizers[0], SGD)
    assert fit.optimizers[0].param_groups[0]["momentum"] == 0.5


def test_the_log_and_the_plan_name_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        fit = trainer(LONE, callbacks=[stages(HEAD, TOP, REST)], max_epochs=3)
        fit.fit(regression(LONE, BlockNet, adamw), batches(), batches())
    assert "stage 2 of 3 begins (until step 3) with SGD and StepLR" in caplog.text

    fit = trainer(LONE, callbacks=[stages(HEAD, TOP, REST)], max_epochs=3)
    planned = plan(fit, regression(LONE, BlockNet, adamw), batches(), num_rounds=1, num_timed=1)
    assert [phase.step for phase in planned.phases] == [0, 3, 8]
    assert "with SGD and ExponentialLR" in str(planned)


def fit_on_ranks(num_ranks: int) -> dict[str, torch.Tensor]:
    """The weights that a rank ends with."""
    from pytorch_lightning.strategies import DDPStrategy

    rank = int(os.environ.get("RANK", 0))
    module, loader = regression(LONE, BlockNet, adamw), batches(32, rank, num_ranks)
    options = {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")} if num_ranks > 1 else {}
    fit = trainer(LONE, callbacks=[stages(HEAD, TOP, REST)], max_epochs=3, **options)
    fit.fit(module, loader, loader)
    return dict(module.state_dict())


@pytest.mark.wide
def test_two_ranks_train_as_one_process(tmp_path: Path) -> None:
    one, other = run_ranks(fit_on_ranks, tmp_path, 2, 2)
    alone = fit_on_ranks(1)

    assert same(one, other)
    for name, value in alone.items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)


CARRY = {"optimizer": partial(SGD, lr=1.0), "optimizer_state": "carry"}


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"optimizer": "SGD"}, r"stages\[1\]: optimizer must be a mapping such as"),
        ({"optimizer": {"_target_": "torch.optim.SDG"}}, "there is no class 'torch.optim.SDG'"),
        ({"optimizer_state": "carry"}, "Give optimizer"),
        ({"earlier": "keep"}, "earlier is about another"),
        ({"scheduler": {"scheduler": partial(StepLR, step_size=1), "intervall": 1}}, "'intervall'"),
        ({"scheduler": {"scheduler": partial(StepLR, step_size=1), "interval": "day"}}, "interval"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_in_the_list(entry: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        stages(HEAD, {"thaw": "*", **entry})


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (
            {"optimizer": partial(SGD, lr=1.0, momentun=0.9)},
            r"stages\[1\].optimizer cannot.*momentun",
        ),
        ({"optimizer": lambda groups: None}, "must build a torch.optim.Optimizer"),
        ({"scheduler": partial(StepLR, gama=0.1)}, r"stages\[1\].scheduler cannot be built"),
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, "which needs a metric"),
        (CARRY, "AdamW is followed by SGD"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_known_before_the_first_step(entry: dict[str, Any], error: str) -> None:
    fit = trainer(LONE, callbacks=[stages(HEAD, {"thaw": "*", **entry})])
    with pytest.raises(ValueError, match=error):
        fit.fit(regression(LONE, BlockNet, adamw), batches(), batches())
    assert fit.global_step == 0


ONE_CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": "stage"}


@pytest.mark.parametrize(
    ("first", "second", "num_steps"),
    [
        ({"until_step": 3}, {}, 9),
        ({"until_epoch": 1}, {"until_step": 10}, 6),
        ({"until_step": 3}, {"until_epoch": 2, "until_step": 11}, 5),
        ({"until_step": "25%"}, {"until_epoch": "50%"}, 5),
        ({"until_metric": {"monitor": "val/loss", "below": 1e9}}, {"until_step": 9}, 5),
        ({"until_step": 4}, {"until_step": 99}, 8),
    ],
    ids=["run", "step", "epoch-or-step", "shares", "after-a-metric", "beyond-the-run"],
)
def test_the_length_of_a_stage_is_an_argument(
    first: dict[str, Any], second: dict[str, Any], num_steps: int
) -> None:
    """From the step at which the stage begins to the one that ends it, or to the end of the run."""
    later = [{"thaw": "*", "scheduler": partial(ExponentialLR, gamma=0.9)}] if second else []
    stage = {"thaw": "blocks.3", "scheduler": {"scheduler": ONE_CYCLE}}
    callback = stages({"thaw": "head", **first}, {**stage, **second}, *later)
    rates = recorder(LONE, lambda fit, _: fit.optimizers[0].param_groups[0]["lr"], "on_before_optimizer_step")
    fit = trainer(LONE, callbacks=[callback, rates], max_epochs=3)
    fit.fit(regression(LONE, BlockNet, adamw), batches(), batches())

    alone = SGD([torch.zeros(1, requires_grad=True)], lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(alone, max_lr=0.1, total_steps=num_steps)
    begin = next(step for step, rate in enumerate(rates.seen) if rate != 0.01)
    for rate in rates.seen[begin : begin + num_steps]:
        assert rate == pytest.approx(alone.param_groups[0]["lr"])
        alone.step()
        schedule.step()


def test_a_scheduler_lasts_to_the_next_one() -> None:
    """A stage that goes on with it counts; parts of a SequentialLR and partial know the length, too."""
    parts = [
        {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 0.5, "total_iters": 99},
        {"_target_": "torch.optim.lr_scheduler.LinearLR", "start_factor": 1.0, "end_factor": 0.0}
        | {"total_iters": "stage"},
    ]
    nested = {"_target_": "torch.optim.lr_scheduler.SequentialLR", "schedulers": parts, "milestones": [2]}
    cosine = partial(CosineAnnealingLR, T_max="stage")
    callback = stages(
        {"thaw": "head", "until_step": 2, "scheduler": cosine},
        {"thaw": "norm", "until_step": 4},
        {"thaw": "*", "scheduler": nested},
    )
    rates = recorder(LONE, lambda fit, _: fit.optimizers[0].param_groups[0]["lr"], "on_before_optimizer_step")
    fit = trainer(LONE, callbacks=[callback, rates], max_epochs=3)
    fit.fit(regression(LONE, BlockNet, adamw), batches(), batches())

    assert rates.seen[:4] == pytest.approx([0.01, 0.0085355, 0.005, 0.0014645], rel=1e-4)
    assert rates.seen[4:] == pytest.approx([0.005, 0.005, *(0.01 * (1 - k / 8) for k in range(6))])


def falling(optimizer: Any, num_steps: int) -> LambdaLR:
    """A schedule whose function, and with it the length, is not in its state."""
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / num_steps))


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize(
    "scheduler", [ONE_CYCLE, partial(falling, num_steps="stage")], ids=["cycle", "lambda"]
)
def test_a_resumed_stage_keeps_its_length(scheduler: Any, tmp_path: Path) -> None:
    def fit(folder: Path, resume_from: Path | None = None) -> dict[str, Any]:
        stage = {"thaw": "blocks.3", "until_step": "60%", "scheduler": scheduler}
        callback = stages(HEAD, stage, {"thaw": "*", "scheduler": scheduler})
        return fit_saving_each_step(callback, folder, resume_from, partial(StepLR, step_size=1))

    whole = fit(tmp_path / "whole")
    for step in (3, 5, 9):
        resumed = fit(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_of_another_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More steps than its scheduler has are refused, with a way out that works; fewer are warned of."""
    rates = recorder(LONE, lambda fit, _: fit.optimizers[0].param_groups[0]["lr"], "on_before_optimizer_step")
    cycle = {"thaw": "*", "scheduler": ONE_CYCLE}
    fit_saving_each_step(stages(HEAD, cycle), tmp_path, None)

    def go_on(max_epochs: int, *entries: dict[str, Any]) -> Any:
        rates.seen.clear()
        run = trainer(LONE, callbacks=[stages(HEAD, *entries), rates], max_epochs=max_epochs)
        loader = ResumableLoader(batches().dataset)
        checkpoint = resuming(run, tmp_path / "step=6.ckpt")
        run.fit(regression(LONE, BlockNet, adamw), loader, batches(), **checkpoint)
        return rates.seen

    with pytest.raises(
        RuntimeError, match="built for 9 steps, until step 12, .* go on with it until step 20"
    ):
        go_on(5, cycle)
    assert not rates.seen
    rest = {"thaw": "head", "scheduler": {"scheduler": partial(StepLR, step_size=1), "interval": "step"}}
    assert go_on(5, cycle | {"until_step": 12}, rest)[6:9] == pytest.approx([0.01, 0.001, 0.0001])
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        assert len(go_on(2, cycle)) == 2
    assert "until step 12, and the resumed run ends with it at step 8" in caplog.text


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"scheduler": {"scheduler": ONE_CYCLE, "interval": "epoch"}}, "Write interval: step"),
        ({"optimizer": partial(SGD, lr="stage")}, "which an optimizer does not take"),
    ],
    ids=["interval", "optimizer"],
)
def test_a_length_that_means_nothing(entry: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        stages(HEAD, {"thaw": "*", **entry})


def test_a_length_that_is_never_known() -> None:
    """A stage that waits for a metric alone may take any number of steps, and so may a stream."""
    waiting = {"thaw": "blocks.3", "until_metric": {"monitor": "val/loss", "below": 0.0}}
    callback = stages(HEAD, {**waiting, "scheduler": ONE_CYCLE}, {"thaw": "*"})
    with pytest.raises(RuntimeError, match=r"stages\[1\].scheduler: 'stage' .* until val/loss < 0"):
        trainer(LONE, callbacks=[callback]).fit(regression(LONE, BlockNet, adamw), batches(), batches())

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(batches().dataset)

    loader: Any = torch.utils.data.DataLoader(Stream(), 8)
    fit = trainer(LONE, callbacks=[stages(HEAD, {"thaw": "*", "scheduler": ONE_CYCLE})])
    with pytest.raises(RuntimeError, match="the training data has no length"):
        fit.fit(regression(LONE, BlockNet, adamw), loader, batches())
