"""What every policy promises: it is in the timeline, saves little, warns, and takes runs of any shape."""

import logging
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import nn

from lighter_freezers import Freezer, FreezeStateLogger, Spectrum
from lighter_freezers.engine import Engine
from lighter_freezers.selection.layer_names import components
from tests.lab import WIDTH, ResumableLoader, Stream, adamw, batches, first_now, recorder, regression, trainer
from tests.policies.policy_lab import LONE, POLICIES, Run, Tower, look

MEASURE = ("AutoFreeze", "Misa", "AutoRgn")


@pytest.mark.parametrize("name", POLICIES)
def test_the_timeline_has_what_trained_at_each_step(name: str) -> None:
    drawn = FreezeStateLogger()
    run = Run([POLICIES[name](), drawn])
    timeline, states = drawn.state_dict(), dict[str, str]()
    changes = dict(zip(timeline["steps"], timeline["changes"], strict=True))
    members = components(run.module)
    for step, names in enumerate(run.training):
        states.update(changes.get(step, {}))
        trains = {n for n, each in members.items() if {p.partition(".")[2] for p in each} & {*names}}
        assert {n for n, state in states.items() if state != "frozen"} == trains, step
    assert len(changes) == len({0, *(s for s in range(1, 12) if run.training[s] != run.training[s - 1])})


def num_leaves(node: Any) -> int:
    if isinstance(node, dict):
        return sum(map(num_leaves, node.values()))
    return sum(map(num_leaves, node)) if isinstance(node, (list, tuple)) else 1


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_saves_is_bounded(name: str) -> None:
    """Ten times the steps save no more, and plain numbers and texts only."""
    sizes = []
    for num_epochs in (4, 40):
        runner = trainer(LONE, callbacks=[POLICIES[name]()], max_epochs=num_epochs)
        states: list[Any] = []
        runner.callbacks.append(
            recorder(LONE, lambda fit, _, into=states: into.append(Engine.of(fit).state_dict()))
        )
        runner.fit(regression(LONE, Tower, adamw), ResumableLoader(batches().dataset), batches())
        sizes.append(max(num_leaves(state["actions"]) for state in states[-8:]))
    assert sizes[1] <= sizes[0] * 1.5
    if name in MEASURE:
        assert all(action["statistic"] for action in states[-2]["actions"].values())


class Wide(Tower):
    """With a head that is large enough to tell random weights from trained ones."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("name", [*POLICIES, "Spectrum, rest frozen"])
def test_each_policy_that_freezes_random_weights_for_good_warns(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and head that train at first, or always, are no reason to."""
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    policy = POLICIES[name]() if name in POLICIES else Spectrum(top_percent=50, rest="freeze")
    Run([policy], network=Wide, max_epochs=1)
    warned = [each.getMessage() for each in caplog.records if "looks untrained" in each.getMessage()]
    if policy.rest == "train":
        assert not warned
        return
    [message] = warned
    title = name.split(",")[0]
    assert message.startswith(f"{title} freezes network.stem.weight, network.head.weight for the whole run")


@pytest.mark.parametrize("name", first_now(POLICIES))
def test_runs_of_any_shape(name: str) -> None:
    """A stream, no number of epochs, accumulation that changes, validation before, one policy in two runs."""
    usual = Run([POLICIES[name]()])
    stream = Run([POLICIES[name]()], loader=Stream(), max_epochs=-1, max_steps=7)
    assert stream.seen == usual.seen[:7]
    accumulating = Run([POLICIES[name](), GradientAccumulationScheduler({0: 1, 1: 2})])
    assert len(accumulating.seen) == 8
    if name not in MEASURE:
        assert accumulating.training == usual.training[:8]
    few = Run([POLICIES[name]()], limit_train_batches=2, max_epochs=6, gradient_clip_val=1e9)
    assert len(few.seen) == 12
    if name not in MEASURE:
        assert few.training == usual.training

    policy, seen = POLICIES[name](), recorder(LONE, look, "on_before_optimizer_step")
    runner, module = trainer(LONE, callbacks=[policy, seen], max_epochs=3), regression(LONE, Tower, adamw)
    runner.validate(module, batches(), verbose=False)
    runner.fit(module, ResumableLoader(batches().dataset), batches())
    runner.validate(module, batches(), verbose=False)
    assert seen.seen == usual.seen
    assert Run([policy]).equals(usual)


@pytest.mark.parametrize("name", first_now(POLICIES))
def test_a_policy_joins_a_run_that_began_without_it(name: str, tmp_path: Any) -> None:
    """In the window of its step; and a run goes on without the policy, with all that it held."""
    Run([], save=[(5, tmp_path / "5.ckpt")])
    joined, usual = Run([POLICIES[name]()], ckpt_path=tmp_path / "5.ckpt"), Run([POLICIES[name]()])
    if name not in MEASURE:
        assert joined.training == usual.training[5:]
    Run([POLICIES[name]()], save=[(8, tmp_path / "8.ckpt")])
    left = Run([Freezer(name_starts_with="stem", until_step=2)], ckpt_path=tmp_path / "8.ckpt")
    assert {len(names) for names in left.training} == {len([*Tower().parameters()])}
