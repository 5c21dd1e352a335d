"""Modules that Lightning trains as they are: built late, lazy, with an own optimizer, in fp16."""

import copy
import logging
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations
from tests.lab import NAMESPACES, Stream, batches, first_now, recorder, regression, trainer

LONE = NAMESPACES[0]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    caplog.set_level(logging.INFO, "lighter_freezers")
    return caplog


class Blocks(nn.Module):
    """A stem, two blocks and a head; `layer` builds the blocks."""

    def __init__(self, layer: Any = lambda: nn.Linear(8, 8)) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(layer() for _ in range(2))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def three(**when: Any) -> dict[str, Any]:
    """Each kind of callback; block 0 is frozen at first."""
    return {
        "freezer": Freezer(name_starts_with="blocks.0.", **(when or {"until_step": 2})),
        "gradual": GradualUnfreezing(every_n_epochs=1),
        "operations": LayerOperations(
            [
                {"name": "freeze_layer", "value": "block.0", "max_wait_iters": 0},
                {"name": "unfreeze_layer", "value": "block.0", "max_wait_iters": 2},
            ]
        ),
    }


def frozen_blocks(_: Any, module: Any) -> list[bool]:
    return [not p.requires_grad for name, p in module.named_parameters() if "blocks" in name]


def history(namespace: str, module: Any, callback: Any, **options: Any) -> list[Any]:
    seen = recorder(namespace, frozen_blocks)
    trainer(namespace, **{"callbacks": [callback, seen], "max_epochs": 3, **options}).fit(
        module, batches(), batches()
    )
    return seen.seen


def built_in_setup(namespace: str, *, keeps: tuple[str, ...] = ()) -> Any:
    """A module that gets in `setup` what it does not keep."""
    module = regression(namespace, Blocks)
    late = {name: child for name, child in module.network.named_children() if name not in keeps}
    for name in late:
        delattr(module.network, name)

    def setup(self: Any, stage: str) -> None:
        for name, child in late.items():
            setattr(self.network, name, child)

    type(module).setup = setup
    return module


@pytest.mark.parametrize("keeps", [(), ("stem",), ("stem", "head")], ids=str)
@pytest.mark.parametrize("kind", ["freezer", "gradual", "operations"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_layers_of_setup_are_found(namespace: str, kind: str, keeps: tuple[str, ...]) -> None:
    """As if they had been there from the start, whatever part of the model was."""
    usual = history(namespace, regression(namespace, Blocks), three()[kind])
    late = history(namespace, built_in_setup(namespace, keeps=keeps), three()[kind])

    assert late == usual
    assert usual[0] != usual[-1]


def test_a_name_that_setup_does_not_build_either_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone"):
        history(LONE, built_in_setup(LONE), Freezer(name_starts_with="backbone."))


def logs_at_epoch_end(namespace: str) -> Any:
    """A module that logs `train/acc`, 0.1 in epoch 0 and 0.9 later, in its own hook."""
    module = regression(namespace, Blocks)

    def on_train_epoch_end(self: Any) -> None:
        self.log("train/acc", 0.9 if self.current_epoch else 0.1)

    type(module).on_train_epoch_end = on_train_epoch_end
    return module


def waiting(monitor: str = "train/acc") -> dict[str, Any]:
    condition = {"trigger_loss": 0.5, "name": "freeze_layer", "value": "block.0"}
    return {
        "freezer": Freezer(name_starts_with="blocks.0.", until_metric={"monitor": monitor, "above": 0.5}),
        "gradual": GradualUnfreezing(plateau={"monitor": monitor, "patience": 1}),
        "operations": LayerOperations([condition], monitor=monitor),
    }


@pytest.mark.parametrize(("kind", "changes"), [("freezer", [8]), ("gradual", [8, 12]), ("operations", [4])])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_metric_of_the_modules_own_epoch_end_is_seen(namespace: str, kind: str, changes: list[int]) -> None:
    seen = history(namespace, logs_at_epoch_end(namespace), waiting()[kind], max_epochs=4)

    assert [step for step in range(1, 16) if seen[step] != seen[step - 1]] == changes


@pytest.mark.parametrize("kind", ["freezer", "gradual", "operations"])
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_a_misspelt_metric_of_the_epoch_end_is_an_error_after_one_epoch(namespace: str, kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"'train/acx'.*Closest: train/acc"):
        history(namespace, logs_at_epoch_end(namespace), waiting("train/acx")[kind], max_epochs=1)


@pytest.mark.parametrize("kind", ["freezer", "gradual", "operations"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_metric_that_the_sanity_check_lacks_is_awaited(namespace: str, kind: str, log: Any) -> None:
    """A module may log it in real validations only; one that is all but another name is an error there."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))
        if not self.trainer.sanity_checking:
            self.log("val/acc", 0.9 if self.current_epoch else 0.1)

    modules = [regression(namespace, Blocks) for _ in range(2)]
    for module in modules:
        type(module).validation_step = validation_step
    seen = history(namespace, modules[0], waiting("val/acc")[kind], max_epochs=4, num_sanity_val_steps=1)

    assert log.text.count("not logged in the sanity check") == 1
    assert seen[0] != seen[-1]
    with pytest.raises(RuntimeError, match=r"'val/los', but it was never logged. Closest: val/loss\. Logged"):
        history(namespace, modules[1], waiting("val/los")[kind], num_sanity_val_steps=1)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_of_the_epoch_end_knows_the_metric(tmp_path: Any) -> None:
    """`ModelCheckpoint` saves after the module's hook: the run that resumes goes on as the other did."""

    def keeper(folder: str) -> Any:
        kind = import_module(LONE).callbacks.ModelCheckpoint
        return kind(dirpath=tmp_path / folder, save_top_k=-1, filename="{epoch}")

    uncut = history(LONE, logs_at_epoch_end(LONE), waiting()["freezer"], max_epochs=2)
    assert uncut[-1][:2] == [True, True]
    run = trainer(
        LONE, callbacks=[waiting()["freezer"], keeper("one")], max_epochs=2, enable_checkpointing=True
    )
    run.fit(logs_at_epoch_end(LONE), batches(), batches())
    seen = recorder(LONE, frozen_blocks)
    resumed = trainer(
        LONE, callbacks=[waiting()["freezer"], seen, keeper("two")], max_epochs=3, enable_checkpointing=True
    )
    resumed.fit(
        logs_at_epoch_end(LONE), batches(), batches(), ckpt_path=str(tmp_path / "one" / "epoch=1.ckpt")
    )

    assert seen.seen
    assert not any(any(each) for each in seen.seen)


def test_a_copy_made_in_between_keeps_its_own_hook() -> None:
    """A callback may copy or pickle the module before its hook of the epoch's end runs."""
    copies = []

    def duplicate(_: Any, module: Any) -> None:
        copies.append(copy.deepcopy(module))

    taker = recorder(LONE, duplicate, when="on_train_epoch_end")
    module = logs_at_epoch_end(LONE)
    trainer(LONE, callbacks=[waiting()["freezer"], taker]).fit(module, batches(), batches())

    assert copies[0].on_train_epoch_end.__func__ is type(module).on_train_epoch_end
    assert copies[0].on_train_epoch_end.__self__ is copies[0]
    assert "on_train_epoch_end" not in vars(module)


def own_optimizer(namespace: str, *, is_manual: bool = True) -> Any:
    """A module that steps an optimizer which Lightning does not know."""
    module = regression(namespace, Blocks)
    module.automatic_optimization = not is_manual

    def configure_optimizers(self: Any) -> None:
        self.own = torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.own.zero_grad()
        self.manual_backward(loss)
        self.own.step()

    type(module).configure_optimizers = configure_optimizers
    if is_manual:
        type(module).training_step = training_step
    return module


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
@pytest.mark.parametrize("kind", ["freezer", "gradual"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_schedules_in_epochs_need_no_optimizer(namespace: str, kind: str) -> None:
    usual = history(namespace, regression(namespace, Blocks), three(until_epoch=1)[kind])

    assert history(namespace, own_optimizer(namespace), three(until_epoch=1)[kind]) == usual
    assert usual[0] != usual[-1]


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (Freezer(name_starts_with="blocks.", until_step=2), "counts optimizer steps"),
        (GradualUnfreezing(every_n_steps=2), "counts optimizer steps"),
        (three()["operations"], "counts optimizer steps"),
        (Freezer(name_starts_with="blocks.", until_epoch=1, unfreeze_lr=0.1), "sets learning rates"),
        (Freezer(name_starts_with="blocks.", until_epoch=1, optimizer_state="free"), "optimizer_state"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_what_needs_an_optimizer_says_so(namespace: str, callback: Any, reason: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{reason}.*configure_optimizers returned None"):
        history(namespace, own_optimizer(namespace), callback)


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize("kind", ["freezer", "operations"])
def test_steps_count_without_an_optimizer_under_automatic_optimization(namespace: str, kind: str) -> None:
    """Lightning steps a mock there, so what counts steps means what it says."""
    seen = history(namespace, own_optimizer(namespace, is_manual=False), three()[kind], max_epochs=1)
    assert [any(each) for each in seen] == [True, True, False, False]


def two_optimizers(namespace: str) -> Any:
    """Manual optimization; the second optimizer has the blocks."""
    module = regression(namespace, Blocks)
    module.automatic_optimization = False

    def configure_optimizers(self: Any) -> Any:
        rest = [*self.network.stem.parameters(), *self.network.head.parameters()]
        return [torch.optim.SGD(part, lr=0.1) for part in (rest, self.network.blocks.parameters())]

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()

    type(module).configure_optimizers = configure_optimizers
    type(module).training_step = training_step
    return module


def scaled(namespace: str) -> Any:
    """16-mixed with its GradScaler, on the CPU."""
    plugin = import_module(f"{namespace}.plugins").MixedPrecision("bf16-mixed", "cpu")
    plugin.precision, plugin.scaler = "16-mixed", torch.amp.GradScaler("cpu", init_scale=4.0)
    return plugin


def both_blocks() -> dict[str, Any]:
    names = ["block.0", "block.1"]
    freeze = [{"name": "freeze_layer", "value": name, "max_wait_iters": 0} for name in names]
    thaw = [{"name": "unfreeze_layer", "value": name, "max_wait_iters": 4} for name in names[:1]]
    return {
        "freezer": Freezer(name_starts_with="blocks.", until_step=4),
        "gradual": GradualUnfreezing(every_n_steps=4, unfreeze_embeddings=0, layers_per_stage=2),
        "operations": LayerOperations(freeze + thaw),
    }


@pytest.mark.parametrize("kind", ["freezer", "gradual", "operations"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_grad_scaler_passes_over_an_optimizer_that_is_wholly_frozen(namespace: str, kind: str) -> None:
    """Two steps of the Trainer per batch; the blocks train once they thaw, and the scaler is as before."""
    module, plugin = two_optimizers(namespace), scaled(namespace)
    weights = [module.network.blocks[0].weight.detach().clone()]
    seen = recorder(namespace, lambda _, m: weights.append(m.network.blocks[0].weight.detach().clone()))
    run = trainer(namespace, callbacks=[both_blocks()[kind], seen], max_epochs=1, plugins=[plugin])
    run.fit(module, batches(), batches())

    moves = [not torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False)]
    assert moves == [False, False, True, True]
    assert plugin.scaler.get_scale() == 4.0
    assert not {"step", "update", "unscale_"} & set(vars(plugin.scaler))


@pytest.mark.parametrize("held", ["stem.weight", "blocks.0.weight"])
def test_a_grad_scaler_still_refuses_what_the_user_forgot(held: str) -> None:
    """An optimizer in which something trains, without a gradient, is a fault of the user's own."""
    module = two_optimizers(LONE)
    type(module).loss = lambda self, batch: self.network.head(batch[0]).square().mean()
    with pytest.raises(AssertionError, match="No inf checks"):
        trainer(LONE, callbacks=[Freezer(held)], plugins=[scaled(LONE)]).fit(module, batches(), batches())


def lazy_norm() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d())


def lazy_convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 4)), nn.LazyConv1d(2, 1), nn.Flatten(), nn.LazyLinear(8))


@pytest.mark.parametrize("layer", [lambda: nn.LazyLinear(8), lazy_norm, lazy_convolution])
@pytest.mark.parametrize("kind", ["freezer", "gradual", "operations"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_lazy_layers_freeze_before_they_have_a_shape(namespace: str, kind: str, layer: Any, log: Any) -> None:
    """And their statistics stand still, too."""
    module = regression(namespace, lambda: Blocks(layer))
    state = recorder(namespace, lambda _, m: copy.deepcopy(m.network.blocks[0].state_dict()))
    seen = recorder(namespace, frozen_blocks)
    run = trainer(namespace, callbacks=[three()[kind], seen, state], max_epochs=3)
    run.fit(module, batches(), batches())

    frozen = [each[0] for each in seen.seen]
    assert frozen[:2] == [True, True]
    assert not frozen[-1]
    last = frozen.index(False) - 1
    assert all(torch.equal(state.seen[0][key], state.seen[last][key]) for key in state.seen[0])
    assert any(not torch.equal(state.seen[0][key], state.seen[-1][key]) for key in state.seen[0])
    assert "of no shape before the first batch" in log.text


@pytest.mark.parametrize(
    ("pace", "options", "is_late"),
    [
        ({"every_n_steps": 2}, {"max_epochs": 4}, False),
        ({"every_n_epochs": 1}, {"max_epochs": 4}, False),
        ({"every_n_epochs": 1}, {"max_steps": 12, "max_epochs": -1}, False),
        ({"every_n_steps": 2}, {"max_steps": 12, "max_epochs": -1}, False),
        ({"every_n_steps": 5}, {"max_steps": 8, "max_epochs": -1}, True),
    ],
    ids=str,
)
def test_data_of_unknown_length_bring_no_false_warning(
    pace: Any, options: Any, is_late: bool, log: Any
) -> None:
    run = trainer(LONE, callbacks=[GradualUnfreezing(**pace)], **options)
    run.fit(regression(LONE, Blocks), DataLoader(Stream(), batch_size=None), batches())

    assert ("after the run has ended" in log.text) == is_late
