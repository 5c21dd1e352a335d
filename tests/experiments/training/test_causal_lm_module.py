"""CausalLMModule under real Trainers of both namespaces: what it learns, logs and leaves alone."""

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import CausalLMModule, Freezer
from lighter_freezers.experiments.evaluation.answer_loss import answer_nats
from lighter_freezers.experiments.evaluation.perplexity import perplexity
from tests.experiments.training.causal_lms import (
    ARCHITECTURES,
    causal_lm,
    module,
    saved_model,
    tokenizer,
    training_batch,
    training_loader,
)
from tests.lab import NAMESPACES, recorder, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
LONE = "pytorch_lightning"
BOTH = {"r": 4, "lora_alpha": 8, "target": "both"}
both = pytest.mark.parametrize("namespace", NAMESPACES)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@both
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_learns_and_the_base_stays(namespace: str, architecture: str, tmp_path: Path) -> None:
    """From a path, without a network: the answers become likelier, bits of the base stay the same."""
    path = saved_model(tmp_path, architecture)
    model = module(namespace, path, lora=BOTH, learning_rate=0.1)
    before, run = weights(model), trainer(namespace, max_epochs=5)
    run.fit(model, training_loader(), training_loader())
    after = weights(model)

    assert set(run.callback_metrics) == {"train/loss", "val/loss", "val/perplexity"}
    untrained = perplexity(causal_lm(architecture), training_loader())
    assert run.callback_metrics["val/perplexity"] < 0.8 * untrained
    for name, value in before.items():
        assert torch.equal(value, after[name]) is (".lora_" not in name), name


@both
def test_validation_is_over_all_answer_tokens(namespace: str) -> None:
    """Ten rows in batches of four; nothing is left from the validation before."""
    model, run = module(namespace), trainer(namespace)
    for seed in (1, 2):
        (logged,) = run.validate(model, training_loader(10, 4, seed), verbose=False)
        expected = perplexity(model.network, training_loader(10, 4, seed))

        assert logged["val/perplexity"] == pytest.approx(expected, rel=1e-5)
        assert logged["val/loss"] == pytest.approx(math.log(expected), rel=1e-5)


@both
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_is_that_of_torch_and_transformers(namespace: str, schedule: str) -> None:
    """AdamW, warm-up, decay to nothing at the last step: the same weights, with transformers' loss."""
    model = module(namespace, lr_schedule=schedule, warmup_steps=2, learning_rate=0.01, weight_decay=0.1)
    trainer(namespace, max_epochs=2).fit(model, training_loader())

    twin = causal_lm().train()
    matrices = [parameter for parameter in twin.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in twin.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    for step, batch in enumerate([*training_loader(), *training_loader()]):
        done = (step - 2) / 6
        fall = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * ((step + 1) / 3 if step < 2 else fall)
        optimizer.zero_grad()
        twin(**batch).loss.backward()
        optimizer.step()

    for ours, theirs in zip(model.network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpointed_activations_change_no_bit(architecture: str) -> None:
    """And no frozen block takes part in the backward pass: the embeddings' output needs no gradient."""
    runs, needed = [], []
    for is_checkpointed in (False, True):
        model = module(
            network=causal_lm(architecture),
            lora={
                "r": 2,
                "target_modules": r".*\.2\..*(down_proj|c_fc)",
                "fan_in_fan_out": architecture == "gpt2",
            },
            gradient_checkpointing=is_checkpointed,
        )
        first, last = model.network.get_input_embeddings(), blocks(model.network)[-1]
        for layer in (first, blocks(model.network)[0], last):
            layer.register_forward_hook(lambda _, args, out: needed.append(_first(out).requires_grad))
        trainer(LONE).fit(model, training_loader())
        runs.append(weights(model))

    assert needed[:3] == [False, False, True]
    assert needed[:3] * (len(needed) // 3) == needed
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def blocks(network: Any) -> Any:
    return network.model.layers if hasattr(network, "model") else network.transformer.h


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_checkpointing_keeps_fewer_activations() -> None:
    """It is really on: the blocks are computed again in the backward pass."""
    calls = {}
    for is_checkpointed in (False, True):
        model = module(gradient_checkpointing=is_checkpointed)
        seen: list[int] = []
        model.network.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        trainer(LONE).fit(model, training_loader(4))
        calls[is_checkpointed] = len(seen)

    assert calls == {False: 1, True: 2}


def test_a_loaded_model_is_in_train_mode(tmp_path: Path) -> None:
    """It comes in eval mode, and Lightning leaves it there: LoRA's dropout would be dead."""
    model = CausalLMModule(saved_model(tmp_path), lora={**BOTH, "lora_dropout": 0.5})
    seen = recorder(LONE, lambda _, m: all(part.training for part in m.network.modules()))
    trainer(LONE, callbacks=[seen]).fit(model, training_loader())
    assert seen.seen == [True] * 4

    batch = training_batch([([3, 4], [5, 6, 0])])
    with torch.no_grad():
        for site in model.network.modules():
            if hasattr(site, "lora_B"):
                for factor in site.lora_B.values():
                    factor.weight.normal_()
        losses = {answer_nats(model.network, batch)[0].item() for _ in range(4)}
    assert len(losses) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_factors_are_wide_on_a_narrow_base(dtype: str, tmp_path: Path) -> None:
    """Small steps would round away in 16 bits; PEFT has them in float32 too."""
    path = saved_model(tmp_path)
    model = CausalLMModule(path, lora=BOTH, dtype=dtype)
    expected = torch.float32 if dtype == "auto" else getattr(torch, dtype)  # it was saved so
    dtypes = {".lora_" in name: parameter.dtype for name, parameter in model.named_parameters()}

    assert dtypes == {False: expected, True: torch.float32}
    if dtype == "bfloat16":
        before = weights(model)
        trainer(LONE).fit(model, training_loader())
        after = weights(model)
        assert all(".lora_" in name for name, value in before.items() if not torch.equal(value, after[name]))
        assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_the_optimizer_knows_what_trains_now_or_later() -> None:
    """Not the frozen base; but what a Freezer holds at the beginning."""
    model = module(lora=BOTH)
    freezer = Freezer(patterns="layers:mlp.*", until_step=2)
    run = trainer(LONE, callbacks=[freezer])
    run.fit(model, training_loader())
    known = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}

    assert known == {id(p) for name, p in model.named_parameters() if ".lora_" in name}
    assert [group["name"] for group in run.optimizers[0].param_groups] == ["matrices"]


def test_an_optimizer_and_a_scheduler_of_ones_own() -> None:
    """As YAML builds them."""
    network = causal_lm()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    run = trainer(LONE)
    run.fit(module(network=network, optimizer=optimizer, scheduler=scheduler), training_loader())

    assert run.optimizers[0] is optimizer
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@both
def test_it_says_how_much_trains(namespace: str, caplog: Any, tmp_path: Path) -> None:
    """In one line, and to the loggers."""
    from importlib import import_module

    logger = import_module(f"{namespace}.loggers").CSVLogger(tmp_path)
    caplog.set_level("INFO", "lighter_freezers")
    caplog.handler.setLevel("INFO")
    import logging

    logging.getLogger("lighter_freezers").addHandler(caplog.handler)
    try:
        trainer(namespace, logger=logger).fit(module(namespace, lora=BOTH), training_loader())
    finally:
        logging.getLogger("lighter_freezers").removeHandler(caplog.handler)

    assert "3,072 of 13,168 parameters train, 23.3 %" in caplog.messages
    header, first = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[:2]
    logged = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(logged["model/trainable_parameters"]) == 3072
    assert float(logged["model/parameters"]) == 13168


def test_a_peft_model_as_it_is(tmp_path: Path) -> None:
    """One that PEFT has made trains as well."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # some versions of transformers warn of what PEFT calls
        network = get_peft_model(causal_lm(), LoraConfig(r=2, target_modules=["q_proj"]))
    model = module(network=network, learning_rate=0.05)
    before = weights(model)
    trainer(LONE, max_epochs=2).fit(model, training_loader(), training_loader())
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}

    assert changed == {name for name in before if ".lora_" in name}
    with pytest.raises(ValueError, match="has an adapter already"):
        module(network=network, lora=BOTH)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({}, ValueError, "Give either model.*or network.*Got neither"),
        ({"model": "x", "network": nn.Linear(1, 1)}, ValueError, "Got both"),
        ({"network": nn.Linear(1, 1)}, TypeError, "causal language model of transformers.*Got Linear"),
        ({"model": nn.Linear(1, 1)}, TypeError, "model must be a text or a PathLike. Got Linear"),
        ({"model": "x", "dtype": "int8"}, ValueError, "dtype must be one of auto, float32"),
        ({"learning_rate": "2e-4"}, TypeError, "learning_rate must be a number.*5.0e-5"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be at least 0"),
        ({"lr_schedule": "cosinus"}, ValueError, "lr_schedule must be one of cosine, linear, constant"),
        ({"warmup_steps": 1.5}, TypeError, "warmup_steps must be a whole number"),
        ({"warmup_steps": None}, TypeError, "warmup_steps must be a whole number"),
        ({"metrics": ["blue"]}, ValueError, "unknown metric 'blue'. Closest: 'bleu'"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"gradient_checkpointing": "yes"}, TypeError, "gradient_checkpointing must be true or false"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a.? Optimizer"),
        ({"scheduler": "cosine"}, TypeError, "scheduler must be a.? LRScheduler"),
        ({"model": "x", "tokenizer": 3}, TypeError, "tokenizer must be a path or a tokenizer.*Got 3"),
    ],
)
def test_mistakes_in_the_arguments_are_told(wrong: Any, error: type[Exception], message: str) -> None:
    """At once, before anything is loaded."""
    with pytest.raises(error, match=message):
        CausalLMModule(**wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"dtype": "bfloat16"}, ValueError, "dtype and load_options are for a model that is loaded"),
        ({"lora": 8}, TypeError, "lora must be a mapping"),
        ({"lora": {"r": "8", "target": "both"}}, TypeError, "config.r must be a number"),
        ({"lora": {"r": 8, "target": "attention"}}, ValueError, "Closest: 'attention_only'"),
        ({"lora": {"r": 8, "target_modules": ["q_prj"]}}, ValueError, "Closest: 'q_proj'"),
        ({"lora": {"rank": 8, "target": "both"}}, ValueError, "peft.LoraConfig does not know 'rank'"),
    ],
)
def test_mistakes_about_the_network_are_told(wrong: Any, error: type[Exception], message: str) -> None:
    """With what would be right."""
    with pytest.raises(error, match=message):
        CausalLMModule(network=causal_lm(), **wrong)


def test_a_run_without_an_end_needs_a_constant_rate() -> None:
    """Without a known end of the run a decay has no end."""
    endless = {"max_epochs": -1, "max_time": "00:00:00:02"}
    with pytest.raises(ValueError, match="lr_schedule: cosine falls until the end.*max_steps"):
        trainer(LONE, **endless).fit(module(), training_loader())
    network = causal_lm()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="Every parameter is frozen"):
        trainer(LONE).fit(module(network=network), training_loader())


class Data:
    """What a data module tells about its tokens."""

    def __init__(self, vocab_size: int, source: Any = None) -> None:
        from lighter_freezers.experiments.data.prompt_tokenizer import prompt_tokenizer

        self.vocab_size = vocab_size
        self.tokenizer = prompt_tokenizer(source or tokenizer())


def test_data_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    """Its numbers would stand for other tokens: nothing would fail, and nothing would be learnt."""
    from lighter_freezers.experiments.training.causal_lm_network import check_tokens_fit

    path = saved_model(tmp_path / "model")
    other = tokenizer()
    other.add_tokens(["ferry"])
    check_tokens_fit(causal_lm(), path, Data(96))
    check_tokens_fit(causal_lm(), None, Data(96, other))
    check_tokens_fit(causal_lm(), path, None)
    with pytest.raises(ValueError, match="The data have 97 tokens, but LlamaForCausalLM has 96"):
        check_tokens_fit(causal_lm(), None, Data(97))
    with pytest.raises(ValueError, match=r"not encoded with the tokenizer of .*model, so its weights"):
        check_tokens_fit(causal_lm(), path, Data(96, other))


@pytest.mark.wide
def test_without_transformers_the_extra_is_named(tmp_path: Path) -> None:
    """A fresh interpreter that has none."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from lighter_freezers.experiments.causal_models import load_causal_model\n"
        "load_causal_model('somewhere')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )

    assert done.returncode == 1
    assert 'pip install "lighter-freezers[experiments]"' in done.stderr.splitlines()[-1]


def test_a_model_that_is_nowhere_is_the_word_of_transformers(monkeypatch: Any, tmp_path: Path) -> None:
    """It says where it looked."""
    with pytest.raises((OSError, ValueError), match="nowhere"):
        CausalLMModule(str(tmp_path / "nowhere"))
