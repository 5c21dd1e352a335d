"""Optimizer state is resumed by the names of the parameters, whatever groups either run has."""

from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraPhases, LoraRankScheduler
from tests.callbacks.block_net import BlockNet
from tests.callbacks.test_freezer_resume import same
from tests.lab import adamw, batches, recorder, regression, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"
pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:The checkpoint has state of LayerOperations, which"),
]


def slow(name: str, **arguments: Any) -> Freezer:
    """A Freezer with a rate of its own, and so with a group of its own."""
    return Freezer(**{"name_starts_with": name, "until_step": 2, "unfreeze_lr": 0.003, **arguments})


CALLBACKS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "no rate": lambda: [Freezer(name_starts_with="stem", until_step=1)],
    "one": lambda: [slow("stem")],
    "two": lambda: [slow("stem"), slow("blocks.1", until_step=3, unfreeze_lr=None, unfreeze_lr_factor=0.5)],
    "overlap": lambda: [slow("blocks", warmup_steps=9), slow("blocks.2", optimizer_state="free")],
    "other": lambda: [slow("blocks.0", until_step=6)],
    "gradual": lambda: [GradualUnfreezing(every_n_steps=1, lr_decay=2.0, optimizer_state="reset")],
    "operations": lambda: [
        LayerOperations([{"name": "freeze_layer", "value": "block.0", "max_wait_iters": 3}])
    ],
}
PAIRS = [
    ("one", "two"),
    ("two", "one"),
    ("two", "none"),
    ("none", "two"),
    ("no rate", "one"),
    ("one", "overlap"),
    ("overlap", "other"),
    ("gradual", "two"),
    ("gradual", "none"),
    ("operations", "gradual"),
]


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    matrices, vectors = [], []
    for each in parameters:
        (matrices if each.ndim > 1 else vectors).append(each)
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]
    return torch.optim.AdamW(groups, lr=0.01, foreach=True)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "two groups": two_groups,
    "trainable": lambda parameters: torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=0.01),
    "two groups of trainable": lambda parameters: two_groups(p for p in parameters if p.requires_grad),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "OneCycle": lambda optimizer: lrs.OneCycleLR(optimizer, max_lr=0.05, total_steps=20),
    "Lambda": lambda optimizer: lrs.LambdaLR(optimizer, lambda step: 1.0 / (1 + step)),
    "Sequential": lambda optimizer: lrs.SequentialLR(
        optimizer, [lrs.LinearLR(optimizer, 0.5, total_iters=3), lrs.StepLR(optimizer, 2, 0.5)], [3]
    ),
    "Plateau": lambda optimizer: lrs.ReduceLROnPlateau(optimizer, patience=0),
}


def stepped(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda optimizer: {
        "scheduler": build(optimizer),
        "interval": "step",
        "monitor": "train/batch_loss",
        "strict": False,
    }


def by_name(run: Any, module: nn.Module) -> dict[str, Any]:
    """What each parameter has: its optimizer's state, and the options of its group but for the rates."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, Any] = {}
    for optimizer in run.optimizers:
        rates = ("params", "name", "param_names", "lr", "initial_lr", "max_lr", "min_lr")
        for group in optimizer.param_groups:
            options = {key: value for key, value in group.items() if key not in rates}
            for parameter in group["params"]:
                state = {key: torch.as_tensor(v).clone() for key, v in optimizer.state[parameter].items()}
                found[names[id(parameter)]] = state, options
    return found


def train(
    callbacks: list[Any], module: Any, num_epochs: int, ckpt_path: Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """The Trainer, and what each parameter had when training began."""
    start = recorder(LONE, by_name, "on_train_start")
    run = trainer(LONE, callbacks=[*callbacks, start], max_epochs=num_epochs)
    run.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    return run, start.seen[0]


def turned(parameters: Any) -> torch.optim.Optimizer:
    """In another order than the model has."""
    return adamw([p for p in reversed(list(parameters)) if p.requires_grad])


def with_own(parameters: Any) -> torch.optim.Optimizer:
    """A parameter that the model does not have, and then its own."""
    return adamw([nn.Parameter(torch.ones(2)), *(p for p in parameters if p.requires_grad)])


@pytest.mark.parametrize("build", [turned, with_own])
def test_a_checkpoint_has_the_order_in_which_the_optimizer_was_built(build: Any, tmp_path: Path) -> None:
    """What it lacked while it was frozen is in the order of the model, or at the end where it has another."""
    module = regression(LONE, BlockNet, build)
    run = trainer(LONE, callbacks=[Freezer(name_starts_with="blocks.1", until_step=1)])
    run.fit(module, batches(), batches())
    run.save_checkpoint(tmp_path / "cut.ckpt")
    (saved,) = torch.load(tmp_path / "cut.ckpt", weights_only=True)["optimizer_states"]

    named = dict(module.named_parameters())
    late = [p for name, p in named.items() if "blocks.1" in name]
    others = [p for p in named.values() if not any(p is each for each in late)]
    expected = [None, *named.values()] if build is with_own else [*reversed(others), *late]
    state = run.optimizers[0].state
    moments = [state[p]["exp_avg"] if p is not None else None for p in expected]
    assert len(saved["param_groups"][0]["params"]) == len(expected)
    for number, moment in enumerate(moments):
        assert moment is None or torch.equal(saved["state"][number]["exp_avg"], moment)


def test_groups_have_their_names_after_a_resume(tmp_path: Path) -> None:
    """As in a run that had them from the start: a monitor of rates logs by these."""
    names = []
    for before in ("one", "none"):
        run, _ = train(CALLBACKS[before](), regression(LONE, BlockNet, adamw), 1)
        run.save_checkpoint(tmp_path / f"{before}.ckpt")
        module = regression(LONE, BlockNet, adamw)
        read = recorder(LONE, lambda t, _: [g.get("name") for g in t.optimizers[0].param_groups])
        train([*CALLBACKS["one"](), read], module, 2, tmp_path / f"{before}.ckpt")
        names += read.seen

    assert names[0][1].startswith("Freezer stem until step 2")
    assert names == names[:1] * len(names)


ONE_OF_EACH = set(zip(PAIRS, cycle(OPTIMIZERS)))  # the others run with the wide tests


@pytest.mark.parametrize(
    ("before", "after", "optimizer"),
    [
        pytest.param(*pair, kind, marks=() if (pair, kind) in ONE_OF_EACH else pytest.mark.wide)
        for pair, kind in product(PAIRS, OPTIMIZERS)
    ],
)
def test_every_parameter_goes_on_with_its_own_state(
    before: str, after: str, optimizer: str, tmp_path: Path
) -> None:
    """Freezers with rates came, went or select something else; the run ends without any of ours, too."""
    built = {"network": BlockNet, "optimizer": OPTIMIZERS[optimizer]}
    first = regression(LONE, **built)
    run, _ = train(CALLBACKS[before](), first, 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    saved = by_name(run, first)

    # without a callback of ours a group of trainable parameters is what the run's own code makes of it
    resumed, loaded = train(CALLBACKS[after](), regression(LONE, **built), 2, tmp_path / "cut.ckpt")
    held_and_freed = {name for name, (state, _) in loaded.items() if not state} if after == "overlap" else ()
    assert loaded.keys() | held_and_freed == saved.keys()
    assert any(state for state, _ in loaded.values())
    for name in loaded.keys() - held_and_freed:
        assert same(loaded[name], saved[name]), name
    assert resumed.global_step == 8


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("before", "after"), [("two", "none"), ("none", "overlap")])
def test_schedulers_have_an_entry_for_each_group(
    before: str, after: str, scheduler: str, tmp_path: Path
) -> None:
    """The rate of what neither run gives a rate of its own is that of a run that was not cut."""
    built = {"network": BlockNet, "scheduler": stepped(SCHEDULERS[scheduler])}

    def rates(run: Any, module: Any) -> float:
        (group,) = (
            group
            for group in run.optimizers[0].param_groups
            if any(each is module.network.head.bias for each in group["params"])
        )
        return float(group["lr"])

    run, _ = train(CALLBACKS[before](), regression(LONE, **built), 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    whole, rest = (recorder(LONE, rates, "on_before_zero_grad") for _ in range(2))
    train([whole], regression(LONE, **built), 2)
    resumed, _ = train([*CALLBACKS[after](), rest], regression(LONE, **built), 2, tmp_path / "cut.ckpt")

    if scheduler != "Plateau":  # which follows the loss, another one in each run
        assert rest.seen == whole.seen[4:]
    for config in resumed.lr_scheduler_configs:
        state = config.scheduler.state_dict()
        for key in ("base_lrs", "_last_lr", "min_lrs"):
            assert len(state.get(key) or resumed.optimizers[0].param_groups) == len(
                resumed.optimizers[0].param_groups
            )


def gan() -> Any:
    """Two optimizers of what trains, under manual optimization."""
    from pytorch_lightning import LightningModule

    class Gan(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.network = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("disc", "encoder", "decoder")})

        def training_step(self, batch: Any, index: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                made = self.network["decoder"](self.network["encoder"](batch[0]))
                self.manual_backward(self.network["disc"](made).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            disc, *generator = (
                [p for p in part.parameters() if p.requires_grad] for part in self.network.values()
            )
            return [torch.optim.Adam(disc), torch.optim.SGD(sum(generator, []), lr=0.1, momentum=0.9)]

    return Gan()


@pytest.mark.parametrize("after", ["", "encoder", "decoder.bias", "disc.bias"])
def test_several_optimizers_each_keep_their_own(after: str, tmp_path: Path) -> None:
    """Of manual optimization, with what thaws added to one of them."""
    first = gan()
    run, _ = train([slow("encoder", optimizer=1)], first, 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    callbacks = [slow(after, optimizer=int(after != "disc.bias"), until_step=99)] if after else []
    _, loaded = train(callbacks, gan(), 2, tmp_path / "cut.ckpt")

    assert same(loaded, by_name(run, first))


def test_a_checkpoint_without_names_says_so_in_one_sentence(tmp_path: Path) -> None:
    """An older file has the groups of its run, which only the same run can read."""
    run, _ = train(CALLBACKS["one"](), regression(LONE, BlockNet), 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    checkpoint = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    checkpoint["optimizer_states"] = [run.optimizers[0].state_dict()]
    del checkpoint["callbacks"]["lighter_freezers.engine"]["groups"]
    torch.save(checkpoint, tmp_path / "cut.ckpt")

    train(CALLBACKS["one"](), regression(LONE, BlockNet), 2, tmp_path / "cut.ckpt")
    with pytest.raises(RuntimeError, match=r"does not name the parameters of optimizer 0 \(SGD\).* 12, 2 of"):
        train(CALLBACKS["two"](), regression(LONE, BlockNet), 2, tmp_path / "cut.ckpt")


def test_state_without_a_place_is_named(tmp_path: Path) -> None:
    """The optimizer of what trains does not have what a Freezer now holds for the whole run."""
    built = {"network": BlockNet, "optimizer": OPTIMIZERS["trainable"]}
    run, _ = train([], regression(LONE, **built), 1)
    run.save_checkpoint(tmp_path / "plain.ckpt")
    run, _ = train(CALLBACKS["one"](), regression(LONE, **built), 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")

    stays = Freezer(name_starts_with="stem")
    with pytest.warns(UserWarning, match="optimizer state of network.stem.weight, network.stem.bias, which"):
        train([stays], regression(LONE, **built), 2, tmp_path / "cut.ckpt")


def test_an_optimizer_may_have_a_parameter_that_the_model_lacks(tmp_path: Path) -> None:
    """A placeholder, so that an optimizer of what trains is never empty, stays first in its group."""

    def of_trainable(parameters: Any) -> torch.optim.Optimizer:
        placeholder = nn.Parameter(torch.zeros(1))
        return torch.optim.AdamW([placeholder, *(p for p in parameters if p.requires_grad)], lr=0.01)

    built = {"network": BlockNet, "optimizer": of_trainable}
    weights = []
    for ckpt_path, num_epochs in ((None, 1), (tmp_path / "cut.ckpt", 2), (None, 2)):
        module = regression(LONE, **built)
        run = trainer(LONE, callbacks=[Freezer(name_starts_with="stem", until_step=2)], max_epochs=num_epochs)
        run.fit(module, batches(), batches(), ckpt_path=ckpt_path)
        run.save_checkpoint(tmp_path / "cut.ckpt")
        weights.append(module.state_dict())
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])


def test_other_groups_of_the_runs_own_are_an_error(tmp_path: Path) -> None:
    """Whose options would belong to what cannot be known."""
    run, _ = train(CALLBACKS["one"](), regression(LONE, BlockNet, two_groups), 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(RuntimeError, match="has 2 parameter groups of its own, and configure_opt.* builds 1"):
        train(CALLBACKS["one"](), regression(LONE, BlockNet, OPTIMIZERS["AdamW"]), 2, tmp_path / "cut.ckpt")


def test_a_plain_checkpoint_of_all_and_a_frozen_part_need_no_names(tmp_path: Path) -> None:
    """Before it had Freezers the optimizer had everything; now only what trains at the first step."""
    built = {"network": BlockNet, "optimizer": OPTIMIZERS["trainable"]}
    first = regression(LONE, **built)
    run, _ = train([], first, 1)
    run.save_checkpoint(tmp_path / "plain.ckpt")
    _, loaded = train([slow("blocks.1", until_step=6)], regression(LONE, **built), 2, tmp_path / "plain.ckpt")

    assert same(loaded, by_name(run, first))


def adapted(has_two_optimizers: bool) -> Any:
    """LoRA on all layers; with two optimizers that of `wte` and the blocks belongs to the first."""
    if not has_two_optimizers:
        return regression(LONE, mixed, adamw)

    class Two(type(regression(LONE, mixed))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            optimizers = self.optimizers()
            loss = self.loss(batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            parts: list[list[nn.Parameter]] = [[], []]
            for name, parameter in self.named_parameters():
                if parameter.requires_grad or ".lora_" in name:
                    parts[not (".wte." in name or ".h." in name)].append(parameter)
            return [adamw(parts[0]), torch.optim.SGD(parts[1], lr=0.1, momentum=0.9)]

    return Two()


PHASES = [{"start_step": 0, "active_modules": "wte"}, {"start_step": 3, "active_modules": "proj"}]
RANKS = [
    {"step": 2, "rank_pattern": {"wte": 5, "h.0.fc": 2}},
    {"step": 5, "rank_pattern": {"proj": 1}},
    {"step": 6, "rank_pattern": {"proj": 0}},
]
OF_LORA: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "phases": lambda: [LoraPhases(phases=PHASES)],
    "ranks": lambda: [LoraRankScheduler(RANKS, on_zero="freeze")],
    "phases, rate": lambda: [LoraPhases(phases=PHASES), slow("conv.lora")],
    "ranks, rate": lambda: [slow("conv.lora"), LoraRankScheduler(RANKS, on_zero="freeze")],
}


@pytest.mark.parametrize("has_two_optimizers", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("phases", "phases"),
        ("ranks", "ranks"),
        ("phases", "phases, rate"),
        ("none", "ranks, rate"),
        ("phases, rate", "none"),
        ("ranks, rate", "ranks"),
    ],
)
def test_phases_and_ranks_go_on_with_their_state(
    before: str, after: str, has_two_optimizers: bool, tmp_path: Path
) -> None:
    """Of each parameter in its optimizer; with the same callbacks to the bit as without a cut."""
    first = adapted(has_two_optimizers)
    run, _ = train(OF_LORA[before](), first, 1)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    resumed = adapted(has_two_optimizers)
    second, loaded = train(OF_LORA[after](), resumed, 2, tmp_path / "cut.ckpt")

    saved = by_name(run, first)
    assert loaded.keys() == saved.keys()
    assert any(state for state, _ in loaded.values())
    for name, (state, _) in loaded.items():
        assert same(state, saved[name][0]), name
    if before == after:
        whole = adapted(has_two_optimizers)
        uncut, _ = train(OF_LORA[after](), whole, 2)
        assert same(dict(resumed.state_dict()), dict(whole.state_dict()))
        assert same(by_name(second, resumed), by_name(uncut, whole))
