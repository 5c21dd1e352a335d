"""GradientNormMonitor in real fits: what it measures, when, and what stands in its files."""

import csv
import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lighter_freezers import Freezer, GradientNormMonitor
from tests.lab import NAMESPACES, TinyNet, adamw, batches, recorder, regression, trainer

LONE = "pytorch_lightning"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def norms_in(folder: Path, name: str = "gradient_analysis") -> list[dict[str, str]]:
    return rows(folder / f"{name}.group_norms.csv")


def steps_in(folder: Path, name: str = "gradient_analysis") -> list[int]:
    return [int(row["step"]) for row in norms_in(folder, name)]


def total_norm(module: Any) -> float:
    grads = [p.grad.double() for p in module.parameters() if p.grad is not None]
    return math.sqrt(sum(grad.square().sum().item() for grad in grads))


def clip_at_own_value(module: Any, optimizer: Any, **_: Any) -> None:
    """What a user's `configure_gradient_clipping` may do, whatever the Trainer says."""
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.02)


def fit(folder: Path, callbacks: Any = (), namespace: str = LONE, module: Any = None, **options: Any) -> Any:
    """Fit with a monitor at every step; the module, as trained."""
    monitor = {"every_n_steps": 1, "dirpath": str(folder), **options.pop("monitor", {})}
    module = module or regression(namespace)
    ckpt_path = options.pop("ckpt_path", None)
    callbacks = [*callbacks, GradientNormMonitor(**monitor)]
    run = trainer(namespace, callbacks=callbacks, **options)
    run.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_row_is_the_accumulated_unclipped_gradient(namespace: str, clip: Any, tmp_path: Path) -> None:
    """Each optimizer step once, and as a callback sees the gradients between backward and clipping."""
    seen = recorder(namespace, lambda t, m: (t.global_step, total_norm(m)), "on_before_optimizer_step")
    fit(tmp_path, [seen], namespace, max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=clip)
    found = [(int(row["step"]), float(row["total_norm"])) for row in norms_in(tmp_path)]

    assert [step for step, _ in found] == [0, 1, 2, 3]
    assert found == [(step, pytest.approx(norm, rel=1e-5)) for step, norm in seen.seen]


@pytest.mark.parametrize("clip", [None, 0.01, 100.0])
def test_monitoring_changes_no_weight(clip: Any, tmp_path: Path) -> None:
    """Bit by bit, also where the norms come from the pass that clips."""
    module = regression(LONE, optimizer=adamw)
    trainer(LONE, max_epochs=2, gradient_clip_val=clip).fit(module, batches(), batches())
    ours = fit(tmp_path, module=regression(LONE, optimizer=adamw), max_epochs=2, gradient_clip_val=clip)

    assert all(map(torch.equal, module.parameters(), ours.parameters()))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_clipping_and_monitoring_share_one_pass(namespace: str, tmp_path: Path) -> None:
    """The norms of the gradients are computed once per step; a user's own clipping is left to itself."""
    counts: dict[str, int] = {}

    class Norms(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **(kwargs or {}))

    with Norms():
        fit(tmp_path / "shared", namespace=namespace, gradient_clip_val=0.01)
    shared = counts.pop("_foreach_norm")
    own = regression(namespace)
    type(own).configure_gradient_clipping = clip_at_own_value
    with Norms():
        fit(tmp_path / "own", namespace=namespace, module=own, gradient_clip_val=0.01)

    assert shared == 4
    assert counts["_foreach_norm"] == 8


def test_clipping_of_ones_own_still_clips_as_it_says(tmp_path: Path) -> None:
    """With a value that is not the Trainer's, and with the norms before it in the file."""

    def module() -> Any:
        built = regression(LONE)
        type(built).configure_gradient_clipping = clip_at_own_value
        return built

    plain, ours = module(), module()
    trainer(LONE, gradient_clip_val=0.01).fit(plain, batches(), batches())
    fit(tmp_path, module=ours, gradient_clip_val=0.01)

    assert all(map(torch.equal, plain.parameters(), ours.parameters()))
    assert steps_in(tmp_path) == [0, 1, 2, 3]
    assert min(float(row["total_norm"]) for row in norms_in(tmp_path)) > 0.02


@pytest.mark.parametrize("is_fused", [False, True])
def test_norms_are_unscaled(is_fused: bool, tmp_path: Path) -> None:
    """Under a GradScaler, whether Lightning unscales the gradients or a fused optimizer does."""
    from pytorch_lightning.plugins import MixedPrecision

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.0, fused=is_fused)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    precision.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    fit(tmp_path / "scaled", module=regression(LONE, optimizer=optimizer), plugins=[precision])
    fit(tmp_path / "plain", module=regression(LONE, optimizer=optimizer))
    scaled, plain = norms_in(tmp_path / "scaled"), norms_in(tmp_path / "plain")

    assert [float(row["total_norm"]) for row in scaled] == pytest.approx(
        [float(row["total_norm"]) for row in plain], rel=1e-5
    )


def test_every_n_steps_is_the_trainers_logging_by_default(tmp_path: Path) -> None:
    """And a number of its own where one is given."""
    fit(tmp_path, monitor={"every_n_steps": None}, max_epochs=2, log_every_n_steps=3)
    fit(tmp_path, monitor={"every_n_steps": 5, "name": "five"}, max_epochs=2)

    assert steps_in(tmp_path) == [0, 3, 6]
    assert steps_in(tmp_path, "five") == [0, 5]


def test_a_frozen_layer_is_an_empty_cell(tmp_path: Path) -> None:
    """Layers that train late have empty cells first and numbers later, in the same column."""
    schedule = [
        Freezer(name_starts_with="layer1.", from_step=2),
        Freezer(name_starts_with="head", until_step=2),
    ]
    fit(tmp_path, schedule)
    found = norms_in(tmp_path)

    assert [bool(row["layer1_norm"]) for row in found] == [True, True, False, False]
    assert [bool(row["head_norm"]) for row in found] == [False, False, True, True]
    assert all(len(row) == 6 and None not in row for row in found)


def test_what_froze_and_thawed_is_noted(tmp_path: Path) -> None:
    """Once each, at the step from which on it holds, and at the start what was frozen then."""
    fit(
        tmp_path,
        [Freezer(name_starts_with="layer2", until_step=2), Freezer(name_starts_with="head", from_step=3)],
    )
    found = rows(tmp_path / "gradient_analysis.transitions.csv")

    assert [(row["step"], row["frozen"], row["thawed"]) for row in found] == [
        ("0", "layer2", ""),
        ("2", "", "layer2"),
        ("3", "head", ""),
    ]


def test_losses_are_means_of_whole_steps(tmp_path: Path) -> None:
    """Of the steps since the last row, at their full size under accumulation; and those of validation."""
    losses = recorder(LONE, lambda t, m: None)
    losses.on_train_batch_end = lambda t, m, outputs, *_: losses.seen.append(outputs["loss"].item() * 2)
    fit(tmp_path, [losses], monitor={"every_n_steps": 2}, max_epochs=2, accumulate_grad_batches=2)
    found = rows(tmp_path / "gradient_analysis.losses.csv")
    train = [(int(row["step"]), float(row["train_loss"])) for row in found if row["train_loss"]]

    halves = [statistics.fmean(losses.seen[:4]), statistics.fmean(losses.seen[4:])]
    assert train == [(2, pytest.approx(halves[0])), (4, pytest.approx(halves[1]))]
    assert [row["step"] for row in found if row["val_loss"]] == ["2", "4"]


def test_the_summary_and_the_json_hold_what_the_rows_hold(tmp_path: Path) -> None:
    """Statistics of the rows, null for an empty cell, in plain JSON."""
    fit(tmp_path, [Freezer(name_starts_with="head", until_step=2)], monitor={"save_format": "json"})
    found = norms_in(tmp_path)
    summary = json.loads((tmp_path / "gradient_analysis.summary.json").read_text())
    series = json.loads((tmp_path / "gradient_analysis.gradient_norms.json").read_text())
    head = [float(row["head_norm"]) for row in found if row["head_norm"]]

    assert summary["head"]["mean"] == pytest.approx(statistics.fmean(head))
    assert summary["head"]["std"] == pytest.approx(statistics.pstdev(head))
    assert (summary["head"]["max"], summary["head"]["min"]) == (max(head), min(head))
    assert summary["head"]["peak_step"] == 2 + head.index(max(head))
    assert list(summary) == ["layer1", "layer2", "layer10", "head", "total"]
    assert series["steps"] == [0, 1, 2, 3]
    assert series["group_norms"]["head"] == [None, None, *head]


def test_loggers_get_the_norms(tmp_path: Path) -> None:
    """As `gradient_norm/<group>`, at the step of the row."""
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    fit(None, monitor={"dirpath": None}, logger=logger, log_every_n_steps=1)
    logged = {
        row["step"]: row["gradient_norm/head"]
        for row in rows(Path(logger.log_dir) / "metrics.csv")
        if row["gradient_norm/head"]
    }
    written = {row["step"]: float(row["head_norm"]) for row in norms_in(Path(logger.log_dir))}

    assert {step: float(logged[step]) for step in written} == pytest.approx(written)


def reads_per_batch(callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a fit of eight batches reads a tensor, batch by batch."""
    reads = [0]
    batch = recorder(LONE, lambda t, m: reads.append(0))
    module = regression(LONE)
    module.log, module.validation_step = lambda *_, **__: None, None

    def counted(method: Any) -> Any:
        def read(tensor: torch.Tensor) -> Any:
            reads[-1] += 1
            return method(tensor)

        return read

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "cpu", "__float__", "__bool__"):
            patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        trainer(LONE, callbacks=[*callbacks, batch], max_epochs=2).fit(module, batches())
    return reads[:8]


def test_a_measurement_reads_the_host_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss included; between measurements nothing is read."""
    bare = reads_per_batch([], monkeypatch)
    ours = reads_per_batch([GradientNormMonitor(2, dirpath=str(tmp_path))], monkeypatch)

    assert [one - other for one, other in zip(ours, bare, strict=True)] == [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": "5"}, TypeError, "whole number"),
        ({"every_n_steps": 0}, ValueError, "at least 1"),
        ({"per_layer": "no"}, TypeError, "true or false"),
        ({"save_format": "xml"}, ValueError, "csv, json"),
        ({"name": "a/b"}, ValueError, "dirpath"),
        ({"name": 3}, TypeError, "name must be a text"),
    ],
)
def test_what_yaml_gets_wrong_is_an_error(arguments: Any, error: Any, message: str) -> None:
    """When the callback is made."""
    with pytest.raises(error, match=message):
        GradientNormMonitor(**arguments)


def test_a_validation_loss_that_is_never_logged_is_one_warning(tmp_path: Path, caplog: Any) -> None:
    """With the closest names; the run goes on to its end."""
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
        fit(tmp_path, monitor={"val_loss": "val/los"})

    assert caplog.text.count("no validation loss (val/los)") == 1
    assert "Closest: val/loss" in caplog.text
    assert (tmp_path / "gradient_analysis.summary.json").exists()


def test_two_monitors_need_two_names(tmp_path: Path) -> None:
    """They would write the same files; Lightning sees that their states would be one."""
    with pytest.raises(RuntimeError, match="GradientNormMonitor"):
        fit(tmp_path, [GradientNormMonitor(dirpath=str(tmp_path))])

    fit(tmp_path, [GradientNormMonitor(2, dirpath=str(tmp_path), name="other")])
    assert steps_in(tmp_path, "other") == [0, 2]


def test_a_flat_strategy_is_refused(tmp_path: Path) -> None:
    """FSDP's flat gradients know no layers; the message says what to use."""
    run = trainer(LONE)
    flat = type("FSDPStrategy", (type(run.strategy),), {})  # the real one needs a GPU
    run.strategy.__class__ = flat
    with pytest.raises(RuntimeError, match="ModelParallelStrategy"):
        GradientNormMonitor(dirpath=str(tmp_path)).setup(run, regression(LONE), "fit")


def test_the_tiny_network_is_what_the_columns_say() -> None:
    """The header that the rows above rely on."""
    assert [name for name, _ in TinyNet().named_children()] == ["layer1", "layer2", "layer10", "head"]
