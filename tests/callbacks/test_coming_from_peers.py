"""Examples from the documents of peers, by title: both packages thaw the same, epoch by epoch.

The trainable names are read by hooks outside both packages, in runs on the same data.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing
from tests.callbacks.block_net import BlockNet
from tests.callbacks.test_unknown_strategies import own_strategy
from tests.lab import WIDTH, batches, recorder, regression, trainer

UNIFIED = "lightning.pytorch"  # the namespace that finetuning-scheduler takes by default
PATIENCE = {"monitor": "val/loss", "patience": 2, "min_delta": 1.0e9}
pytestmark = [pytest.mark.wide, pytest.mark.filterwarnings("ignore")]

HEAD = ["network.head.bias", "network.head.weight", "network.norm.bias", "network.norm.weight"]
GENERATED = {
    0: {"params": HEAD},
    1: {"params": ["network.blocks.3.bias", "network.blocks.3.weight"]},
    2: {"params": ["network.blocks.2.bias", "network.blocks.2.weight"]},
    3: {"params": ["network.blocks.1.bias", "network.blocks.1.weight"]},
}
ALTERED = {
    0: {"params": HEAD},
    1: {"params": ["network.blocks.3.*", "network.blocks.2.bias", "network.blocks.2.weight"]},
    2: {"params": ["network.blocks.0.*", "network.blocks.1.*", "network.stem.*"]},
}


def _class(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


REST = {"thaw": ["blocks.0", "blocks.1", "stem"]}
ENDS = {"until_early_stopping": True}
EXAMPLES: dict[str, tuple[dict[int, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "Basic Usage": (
        GENERATED,
        {},
        [
            {"thaw": ["head", "norm"], **ENDS},
            {"thaw": "blocks.3", **ENDS},
            {"thaw": "blocks.2", **ENDS},
            {"thaw": "blocks.1"},
        ],
    ),
    "Specifying a Fine-Tuning Schedule": (
        ALTERED,
        {},
        [{"thaw": ["head", "norm"], **ENDS}, {"thaw": ["blocks.3", "blocks.2"], **ENDS}, REST],
    ),
    "EarlyStopping and Epoch-Driven Phase Transition Criteria": (
        {
            0: {"params": HEAD, "max_transition_epoch": 1},
            1: {"params": ["network.blocks.3.*"]},
            2: {"params": ["network.blocks.2.*"], "max_transition_epoch": 9, "lr": 1.0e-3},
            3: {"params": ["network.blocks.1.bias", "network.stem.*"]},
        },
        {},
        [
            {"thaw": ["head", "norm"], "until_epoch": 1, **ENDS},
            {"thaw": "blocks.3", **ENDS},
            {"thaw": "blocks.2", "until_epoch": 9, "unfreeze_lr": 1.0e-3, **ENDS},
            {"thaw": ["blocks.1.bias", "stem"]},
        ],
    ),
    "EarlyStopping and Epoch-Driven Phase Transition Criteria: epoch_transitions_only": (
        {
            0: {"params": HEAD, "max_transition_epoch": 2},
            1: {"params": ["network.blocks.3.*"], "max_transition_epoch": 3},
            2: {"params": ["network.blocks.2.*"], "max_transition_epoch": 14},
        },
        {"epoch_transitions_only": True},
        [
            {"thaw": ["head", "norm"], "until_epoch": 2},
            {"thaw": "blocks.3", "until_epoch": 3},
            {"thaw": "blocks.2"},
        ],
    ),
    "Optimizer Reinitialization": (
        {
            0: {"params": HEAD, "max_transition_epoch": 2},
            1: {
                "params": ["network.blocks.3.*"],
                "max_transition_epoch": 5,
                "new_optimizer": {"optimizer_init": _class("torch.optim.Adam", lr=0.001)},
            },
            2: {"params": ["network.blocks.2.*"], "max_transition_epoch": 14},
        },
        {"epoch_transitions_only": True},
        [
            {"thaw": ["head", "norm"], "until_epoch": 2},
            {
                "thaw": "blocks.3",
                "until_epoch": 5,
                "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
            },
            {"thaw": "blocks.2"},
        ],
    ),
    "LR Scheduler Reinitialization": (
        {
            0: {"params": HEAD, "max_transition_epoch": 2},
            1: {
                "params": ["network.blocks.3.*"],
                "max_transition_epoch": 5,
                "new_lr_scheduler": {
                    "lr_scheduler_init": _class("torch.optim.lr_scheduler.StepLR", step_size=1, gamma=0.7),
                    "pl_lrs_cfg": {"interval": "epoch", "frequency": 1, "name": "Stage_2"},
                },
            },
            2: {"params": ["network.blocks.2.*"], "max_transition_epoch": 14},
        },
        {"epoch_transitions_only": True},
        [
            {"thaw": ["head", "norm"], "until_epoch": 2},
            {
                "thaw": "blocks.3",
                "until_epoch": 5,
                "scheduler": {
                    "scheduler": {
                        "_target_": "torch.optim.lr_scheduler.StepLR",
                        "step_size": 1,
                        "gamma": 0.7,
                    },
                    "name": "Stage_2",
                },
            },
            {"thaw": "blocks.2"},
        ],
    ),
}


def trainable(
    callbacks: list[Any],
    folder: Path,
    network: Any = BlockNet,
    resume_from: Path | None = None,
    **options: Any,
) -> list[set[str]]:
    """The names of what trains in each epoch, at its first batch."""

    def read(_: Any, module: Any) -> set[str]:
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    module = regression(UNIFIED, network)

    def configure_optimizers() -> Any:
        sgd = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=0.01)
        return {"optimizer": sgd, "lr_scheduler": torch.optim.lr_scheduler.StepLR(sgd, 5)}

    module.configure_optimizers = configure_optimizers
    seen = recorder(UNIFIED, read, "on_before_zero_grad")
    run = trainer(
        UNIFIED,
        callbacks=[*callbacks, seen],
        max_epochs=14,
        default_root_dir=folder,
        enable_checkpointing=True,
        **options,
    )
    run.fit(module, batches(), batches(), ckpt_path=resume_from)
    return seen.seen[::4]


def both(title: str, folder: Path, **saving: Any) -> tuple[list[Any], list[Any]]:
    """The callbacks of an example, theirs and ours."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    schedule, options, stages = EXAMPLES[title]
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump(schedule))
    theirs = [FinetuningScheduler(ft_schedule=str(path), restore_best=False, **options)]
    saver = {"monitor": "val/loss", "save_top_k": 1, **saving}
    theirs += [FTSCheckpoint(**saver, dirpath=str(folder / "theirs"))]
    ours: list[Any] = [GradualUnfreezing(stages=stages)]
    ours += [ModelCheckpoint(**saver, dirpath=str(folder / "ours"))]
    if "epoch_transitions_only" not in options:
        theirs += [FTSEarlyStopping(**PATIENCE)]
        ours += [EarlyStopping(**PATIENCE)]
    return theirs, ours


@pytest.mark.parametrize("title", EXAMPLES)
def test_both_thaw_the_same(title: str, tmp_path: Path) -> None:
    """For each example the trainable names per epoch, one list from each package."""
    theirs, ours = both(title, tmp_path)

    expected = trainable(theirs, tmp_path)
    assert len(set(map(frozenset, expected))) == len(EXAMPLES[title][0]), expected
    assert trainable(ours, tmp_path) == expected


def test_both_thaw_the_same_as_they_generate(tmp_path: Path) -> None:
    """The Default Fine-Tuning Schedule: a phase's names are what a stage thaws."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping
    from lightning.pytorch.callbacks import EarlyStopping

    with pytest.raises(SystemExit):
        trainable([FinetuningScheduler(gen_ft_sched_only=True)], tmp_path / "dumped")
    (path,) = (tmp_path / "dumped").rglob("*_ft_schedule.yaml")
    phases = yaml.safe_load(path.read_text()).values()
    stages = [{"thaw": phase["params"], **ENDS} for phase in phases]
    del stages[-1]["until_early_stopping"]
    theirs = [
        FinetuningScheduler(restore_best=False),
        FTSCheckpoint(monitor="val/loss"),
        FTSEarlyStopping(**PATIENCE),
    ]

    expected = trainable(theirs, tmp_path / "theirs")
    assert len(set(map(frozenset, expected))) == len(phases) >= 5
    ours = [GradualUnfreezing(stages=stages), EarlyStopping(**PATIENCE)]
    assert trainable(ours, tmp_path / "ours") == expected


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """From the first phase in both packages; from a later one theirs begins the phase before it again."""
    saving = {"save_top_k": -1, "filename": "{epoch}"}
    whole = [trainable(callbacks, tmp_path) for callbacks in both("Basic Usage", tmp_path, **saving)]
    assert whole[0] == whole[1]
    for epoch, is_alike in ((0, True), (1, True), (3, False), (5, False)):
        file = f"epoch={epoch}.ckpt"
        theirs, ours = both("Basic Usage", tmp_path, **saving)
        assert trainable(ours, tmp_path, resume_from=tmp_path / "ours" / file) == whole[1][epoch + 1 :]
        resumed = trainable(theirs, tmp_path, resume_from=tmp_path / "theirs" / file)
        assert (resumed == whole[0][epoch + 1 :]) == is_alike


def test_under_a_strategy_of_ones_own(tmp_path: Path) -> None:
    """Theirs needs an adapter and `allow_untested`; here the strategy says that it follows, or the latter."""
    schedule, options, stages = EXAMPLES[
        "EarlyStopping and Epoch-Driven Phase Transition Criteria: epoch_transitions_only"
    ]
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

    adapters = {"own": "finetuning_scheduler.strategy_adapters:StrategyAdapter"}
    untested = {"custom_strategy_adapters": adapters, "allow_untested": True}
    theirs = [
        FinetuningScheduler(ft_schedule=schedule, restore_best=False, **options, **untested),
        FTSCheckpoint(monitor="val/loss"),
    ]
    free = {"accelerator": "auto", "devices": "auto"}

    def found(callbacks: list[Any], **attributes: Any) -> list[set[str]]:
        strategy = own_strategy(UNIFIED, **attributes)
        return trainable(callbacks, tmp_path, strategy=strategy, **free)

    expected = found(theirs)
    assert len(set(map(frozenset, expected))) == len(schedule)
    assert found([GradualUnfreezing(stages=stages)], follows_flag_changes=True) == expected
    assert found([GradualUnfreezing(stages=stages, allow_untested=True)]) == expected


class Backbone(nn.Module):
    """A backbone with blocks, and a head, as `BackboneFinetuning` expects them in the module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def backbone_finetuning() -> Any:
    """The backbone thaws at an epoch."""
    from lightning.pytorch.callbacks import BackboneFinetuning

    class OfLayers(BackboneFinetuning):
        """Finds the backbone inside the module of these tests."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.backbone = pl_module.network.layers
            super().on_fit_start(trainer, pl_module)
            del pl_module.backbone

        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.network.layers)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            pl_module.backbone = pl_module.network.layers
            super().finetune_function(pl_module, epoch, optimizer)
            del pl_module.backbone

    return OfLayers(unfreeze_backbone_at_epoch=3)


def feature_extractor_freeze_unfreeze(milestones: dict[int, list[int]]) -> Any:
    """A `BaseFinetuning` of the user's own, as the documents write it."""
    from lightning.pytorch.callbacks import BaseFinetuning

    class FeatureExtractorFreezeUnfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.network.layers)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            for index in milestones.get(epoch, []):
                self.unfreeze_and_add_param_group(pl_module.network.layers[index], optimizer)

    return FeatureExtractorFreezeUnfreeze()


LIGHTNING_EXAMPLES: dict[str, tuple[Any, Any]] = {
    "BackboneFinetuning": (
        backbone_finetuning,
        lambda: Freezer(name_starts_with="layers.", until_epoch=3, unfreeze_lr_factor=0.1),
    ),
    "BaseFinetuning: FeatureExtractorFreezeUnfreeze": (
        lambda: feature_extractor_freeze_unfreeze({10: [0, 1, 2]}),
        lambda: Freezer(name_starts_with="layers.", until_epoch=10, unfreeze_lr_factor=0.1),
    ),
    "Transfer learning: milestones": (
        lambda: feature_extractor_freeze_unfreeze({5: [1, 2], 10: [0]}),
        lambda: GradualUnfreezing(
            stages=[
                {"thaw": "head", "until_epoch": 5},
                {"thaw": ["layers.1", "layers.2"], "until_epoch": 10, "unfreeze_lr_factor": 0.1},
                {"thaw": "layers.0", "unfreeze_lr_factor": 0.1},
            ]
        ),
    ),
}


@pytest.mark.parametrize("title", LIGHTNING_EXAMPLES)
def test_both_thaw_the_same_as_lightnings_callbacks(title: str, tmp_path: Path) -> None:
    """For each example the trainable names per epoch, one list from each."""
    theirs, ours = LIGHTNING_EXAMPLES[title]

    expected = trainable([theirs()], tmp_path / "theirs", Backbone)
    assert len(set(map(frozenset, expected))) >= 2
    assert trainable([ours()], tmp_path / "ours", Backbone) == expected


SUPERGLUE = "Example: Scheduled Fine-Tuning For SuperGLUE"
THEIR_EXAMPLES = {  # those of their documents; a run here or in test_shipped_configs_of_peers.py, or a reason
    "finetuning_scheduler": {
        *EXAMPLES,
        "The Default Fine-Tuning Schedule",
        "Resuming Scheduled Fine-Tuning Training Sessions",
        f"{SUPERGLUE}: nofts_baseline",
        f"{SUPERGLUE}: fts_implicit",
        f"{SUPERGLUE}: fts_explicit",
        "Optimizer Reinitialization: explicit",
        "Optimizer Reinitialization: implicit",
        "Optimizer Reinitialization: use_current_optimizer_pg_lrs",
        "LR Scheduler Reinitialization: explicit",
        "LR Scheduler Reinitialization: implicit",
        "FSDP Scheduled Fine-Tuning",
        "Model-Parallel Scheduled Fine-Tuning: FSDP2 auto plan",
        "Model-Parallel Scheduled Fine-Tuning: TP plan",
        "Strategy Adapter Entry Points",
    },
    "backbone_finetuning": {*LIGHTNING_EXAMPLES},
}
NOT_COMPARED = {
    "finetuning_scheduler": {"MemProfiler", "Fine-Tuning All The Way Down!"},
    "backbone_finetuning": set(),
}


@pytest.mark.parametrize("page", THEIR_EXAMPLES)
def test_each_example_has_its_row_or_its_reason(page: str) -> None:
    """Each title of their documents is a row of the guide; one without a run has its reason there."""
    text = (Path(__file__).parents[2] / "docs" / "guides" / f"coming_from_{page}.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and line.count("|") == 4]
    results = {row[1].strip(): row[3].strip() for row in rows[1:]}

    assert results.keys() == THEIR_EXAMPLES[page] | NOT_COMPARED[page]
    for title, result in results.items():
        if title in NOT_COMPARED[page]:
            assert len(result.removeprefix("not compared: ").split()) >= 5, title
        assert result.startswith("compared") == (title in THEIR_EXAMPLES[page]), title
