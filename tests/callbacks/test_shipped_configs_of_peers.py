"""The configs that finetuning-scheduler ships with its documents: both packages thaw the same in each epoch.

Their files are read from the installed package, so one that a later version adds fails until it has its row
here. Both packages run on one process: a DeBERTa or Llama of the same names as theirs, with random weights.
"""

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, StepLR

from lighter_freezers import GradualUnfreezing
from tests.distributed.run_ranks import run_ranks
from tests.lab import recorder, trainer

pytestmark = [pytest.mark.wide, pytest.mark.filterwarnings("ignore")]

UNIFIED = "lightning.pytorch"  # the namespace that finetuning-scheduler takes by default
NEVER_BETTER = {"monitor": "val_loss", "min_delta": 1.0e9}
VOCABULARY, LENGTH = 32, 6


def their_folder() -> Path:
    """Where the package with their configs is installed."""
    (place,) = import_module("fts_examples").__path__
    return Path(place)


def deberta(num_blocks: int = 12) -> Any:
    """Twelve blocks, as their schedules name them."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    relative = {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    relative |= {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    return DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=VOCABULARY,
            max_position_embeddings=8,
            num_hidden_layers=num_blocks,
            **sizes,
            **relative,
        )
    )


def llama() -> Any:
    """Four blocks of the Llama that they ship."""
    found = import_module("fts_examples.model_parallel.torchtitan_llama")
    sizes = {"dim": 4, "n_layers": 4, "n_heads": 2, "vocab_size": VOCABULARY, "max_seq_len": LENGTH}
    return found.Transformer(found.ModelCfg(**sizes, multiple_of=4))


def _built(recipe: Any, *first: Any) -> Any:
    folder, _, name = recipe["class_path"].rpartition(".")
    return getattr(import_module(folder), name)(*first, **recipe.get("init_args", {}))


def _module(build: Callable[[], Any], scheduler: Any, shard: Callable[[Any], None] | None) -> Any:
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = build()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found = self.model(batch[0])
            return getattr(found, "logits", found).float().square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> Any:
            built = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1.0e-5)
            return {"optimizer": built, "lr_scheduler": _built(scheduler, built)} if scheduler else built

    if shard is not None:
        Module.configure_model = shard
    return Module()


def trainable(
    build: Callable[[], Any],
    scheduler: Any,
    callbacks: list[Any],
    shard: Callable[[Any], None] | None = None,
    **options: Any,
) -> list[Any]:
    """The names of what trains in each epoch, at its only batch."""

    def read(_: Any, module: Any) -> set[str]:
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    seen = recorder(UNIFIED, read, "on_before_zero_grad")
    data = torch.utils.data.TensorDataset(torch.arange(2 * LENGTH).view(2, LENGTH))
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    run = trainer(UNIFIED, callbacks=[*callbacks, seen], enable_checkpointing=True, **options)
    run.fit(_module(build, scheduler, shard), loader, loader)
    return list(seen.seen)


BLOCKS = "deberta.encoder.layer"
ENDS = {"until_early_stopping": True}
NORM = "deberta.embeddings.LayerNorm"
EXPLICIT = [
    {"thaw": ["classifier", "pooler", "deberta.encoder"], **ENDS},
    {"thaw": NORM},
]
FALLING = {"scheduler": partial(StepLR, step_size=1, gamma=0.7), "name": "Explicit_Reinit_LR_Scheduler"}
WAVES = {"scheduler": partial(CosineAnnealingWarmRestarts, T_0=3, T_mult=2, eta_min=1.0e-7)}
TOP = {"thaw": ["pooler", "deberta.encoder.LayerNorm"], "scheduler": FALLING, **ENDS}
REST = {
    "thaw": [BLOCKS, "deberta.encoder.rel_embeddings", NORM],
    "scheduler": WAVES,
}
MOMENTUM = partial(torch.optim.SGD, lr=2.0e-3, momentum=0.9, weight_decay=2.0e-6)
PLAIN = partial(torch.optim.AdamW, lr=1.0e-5, eps=1.0e-7, weight_decay=1.0e-5)
BY_EPOCH = [
    {"thaw": "classifier", "until_epoch": 1, **ENDS},
    {"thaw": ["pooler", f"{BLOCKS}.11"], "until_epoch": 2, **ENDS},
    {"thaw": "deberta.encoder"},
]
BY_EPOCH_OF_LLAMA = [
    {"thaw": ["output", "norm"], "until_epoch": 1, **ENDS},
    {"thaw": "layers.3", "until_epoch": 2, **ENDS},
    {"thaw": "*"},
]
GENERATED = None  # the stages are those of the schedule that they generate
COMMON: dict[str, Any] = {"scheduler": partial(StepLR, step_size=1, gamma=0.7)}
FSDP = "config/advanced/fsdp/fts_"
STAGES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "config/nofts_baseline.yaml": (deberta, [], {}),
    "config/fts_explicit.yaml": (deberta, EXPLICIT, {}),
    "config/fts_implicit.yaml": (partial(deberta, 1), GENERATED, {}),  # thaws to the last phase
    "config/advanced/reinit_lr/fts_explicit_reinit_lr.yaml": (
        deberta,
        [{"thaw": "classifier", **ENDS}, TOP, REST],
        {},
    ),
    "config/advanced/reinit_lr/fts_implicit_reinit_lr.yaml": (deberta, GENERATED, COMMON),
    "config/advanced/reinit_optim_lr/fts_explicit_reinit_optim_lr.yaml": (
        deberta,
        [{"thaw": "classifier", **ENDS}, TOP | {"optimizer": MOMENTUM}, REST | {"optimizer": PLAIN}],
        {},
    ),
    "config/advanced/reinit_optim_lr/fts_implicit_reinit_optim_lr.yaml": (
        deberta,
        GENERATED,
        COMMON | {"optimizer": MOMENTUM},
    ),
    "config/advanced/reinit_optim_lr/fts_implicit_reinit_optim_lr_use_curr.yaml": (
        deberta,
        GENERATED,
        COMMON | {"optimizer": MOMENTUM, "earlier": "keep"},
    ),
    f"{FSDP}ddp_fsdp_baseline_profile.yaml": (deberta, BY_EPOCH, {}),
    f"{FSDP}fsdp_basic_profile.yaml": (deberta, BY_EPOCH, {}),
    f"{FSDP}fsdp_awp_overrides_profile.yaml": (deberta, BY_EPOCH, {}),
    f"{FSDP}fsdp_awp_overrides_offload_profile.yaml": (deberta, BY_EPOCH, {}),
    "model_parallel/config/fts_fsdp_auto_plan.yaml": (llama, BY_EPOCH_OF_LLAMA, {}),
    "model_parallel/config/fts_fsdp_profiling.yaml": (llama, BY_EPOCH_OF_LLAMA, {}),
    "model_parallel/config/fts_tp_plan.yaml": (llama, BY_EPOCH_OF_LLAMA, {}),
}


def their_arguments(config: Any) -> dict[str, Any]:
    """What a config gives its FinetuningScheduler, without the plan of a strategy that shards."""
    trainers = config["trainer"]
    for each in trainers.get("callbacks", trainers.get("callbacks+")):
        if each["class_path"].endswith(".FinetuningScheduler"):
            return {k: v for k, v in each.get("init_args", {}).items() if k != "strategy_adapter_cfg"}
    return {}


def schedule_of(given: str) -> Path:
    """The file of a schedule, which each of their configs names from another folder."""
    (path,) = their_folder().rglob(Path(given).name)
    return path


def generated(build: Callable[[], Any], folder: Path) -> Any:
    """The schedule that they generate for a model."""
    from finetuning_scheduler import FinetuningScheduler

    with pytest.raises(SystemExit):
        trainable(build, None, [FinetuningScheduler(gen_ft_sched_only=True)], default_root_dir=folder)
    (path,) = folder.rglob("*_ft_schedule.yaml")
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", STAGES)
def test_both_thaw_the_same(name: str, tmp_path: Path) -> None:
    """For each config the trainable names per epoch, one list from each package."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping
    from lightning.pytorch.callbacks import EarlyStopping

    build, stages, common = STAGES[name]
    config = yaml.safe_load((their_folder() / name).read_text())
    arguments = their_arguments(config)
    if "ft_schedule" in arguments:
        arguments["ft_schedule"] = str(schedule_of(arguments["ft_schedule"]))
    if stages is None:
        phases = list(generated(build, tmp_path / "generated").values())
        phases = phases[: arguments.get("max_depth", len(phases)) + 1]
        first, *later = [{"thaw": phase["params"], **ENDS} for phase in phases]
        stages = [first, *(each | common for each in later)]
        del stages[-1]["until_early_stopping"]
    theirs: list[Any] = [EarlyStopping(**NEVER_BETTER, patience=2)]
    if stages:
        theirs = [FinetuningScheduler(**{**arguments, "restore_best": False})]
        theirs += [FTSCheckpoint(monitor="val_loss"), FTSEarlyStopping(**NEVER_BETTER, patience=2)]
    ours: list[Any] = [GradualUnfreezing(stages=stages)] if stages else []
    ours += [EarlyStopping(**NEVER_BETTER, patience=2)]
    scheduler = config.get("model", {}).get("init_args", {}).get("lr_scheduler_init")
    run = {"max_epochs": config["trainer"].get("max_epochs", 1000)}

    expected = trainable(build, scheduler, theirs, default_root_dir=tmp_path / "theirs", **run)
    assert len(set(map(frozenset, expected))) == max(1, len(stages))
    assert trainable(build, scheduler, ours, default_root_dir=tmp_path / "ours", **run) == expected


SCHEDULES = {
    "RteBoolqModule_ft_schedule_deberta_base.yaml": deberta,
    "RteBoolqModule_ft_schedule_deberta_base_fsdp.yaml": deberta,
    "explicit_reinit_lr.yaml": deberta,
    "explicit_reinit_optim_lr.yaml": deberta,
    "llama_ft_schedule.yaml": llama,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_their_schedules_become_stages_by_their_names(name: str, tmp_path: Path) -> None:
    """As the guide does it: a name that is a regular expression gets `re:`."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping
    from lightning.pytorch.callbacks import EarlyStopping

    path, stages = schedule_of(name), []
    for phase in yaml.safe_load(path.read_text()).values():
        words = [f"re:{each}" if set(each) & set("*[({\\") else each for each in phase["params"]]
        end = {"until_epoch": phase["max_transition_epoch"]} if "max_transition_epoch" in phase else {}
        stages.append({"thaw": words, **ENDS, **end})
    stages[-1] = {"thaw": words}
    theirs = [
        FinetuningScheduler(ft_schedule=str(path), restore_best=False),
        FTSCheckpoint(monitor="val_loss"),
    ]
    theirs += [FTSEarlyStopping(**NEVER_BETTER, patience=2)]
    ours = [GradualUnfreezing(stages=stages), EarlyStopping(**NEVER_BETTER, patience=2)]
    first = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"total_iters": 4}}
    run = {"max_epochs": 30, "default_root_dir": tmp_path}

    expected = trainable(SCHEDULES[name], first, theirs, **run)
    assert len(set(map(frozenset, expected))) == len(stages)
    assert trainable(SCHEDULES[name], first, ours, **run) == expected


def test_no_config_is_left_out() -> None:
    """Each that they ship with a FinetuningScheduler, and the one that they compare with."""
    shipped = {
        path.relative_to(their_folder()).as_posix()
        for path in their_folder().rglob("*.yaml")
        if "finetuning_scheduler.FinetuningScheduler" in path.read_text() or path.stem == "nofts_baseline"
    }

    assert len(shipped) >= 15
    assert shipped == STAGES.keys()


def shard_blocks(module: Any) -> None:
    """What their `fsdp_plan` says, as the user of any other callback says it."""
    from torch.distributed.fsdp import fully_shard

    for part in (module.model.output, *module.model.layers.values()):
        fully_shard(part, mesh=module.device_mesh["data_parallel"])


def split_tensors(module: Any) -> None:
    """Their plan for tensor parallelism."""
    found = import_module("fts_examples.model_parallel.mp_examples")
    found.apply_tp_plan(module.model, module.device_mesh, loss_parallel=False)


def on_two_ranks(folder: str) -> list[list[list[str]]]:
    """What a rank sees of each config with a strategy that shards: theirs, ours, theirs, ..."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.strategies import ModelParallelStrategy

    warnings.simplefilter("ignore")
    found = []
    for name in SHARDED:
        trainers = yaml.safe_load((their_folder() / name).read_text())["trainer"]
        given = trainers["callbacks+"][0]["init_args"]
        given["ft_schedule"] = str(schedule_of(given["ft_schedule"]))
        split = split_tensors if name.endswith("tp_plan.yaml") else None
        theirs = [FinetuningScheduler(**given, restore_best=False), FTSCheckpoint(monitor="val_loss")]
        theirs += [FTSEarlyStopping(**NEVER_BETTER, patience=2)]
        ours = [GradualUnfreezing(stages=BY_EPOCH_OF_LLAMA), EarlyStopping(**NEVER_BETTER, patience=2)]
        for callbacks, shard in ((theirs, split), (ours, split or shard_blocks)):
            sizes = trainers["strategy"]["init_args"]
            strategy = ModelParallelStrategy(**sizes, process_group_backend="gloo")
            options = {"devices": 2, "strategy": strategy, "max_epochs": trainers["max_epochs"]}
            seen = trainable(llama, None, callbacks, shard, default_root_dir=folder, **options)
            found.append([sorted(names) for names in seen])
    return found


SHARDED = ["model_parallel/config/fts_fsdp_auto_plan.yaml", "model_parallel/config/fts_tp_plan.yaml"]


def test_both_thaw_the_same_where_parameters_are_sharded(tmp_path: Path) -> None:
    """On two ranks of gloo, by blocks and by tensors."""
    one, other = run_ranks(on_two_ranks, tmp_path, 2, str(tmp_path))

    assert one == other
    assert [len(set(map(tuple, each))) for each in one] == [3] * 4
    assert one[0::2] == one[1::2]
