"""`lighter-freezers schedule` writes configs that `lighter fit` runs, and that do what their comments say."""

import difflib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lighter_freezers.cli.main import main
from tests.callbacks.block_net import BLOCKS, EVERYTHING, upper
from tests.cli import small_run

ALL = set(EVERYTHING)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(small_run.CONFIG)
    return tmp_path


def fit(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[set[str]]:
    """`lighter fit`, by its own entry point; what trained at each step."""
    from lighter.engine.runner import cli

    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(sys, "argv", ["lighter", "fit", *words])
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])  # lighter replaces them for good
    cli()
    return small_run.SEEN


STAGES = [upper(0)] * 4 + [upper(1)] * 4 + [upper(2)] * 4 + [upper(3)] * 4 + [ALL] * 4
WRITTEN: dict[str, list[set[str]]] = {
    "gradual": STAGES,
    "gradual --steps 10": [upper(n // 2) for n in range(8)] + [ALL] * 12,
    "gradual --steps 3": [upper(0)] + [upper(2)] + [ALL] * 18,
    "top-down": STAGES,
    "top-down --epochs 2": [upper(0)] * 4 + [ALL] * 16,
    "top-down --steps 10": [upper(n // 2) for n in range(8)] + [ALL] * 12,
    "lp-lora": [upper(2)] * 20,
    "lp-lora --freeze-ratio 0.75 --train-embeddings": [upper(1, "stem")] * 20,
    "discriminative": [ALL] * 20,
}


@pytest.mark.parametrize("words", WRITTEN)
def test_what_it_writes_runs(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each strategy, by `lighter fit`: what trains at each step."""
    strategy, *options = words.split()
    assert main(["schedule", "small.yaml", "--strategy", strategy, *options]) == 0

    assert fit(monkeypatch, f"small_{strategy}.yaml") == WRITTEN[words]


def test_a_run_that_is_counted_in_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at `max_steps`, so that is what is cut into stages."""
    (folder / "steps.yaml").write_text(
        small_run.CONFIG.replace("max_epochs: 5", "max_epochs: 5\n  max_steps: 10")
    )
    main(["schedule", "steps.yaml", "--strategy", "gradual"])

    assert fit(monkeypatch, "steps_gradual.yaml") == [upper(n // 2) for n in range(8)] + [ALL] * 2


@pytest.mark.parametrize("strategy", ["gradual", "top-down", "discriminative"])
def test_learning_rates_by_depth(strategy: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the rate for each layer below, once it trains."""
    assert main(["schedule", "small.yaml", "--strategy", strategy, "--lr-decay", "2"]) == 0
    fit(monkeypatch, f"small_{strategy}.yaml")

    rates = [small_run.RATES[-1][part] for part in ["head", *BLOCKS[::-1], "stem"]]
    assert rates == pytest.approx([0.1 / 2**depth for depth in range(6)])


def test_the_config_is_left_as_it_was_but_for_the_callbacks(folder: Path) -> None:
    """Every line of it, its comments too; what is new says what it does."""
    main(["schedule", "small.yaml", "--strategy", "top-down"])
    written = (folder / "small_top-down.yaml").read_text()

    changes = difflib.ndiff(small_run.CONFIG.splitlines(), written.splitlines())
    assert {line[0] for line in changes} == {" ", "+"}
    config, old = yaml.safe_load(written), yaml.safe_load(small_run.CONFIG)
    assert config["trainer"].pop("callbacks")[-1:] == old["trainer"].pop("callbacks")
    assert config == old
    assert "# In the first step trains norm, head (25 parameters, 6.5%)." in written
    assert "    # blocks.3 (72 parameters, 18.7%): frozen until epoch 1\n    - _target_: light" in written
    assert "    # stem, blocks.0 (144 parameters, 37.4%): frozen until epoch 4\n" in written
    assert (
        written.splitlines()[0] == "# Written by:   lighter-freezers schedule small.yaml --strategy top-down"
    )


def test_freezers_that_were_there_before_compose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What either holds is frozen, and a comment in the file states it."""
    freezer = "- _target_: lighter_freezers.Freezer\n      names: head.bias\n    - _target_: lighter"
    (folder / "two.yaml").write_text(small_run.CONFIG.replace("- _target_: lighter", freezer, 1))
    main(["schedule", "two.yaml", "--strategy", "top-down"])
    seen = fit(monkeypatch, "two_top-down.yaml")

    assert seen == STAGES
    assert "that were here before still apply" in (folder / "two_top-down.yaml").read_text()


def test_a_model_alone_becomes_a_config_to_fill_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `_target_`, or a `network` with what it refers to; and a module without its Trainer."""
    model = "_target_: tests.callbacks.block_net.BlockNet\n"
    (folder / "bare.yaml").write_text(model)
    (folder / "net.yaml").write_text("network:\n  " + model)
    (folder / "mod.yaml").write_text("model:\n  _target_: tests.cli.small_run.whole_module\n")
    for name in ("bare", "net", "mod"):
        assert main(["schedule", f"{name}.yaml", "--strategy", "gradual", "--epochs", "3"]) == 0
        written = (folder / f"{name}_gradual.yaml").read_text()
        assert "# To do:        what is marked with FILL IN" in written
        filled = written.replace("my_project.MyModule", "tests.cli.small_run.Regression")
        filled = filled.replace("my_project.MyDataModule", "tests.cli.small_run.Data")
        (folder / "filled.yaml").write_text(filled)
        quiet = ["trainer::accelerator=cpu", "trainer::logger=false", "trainer::enable_checkpointing=false"]
        quiet += ["trainer::enable_progress_bar=false", "trainer::enable_model_summary=false"]
        assert fit(monkeypatch, "filled.yaml", *quiet) == [upper(0)] * 4 + [upper(2)] * 4 + [ALL] * 4


def test_a_transformer_of_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks are found, whatever they are called; the terminal instead of a file."""
    (folder / "bert.yaml").write_text(
        "_target_: transformers.BertForSequenceClassification\n"
        "config:\n"
        "  _target_: transformers.BertConfig\n"
        "  vocab_size: 16\n  hidden_size: 8\n  num_hidden_layers: 4\n  num_attention_heads: 2\n"
        "  intermediate_size: 8\n"
    )
    assert main(["schedule", "bert.yaml", "--strategy", "lp-lora", "--output", "-"]) == 0

    written = capsys.readouterr().out
    (freezer,) = yaml.safe_load(written)["trainer"]["callbacks"]
    assert freezer["name_starts_with"] == [
        "bert.embeddings.",
        "bert.encoder.layer.0.",
        "bert.encoder.layer.1.",
    ]
    assert "bert.encoder.layer.0-1" in written


def test_nothing_is_overwritten_without_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even by the same command again."""
    command = ["schedule", "small.yaml", "--strategy", "gradual"]
    assert main(command) == 0
    (folder / "small_gradual.yaml").write_text("mine")
    assert main(command) == 2
    assert main([*command, "--output", "small.yaml"]) == 2

    assert (folder / "small_gradual.yaml").read_text() == "mine"
    assert (folder / "small.yaml").read_text() == small_run.CONFIG
    assert "small_gradual.yaml exists. Give another --output, or --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert "GradualUnfreezing" in (folder / "small_gradual.yaml").read_text()


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no file": ("", ["gradual"], "No such file"),
    "no model": ("vars: {a: 1}", ["gradual"], "has no model: a config has `trainer`, `model` and `data`"),
    "no YAML": ("a: [", ["gradual"], 'wrong.yaml", line 1, column 5'),
    "a misspelt class": ("_target_: torch.nn.Linaer", ["lp-lora"], "Linaer"),
    "no module": ("_target_: builtins.dict", ["lp-lora"], "describes a dict, not a torch.nn.Module"),
    "no blocks": ("_target_: tests.lab.TinyNet", ["lp-lora"], "TinyNet has no blocks"),
    "no length": (
        small_run.CONFIG.replace("max_epochs: 5", "max_epochs: -1"),
        ["gradual"],
        "Say how long the run is, with --epochs or --steps",
    ),
    "too short": (small_run.CONFIG, ["top-down", "--epochs", "1"], "A run of 1 epochs is one stage"),
    "an option of another": (small_run.CONFIG, ["gradual", "--freeze-ratio", "0.5"], "is for lp-lora, not"),
    "a share above one": (small_run.CONFIG, ["lp-lora", "--freeze-ratio", "50"], "must be between 0 and 1"),
    "a share of nothing": (
        small_run.CONFIG,
        ["lp-lora", "--freeze-ratio", "0.1", "--train-embeddings"],
        "freezes no block of 4",
    ),
    "a decay below one": (
        small_run.CONFIG,
        ["gradual", "--lr-decay", "0.5"],
        "--lr-decay must be at least 1",
    ),
    "a Trainer elsewhere": (
        "t: 1\n" + small_run.CONFIG.replace("trainer:", "trainer: '@t'\nx:"),
        ["lp-lora"],
        "Write it out",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(
    mistake: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and nothing is written."""
    text, words, message = MISTAKES[mistake]
    if text:
        (folder / "wrong.yaml").write_text(text)

    assert main(["schedule", "wrong.yaml", "--strategy", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.glob("wrong_*"))


@pytest.mark.wide
def test_by_its_own_command(folder: Path) -> None:
    """In a fresh process; a strategy that does not exist is refused with the names of all."""
    command = [sys.executable, "-m", "lighter_freezers", "schedule", "small.yaml", "--strategy", "upwards"]
    done: Any = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "gradual" in done.stderr
    assert "discriminative" in done.stderr


PACES = {
    "epochs": "every_n_epochs: 1\n      lr_decay: 2.6",
    "steps": "every_n_steps: 3\n      layers_per_stage: 2\n      warmup_steps: 2",
    "shares": "every_n_steps: 20%",
    "total": "total_epochs: 3\n      unfreeze_embeddings: never",
    "plateau": "plateau: {monitor: val/loss, patience: 1, min_delta: 1.0e+9}\n      lr_decay: 1.5",
}


@pytest.mark.parametrize("pace", PACES)
def test_stages_written_out_are_those_of_the_callback(pace: str) -> None:
    """The weights at the end, bit for bit, with the pace and with the file that is made of it."""
    from lighter_freezers import GradualUnfreezing
    from lighter_freezers.cli.stage_file import stage_file
    from tests.callbacks.block_net import BlockNet
    from tests.lab import adamw, batches, regression, trainer

    torch.set_num_threads(1)
    arguments = yaml.safe_load(PACES[pace].replace("\n      ", "\n"))
    loaded = yaml.safe_load(stage_file(arguments, regression("pytorch_lightning", BlockNet), "FILE"))
    results = []
    for callback in (GradualUnfreezing(**arguments), GradualUnfreezing(stages=loaded["stages"])):
        module = regression("pytorch_lightning", BlockNet, adamw)
        fit = trainer("pytorch_lightning", callbacks=[callback], max_epochs=7)
        fit.fit(module, batches(), batches())
        results.append(module.state_dict())

    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())


def test_a_file_of_stages_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `lighter fit`, from a config without a callback; it says how to use it."""
    assert main(["schedule", "small.yaml", "--strategy", "stages", "--output", "stages.yaml"]) == 0
    written = (folder / "stages.yaml").read_text()
    assert (
        "# Use it in the callbacks of a config:\n#   - _target_: lighter_freezers.GradualUnfreezing"
        in written
    )
    assert "  # thaws blocks.3 (" in written
    assert main(["schedule", "small.yaml", "--strategy", "gradual"]) == 0
    config = yaml.safe_load((folder / "small_gradual.yaml").read_text())
    config["trainer"]["callbacks"][0] = {
        "_target_": "lighter_freezers.GradualUnfreezing",
        "schedule": "stages.yaml",
    }
    (folder / "with_stages.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    assert fit(monkeypatch, "with_stages.yaml") == STAGES


def test_stages_of_the_callback_that_the_config_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its pace, not one for the length of the run; options that would set one are an error."""
    config = yaml.safe_load(small_run.CONFIG)
    present = {"_target_": "lighter_freezers.GradualUnfreezing", "every_n_steps": 7}
    config["trainer"].setdefault("callbacks", []).append(present)
    (folder / "own.yaml").write_text(yaml.safe_dump(config))

    assert main(["schedule", "own.yaml", "--strategy", "stages", "--output", "-"]) == 0
    stages = yaml.safe_load(capsys.readouterr().out)["stages"]
    assert [stage.get("until_step") for stage in stages] == [7, 14, 21, 28, None]
    assert main(["schedule", "own.yaml", "--strategy", "stages", "--output", "-", "--epochs", "3"]) != 0
    assert "leave out --epochs 3" in capsys.readouterr().err
