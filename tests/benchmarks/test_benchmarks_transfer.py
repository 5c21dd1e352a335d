"""The study of what freezing buys: its parts on real text, with few steps."""

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fits, transfer

pytestmark = pytest.mark.wide  # a benchmark from its command to its page

FEW = Namespace(steps=2, sequences=16)


def result(**ways: list[dict[str, float]]) -> dict[str, Any]:
    rows = {name.replace("_", " "): runs for name, runs in ways.items()}
    return {"command": "python", "method": "method", "versions": {}, "tasks": {"token_classifier": rows}}


@pytest.mark.parametrize("task", [transfer.CLASSIFIER, transfer.SCORER], ids=lambda task: task.mode)
def test_a_way_is_learnt_and_tested(task: transfer.Task, tmp_path: Path) -> None:
    """From a pretrained checkpoint, frozen and thawed midway, on the standard library."""
    way = next(way for way in transfer.WAYS if way.thaws_at == 0.5)
    with fits.quiet():
        checkpoint = transfer.pretrain(1, tmp_path)
        figures = transfer.learn(task, way, 0, FEW, checkpoint)

    assert figures.keys() == {"seconds", *task.figures}
    assert figures["seconds"] > 0


def test_the_majority_by_counting() -> None:
    """The most frequent class of the sequences to train on, on those of the test."""
    data = transfer.label_data(16, 0)
    data.setup()
    train, test = (
        Counter(target for batch in batches for target in batch["targets"].flatten().tolist() if target >= 0)
        for batches in (data.train_dataloader(), data.test_dataloader())
    )
    share = test[train.most_common(1)[0][0]] / test.total()
    figures = transfer.majority(transfer.CLASSIFIER, FEW)

    assert figures["accuracy"] == pytest.approx(share)
    assert figures["macro_f1"] == pytest.approx(2 * share / (1 + share) / len(test))


def test_the_table_shows_the_mean_and_the_spread() -> None:
    """One run without a spread, and a figure that a way does not have left empty."""
    runs = [
        {"accuracy": 0.5, "macro_f1": 0.25, "seconds": 3.0},
        {"accuracy": 1.0, "macro_f1": 0.75, "seconds": 5},
    ]
    rows = transfer.page(
        result(majority=[{"accuracy": 0.5, "macro_f1": 0.25}], never_frozen=runs)
    ).splitlines()

    assert "| majority | 0.5 | 0.25 |  |" in rows
    assert "| never frozen | 0.75 (0.5 to 1) | 0.5 (0.25 to 0.75) | 4 (3 to 5) |" in rows


def test_tables_replace_those_of_the_last_time() -> None:
    first = transfer.fill("# A\n\n<!-- results: transfer -->\n\nafter\n", result(old=[{"accuracy": 0.5}]))
    second = transfer.fill(first, result(new=[{"accuracy": 0.5}]))

    assert "| old |" not in second
    assert second.index("| new |") < second.index("after")


def test_a_page_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="results: transfer"):
        transfer.fill("# A\n", result())
