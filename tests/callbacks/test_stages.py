"""Explicit stages of GradualUnfreezing in real Trainers: what moves in each step, and at which rate."""

import logging
from pathlib import Path
from typing import Any

import pytest
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer, GradualUnfreezing, plan
from tests.callbacks.block_net import EVERYTHING, BlockNet, fit_saving_each_step, moves, part_of, upper
from tests.callbacks.test_freezer_resume import same
from tests.lab import (
    NAMESPACES,
    NormNet,
    adamw,
    batches,
    recorder,
    regression,
    trainer,
)

LONE = "pytorch_lightning"
HEAD = {"thaw": ["norm", "head"]}
TOP = {"thaw": "layers:block.-1"}
REST = {"thaw": "*"}
ALL = set(EVERYTHING)
LOW = {"monitor": "val/loss", "below": 1.0e9}  # met by the first validation


def stages(*entries: dict[str, Any], **arguments: Any) -> GradualUnfreezing:
    return GradualUnfreezing(stages=list(entries), **arguments)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_what_each_stage_thaws(namespace: str) -> None:
    """By path, pattern and name; bounds in steps and epochs."""
    found = moves(
        namespace,
        [
            stages(
                HEAD | {"until_step": 3},
                TOP | {"until_epoch": 2},
                {"thaw": ["blocks.2.weight", "re:blocks\\.[01]"], "until_step": "75%"},
                REST,
            )
        ],
        3,
    )

    expected = [upper(0)] * 3 + [upper(1)] * 5 + [upper(4)] * 1 + [ALL] * 3
    assert found == expected


@pytest.mark.parametrize(
    ("end", "first"),
    [
        ({"until_step": 5, "until_epoch": 1}, 4),
        ({"until_step": 3, "until_epoch": 1}, 3),
        ({"until_metric": LOW}, 4),
        ({"until_metric": LOW, "until_step": 2}, 2),
        ({"until_metric": {"monitor": "val/loss", "plateau": {"patience": 1, "min_delta": 1.0e9}}}, 8),
    ],
    ids=str,
)
def test_whichever_bound_comes_first_ends_a_stage(end: dict[str, Any], first: int) -> None:
    found = moves(LONE, [stages(HEAD | end, REST)], 3)

    assert found == [upper(0)] * first + [ALL] * (12 - first)


def test_conditions_count_from_the_beginning_of_their_stage() -> None:
    """A plateau of two checks ends each stage; the best value is that of the run, or of the stage."""
    plateau = {"monitor": "val/loss", "plateau": {"patience": 2, "min_delta": 1.0e9}}
    entries = [HEAD | {"until_metric": plateau}, TOP | {"until_metric": plateau}, REST]

    kept = moves(LONE, [stages(*entries)], 7)
    reset = moves(LONE, [stages(*entries, best="reset")], 7)

    assert [len(parts) for parts in kept[::4]] == [2, 2, 2, 3, 3, 7, 7]
    assert [len(parts) for parts in reset[::4]] == [2, 2, 2, 3, 3, 3, 7]


def test_the_best_value_of_another_mode_is_not_kept() -> None:
    """The lowest of one stage is nothing to beat where the highest counts: the first check is progress."""
    plateau = {"patience": 1, "min_delta": 1.0e9}
    low = {"monitor": "val/loss", "plateau": plateau}
    high = {"monitor": "val/loss", "plateau": {**plateau, "patience": 2, "mode": "max"}}
    found = moves(LONE, [stages(HEAD | {"until_metric": low}, TOP | {"until_metric": high}, REST)], 6)

    assert [len(parts) for parts in found[::4]] == [2, 2, 3, 3, 3, 7]


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
def test_a_shorter_list_goes_on_in_its_last_stage(tmp_path: Path) -> None:
    """The checkpoint is of a third stage that the list has no more."""
    shorter = HEAD | {"until_step": 2}, TOP | {"freeze": "head"}
    longer = shorter[0], shorter[1] | {"until_step": 4}, {"thaw": "head"}
    fit_saving_each_step(stages(*longer), tmp_path / "long", None)
    whole = fit_saving_each_step(stages(*shorter), tmp_path / "short", None)
    path = tmp_path / "long" / "step=6.ckpt"
    resumed = fit_saving_each_step(stages(*shorter), tmp_path / "resumed", path)

    assert resumed["frozen"] == {step: flags for step, flags in whole["frozen"].items() if step > 6}


def test_a_stage_whose_bound_has_passed_is_over_at_once() -> None:
    """Steps and epochs are those of the run: both stages begin at step 6."""
    found = moves(LONE, [stages(HEAD | {"until_step": 6}, TOP | {"until_step": 4}, REST)], 2)

    assert found == [upper(0)] * 6 + [ALL] * 2


def test_a_stage_may_freeze_again() -> None:
    """The head rests in the second stage, and trains again in the third."""
    found = moves(
        LONE,
        [stages(HEAD | {"until_step": 2}, TOP | {"freeze": "head", "until_step": 4}, {"thaw": "head"})],
        2,
    )

    assert found == [upper(0)] * 2 + [{"norm", "block 3"}] * 2 + [upper(1)] * 4


def test_what_no_stage_names_stays_frozen() -> None:
    found = moves(LONE, [stages(HEAD | {"until_step": 1}, TOP)], 2)

    assert found == [upper(0)] + [upper(1)] * 7


def test_rates_of_what_thaws() -> None:
    """A factor of the scheduled rate, one for each part, an absolute rate, and a warm-up."""
    callback = stages(
        HEAD | {"unfreeze_lr_factor": 0.5, "until_step": 2},
        TOP | {"unfreeze_lr": 0.25, "warmup_steps": 2, "until_step": 4},
        REST | {"unfreeze_lr_factor": {"blocks": 0.1, "blocks.0": 0.01}},
    )

    def read(fit: Any, module: Any) -> dict[str, float]:
        names = {id(parameter): part_of(name) for name, parameter in module.named_parameters()}
        groups = fit.optimizers[0].param_groups
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    seen = recorder(LONE, read, "on_before_optimizer_step")
    module = regression(LONE, BlockNet, adamw, scheduler=lambda built: lrs.StepLR(built, 1))
    fit = trainer(LONE, callbacks=[callback, seen], max_epochs=2)
    fit.fit(module, batches(), batches())
    rates = seen.seen

    assert [each["head"] for each in rates] == pytest.approx([0.005] * 4 + [0.0005] * 4)
    assert [each["block 3"] for each in rates[2:]] == pytest.approx([0.125] + [0.25] * 5)
    assert rates[4]["block 2"] == pytest.approx(0.0001)
    assert rates[4]["block 0"] == pytest.approx(0.00001)
    assert rates[4]["stem"] == pytest.approx(0.001)


def test_norms_of_what_is_held() -> None:
    """`frozen_norms` may differ from stage to stage."""
    callback = stages(
        {"thaw": "head", "until_step": 2},
        {"frozen_norms": "train", "until_step": 4},
        {"thaw": "backbone"},
    )
    seen = recorder(LONE, lambda _, module: module.network.backbone[1].training, "on_train_batch_end")
    module = regression(LONE, NormNet)
    trainer(LONE, callbacks=[callback, seen], max_epochs=2).fit(module, batches(), batches())

    assert seen.seen == [False] * 2 + [True] * 6


def test_beside_a_freezer() -> None:
    """A parameter is frozen while either holds it."""
    freezer = Freezer(name_starts_with="stem", until_step=6)
    found = moves(LONE, [freezer, stages(HEAD | {"until_step": 2}, REST)], 2)

    assert found == [upper(0)] * 2 + [ALL - {"stem"}] * 4 + [ALL] * 2


def test_from_a_file(tmp_path: Path) -> None:
    """The same stages in a file, with comments."""
    path = tmp_path / "schedule.yaml"
    path.write_text("stages:\n  # head first\n  - {thaw: [norm, head], until_step: 2}\n  - thaw: '*'\n")

    found = moves(LONE, [GradualUnfreezing(schedule=str(path))], 1)

    assert found == [upper(0)] * 2 + [ALL] * 2


ENDS: dict[str, dict[str, Any]] = {
    "step": {"until_step": 3},
    "share": {"until_step": "25%"},
    "plateau": {"until_metric": {"monitor": "val/loss", "plateau": {"patience": 1, "min_delta": 1.0e9}}},
}


def fit(end: str, folder: Path, resume_from: Path | None = None) -> dict[str, Any]:
    """Three epochs of four steps, a checkpoint after each step."""
    callback = stages(HEAD | ENDS[end], TOP | {"until_step": 9, "unfreeze_lr": 0.5, "warmup_steps": 3}, REST)
    interval = 2 if end == "plateau" else 1.0
    return fit_saving_each_step(callback, folder, resume_from, val_check_interval=interval)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize("end", ENDS)
def test_a_run_resumed_in_each_stage_equals_an_uninterrupted_one(end: str, tmp_path: Path) -> None:
    """Flags at each step, weights and optimizer bit for bit."""
    whole = fit(end, tmp_path / "whole")
    assert len({tuple(flags) for flags in whole["frozen"].values()}) == 3
    for step in (1, 3, 5, 9, 11):
        resumed = fit(end, tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step
        assert resumed["frozen"] == {k: v for k, v in whole["frozen"].items() if k > step}, step


def test_the_log_says_why_a_stage_begins(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        moves(LONE, [stages(HEAD | {"until_step": 2}, TOP | {"until_metric": LOW}, REST)], 2)

    assert "step 2: stage 2 of 3 begins (until step 2)" in caplog.text
    assert "step 4: stage 3 of 3 begins (val/loss < 1e+09)" in caplog.text


def test_a_stage_after_the_end_of_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        moves(LONE, [stages(HEAD | {"until_step": 2}, TOP | {"until_epoch": 7}, REST)], 1)

    assert "stage 3 would begin after the run has ended" in caplog.text


def test_the_plan_has_the_stages() -> None:
    """What steps end, then what a metric ends."""
    callback = stages(HEAD | {"until_step": 3}, TOP | {"until_metric": {**LOW, "below": 0.1}}, REST)
    fit = trainer(LONE, callbacks=[callback], max_epochs=3)
    planned = plan(fit, regression(LONE, BlockNet), batches(), num_rounds=1, num_timed=0)

    assert [(phase.step, phase.when) for phase in (*planned.phases, *planned.undated)] == [
        (0, "step 0"),
        (3, "step 3"),
        (None, "when val/loss < 0.1"),
    ]


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([HEAD, REST], r"stages\[0\] never ends"),
        ([HEAD | {"until_step": 1}], "1 of at least 2 stages"),
        ([HEAD | {"until_step": 1}, REST | {"until_step": 2}], r"stages\[1\] is the last"),
        ([{"until_step": 1}, REST], r"stages\[0\] thaws nothing"),
        ([HEAD | {"until_stp": 1}, REST], r"'until_stp'. Closest: 'until_step'"),
        ([HEAD | {"until_step": 1.5}, REST], r"stages\[0\].*whole number"),
        ([HEAD | {"until_step": 1}, REST | {"unfreeze_lr": 1.0, "unfreeze_lr_factor": 0.1}], "Give one"),
        ([{"thaw": 3, "until_step": 1}, REST], r"stages\[0\].thaw must be a name"),
        (["head", REST], r"stages\[0\] must be a mapping"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_in_the_list(entries: list[Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        stages(*entries)


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([{"thaw": "haed", "until_step": 1}, REST], r"(?s)stages\[0\].thaw: .*head"),
        ([HEAD | {"until_step": 1}, {"thaw": "*.wieght"}], r"stages\[1\].thaw: .*"),
        ([HEAD | {"until_step": 1}, {"thaw": "stem", "freeze": "stem.bias"}], "thaws and freezes"),
        (
            [HEAD | {"until_step": 1}, {"thaw": "stem", "unfreeze_lr_factor": {"head": 0.1}}],
            "nothing of 'head'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_that_need_the_model(entries: list[Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        stages(*entries).rules_for(regression(LONE, BlockNet))


@pytest.mark.parametrize(
    "beside",
    [{"every_n_epochs": 1}, {"lr_decay": 2.6}, {"direction": "bottom-up"}, {"blocks": ["a"]}],
    ids=str,
)
def test_stages_and_a_pace_contradict_each_other(beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(beside))} would too"):
        stages(HEAD | {"until_step": 1}, REST, **beside)


def test_two_lists_of_stages_are_refused() -> None:
    pair = [stages(HEAD | {"until_step": 1}, REST) for _ in range(2)]
    with pytest.raises(RuntimeError, match="both say which stages the run has"):
        moves(LONE, pair, 1)
