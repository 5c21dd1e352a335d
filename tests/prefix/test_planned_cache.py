"""What a plan says of a `PrefixCache`, and that a run measures the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lighter_freezers import Freezer, PhaseRecorder, PrefixCache, plan
from lighter_freezers.planning.comparison import compare, read_report
from lighter_freezers.planning.values import Plan
from tests.lab import WIDTH, batches, regression, trainer
from tests.prefix.block_nets import Blocks


def callbacks(folder: Path) -> list[Any]:
    """Three of four blocks are frozen, one of them for a single epoch."""
    return [
        Freezer(name_starts_with=["stem", "blocks.0.", "blocks.1."]),
        Freezer(name_starts_with="blocks.2.", until_epoch=1),
        PrefixCache(str(folder)),
    ]


def made(folder: Path, network: type[nn.Module] = Blocks) -> Plan:
    module = regression("pytorch_lightning", network)
    user = trainer("pytorch_lightning", callbacks=callbacks(folder), max_epochs=4)
    return plan(user, module, batches(), num_rounds=1, num_timed=0)


def test_a_plan_says_what_is_stored_and_saved(tmp_path: Path) -> None:
    planned = made(tmp_path / "rows")
    row = 4 * WIDTH
    layer = 2 * 8 * WIDTH * WIDTH  # a product of a batch of eight rows
    assert [phase.stored_bytes for phase in planned.phases] == [8 * row, 8 * row]
    assert [phase.skipped_flops for phase in planned.phases] == [3 * layer, 2 * layer]

    text = str(planned)
    assert "step 0: 256 B a step, 1.02 kB an epoch; the phase is no longer than an epoch" in text
    assert "step 4: 256 B a step, 1.02 kB an epoch; from its second epoch on a step needs 7" in text
    assert Plan.from_dict(json.loads(json.dumps(planned.as_dict()))) == planned
    assert not (tmp_path / "rows").exists()  # a rehearsal leaves the rows of runs alone


def test_a_run_measures_what_was_planned(tmp_path: Path) -> None:
    module = regression("pytorch_lightning", Blocks)
    recorder = PhaseRecorder(num_timed=0)
    trainer(
        "pytorch_lightning",
        callbacks=[*callbacks(tmp_path / "rows"), recorder],
        max_epochs=4,
        limit_val_batches=0,
        logger=True,
        default_root_dir=tmp_path,
    ).fit(module, batches(), batches())
    compared = compare(
        made(tmp_path / "other"), read_report(next(tmp_path.rglob("freeze_report.json")).parent)
    )

    lines = [line for line in compared.lines if line.what in ("skipped_flops", "stored_bytes")]
    assert len(lines) == 4
    assert all(line.off == 0 and line.planned for line in lines)
    assert "skipped by PrefixCache" in str(compared)


def test_a_report_compares_the_time_of_served_steps(tmp_path: Path) -> None:
    """Steps of the first epoch run the prefix, those of the later ones read it."""
    recorder = PhaseRecorder(num_timed=2)
    options: dict[str, Any] = {"logger": True, "default_root_dir": tmp_path, "max_epochs": 4}
    trainer("pytorch_lightning", callbacks=[*callbacks(tmp_path / "rows"), recorder], **options).fit(
        regression("pytorch_lightning", Blocks), batches(), batches()
    )
    records = read_report(next(tmp_path.rglob("freeze_report.json")).parent)
    compared = compare(made(tmp_path / "other"), records)

    assert [record.num_timed for record in records] == [2, 2]
    assert [record.served_seconds is not None for record in records] == [False, True]
    (line,) = [line for line in compared.lines if line.what == "served_time"]
    assert line.planned == pytest.approx(1 - 2 / 7, abs=0.1)
    assert line.measured is not None
    assert "time of a served step / of another" in str(compared)


def test_a_refusal_is_a_warning_of_the_plan(tmp_path: Path) -> None:
    class Dropping(Blocks):
        def __init__(self) -> None:
            super().__init__(nn.Dropout)

    assert any("draws random numbers" in warning for warning in made(tmp_path, Dropping).warnings)


@pytest.mark.parametrize("arguments", [{"dtype": "float16"}, {"max_gb": 0}, {"check_every_n_batches": 0}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PrefixCache(**arguments)
