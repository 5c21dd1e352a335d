"""`restore_best`: a stage begins with the best weights of the one before, exactly, also after a resume."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import GradualUnfreezing, LoraRankScheduler
from tests.callbacks import test_lora_phases as gpt
from tests.callbacks.block_net import BlockNet
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.lab import NAMESPACES, ResumableLoader, adamw, batches, recorder, regression, resuming, trainer

LONE = "pytorch_lightning"
STAGES = [
    {"thaw": ["norm", "head"], "until_epoch": 3},
    {"thaw": "layers:block.-1", "until_epoch": 5},
    {"thaw": "*"},
]
SCORES = [3.0, 1.0, 2.0, 0.9, 0.5, 4.0]  # of the six epochs: the best of the stages are epochs 1, 4 and 5
BEST = {"monitor": "score"}
pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`",
    "ignore:The dirpath has changed",
    "ignore:Checkpoint directory .* is not empty",
)


def scorer(namespace: str = LONE) -> Any:
    """Logs a score in each validation."""

    def log(fit: Any, module: Any) -> None:
        module.log("score", torch.tensor(SCORES[fit.current_epoch]))

    return recorder(namespace, log, "on_validation_epoch_end")


def copied(fit: Any, module: Any) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state = {names[id(p)]: s["exp_avg"].clone() for p, s in fit.optimizers[0].state.items()}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return {"weights": weights, "moments": state, "step": fit.global_step, "epoch": fit.current_epoch}


class Counting(BlockNet):
    """Counts its passes in a buffer, as batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return super().forward(x)


def fit(
    folder: Path, resume_from: Path | None = None, network: Any = BlockNet, **best: Any
) -> dict[str, Any]:
    """Six epochs of four steps with a checkpoint after each; the state at each validation and first batch."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    few = ModelCheckpoint(dirpath=folder / "few", monitor="val/loss", save_top_k=1)
    validated = recorder(LONE, copied, "on_validation_end")
    began = recorder(LONE, lambda t, m: None if t.global_step % 4 else copied(t, m), "on_after_backward")
    module = regression(LONE, network, adamw)
    run = trainer(
        LONE,
        callbacks=[GradualUnfreezing(stages=STAGES, restore_best={**BEST, **best}), scorer(), few, saver]
        + [validated, began],
        max_epochs=6,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    run.fit(module, ResumableLoader(batches().dataset), batches(), **resuming(run, resume_from))
    firsts = [each for each in began.seen if each is not None]
    return {"validated": validated.seen, "firsts": firsts, "weights": module.state_dict(), "run": run}


@pytest.mark.parametrize("optimizer_state", ["keep", "restore"])
def test_a_stage_begins_with_the_best_of_the_one_before(optimizer_state: str, tmp_path: Path) -> None:
    """Weights of its best epoch; the optimizer's state too by choice; steps and epochs go on."""
    done = fit(tmp_path, optimizer_state=optimizer_state)
    validated, firsts = done["validated"], done["firsts"]

    for epoch, best in ((3, 1), (5, 4)):
        assert same(firsts[epoch]["weights"], validated[best]["weights"]), epoch
        source = best if optimizer_state == "restore" else epoch - 1
        assert same(firsts[epoch]["moments"], validated[source]["moments"]), epoch
    for epoch in (1, 2, 4):
        assert same(firsts[epoch]["weights"], validated[epoch - 1]["weights"]), epoch
    assert [first["step"] for first in firsts] == [0, 4, 8, 12, 16, 20]
    assert not same(firsts[3]["weights"], validated[2]["weights"])


def test_files_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two files of each stage at most, apart from those of ModelCheckpoint; a line says which is used."""
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        fit(tmp_path)

    files = sorted(path.name for path in (tmp_path / "stages").iterdir())
    assert files == [
        f"stage={stage}-step={step}.pt" for stage, step in ((1, 4), (1, 8), (2, 16), (2, 20), (3, 24))
    ]
    assert "the best weights of stage 1 are back (score 1 at step 8," in caplog.text
    assert len(list((tmp_path / "few").iterdir())) == 1


@pytest.mark.parametrize(("mode", "best", "other"), [("min", 4, 5), ("max", 5, 4)])
def test_the_best_of_all_at_the_end(mode: str, best: int, other: int, tmp_path: Path) -> None:
    """The lowest score is in the second stage, the highest in the last."""
    done = fit(tmp_path, at_end=True, mode=mode)

    assert same(done["weights"], done["validated"][best]["weights"])
    assert not same(done["weights"], done["validated"][other]["weights"])


def test_buffers_are_those_of_the_best_weights(tmp_path: Path) -> None:
    """Of two epochs of the first stage and two of the second, four steps each."""
    assert fit(tmp_path, network=Counting, at_end=True)["weights"]["network.passes"] == 16


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("is_first", [True, False], ids=["before ours", "after ours"])
def test_the_best_of_all_is_exported(namespace: str, is_first: bool, tmp_path: Path) -> None:
    """By any callback at the end of the run, and as a checkpoint that a module loads."""
    exporter = recorder(
        namespace, lambda _, m: {k: v.clone() for k, v in m.state_dict().items()}, "on_train_end"
    )
    validated = recorder(namespace, copied, "on_validation_end")
    ours = GradualUnfreezing(stages=STAGES, restore_best={**BEST, "at_end": True})
    pair = [exporter, ours] if is_first else [ours, exporter]
    run = trainer(
        namespace, callbacks=[*pair, scorer(namespace), validated], max_epochs=6, default_root_dir=tmp_path
    )
    module = regression(namespace, BlockNet, adamw)
    run.fit(module, batches(), batches())

    best = validated.seen[4]["weights"]
    assert same(exporter.seen[0], best)
    written = torch.load(tmp_path / "stages" / "best.ckpt", weights_only=True)
    assert same(written["state_dict"], best)
    assert not {"optimizer_states", "callbacks"} & written.keys()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Cut before and after the best, and in each stage."""
    whole = fit(tmp_path / "whole", optimizer_state="restore", at_end=True)
    for step in (6, 9, 11, 13, 17, 19, 22):
        file = tmp_path / "whole" / f"step={step}.ckpt"
        resumed = fit(tmp_path / f"from{step}", file, optimizer_state="restore", at_end=True)
        assert same(resumed["weights"], whole["weights"]), step
        assert resumed["run"].global_step == 24


def test_the_report_shows_the_file(tmp_path: Path) -> None:
    """Of each stage."""
    from lighter_freezers import PhaseRecorder
    from lighter_freezers.planning.comparison import compare, read_report
    from lighter_freezers.planning.values import Plan

    callbacks = [GradualUnfreezing(stages=STAGES, restore_best=BEST), scorer(), PhaseRecorder(num_timed=0)]
    run = trainer(LONE, callbacks=callbacks, max_epochs=6, default_root_dir=tmp_path)
    run.fit(regression(LONE, BlockNet), batches(), batches())
    planned = Plan("", 0, 0, None, "cpu", (), (), (), ())

    shown = str(compare(planned, read_report(tmp_path)))
    assert f"step 12: the best weights of stage 1 are back (score 1 at step 8, {tmp_path}/stages/" in shown
    assert "step 20: the best weights of stage 2 are back (score 0.5 at step 20," in shown


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    (tmp_path / "whole" / "stages" / "stage=1-step=8.pt").unlink()

    with pytest.raises(RuntimeError, match="stage 1 are those of step 8 in the file .* which is missing"):
        fit(tmp_path / "again", tmp_path / "whole" / "step=9.ckpt")


def test_a_stage_in_which_nothing_was_measured_goes_on(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    entries = [{"thaw": "head", "until_step": 2}, {"thaw": "*"}]
    callback = GradualUnfreezing(stages=entries, restore_best=BEST)
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        trainer(LONE, callbacks=[callback, scorer()], default_root_dir=tmp_path).fit(
            regression(LONE, BlockNet), batches(), batches()
        )

    assert "nothing was measured in stage 1, so its last weights remain" in caplog.text


def test_true_takes_the_metric_of_early_stopping(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    callback = GradualUnfreezing(stages=STAGES, restore_best=True)
    run = trainer(
        LONE,
        callbacks=[callback, EarlyStopping("score", patience=9, mode="max"), scorer()],
        max_epochs=4,
        default_root_dir=tmp_path,
    )
    run.fit(regression(LONE, BlockNet), batches(), batches())

    assert (tmp_path / "stages" / "stage=1-step=4.pt").is_file()
    assert not (tmp_path / "stages" / "stage=1-step=8.pt").is_file()
    with pytest.raises(RuntimeError, match="the Trainer has none. Give the metric"):
        trainer(LONE, callbacks=[GradualUnfreezing(stages=STAGES, restore_best=True)]).fit(
            regression(LONE, BlockNet), batches(), batches()
        )


def test_beside_ranks_that_change_it_is_refused(tmp_path: Path) -> None:
    entries = [{"thaw": "layers:block.-1", "until_step": 2}, {"thaw": "*"}]
    ranks = LoraRankScheduler([{"step": 3, "rank_pattern": {"attn.0": 1}}])
    callback = GradualUnfreezing(stages=entries, restore_best=BEST)

    with pytest.raises(RuntimeError, match="leave the ranks alone"):
        trainer(LONE, callbacks=[callback, ranks], default_root_dir=tmp_path).fit(gpt.module(), gpt.loader())


@pytest.mark.parametrize(
    ("best", "error"),
    [
        ("val/loss", "must be true or false or a mapping"),
        ({}, "needs monitor"),
        ({"monitor": "a", "mod": "min"}, "does not know 'mod'"),
        ({"monitor": "a", "mode": "low"}, "one of min, max"),
    ],
    ids=str,
)
def test_errors(best: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        GradualUnfreezing(stages=STAGES, restore_best=best)


def test_a_pace_has_no_stages_to_restore() -> None:
    with pytest.raises(ValueError, match="needs stages or schedule"):
        GradualUnfreezing(every_n_epochs=1, restore_best=True)


def fit_on_ranks(folder: str) -> dict[str, Any]:
    """What a rank sees."""
    from pytorch_lightning.strategies import DDPStrategy

    rank = int(os.environ["RANK"])
    validated = recorder(LONE, copied, "on_validation_end")
    module = regression(LONE, BlockNet, adamw)
    loader = batches(32, rank, 2)
    trainer(
        LONE,
        callbacks=[
            GradualUnfreezing(stages=STAGES, restore_best={**BEST, "at_end": True}),
            scorer(),
            validated,
        ],
        max_epochs=6,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        default_root_dir=folder,
    ).fit(module, loader, loader)
    return {"weights": dict(module.state_dict()), "best": dict(validated.seen[4]["weights"])}


@pytest.mark.wide
def test_two_ranks_restore_the_same(tmp_path: Path) -> None:
    one, other = run_ranks(fit_on_ranks, tmp_path, 2, str(tmp_path / "run"))

    assert same(one["weights"], other["weights"])
    assert same(one["weights"], one["best"])
