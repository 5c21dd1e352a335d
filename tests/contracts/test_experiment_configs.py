"""The configs of experiments, without a network: their overrides, a tiny Llama, the fixtures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.training import causal_lms

ROOT = Path(__file__).parents[2]
ATTENTION, MLP = {"q_proj", "v_proj"}, {"gate_proj", "up_proj", "down_proj"}
BOTH = ATTENTION | MLP | {"k_proj", "o_proj"}
TARGETS = {
    "e2e_attention": ATTENTION,
    "e2e_mlp": MLP,
    "samsum_attention": ATTENTION,
    "samsum_mlp": MLP,
    "dynamic_lora": BOTH,
    "smollm2_static": BOTH,
    "smollm2_phases": BOTH,
    "smollm2_ranks": BOTH,
}
SHORT = [
    "trainer::max_steps=3",
    "trainer::val_check_interval=3",
    "trainer::limit_val_batches=1",
    "trainer::log_every_n_steps=1",
    "trainer::num_sanity_val_steps=0",
    "data::batch_size=2",
    "data::max_length=640",
    "data::num_test_sequences=2",
    "data::max_new_tokens=4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of three blocks and its tokenizer of characters, as transformers saves them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("llama")
    special = {"bos_token_id": causal_lms.EOS, "eos_token_id": causal_lms.EOS}
    sizes = {**causal_lms.LLAMA, "hidden_size": 32, "max_position_embeddings": 1024}
    LlamaForCausalLM(LlamaConfig(vocab_size=causal_lms.VOCAB, **sizes, **special)).save_pretrained(path)
    causal_lms.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The docstrings of the standard library, collected once."""
    return str(tmp_path_factory.mktemp("cache"))


def offline(name: str, folder: str, cache: str) -> list[str]:
    """The override that each of these configs names for a machine without a network."""
    source = [] if name.startswith("smollm2") else ["data::source=fixture"]
    return [f"model::model={folder}", *source, f"data::cache_dir={cache}", *SHORT]


def load(name: str, *overrides: str) -> Any:
    from lighter.engine.runner import ConfigLoader

    return ConfigLoader.load([str(ROOT / f"configs/experiments/{name}.yaml"), *overrides])


def score_checkpoint(name: str, checkpoint: Path, *overrides: str) -> None:
    """What `lighter test` does with a checkpoint."""
    config = load(name, *overrides)
    trainer, module, data = (config.resolve(part) for part in ("trainer", "model", "data"))
    trainer.test(module, data, ckpt_path=str(checkpoint), verbose=False, weights_only=True)


@pytest.mark.parametrize("name", TARGETS)
def test_lora_is_where_the_name_says(name: str, folder: str, cache: str) -> None:
    """And nothing but LoRA trains, unless another target is asked for."""
    module = load(name, *offline(name, folder, cache)).resolve("model")

    trained = [path for path, parameter in module.named_parameters() if parameter.requires_grad]
    assert all("lora_" in path for path in trained)
    assert {path.split(".lora_")[0].rpartition(".")[2] for path in trained} == TARGETS[name]


@pytest.mark.wide
def test_the_override_for_a_machine_without_a_network(
    folder: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lighter fit` trains, sums up and draws; a test with the version of the run adds its scores."""
    overrides = offline("e2e_attention", folder, cache)
    command = [str(Path(sys.executable).parent / "lighter"), "fit"]
    command += [str(ROOT / "configs/experiments/e2e_attention.yaml"), *overrides]
    fit = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert fit.returncode == 0, fit.stderr[-3000:]
    run = tmp_path / "outputs/experiments/e2e_attention/version_0"
    trained = json.loads((run / "results_summary.json").read_text())
    assert trained["optimizer_steps"] == 3
    assert trained["config"]["data"]["source"] == "fixture"
    assert (run / "plots/gradient_norms.png").exists()
    assert (run / "final_model/adapter_config.json").exists()

    monkeypatch.chdir(tmp_path)
    score_checkpoint("e2e_attention", run / "checkpoints/last.ckpt", *overrides, "trainer::logger::version=0")
    summary = json.loads((run / "results_summary.json").read_text())
    scores = json.loads((run / "evaluation_results.json").read_text())["scores"]
    assert {"bleu_1", "rouge_l", "meteor_nltk", "perplexity"} <= scores.keys()
    assert summary.pop("evaluation") == pytest.approx(scores, abs=1e-3)
    assert summary == trained


@pytest.mark.wide
def test_no_run_overwrites_another(
    folder: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a version of its own."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        config = load("smollm2_static", *offline("smollm2_static", folder, cache), "trainer::max_steps=1")
        config.resolve("trainer").fit(config.resolve("model"), config.resolve("data"))

    runs = sorted(tmp_path.glob("outputs/experiments/smollm2_static/*"))
    assert [run.name for run in runs] == ["version_0", "version_1"]
    assert all((run / "results_summary.json").exists() for run in runs)


@pytest.mark.wide
@pytest.mark.parametrize("name", ["smollm2_phases", "dynamic_lora"])
def test_the_phases_are_overrides(
    name: str, folder: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trains in each of three steps."""
    monkeypatch.chdir(tmp_path)
    bounds = ["vars::phase1_end=1", "vars::phase2_end=2", "vars::strategy=both->mlp->attn"]
    config = load(name, *offline(name, folder, cache), *bounds)
    config.resolve("trainer").fit(config.resolve("model"), config.resolve("data"))

    norms = (next(tmp_path.rglob("version_0")) / "gradient_analysis.group_norms.csv").read_text()
    header, *rows = [line.split(",") for line in norms.splitlines()]
    attention, mlp = header.index("attention_norm"), header.index("mlp_norm")
    assert [(bool(row[attention]), bool(row[mlp])) for row in rows] == [
        (True, True),
        (False, True),
        (True, False),
    ]


@pytest.mark.wide
def test_the_ranks_grow(folder: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 4 over 8 to 12, whatever the model."""
    monkeypatch.chdir(tmp_path)
    steps = ["trainer::max_steps=33", "trainer::val_check_interval=33", "data::batch_size=1"]
    config = load("smollm2_ranks", *offline("smollm2_ranks", folder, cache), *steps)
    module = config.resolve("model")
    config.resolve("trainer").fit(module, config.resolve("data"))

    shapes = {path: p.shape for path, p in module.named_parameters() if "lora_A" in path}
    assert {shape[0] for shape in shapes.values()} == {12}
    assert len(shapes) == 3 * 7


def test_a_model_that_cannot_be_had_is_named_with_the_way_out(
    folder: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong folder, or the hub without a network."""
    overrides = [*offline("e2e_mlp", folder, cache), "model::model=no/such-folder-here"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(Exception, match="No model at 'no/such-folder-here'.*smollm2_folder"):
        load("e2e_mlp", *overrides).resolve("model")
