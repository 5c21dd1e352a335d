"""Every shipped config runs, says what it is, and does what it says."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.lab import first_now, frozen_components, recorder

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TINY = [
    "data::num_train_sequences=4",
    "data::num_val_sequences=2",
    "data::batch_size=2",
    "model::network::config::n_embd=16",
]
LOWER = ["wte", "wpe", *(f"{part}.{n}" for n in (0, 1) for part in ("ln_1", "attn", "ln_2", "mlp"))]
UPPER = [f"{part}.{n}" for n in (2, 3) for part in ("ln_1", "attn", "ln_2", "mlp")]
TRUNK = [*LOWER, *UPPER, "ln_f"]
KEPT = [name for name in TRUNK if not name.endswith(".3") and not name.startswith("ln")]

# What is frozen in each of the twelve epochs of two steps.
RECIPES: dict[str, list[list[str]]] = {
    "gradual_unfreezing": [TRUNK] * 5 + [LOWER[2:]] * 5 + [[]] * 2,
    "practical_example": [TRUNK] * 5 + [LOWER] * 5 + [[]] * 2,
    "exclusion": [KEPT] * 7 + [[]] * 5,
    "until_step_or_epoch": [TRUNK] * 5 + [[]] * 7,
    "discriminative_learning_rates": [TRUNK] * 5 + [[]] * 7,
    "ulmfit": [epoch for blocks in (4, 3, 2, 1) for epoch in [TRUNK[: 2 + 4 * blocks]] * 2] + [[]] * 4,
    "layerwise_learning_rates": [[]] * 12,
}

POLICIES = {"lisa", "block_cycling", "auto_freeze", "freeze_out", "spectrum", "misa", "auto_rgn"}
MODES = {"token_classifier": "val/macro_f1", "sequence_scorer": "val/r2"}
FEW_STEPS = ["trainer::val_check_interval=2", "data::num_train_sequences=8", "data::num_val_sequences=4"]
CHECKPOINT = "model::network::config::init_from_checkpoint"
FREEZE = "model::network::config::freeze_transformer"
UNFREEZE = "model::network::config::unfreeze_at_iteration"
VARIANTS = {
    "thawed midway": ([f"{UNFREEZE}=2"], [True, True, False, False]),
    "never frozen": ([f"{FREEZE}=false", f"{UNFREEZE}=null"], [False] * 4),
    "from scratch": ([f"{CHECKPOINT}=null", f"{FREEZE}=false", f"{UNFREEZE}=null"], [False] * 4),
}
ELSEWHERE = {
    "plan_and_report",  # tests/cli/test_plan_and_report.py
    "gradient_norms",  # tests/callbacks/test_gradient_norm_files.py
    *("rank_schedule", "rank_by_loss", "lora_plus"),  # tests/lora/test_lora_configs.py
    # test_operation_configs.py
    *("complete_example", "progressive_rank_scaling", "layerwise_unfreezing", "component_wise"),
    *("phases", "phases_early_late", "phases_free"),
    # test_experiment_configs.py
    *("e2e_attention", "e2e_mlp", "samsum_attention", "samsum_mlp", "dynamic_lora"),
    *("smollm2_static", "smollm2_phases", "smollm2_ranks"),
    *("docstrings", "e2e_nlg", "samsum", "wikisql", "multi_nli", "squad", "sst2"),  # test_task_configs.py
}


def test_all_configs_are_known_here() -> None:
    """A new config needs a test; a config that is never run is worth nothing."""
    assert {path.stem for path in CONFIGS} == {
        "quickstart",
        "pretrain",
        *MODES,
        *RECIPES,
        *POLICIES,
        *ELSEWHERE,
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_like_a_man_page(path: Path) -> None:
    """What it does, the command that runs it, and what one sees."""
    opening = path.read_text().split("\n\n")[0]

    assert f"Run it:       lighter fit {path.relative_to(ROOT)}" in opening
    assert "What it does: " in opening
    assert "Look at it:" in opening
    assert not re.search(r"[:\s]\d+e-?\d", path.read_text())  # YAML reads 5e-5 as a string


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_numbers_of_callbacks_are_variables(path: Path) -> None:
    """An override reaches no item of a list; zero and infinity say that nothing is waited for."""
    config = yaml.safe_load(path.read_text())
    callbacks, variables = config["trainer"]["callbacks"], config.get("vars", {})
    leaves = list(_leaves(callbacks))

    assert [leaf for leaf in leaves if isinstance(leaf, (int, float)) and leaf not in (0, math.inf)] == []
    used = {str(leaf).removeprefix("@vars::") for leaf in leaves if str(leaf).startswith("@vars::")}
    assert used == {*variables}
    if variables:
        assert re.search(r"\bvars::(\w+)=", path.read_text())[1] in variables  # type: ignore[index]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_shows_progress_and_what_came_of_it(path: Path) -> None:
    """Lightning's bar, and last lines with the picture, what freezing saved, and the next commands."""
    trainer = yaml.safe_load(path.read_text())["trainer"]
    classes = [entry["_target_"] for entry in trainer["callbacks"]]

    assert "enable_progress_bar" not in trainer
    assert trainer["enable_model_summary"] is False
    assert any(name.endswith("ModelCheckpoint") for name in classes) or not trainer["enable_checkpointing"]
    if "max_steps" in trainer:
        assert trainer.get("max_epochs", -1) == -1  # or the time left is that of an epoch
    for name in ("FreezeStateLogger", "PhaseRecorder", "ResultsSummary"):
        assert classes.count(f"lighter_freezers.{name}") == 1


def _leaves(node: object) -> Iterator[object]:
    """Every value in nested lists and mappings, but for switches."""
    if isinstance(node, Mapping):
        node = [*node.values()]
    if isinstance(node, list):
        for each in node:
            yield from _leaves(each)
    elif not isinstance(node, bool):
        yield node


def test_no_config_draws_the_rates_of_what_is_frozen() -> None:
    """FreezeStateLogger draws those of what trains; Lightning's monitor draws all groups."""
    monitored = {path.stem for path in CONFIGS if "LearningRateMonitor" in path.read_text()}

    assert monitored == {"layerwise_learning_rates", "auto_rgn", "freeze_out"}  # none, or at rate 0


def test_a_config_on_data_of_the_hub_drops_bad_rows() -> None:
    """Data that others publish has rows without an answer; one of them must not end a run."""
    for path in CONFIGS:
        text = path.read_text()
        commands = [line for line in text.splitlines() if "data::source=hub" in line]
        assert "\n  source: hub" not in text or "\n  bad_rows: drop" in text, path.name
        assert all("data::bad_rows=drop" in command for command in commands), path.name


@pytest.mark.parametrize("name", first_now(RECIPES))
def test_a_recipe_freezes_what_it_says(name: str, tmp_path: Path, cache: Path, monkeypatch: Any) -> None:
    """At every step of every epoch, built by lighter from the file."""
    from lighter.engine.runner import ConfigLoader

    monkeypatch.chdir(tmp_path)
    config = ConfigLoader.load(
        [str(ROOT / f"configs/freezing/{name}.yaml"), *TINY, f"data::cache_dir={cache}"]
    )
    model, trainer = config.resolve("model"), config.resolve("trainer")
    seen = recorder(
        "pytorch_lightning", lambda trainer, m: (trainer.current_epoch, tuple(frozen_components(m)))
    )
    trainer.callbacks.append(seen)
    trainer.fit(model, datamodule=config.resolve("data"))

    assert len(seen.seen) == 24
    assert [list(components) for _, components in seen.seen[::2]] == RECIPES[name]
    assert seen.seen[::2] == seen.seen[1::2]


@pytest.mark.parametrize(
    "name", ["lisa", *(pytest.param(each, marks=pytest.mark.wide) for each in sorted(POLICIES - {"lisa"}))]
)
def test_a_policy_trains_what_it_says(name: str, tmp_path: Path, cache: Path, monkeypatch: Any) -> None:
    """In windows of four of 24 steps, built by lighter from the file."""
    from lighter.engine.runner import ConfigLoader

    monkeypatch.chdir(tmp_path)
    file = str(ROOT / f"configs/policies/{name}.yaml")
    config = ConfigLoader.load([file, *TINY, f"data::cache_dir={cache}"])
    model, trainer = config.resolve("model"), config.resolve("trainer")
    policy = trainer.callbacks[0]
    policy.every_n_steps = policy.every_n_steps and 4
    if name == "freeze_out":
        assert policy.num_steps == 12 * 20
        policy.num_steps = 24
    seen = recorder("pytorch_lightning", lambda _, m: tuple(frozen_components(m)))
    trainer.callbacks.append(seen)
    trainer.fit(model, datamodule=config.resolve("data"))

    frozen_blocks = [
        {f.rpartition(".")[2] for f in step if f.split(".")[0] in ("attn", "mlp")} for step in seen.seen
    ]
    whole = [
        {n for n in blocks if {f"attn.{n}", f"mlp.{n}"} <= {*step}}
        for blocks, step in zip(frozen_blocks, seen.seen, strict=True)
    ]
    num_whole = [len(blocks) for blocks in whole]
    if name in ("lisa", "block_cycling"):
        assert num_whole == [2 if name == "lisa" else 3] * 24
        assert len(set(map(tuple, map(sorted, whole)))) > 1
    elif name == "freeze_out":
        assert num_whole == sorted(num_whole)
        assert (num_whole[0], num_whole[-1]) == (0, 3)
    elif name == "auto_freeze":
        assert num_whole == sorted(num_whole)
        assert seen.seen[0] == ()
    elif name == "auto_rgn":
        rates = {group["lr"] for group in trainer.optimizers[0].param_groups if group["params"]}
        assert max(rates) == 1.0e-3
        assert len(rates) > 10
    else:
        assert all(any(frozen) for frozen in seen.seen)


def test_the_quickstart_by_its_own_command(tmp_path: Path, cache: Path) -> None:
    """`lighter fit` in a fresh process thaws, freezes, logs bits per byte and leaves a TensorBoard run."""
    small = [
        "trainer::max_steps=210",
        "data::batch_size=2",
        "data::num_val_sequences=4",
        f"data::cache_dir={cache}",
    ]
    printed = fit(tmp_path, "configs/quickstart.yaml", *small)

    events = EventAccumulator(str(next(tmp_path.glob("outputs/quickstart/version_0"))))
    events.Reload()
    bits = [event.value for event in events.Scalars("val/bits_per_byte")]
    shares = {event.step: event.value for event in events.Scalars("freeze/frozen_share")}
    assert len(bits) == 4
    assert 1.0 < bits[-1] < bits[0] < 6.0
    assert [round(shares[step], 2) for step in (0, 99, 100, 199, 200, 210)] == [
        0.44,
        0.44,
        0.0,
        0.0,
        0.16,
        0.16,
    ]
    assert "freeze/timeline" in events.Tags()["images"]
    assert "thawed wpe, h.0-1" in printed
    run = "outputs/quickstart/version_0"
    expected = (
        r"The run: 210 optimizer steps in \d+ s .*loss from 6\.9\d* \(first batch\) to",
        r"[2-5]\.\d* \(last 10\) val/loss .* step 0 starts with frozen wpe, h\.0-1",
        r"step 100 thaws wpe, h\.0-1",
        r"step 200 freezes wte, wpe saved \d+% of the backward work of full training",
        r"picture tensorboard --logdir outputs/quickstart",
        rf"next lighter-freezers report {run} lighter-freezers plots {run} lighter-freezers compare {run}",
    )
    assert re.search(" ".join(expected), printed)


SHOWN: dict[str, tuple[list[str], str]] = {  # overrides, and what `lighter fit` shows of the choice
    "lisa": (["vars::every_n_steps=2"], r"Lisa trains 2 of 4 units: \d, \d .* held by Lisa"),
    "block_cycling": (
        ["vars::every_n_steps=2"],
        r"step 2: BlockCycling trains 1 of 4 units: \d .* held by BlockCycling",
    ),
    "auto_freeze": (["vars::every_n_steps=2"], r"AutoFreeze trains .* freezes wte, wpe, h\.0"),
    "freeze_out": (["vars::num_steps=18"], r"step 10: FreezeOut trains 5 of 6 units: 0, 1, 2"),
    "spectrum": (["vars::top_percent=25"], r"step 0: starts with frozen .*\.attn.* held by Spectrum"),
    "misa": (["vars::every_n_steps=2"], r"step 2: Misa trains \d of 16 units: network\.transformer\.h\."),
    "auto_rgn": (["vars::every_n_steps=2"], r"step 0: 0 % frozen .* starts with nothing frozen"),
}


@pytest.mark.wide
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_by_its_own_command(name: str, tmp_path: Path, cache: Path) -> None:
    """`lighter fit` in a fresh process: 18 steps, the log says what trains, and a TensorBoard run is left."""
    overrides, expected = SHOWN[name]
    small = ["trainer::max_epochs=3", *TINY, "data::num_train_sequences=12", f"data::cache_dir={cache}"]
    printed = fit(tmp_path, f"configs/policies/{name}.yaml", *small, *overrides)

    assert re.search(expected, printed)
    assert re.search(r"The run: 18 optimizer steps .* loss from 6\.9\d* \(first batch\)", printed)
    events = EventAccumulator(str(tmp_path / f"outputs/{name}/version_0"))
    events.Reload()
    frozen = [event.value for event in events.Scalars("freeze/frozen_share")]
    assert (max(frozen) > 0.1) is (name != "auto_rgn")
    if name in ("auto_rgn", "freeze_out"):
        rates = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag[:3] == "lr-"}
        assert len({*rates.values()}) > 4


def fit(folder: Path, config: str, *overrides: str) -> str:
    """`lighter fit` in a fresh process; what it printed, in one line."""
    command = [str(Path(sys.executable).parent / "lighter"), "fit", str(ROOT / config), *overrides]
    wide = {**os.environ, "COLUMNS": "200"}  # or Rich puts file names between the words of a message
    done = subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder in which `configs/gpt/pretrain.yaml` has run, by its own command."""
    folder = tmp_path_factory.mktemp("gpt")
    small = [*FEW_STEPS, "trainer::max_steps=4", "data::batch_size=4", f"data::cache_dir={cache}"]
    fit(folder, "configs/gpt/pretrain.yaml", *small)
    return folder


@pytest.mark.wide
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_learnt_from_the_pretrained_checkpoint(mode: str, pretrained: Path, cache: Path) -> None:
    """By the command that it names: the trunk is frozen, thaws, and the figures of the mode are logged."""
    small = [*FEW_STEPS, "trainer::max_steps=4", f"{UNFREEZE}=2", "data::batch_size=4"]
    printed = fit(pretrained, f"configs/gpt/{mode}.yaml", *small, f"data::cache_dir={cache}")

    events = EventAccumulator(str(pretrained / f"outputs/gpt/{mode}/version_0"))
    events.Reload()
    shares = {event.step: event.value for event in events.Scalars("freeze/frozen_share")}
    assert shares[1] > 0.99
    assert shares[2] == 0
    assert [event.step for event in events.Scalars(MODES[mode])] == [1, 3]
    assert "step 2: thawed" in printed


@pytest.mark.wide
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
def test_the_variants_of_a_mode_are_overrides(
    mode: str, variant: str, pretrained: Path, cache: Path, monkeypatch: Any
) -> None:
    """Whether the trunk is frozen at each step, and whether it begins with the pretrained weights."""
    from lighter.engine.runner import ConfigLoader

    monkeypatch.chdir(pretrained)
    overrides, expected = VARIANTS[variant]
    small = [*FEW_STEPS, "trainer::max_steps=4", "trainer::limit_val_batches=0", "trainer::logger=false"]
    options = [*small, "data::batch_size=4", f"data::cache_dir={cache}", *overrides]
    config = ConfigLoader.load([str(ROOT / f"configs/gpt/{mode}.yaml"), *options])
    model, trainer = config.resolve("model"), config.resolve("trainer")
    saved = torch.load("outputs/gpt/pretrain/last.ckpt", weights_only=True)["state_dict"]
    loaded, name = dict(model.named_parameters()), "network.transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(loaded[name], saved[name]) is (variant != "from scratch")

    seen = recorder("pytorch_lightning", lambda trainer, m: m.network.get_frozen_status())
    trainer.callbacks.append(seen)
    trainer.fit(model, datamodule=config.resolve("data"))
    assert seen.seen == expected


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tokenizer for all runs."""
    return tmp_path_factory.mktemp("cache")
