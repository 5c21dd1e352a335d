"""Random histories of Freezers, run by a Trainer, whole and cut, against an oracle in plain torch."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from pytorch_lightning import Callback, LightningModule
from torch.utils.data import DataLoader

from lighter_freezers import Freezer
from tests.engine.oracle import NAMES, NUM_SAMPLES, OPTIMIZERS, History, Net, Oracle, Record, factor_of
from tests.lab import ResumableLoader, trainer

LONE = "pytorch_lightning"


class Module(LightningModule):
    """Trains what the history says, and records what the oracle does."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history, self.record = history, Record()
        self.network = Net()
        for name in history.user_frozen:
            self.network.get_parameter(name).requires_grad = False
        self.automatic_optimization = not history.has_two_optimizers

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        parameters = self.network.named_parameters()
        self.record.frozen.append({name for name, p in parameters if not p.requires_grad})
        self.log("train/score", float(self.history.scores[self.current_epoch]), on_step=False, on_epoch=True)
        loss = self.network(batch).square().mean()
        if self.history.has_two_optimizers:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.record.statistics.append(self.network.norm.running_mean.clone())

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/score", float(self.history.scores[self.current_epoch]))

    def configure_optimizers(self) -> Any:
        parameters = [*self.network.parameters()]
        parts = [parameters[:4], parameters[4:]] if self.history.has_two_optimizers else [parameters]
        if self.history.is_filtered:
            parts = [[p for p in part if p.requires_grad] for part in parts]
        built = [OPTIMIZERS[self.history.optimizer](part) for part in parts]
        for optimizer in built:
            optimizer.register_step_post_hook(self._note_rates)
        if not self.history.has_scheduler:
            return built
        scheduler = torch.optim.lr_scheduler.LambdaLR(built[0], factor_of)
        return {"optimizer": built[0], "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _note_rates(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        names = {id(p): name for name, p in self.network.named_parameters()}
        trained = [(p, group["lr"]) for group in optimizer.param_groups for p in group["params"]]
        self.record.rates.append({names[id(p)]: float(lr) for p, lr in trained if p.grad is not None})


class Saver(Callback):
    """Saves one checkpoint, after a batch, a validation or an epoch."""

    def __init__(self, when: str, step: int, path: Path) -> None:
        self.when, self.step, self.path = when, step, path

    def save(self, trainer: Any, when: str) -> None:
        if when == self.when and trainer.global_step >= self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batches % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            self.save(trainer, "batch")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.save(trainer, "epoch")


def run(history: History, *callbacks: Callback, ckpt_path: Path | None = None) -> tuple[Record, list[str]]:
    """Fit with the Freezers of a history: the record of it, and what was warned of."""
    torch.set_num_threads(1)
    module = Module(history)
    loader = ResumableLoader.__new__(ResumableLoader)
    DataLoader.__init__(loader, history.data(), batch_size=NUM_SAMPLES)  # type: ignore[arg-type]
    loader._num_given = 0
    fit = trainer(
        LONE,
        callbacks=[*(Freezer(**arguments) for arguments in history.freezers), *callbacks],
        max_epochs=history.num_epochs,
        accumulate_grad_batches=history.accumulate,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit.fit(module, loader, DataLoader(torch.zeros(1, 3)), ckpt_path=ckpt_path)
    record = module.record
    record.weights = dict(module.network.state_dict())
    states = [optimizer.state for optimizer in fit.optimizers]
    record.state = {
        name: dict(next((state[p] for state in states if p in state), {}))
        for name, p in module.network.named_parameters()
    }
    return record, [str(each.message) for each in said]


def compare(found: Record, expected: Record) -> None:
    """Equal to the last bit; a run that was resumed has the last part of each list."""
    for key in ("frozen", "rates", "statistics"):
        seen, all_of_it = getattr(found, key), getattr(expected, key)
        rest = all_of_it[len(all_of_it) - len(seen) :]
        if key == "statistics":
            assert all(map(torch.equal, seen, rest)), key
        else:
            assert seen == rest, key
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name
    for name, state in expected.state.items():
        assert found.state[name].keys() == state.keys(), name
        for key, value in state.items():
            assert value is found.state[name][key] is None or torch.equal(found.state[name][key], value), name


steps, epochs = st.integers(1, 8), st.integers(1, 3)
conditions = st.fixed_dictionaries({"monitor": st.sampled_from(["val/score", "train/score"])}).flatmap(
    lambda monitor: st.one_of(
        st.fixed_dictionaries({**{k: st.just(v) for k, v in monitor.items()}, "below": st.integers(1, 4)}),
        st.fixed_dictionaries({**{k: st.just(v) for k, v in monitor.items()}, "above": st.integers(1, 4)}),
        st.builds(lambda patience: {**monitor, "plateau": {"patience": patience}}, st.integers(1, 2)),
    )
)
windows = st.lists(st.integers(0, 9), min_size=2, max_size=4, unique=True).map(
    lambda bounds: [sorted(bounds)[i : i + 2] for i in range(0, len(bounds) // 2 * 2, 2)]
)
whats = st.one_of(
    st.fixed_dictionaries(
        {"name_starts_with": st.sampled_from(["layer1.", "norm.", "layer2.", ["layer1.", "norm."], "layer"])}
    ),
    st.fixed_dictionaries(
        {"names": st.lists(st.sampled_from(NAMES[:-2]), min_size=1, max_size=3, unique=True)}
    ),
    st.fixed_dictionaries({"patterns": st.sampled_from(["*.bias", "class:BatchNorm1d", "layer?.weight"])}),
    st.just({"name_starts_with": "layer1.", "patterns": "*.bias", "except_names": "layer1.bias"}),
)
whens = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"until_step": steps}, optional={"until_epoch": epochs, "until_metric": conditions}
    ),
    st.fixed_dictionaries({"until_epoch": epochs}, optional={"until_metric": conditions}),
    st.fixed_dictionaries({"from_step": steps}),
    st.fixed_dictionaries({"from_epoch": epochs}),
    st.integers(1, 5).map(lambda begin: {"from_step": begin, "until_step": begin + 3}),
    st.fixed_dictionaries({"windows": windows}),
    st.fixed_dictionaries({"until_metric": conditions}),
    st.fixed_dictionaries({"from_step": st.integers(1, 3), "until_metric": conditions}),
)
rates = st.one_of(
    st.just({}),
    st.just({"unfreeze_lr": 0.005}),
    st.fixed_dictionaries(
        {"unfreeze_lr_factor": st.sampled_from([0.1, 0.5])}, optional={"warmup_steps": steps}
    ),
    st.fixed_dictionaries({"warmup_steps": steps}),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "optimizer_state": st.sampled_from(["reset", "free"]),
        "frozen_norms": st.sampled_from(["stats", "train"]),
    },
)


def freezer_of(what: Any, when: Any, rate: Any, other: Any) -> dict[str, Any]:
    """Rates belong to Freezers that release; others are refused."""
    releases = {"until_step", "until_epoch", "until_metric", "windows"} & when.keys()
    return {**what, **when, **(rate if releases else {}), **other}


freezers = st.builds(freezer_of, whats, whens, rates, others)
histories = st.builds(
    History,
    freezers=st.lists(freezers, min_size=1, max_size=4).map(tuple),
    num_epochs=st.integers(2, 3),
    num_batches=st.integers(2, 4),
    accumulate=st.sampled_from([1, 1, 2, 3]),
    optimizer=st.sampled_from(["SGD", "AdamW"]),
    has_scheduler=st.booleans(),
    is_filtered=st.booleans(),
    user_frozen=st.sampled_from([(), (), ("layer2.bias",), ("norm.weight",), ("norm.weight", "norm.bias")]),
    scores=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
manual = st.builds(
    History,
    freezers=st.lists(freezers, min_size=1, max_size=3).map(tuple),
    has_two_optimizers=st.just(True),
    optimizer=st.sampled_from(["SGD", "AdamW"]),
    user_frozen=st.sampled_from([(), ("layer2.bias",)]),
)
cuts = st.tuples(st.sampled_from(["batch", "batch", "validation", "epoch"]), st.integers(1, 8))


def check(history: History, cut: tuple[str, int]) -> None:
    expected = Oracle(history).run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.ckpt"
        whole, _ = run(history, Saver(*cut, path))
        compare(whole, expected)
        if not path.exists():
            return
        resumed, said = run(history, ckpt_path=path)
        if any("right before a validation" in text for text in said):  # it is not the same run, and says so
            assert _misses_a_validation(history, path)
        else:
            compare(resumed, expected)


def _misses_a_validation(history: History, path: Path) -> bool:
    """Whether it was saved between the last batch of an epoch and its validation, and a Freezer waits."""
    progress = torch.load(path, weights_only=False)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    is_in_batch = progress["current"]["completed"] < progress["current"]["processed"]
    waits = any(f.get("until_metric", {}).get("monitor") == "val/score" for f in history.freezers)
    return bool(progress["is_last_batch"] and is_in_batch and waits)


QUICK = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}


MET = {"name_starts_with": "layer1.", "until_metric": {"monitor": "train/score", "below": 3}}
LATE = {"name_starts_with": "layer1.", "until_metric": {"monitor": "val/score", "above": 1}}


@settings(max_examples=250, **QUICK)
@given(histories | manual, cuts)
@example(History((MET,), num_epochs=3), ("batch", 6))  # at the last batch of the epoch that meets it
@example(History((MET,), num_epochs=3), ("batch", 7))  # after that
@example(History((LATE,), num_epochs=3, num_batches=2, scores=(1, 2, 1)), ("batch", 4))  # its value is lost
def test_a_history_is_what_the_documents_say(history: History, cut: tuple[str, int]) -> None:
    """Frozen sets, rates and batch-norm statistics at each step; weights and optimizer state at the end."""
    check(history, cut)


@pytest.mark.wide
@settings(max_examples=2000, **QUICK)
@given(histories | manual, cuts)
def test_a_long_run_of_histories(history: History, cut: tuple[str, int]) -> None:
    """More of the same."""
    check(history, cut)
