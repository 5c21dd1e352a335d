"""The configs of the generation tasks: they run without a network, learn, and their tests score answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
LIGHTER = str(Path(sys.executable).parent / "lighter")
FIGURES = {
    "docstrings": {"rouge_l", "bleu_4", "exact_match"},
    "e2e_nlg": {"bleu_4", "rouge_l", "meteor_nltk"},
    "samsum": {"rouge_l", "bleu_4", "meteor_nltk"},
    "wikisql": {"exact_match", "sql_match"},
    "multi_nli": {"accuracy"},
    "squad": {"exact_match", "rouge_l"},
    "sst2": {"accuracy"},
}
SHORT = ["trainer::max_steps=20", "trainer::val_check_interval=10"]
FEW = ["data::num_train_sequences=40", "data::num_val_sequences=8", "data::num_test_sequences=4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings and tokenizers, made once."""
    return tmp_path_factory.mktemp("cache")


def load(name: str, *overrides: str) -> Any:
    from lighter.engine.runner import ConfigLoader

    return ConfigLoader.load([str(ROOT / f"configs/tasks/{name}.yaml"), *overrides])


@pytest.mark.wide
@pytest.mark.parametrize("name", FIGURES)
def test_a_task_is_learnt_and_tested(
    name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the answers falls, and the results have the figures of the task."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = load(name, f"data::cache_dir={cache}", *SHORT, *FEW)
    trainer, model, data = (config.resolve(part) for part in ("trainer", "model", "data"))
    trainer.validate(model, data, verbose=False)
    before = trainer.callback_metrics["val/loss"].item()
    trainer.fit(model, data)
    after = trainer.callback_metrics["val/loss"].item()
    trainer.test(model, data, verbose=False)
    results = json.loads((tmp_path / f"outputs/tasks/{name}/version_0/evaluation_results.json").read_text())

    assert after < before - 0.5
    assert FIGURES[name] <= results["scores"].keys()
    assert results["scores"]["perplexity"] > 1


@pytest.mark.wide
def test_the_test_command_finds_the_checkpoint_of_a_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lighter test` as the config says, in a process of its own; results land beside the run's curves."""
    monkeypatch.chdir(tmp_path)
    overrides = [f"data::cache_dir={cache}", *SHORT]
    config = load("wikisql", *overrides)
    config.resolve("trainer").fit(config.resolve("model"), config.resolve("data"))
    run = "outputs/tasks/wikisql/version_0"
    command = [LIGHTER, "test", str(ROOT / "configs/tasks/wikisql.yaml"), *overrides]
    command += ["trainer::logger::version=0", "--ckpt_path", f"{run}/checkpoints/last.ckpt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    assert "sql_match" in json.loads((tmp_path / run / "evaluation_results.json").read_text())["scores"]
