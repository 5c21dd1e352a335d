"""EarlyStopping and stages: exhausted patience ends a stage, everything else that it does ends the run."""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import GradualUnfreezing, plan
from tests.callbacks.block_net import BLOCKS, BlockNet
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.lab import NAMESPACES, ResumableLoader, adamw, batches, recorder, regression, trainer

LONE = "pytorch_lightning"
PATIENT = {"until_early_stopping": True}
STAGES = [
    {"thaw": ["norm", "head"], **PATIENT},
    {"thaw": "layers:block.-1", **PATIENT},
    {"thaw": "*"},
]


def early_stopping(namespace: str = LONE, **options: Any) -> Any:
    """One for which nothing is progress."""
    defaults = {"monitor": "val/loss", "patience": 2, "min_delta": 1.0e9}
    return import_module(f"{namespace}.callbacks").EarlyStopping(**{**defaults, **options})


def num_blocks(module: Any) -> int:
    return sum(block.weight.requires_grad for block in module.network.blocks)


def blocks_by_step(callbacks: list[Any], namespace: str = LONE, **options: Any) -> tuple[list[int], Any]:
    """How many blocks trained in each step, and the Trainer."""
    seen = recorder(namespace, lambda _, module: num_blocks(module))
    fit = trainer(namespace, callbacks=[*callbacks, seen], **{"max_epochs": 20, **options})
    fit.fit(regression(namespace, BlockNet), batches(), batches())
    return seen.seen, fit


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("is_first", [True, False], ids=["ours first", "theirs first"])
@pytest.mark.parametrize("interval", [1.0, 2], ids=["after the epoch", "in mid-epoch"])
def test_patience_ends_stages_and_then_the_run(namespace: str, is_first: bool, interval: float) -> None:
    """Three checks in the first stage, whose first value is progress, and two in the others."""
    pair = [GradualUnfreezing(stages=STAGES), early_stopping(namespace)]
    seen, fit = blocks_by_step(pair if is_first else pair[::-1], namespace, val_check_interval=interval)

    steps = 4 if interval == 1.0 else 2
    assert seen == [0] * (3 * steps) + [1] * (2 * steps) + [4] * (2 * steps)
    assert fit.should_stop
    assert pair[1].patience == 2
    assert "on_validation_end" not in vars(pair[1])


def test_patience_and_best_score_in_the_next_stage() -> None:
    """Patience begins afresh however the stage ends; the best score is kept, or begins afresh too."""
    entries = [{**STAGES[0], "until_epoch": 2}, *STAGES[1:]]

    kept, _ = blocks_by_step([GradualUnfreezing(stages=entries), early_stopping()])
    reset, _ = blocks_by_step([GradualUnfreezing(stages=entries, best="reset"), early_stopping()])

    assert kept[::4] == [0] * 2 + [1] * 2 + [4] * 2
    assert reset[::4] == [0] * 2 + [1] * 3 + [4] * 3


def test_without_any_patience_progress_ends_no_stage() -> None:
    """Of `patience: 0`, which the first check without progress exhausts: here the fourth."""
    falling = recorder(
        LONE, lambda t, m: m.log("own", -float(min(t.current_epoch, 2))), "on_validation_epoch_end"
    )
    stopping = early_stopping(monitor="own", patience=0, min_delta=0.0)
    seen, _ = blocks_by_step([GradualUnfreezing(stages=STAGES[::2]), falling, stopping], max_epochs=6)

    assert seen[::4] == [0] * 4 + [4]


@pytest.mark.parametrize("min_delta", [0.1, 0.001])
def test_a_plateau_of_more_progress_comes_first(min_delta: float, caplog: pytest.LogCaptureFixture) -> None:
    """What is progress for EarlyStopping may be none for the plateau; then it is not late."""
    plateau = {**PLATEAU, "min_delta": 0.01}
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        blocks_by_step(
            [GradualUnfreezing(plateau=plateau), early_stopping(min_delta=min_delta)], max_epochs=1
        )
    assert ("EarlyStopping ends the run" in caplog.text) == (min_delta > 0.01)


def test_any_of_several_ends_a_stage() -> None:
    """The less patient one ends it, and both begin afresh."""
    both = [early_stopping(patience=3), early_stopping(monitor="train/loss", patience=2)]
    seen, _ = blocks_by_step([GradualUnfreezing(stages=STAGES), *both])

    assert seen[::4] == [0] * 3 + [1] * 2 + [4] * 2


class Stopper:
    """A `should_stop` of the user's own."""

    def __new__(cls) -> Any:
        def stop(fit: Any, _: Any) -> None:
            fit.should_stop = fit.global_step >= 4

        return recorder(LONE, stop, "on_validation_end")


@pytest.mark.parametrize(
    "stopping",
    [
        {"check_finite": True, "monitor": "broken"},
        {"stopping_threshold": 1.0e9, "monitor": "train/loss"},
        {"divergence_threshold": -1.0, "monitor": "train/loss"},
        None,
    ],
    ids=["not finite", "threshold", "divergence", "own"],
)
def test_whatever_else_stops_the_run_stops_it(stopping: dict[str, Any] | None) -> None:
    """In the first stage."""

    def log(_: Any, module: Any) -> None:
        module.log("broken", torch.tensor(torch.nan))

    breaking = recorder(LONE, log, "on_validation_epoch_end")
    other = [Stopper()] if stopping is None else [early_stopping(**stopping)]
    callbacks = [GradualUnfreezing(stages=STAGES), early_stopping(patience=9), breaking, *other]
    seen, _ = blocks_by_step(callbacks)

    assert seen == [0] * 4


def test_without_the_key_it_ends_the_run_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Explicit stages and a pace alike."""
    entries = [{"thaw": "head", "until_epoch": 9}, {"thaw": "*"}]
    for callback in (GradualUnfreezing(stages=entries), GradualUnfreezing(every_n_epochs=9)):
        with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
            caplog.clear()
            seen, _ = blocks_by_step([callback, early_stopping()])
        assert seen == [0] * 12
        assert "the run was stopped before its last stage" in caplog.text


PLATEAU = {"monitor": "val/loss", "patience": 2}
ENDS = {"until_metric": {"monitor": "val/loss", "plateau": {"patience": 2}}}


@pytest.mark.parametrize(
    ("arguments", "patience", "said"),
    [
        ({"plateau": PLATEAU}, 2, "after 2 checks of val/loss without progress, and a stage ends after 2"),
        ({"plateau": PLATEAU}, 3, ""),
        ({"plateau": {**PLATEAU, "mode": "max"}}, 2, ""),
        ({"stages": [{"thaw": "head", **ENDS}, {"thaw": "*"}]}, 1, "and a stage ends after 2"),
        ({"stages": [{"thaw": "head", **ENDS, "until_epoch": 2}, {"thaw": "*"}]}, 1, ""),
        ({"every_n_epochs": 3}, 2, "and a stage has 3 epochs"),
        ({"every_n_epochs": 3}, 3, ""),
        ({"stages": [{"thaw": "head", "until_epoch": 3}, {"thaw": "*"}]}, 2, "and a stage has 3 epochs"),
        ({"stages": STAGES}, 1, ""),
        ({"every_n_steps": 12}, 2, "and a stage has 12 steps"),
        ({"every_n_steps": 12}, 3, ""),
        ({"stages": [{"thaw": "head", "until_step": 12}, {"thaw": "*"}]}, 2, "and a stage has 12 steps"),
    ],
)
def test_what_would_end_the_run_first_is_told_before_the_first_step(
    arguments: Any, patience: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the same patience both are due at one check, after which nothing thaws; more of it is silence."""
    told: list[str] = []
    callback = recorder(LONE, lambda *_: told.append(caplog.text), "on_train_epoch_start")
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        blocks_by_step(
            [GradualUnfreezing(**arguments), early_stopping(patience=patience), callback], max_epochs=1
        )

    assert ("EarlyStopping ends the run" in told[0]) == bool(said)
    assert said in told[0]


@pytest.mark.parametrize(
    ("stage", "options", "num_checks"),
    [
        ({"every_n_steps": 4}, {"val_check_interval": 2, "accumulate_grad_batches": 2}, 4),
        ({"every_n_epochs": 2}, {"val_check_interval": 0.5}, 4),
        ({"every_n_steps": 4}, {"val_check_interval": 2, "check_val_every_n_epoch": None}, 2),
        ({"every_n_epochs": 4}, {"check_val_every_n_epoch": 2}, 2),
    ],
)
def test_the_checks_of_a_stage_are_counted(
    stage: Any, options: Any, num_checks: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By how often validation runs; as much patience as checks is silence."""
    for patience in (num_checks - 1, num_checks):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
            blocks_by_step(
                [GradualUnfreezing(**stage), early_stopping(patience=patience)], max_epochs=1, **options
            )
        assert ("EarlyStopping ends the run" in caplog.text) == (patience < num_checks)


def test_without_validation_nothing_is_checked_after_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        blocks_by_step(
            [GradualUnfreezing(every_n_epochs=4), early_stopping(patience=1)],
            max_epochs=1,
            val_check_interval=0.5,
            limit_val_batches=0,
        )
    assert "EarlyStopping ends the run" not in caplog.text


def test_a_stage_that_patience_may_end_is_not_late(caplog: pytest.LogCaptureFixture) -> None:
    """Its epochs alone would end it after the run."""
    entries = [{"thaw": "head", **PATIENT, "until_epoch": 20}, {"thaw": "*"}]
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        blocks_by_step([GradualUnfreezing(stages=entries), early_stopping()], max_epochs=2)
    assert "after the run has ended" not in caplog.text


def test_a_stage_that_waits_in_vain_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="which has none. Add EarlyStopping"):
        blocks_by_step([GradualUnfreezing(stages=STAGES)])


def test_the_plan_needs_no_early_stopping() -> None:
    """It names what ends the stages."""
    fit = trainer(LONE, callbacks=[GradualUnfreezing(stages=STAGES), early_stopping()], max_epochs=3)
    planned = plan(fit, regression(LONE, BlockNet), batches(), num_rounds=1, num_timed=0)

    assert [phase.when for phase in planned.undated] == ["when EarlyStopping is out of patience"] * 2


def fit_and_save(folder: Path, resume_from: Path | None = None) -> dict[str, Any]:
    """Seven epochs that validate in mid-epoch, with a checkpoint after each step."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    seen = recorder(LONE, lambda t, m: (t.global_step, num_blocks(m)))
    module = regression(LONE, BlockNet, adamw)
    run = trainer(
        LONE,
        callbacks=[early_stopping(), GradualUnfreezing(stages=STAGES), seen, saver],
        max_epochs=7,
        val_check_interval=2,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    run.fit(module, ResumableLoader(batches().dataset), batches(), ckpt_path=resume_from)
    return {"weights": module.state_dict(), "seen": dict(seen.seen), "steps": run.global_step}


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Cut in each stage; the callbacks' states are those of a stock EarlyStopping."""
    whole = fit_and_save(tmp_path / "whole")
    assert whole["steps"] == 14
    for step in (3, 5, 7, 9, 11, 13):
        resumed = fit_and_save(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["weights"], whole["weights"]), step
        assert resumed["seen"] == {k: v for k, v in whole["seen"].items() if k > step}, step
        assert resumed["steps"] == 14
    saved = torch.load(tmp_path / "whole" / "step=3.ckpt", weights_only=True)["callbacks"]
    state = next(value for key, value in saved.items() if key.startswith("EarlyStopping"))
    assert (state["patience"], state["wait_count"]) == (2, 0)


def fit_on_ranks() -> dict[str, Any]:
    """Only the second rank's metric stops improving, as each rank sees its own."""
    import os

    from pytorch_lightning.strategies import DDPStrategy

    rank = int(os.environ["RANK"])

    def log(fit: Any, module: Any) -> None:
        module.log("own", torch.tensor(0.0 if rank else -float(fit.current_epoch)), rank_zero_only=False)

    own = recorder(LONE, log, "on_validation_epoch_end")
    seen = recorder(LONE, lambda _, module: num_blocks(module))
    loader = batches(32, rank, 2)
    module = regression(LONE, BlockNet, adamw)
    stopping = early_stopping(monitor="own", min_delta=0.0)
    trainer(
        LONE,
        callbacks=[stopping, GradualUnfreezing(stages=STAGES), own, seen],
        max_epochs=20,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
    ).fit(module, loader, loader)
    return {"weights": dict(module.state_dict()), "seen": seen.seen}


@pytest.mark.wide
def test_two_ranks_leave_a_stage_together(tmp_path: Path) -> None:
    """As soon as one of them is out of patience."""
    one, other = run_ranks(fit_on_ranks, tmp_path, 2)

    assert one["seen"] == other["seen"]
    assert one["seen"][::4] == [0] * 3 + [1] * 2 + [len(BLOCKS)] * 2
    assert same(one["weights"], other["weights"])
