"""Curves of a real run under TensorBoard's default smoothing: right at most ten steps after each change."""

import csv
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lighter_freezers
from benchmarks.screenshots import browser, tensorboard, visit
from lighter_freezers import Freezer, FreezeStateLogger, LoraRankScheduler
from tests import lab
from tests.callbacks.test_freeze_state_logger import BlockNet
from tests.lora.lora_lab import mixed

PL = "pytorch_lightning"
Points = list[tuple[int, float]]
CELLS = re.compile(r">\s*([^<>\s][^<>]*?)\s*<")  # texts of a page


def smoothed(points: Points, weight: float = 0.6) -> Points:
    """TensorBoard's curve: a running mean without the bias towards its start, over points, not over steps.

    `classicSmoothing` in TensorBoard's `data_transformer.ts`; 0.6 is the weight it opens with.
    """
    last, curve = 0.0, []
    for number, (step, value) in enumerate(points, 1):
        last = last * weight + (1 - weight) * value
        curve.append((step, last / (1 - weight**number)))
    return curve


def shown_at(curve: Points, step: int) -> float:
    """What a reader sees: the last point up to a step."""
    return [value for at, value in curve if at <= step][-1]


def read(folder: Path) -> dict[str, Points]:
    """All curves of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]
    }


def fit(
    folder: Path, *callbacks: Any, num_steps: int = 40, net: Callable[[], Any] = BlockNet, **more: Any
) -> Any:
    """A run of some optimizer steps; ten epochs have four each."""
    logger = more.pop("logger", None) or TensorBoardLogger(folder, name="", version="")
    module = more.pop("module", None) or lab.regression(PL, net, optimizer=lab.adamw)
    ckpt_path, data = more.pop("ckpt_path", None), more.pop("data", None) or lab.batches()
    trainer = lab.trainer(
        PL, logger=logger, callbacks=list(callbacks), max_epochs=-1, max_steps=num_steps, **more
    )
    trainer.fit(module, data, lab.batches(), ckpt_path=ckpt_path)
    return trainer


def assert_right(curve: Points, expected: Callable[[int], float], changes: list[int], num_steps: int) -> None:
    """Within 5 % of the values' range, ten steps after each change and up to the next."""
    drawn = smoothed(curve)
    size = max(abs(expected(step)) for step in range(num_steps))
    for start, end in zip([0, *changes], [*changes, num_steps + 1], strict=True):
        for step in range(start + 10 if start else 0, end):
            assert shown_at(drawn, step) == pytest.approx(expected(step), abs=0.05 * size), (step, curve)


def test_shares_are_right_ten_steps_after_a_change(tmp_path: Path) -> None:
    """Of the model and of each layer; a curve that does not change has only its ends."""
    fit(
        tmp_path,
        Freezer(name_starts_with=["network.h.0.attn."], until_step=12),
        Freezer(name_starts_with=["network.h.0.attn."], from_step=25),
        FreezeStateLogger(),
    )
    curves = read(tmp_path)
    frozen = lambda step: float(step < 12 or step >= 25)  # noqa: E731
    assert_right(curves["freeze/frozen_share"], lambda step: frozen(step) * 72 / 329, [12, 25], 40)
    assert_right(curves["freeze/trainable_parameters"], lambda step: 329 - frozen(step) * 72, [12, 25], 40)
    assert_right(curves["trainable_share/attn.0"], lambda step: 1 - frozen(step), [12, 25], 40)
    assert curves["trainable_share/mlp.0"] == [(step, 1.0) for step in (*range(11), 40)]


def test_changes_in_quick_succession_end_right(tmp_path: Path) -> None:
    """Every third step something else thaws: the last state is drawn ten steps later, and no step has two."""
    freezers = [
        Freezer(name_starts_with=[f"network.h.{block}.{part}."], until_step=6 + 3 * (2 * block + place))
        for block in range(2)
        for place, part in enumerate(("attn", "mlp"))
    ]
    fit(tmp_path, *freezers, FreezeStateLogger())
    curves = read(tmp_path)
    drawn = smoothed(curves["freeze/frozen_share"])
    assert shown_at(drawn, 25) == pytest.approx(0.0, abs=0.05 * 288 / 329)
    for key in ("freeze/frozen_share", "trainable_share/attn.0", "trainable_share/mlp.1"):
        steps = [step for step, _ in curves[key]]
        assert steps == sorted(set(steps))


def test_a_change_at_the_last_step_is_drawn_as_far_as_there_are_steps(tmp_path: Path) -> None:
    """No point lies behind the end of a run, and the value itself is right."""
    fit(tmp_path, Freezer(name_starts_with=["network.h."], until_step=39), FreezeStateLogger())
    share = read(tmp_path)["freeze/frozen_share"]
    assert [step for step, _ in share] == [*range(11), 38, 39, 40]
    assert share[-1][1] == 0.0


def test_a_resumed_run_is_right_in_the_same_folder(tmp_path: Path) -> None:
    """Cut while the curve settles: it goes on to settle, and TensorBoard reads one curve."""
    freezer = Freezer(name_starts_with=["network.h."], until_step=18)
    path = tmp_path / "cut.ckpt"
    fit(tmp_path, freezer, FreezeStateLogger(), num_steps=20).save_checkpoint(path)
    time.sleep(1.0)  # files of one second are read in the order of a counter, as text: 10 before 9
    freezer = Freezer(name_starts_with=["network.h."], until_step=18)
    fit(tmp_path, freezer, FreezeStateLogger(), ckpt_path=str(path))
    share = read(tmp_path)["freeze/frozen_share"]
    assert_right(share, lambda step: 320 / 329 if step < 18 else 0.0, [18], 40)
    assert len(share) < 30


def test_learning_rates_are_those_of_what_trains(tmp_path: Path) -> None:
    """No point while a group is frozen; right from the thaw to the last step that it trains."""
    freezer = Freezer(name_starts_with=["network.h."], until_step=14, unfreeze_lr_factor=0.5)
    again = Freezer(name_starts_with=["network.h."], from_step=30)
    module = lab.regression(PL, BlockNet, optimizer=lab.sgd)
    fit(tmp_path, freezer, again, FreezeStateLogger(), module=module)
    curves = {key: points for key, points in read(tmp_path).items() if "trainable_rate" in key}
    assert set(curves) == {"freeze/trainable_rate/ln_1.0 to mlp.1", "freeze/trainable_rate/lm_head"}
    blocks = curves["freeze/trainable_rate/ln_1.0 to mlp.1"]
    assert [step for step, _ in blocks] == [*range(14, 25), 29]
    assert [value for _, value in smoothed(blocks)] == pytest.approx([0.025] * 12)
    assert dict(curves["freeze/trainable_rate/lm_head"]) == dict.fromkeys(
        (*range(11), 40), pytest.approx(0.05)
    )


def test_a_rate_that_comes_back_leaves_a_gap(tmp_path: Path) -> None:
    """Frozen from step 10 to 29: not a number before the thaw, which TensorBoard draws as a gap."""
    freezer = Freezer(name_starts_with=["network.h."], windows=[[10, 29]], unfreeze_lr_factor=0.5)
    module = lab.regression(PL, BlockNet, optimizer=lab.sgd)
    fit(tmp_path, freezer, FreezeStateLogger(), module=module)
    points = read(tmp_path)["freeze/trainable_rate/ln_1.0 to mlp.1"]
    assert [step for step, _ in points] == [*range(10), 28, *range(29, 40), 40]
    assert [step for step, value in points if math.isnan(value)] == [28]


def test_a_rate_that_moves_is_sampled_after_epochs_and_drawn_at_a_thaw(tmp_path: Path) -> None:
    """Eleven points follow a scheduled rate step by step from each sample on, and it is drawn right."""
    module = _of_rate(lambda step: 1 - step / 50)
    fit(tmp_path, Freezer(name_starts_with=["network.h."], until_step=14), FreezeStateLogger(), module=module)
    (points,) = (points for key, points in read(tmp_path).items() if "trainable_rate" in key)
    assert dict(points) == pytest.approx({step: 0.05 * (1 - step / 50) for step, _ in points})
    assert [step for step, _ in points] == list(range(41))  # an epoch has four steps
    for step, value in smoothed(points):
        assert value == pytest.approx(0.05 * (1 - step / 50), abs=0.05 * 0.05)


@pytest.mark.wide
@pytest.mark.parametrize(("num_steps", "log_every_n_steps"), [(40, 50), (700, 0)])
def test_a_rate_that_moves_is_drawn_right_all_along(
    num_steps: int, log_every_n_steps: int, tmp_path: Path
) -> None:
    """Within an epoch about 300 points, however seldom the Trainer logs, and none once the rate stays."""
    rate = lambda step: 0.05 * max(0.5, 1 - step / num_steps)  # noqa: E731
    fit(
        tmp_path,
        FreezeStateLogger(),
        module=_of_rate(lambda step: rate(step) / 0.05),
        data=lab.batches(8 * num_steps),
        num_steps=num_steps,
        log_every_n_steps=log_every_n_steps,
    )
    points = read(tmp_path)["freeze/trainable_rate/all layers"]
    assert dict(points) == pytest.approx({step: rate(step) for step, _ in points})
    stride = max(1, num_steps // 300)
    half = num_steps // 2
    moving = [*range(11), *range(-(-11 // stride) * stride, half + 1, stride)]
    assert [step for step, _ in points] == [*moving, num_steps]
    assert_right(points, rate, [], num_steps)


def test_a_rate_of_a_run_without_an_end_is_logged_as_often_as_the_trainer_logs(tmp_path: Path) -> None:
    """A stream that a callback stops: every fifth step."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 33

    module, data = _of_rate(lambda step: 1 - step / 50), lab.batches(320)
    fit(tmp_path, FreezeStateLogger(), Stop(), module=module, data=data, num_steps=-1, log_every_n_steps=5)
    points = read(tmp_path)["freeze/trainable_rate/all layers"]
    assert [step for step, _ in points] == [*range(11), 15, 20, 25, 30, 33]


def _of_rate(factor: Callable[[int], float]) -> Any:
    """A module with this schedule, by steps."""
    module = lab.regression(PL, BlockNet, optimizer=lab.sgd)
    module.configure_optimizers = lambda: {
        "optimizer": (sgd := lab.sgd(module.parameters())),
        "lr_scheduler": {
            "scheduler": torch.optim.lr_scheduler.LambdaLR(sgd, factor),
            "interval": "step",
        },
    }
    return module


def test_a_warm_up_is_drawn_step_by_step(tmp_path: Path) -> None:
    """The rates of the ten steps after a thaw are those in force at each of them."""
    freezer = Freezer(name_starts_with=["network.h."], until_step=14, warmup_steps=8)
    module = lab.regression(PL, BlockNet, optimizer=lab.sgd)
    fit(tmp_path, freezer, FreezeStateLogger(), module=module)
    points = dict(read(tmp_path)["freeze/trainable_rate/ln_1.0 to mlp.1"])
    ramp = {step: 0.05 * min(1.0, (step - 13) / 8) for step in range(14, 25)}
    assert {step: points[step] for step in ramp} == pytest.approx(ramp)


def test_ranks_of_lora_are_right(tmp_path: Path) -> None:
    """`lora/rank/*` and `lora/parameters` settle as the shares do."""
    schedule = [{"step": 10, "rank_pattern": {"wte": 6}}, {"step": 25, "rank_pattern": {"wte": 1}}]
    module = lab.regression(PL, mixed, optimizer=lab.adamw)
    fit(tmp_path / "ranks", LoraRankScheduler(schedule), module=module)
    curves = read(tmp_path / "ranks")
    rank = lambda step: 3 if step < 10 else 6 if step < 25 else 1  # noqa: E731
    assert_right(curves["lora/rank/wte"], rank, [10, 25], 40)
    assert curves["lora/rank/conv"] == [(step, 3.0) for step in (*range(11), 40)]
    sizes = dict(curves["lora/parameters"])
    assert_right(curves["lora/parameters"], lambda s: sizes[{3: 0, 6: 10, 1: 25}[rank(s)]], [10, 25], 40)


def test_other_loggers_get_one_point_for_each_change(tmp_path: Path) -> None:
    """A CSV file beside TensorBoard has the start, the step before, the change and the end."""
    loggers = [TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path, name="csv", version="")]
    freezer = Freezer(name_starts_with=["network.h."], until_step=12)
    fit(tmp_path, freezer, FreezeStateLogger(), logger=loggers, log_every_n_steps=100)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["freeze/frozen_share"]]
    assert [int(row["step"]) for row in rows] == [0, 11, 12, 40]
    assert len(read(tmp_path)["freeze/frozen_share"]) == 24


def test_nothing_runs_in_a_steady_state(tmp_path: Path) -> None:
    """The engine's hook after each batch is there for eleven steps, and gone after them."""
    seen: list[bool] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            engine = next(each for each in trainer.callbacks if type(each).__name__ == "Engine")
            seen.append(callable(engine.on_train_batch_end))

    fit(tmp_path, Freezer(name_starts_with=["network.h."], until_step=20), FreezeStateLogger(), Watch())
    assert [step for step, is_on in enumerate(seen) if is_on] == [*range(11), *range(20, 31)]


@pytest.mark.wide
def test_the_server_hands_out_all_points(tmp_path: Path) -> None:
    """It keeps one point for each step, so that several at one step would not do."""
    fit(tmp_path / "run", Freezer(name_starts_with=["network.h."], until_step=12), FreezeStateLogger())
    query = urllib.parse.urlencode({"run": "run", "tag": "freeze/frozen_share"})
    with tensorboard(tmp_path) as address:
        answer = urllib.request.urlopen(f"{address}/data/plugin/scalars/scalars?{query}")
        points = json.load(answer)
    expected = dict(read(tmp_path / "run")["freeze/frozen_share"])
    assert {step: value for _, step, value in points} == pytest.approx(expected)


@pytest.mark.wide
def test_the_first_page_in_a_browser_shows_the_state_as_it_is(tmp_path: Path) -> None:
    """At default settings: share, picture and number come first, and smoothed values are the values."""
    program = browser()
    if program is None:
        pytest.skip("no browser: install chromium")
    logger = lighter_freezers.TensorBoardLogger(tmp_path, name="", version="run")
    freezer = Freezer(name_starts_with=["network.h."], until_step=25)
    fit(tmp_path, freezer, FreezeStateLogger(), logger=logger, log_every_n_steps=1)
    names: list[str] = []
    with tensorboard(tmp_path) as address:
        for _ in range(3):  # on a busy machine the browser may print a page that is still loading
            page = visit(program, f"{address}/#timeseries", "--dump-dom", height=4000)
            cards = [CELLS.findall(card) for card in page.split("<card-view")[1:]]
            names = ["".join(cells[:2]) for cells in cards if cells]
            if sum("Smoothed" in cells for cells in cards) >= 3:
                break
    first = ["frozen_share", "timeline", "trainable_parameters", "trainable_rate/all layers"]
    assert names[: len(first)] == [f"freeze/{name}" for name in first]
    drawn = [
        cells[cells.index("run") + 1 :][:2] for cells in cards if "Smoothed" in cells and "freeze" in cells[0]
    ]
    assert len(drawn) == 3
    for smooth, value in drawn:
        assert float(smooth) == pytest.approx(float(value), rel=0.01, abs=0.01)
