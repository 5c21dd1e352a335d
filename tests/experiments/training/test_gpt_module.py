"""GPTModule as a language model under real Trainers of both namespaces, and what all modes share."""

import math
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from lighter_freezers import GPT
from tests.distributed.run_ranks import run_ranks
from tests.experiments.training.gpts import HOMES, module, network
from tests.lab import NAMESPACES, recorder, trainer
from tests.texts import write_texts

both = pytest.mark.parametrize("namespace", NAMESPACES)


def text_data(namespace: str, folder: Path, **options: Any) -> Any:
    """Four batches to train on, and two unequal ones to validate and to test on."""
    if not (folder / "texts").exists():
        write_texts(folder / "texts")
    rows = {"num_train_sequences": 32, "num_val_sequences": 12, "num_test_sequences": 10}
    files = {"text": str(folder / "texts"), "cache_dir": str(folder / "cache")}
    arguments = {"vocab_size": 300, "block_size": 16, "batch_size": 8, **rows, **files, **options}
    return import_module(HOMES[namespace]).TextDataModule(**arguments)


@torch.no_grad()
def figures_by_hand(gpt: GPT, data: Any, split: str) -> dict[str, float]:
    """Loss, perplexity and bits per byte, one row and one token after the other."""
    nats = tokens = num_bytes = 0.0
    sizes = data.tokenizer.bytes_per_token()
    for batch in getattr(data, f"{split}_dataloader")():
        for row, targets in zip(batch["input_ids"], batch["targets"], strict=True):
            chances = gpt(row[None])[0][0].double().log_softmax(-1)
            nats -= sum(float(chances[time, token]) for time, token in enumerate(targets))
            tokens += len(targets)
            num_bytes += sum(sizes[token] for token in targets)
    loss = nats / tokens
    bits = nats / math.log(2) / num_bytes
    return {f"{split}/loss": loss, f"{split}/perplexity": math.exp(loss), f"{split}/bits_per_byte": bits}


@both
def test_it_learns_and_logs(namespace: str, tmp_path: Path) -> None:
    """Training loss each step, three validation figures each check; better than it began."""
    model, run = module(namespace, learning_rate=0.01), trainer(namespace, max_epochs=10)
    data = text_data(namespace, tmp_path)
    (before,) = run.validate(model, datamodule=data, verbose=False)
    run.fit(model, datamodule=data)
    after = run.callback_metrics

    assert set(after) == {"train/loss", "val/loss", "val/perplexity", "val/bits_per_byte"}
    assert after["val/bits_per_byte"] < 0.8 * before["val/bits_per_byte"]
    assert after["train/loss"] < math.log(300) - 1


@both
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_figures_are_those_of_the_whole_text(namespace: str, split: str, tmp_path: Path) -> None:
    """Total nats over all tokens and over all bytes, not a mean over batches of unequal size."""
    model, data = module(namespace), text_data(namespace, tmp_path)
    run = trainer(namespace)
    (logged,) = {"val": run.validate, "test": run.test}[split](model, datamodule=data, verbose=False)

    assert logged == pytest.approx(figures_by_hand(model.network, data, split), rel=1e-5)


@both
def test_a_second_evaluation_starts_from_nothing(namespace: str, tmp_path: Path) -> None:
    """Nor does the sanity check before a fit leave anything behind."""
    model, data = module(namespace, learning_rate=1.0e-9), text_data(namespace, tmp_path)
    run = trainer(namespace, num_sanity_val_steps=1)
    run.fit(model, datamodule=data)
    (again,) = run.validate(model, datamodule=data, verbose=False)

    assert again == pytest.approx(figures_by_hand(model.network, data, "val"), rel=1e-5)


@both
def test_a_step_is_that_of_plain_torch(namespace: str, tmp_path: Path) -> None:
    """Four batches by hand give the same weights, bit for bit."""
    by_hand, data = network(), text_data(namespace, tmp_path)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    data.setup("fit")
    for batch in data.train_dataloader():
        logits = by_hand(batch["input_ids"])[0]
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten()).backward()
        optimizer.step()
    gpt = network()
    model = module(namespace, gpt, optimizer=torch.optim.SGD(gpt.parameters(), lr=0.1))
    trainer(namespace).fit(model, datamodule=text_data(namespace, tmp_path))

    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), by_hand.parameters(), strict=True))


@both
@pytest.mark.parametrize("num_first_steps", [2, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(
    namespace: str, num_first_steps: int, tmp_path: Path
) -> None:
    """AdamW's state and the order of the batches go on, cut in the first or second epoch of four steps."""
    weights = []
    for stops in ([10], [num_first_steps, 10]):
        for index, stop in enumerate(stops):
            model = module(namespace)
            run = trainer(namespace, max_epochs=-1, max_steps=stop)
            checkpoint = tmp_path / "cut.ckpt" if index else None
            run.fit(model, datamodule=text_data(namespace, tmp_path), ckpt_path=checkpoint)
            run.save_checkpoint(tmp_path / "cut.ckpt")
        weights.append(nn.utils.parameters_to_vector(model.network.parameters()))

    assert torch.equal(*weights)


def test_without_an_optimizer_adamw_takes_all_parameters() -> None:
    """Matrices decay, vectors do not, and what is frozen now is there for when it thaws."""
    gpt = network(bias=True)
    gpt.freeze_layer("attn.0")
    optimizer = module("pytorch_lightning", gpt, weight_decay=0.2, learning_rate=0.5).configure_optimizers()
    matrices, vectors = (group["params"] for group in optimizer.param_groups)

    assert {id(p) for p in (*matrices, *vectors)} == {id(p) for p in gpt.parameters()}
    assert {p.ndim for p in matrices} == {2}
    assert {p.ndim for p in vectors} == {1}
    assert [(g["weight_decay"], g["lr"], g["fused"]) for g in optimizer.param_groups] == [
        (0.2, 0.5, True),
        (0.0, 0.5, True),
    ]


def halving(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda count: 0.5**count)


@both
@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda _: None, {}, [1.0] * 8),
        (halving, {}, [0.5**n for n in range(8)]),
        (halving, {"scheduler_interval": "epoch"}, [1.0] * 4 + [0.5] * 4),
        (lambda optimizer: {"scheduler": halving(optimizer), "interval": "epoch"}, {}, [1.0] * 4 + [0.5] * 4),
        (
            lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.1, patience=0, mode="max", threshold=9.0),
            {"scheduler_interval": "epoch", "scheduler_monitor": "val/loss"},
            [1.0] * 8,
        ),
    ],
    ids=["none", "step", "epoch", "dictionary", "plateau"],
)
def test_a_scheduler_goes_on_when_it_should(
    namespace: str,
    make: Callable[[torch.optim.Optimizer], Any],
    options: dict[str, Any],
    expected: list[float],
    tmp_path: Path,
) -> None:
    """The learning rate of each step; the optimizer is the one that was given."""
    gpt = network()
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)
    model = module(namespace, gpt, optimizer=optimizer, scheduler=make(optimizer), **options)
    rates = recorder(namespace, lambda *_: optimizer.param_groups[0]["lr"], "on_train_batch_start")
    run = trainer(namespace, max_epochs=2, callbacks=[rates])
    run.fit(model, datamodule=text_data(namespace, tmp_path))

    assert rates.seen == pytest.approx(expected)
    assert run.optimizers == [optimizer]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gpt": nn.Linear(1, 1)}, TypeError, "network must be a GPT. Got Linear"),
        ({"optimizer": "$torch.optim.SGD"}, TypeError, "optimizer must be a.? Optimizer"),
        ({"learning_rate": "1e-3"}, TypeError, "YAML reads 5e-5 as a string"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1. Got 0"),
        ({"temperature": math.inf}, ValueError, "temperature must be at least 0 .0 is greedy.. Got inf"),
        ({"temperature": "0.5"}, TypeError, "temperature must be a number"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, or None. Got 0"),
        ({"top_p": 1.5}, ValueError, "top_p must be between 0 and 1. Got 1.5"),
        ({"eos_token_id": "0"}, TypeError, "eos_token_id must be a whole number"),
        ({"head_learning_rate": "1e-2"}, TypeError, "YAML reads 5e-5 as a string"),
        ({"loss_modifiers": ["entropy"]}, TypeError, "loss_modifiers must be a LossModif"),
        ({"scheduler_interval": "batch"}, ValueError, "scheduler_interval must be one of step, epoch"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before any Trainer sees them."""
    with pytest.raises(error, match=message):
        module("pytorch_lightning", **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda optimizer: {"interval": "step"}, TypeError, "a dictionary with one under 'scheduler'"),
        (lambda optimizer: "cosine", TypeError, "scheduler must be a.? LRScheduler.*Got 'cosine'"),
        (ReduceLROnPlateau, ValueError, "needs a metric: name it, such as `scheduler_monitor"),
    ],
)
def test_a_scheduler_that_could_not_run_is_refused(
    make: Callable[[torch.optim.Optimizer], Any], error: type[Exception], message: str
) -> None:
    """With what to write instead."""
    gpt = network()
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)

    with pytest.raises(error, match=message):
        module("pytorch_lightning", gpt, optimizer=optimizer, scheduler=make(optimizer))


def test_a_scheduler_needs_its_optimizer() -> None:
    """One that drives an optimizer of its own would do nothing."""
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)

    with pytest.raises(ValueError, match="give that optimizer too"):
        module("pytorch_lightning", scheduler=StepLR(optimizer, 1))


def test_a_rate_for_the_head_needs_no_other_optimizer() -> None:
    """With an optimizer it would be an unused value."""
    gpt = network("token_classifier")
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)

    with pytest.raises(ValueError, match="head_learning_rate is for the AdamW that is made"):
        module("pytorch_lightning", gpt, optimizer=optimizer, head_learning_rate=0.1)


@pytest.mark.parametrize("mode", ["token_classifier", "sequence_scorer"])
def test_the_head_can_have_a_rate_of_its_own(mode: str) -> None:
    """The trunk has the other one; matrices decay and vectors do not, in both."""
    gpt = network(mode)
    optimizer = module(
        "pytorch_lightning", gpt, learning_rate=0.1, head_learning_rate=0.2, weight_decay=0.3
    ).configure_optimizers()
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    options = {
        name: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"]) for name, p in gpt.named_parameters()
    }
    head = {name: value for name, value in options.items() if not name.startswith("transformer.")}

    assert options["transformer.wte.weight"] == (0.1, 0.3)
    assert options["transformer.ln_f.weight"] == (0.1, 0.0)
    assert set(head.values()) == {(0.2, 0.3), (0.2, 0.0)}
    assert len(options) == len(list(gpt.parameters()))


@both
def test_data_with_more_tokens_than_the_model_are_refused(namespace: str, tmp_path: Path) -> None:
    """Before the first batch, with both numbers; more rows than tokens are fine."""
    with pytest.raises(ValueError, match="data have 300 tokens, but the model has vocab_size=280"):
        trainer(namespace).fit(
            module(namespace, network(vocab_size=280)), datamodule=text_data(namespace, tmp_path)
        )
    trainer(namespace, max_steps=1).fit(
        module(namespace, network(vocab_size=320)), datamodule=text_data(namespace, tmp_path)
    )


@both
@pytest.mark.parametrize("run_name", ["fit", "validate", "test", "predict"])
def test_data_of_another_kind_are_refused(namespace: str, run_name: str, tmp_path: Path) -> None:
    """A classifier learns nothing from tokens that follow; each way to run it raises the error."""
    run, data = trainer(namespace), text_data(namespace, tmp_path)
    model = module(namespace, network("token_classifier"))

    with pytest.raises(ValueError, match="data of TextDataModule are for mode: language_model.*Set the GPT"):
        getattr(run, run_name)(model, datamodule=data)


@both
def test_predicting_continues_each_sequence(namespace: str, tmp_path: Path) -> None:
    """The new tokens only, those of `GPT.generate`."""
    model, data = module(namespace, max_new_tokens=5), text_data(namespace, tmp_path)
    data.setup("fit")
    rows = [{"input_ids": batch["input_ids"][:, :10]} for batch in data.val_dataloader()]
    predicted = trainer(namespace).predict(model, DataLoader(rows, batch_size=None))

    assert [tuple(tokens.shape) for tokens in predicted] == [(8, 5), (4, 5)]
    expected = model.network.generate(rows[0]["input_ids"], 5, temperature=0)[:, 10:]
    assert torch.equal(predicted[0], expected)


@both
def test_predicting_from_a_data_module_gives_text_too(namespace: str, tmp_path: Path) -> None:
    """Decoded by its tokenizer, as far as the end of the text."""
    data = text_data(namespace, tmp_path)
    model = module(namespace, max_new_tokens=5, temperature=0.8, top_k=20, top_p=0.9, eos_token_id=0)
    (first, _) = trainer(namespace).predict(model, datamodule=data)

    assert first["tokens"].shape == (8, 5)
    assert first["text"] == [data.tokenizer.decode(row.tolist()) for row in first["tokens"]]


def test_the_options_of_generation_reach_it() -> None:
    """Drawn with the same seed, the tokens are those of `generate` with the same options."""
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "eos_token_id": 7}
    model = module("pytorch_lightning", max_new_tokens=12, **options)
    input_ids = torch.arange(24).reshape(2, 12)
    seed = recorder("pytorch_lightning", lambda *_: torch.manual_seed(1), "on_predict_batch_start")
    loader = DataLoader([{"input_ids": input_ids}], batch_size=None)
    (predicted,) = trainer("pytorch_lightning", callbacks=[seed]).predict(model, loader)
    torch.manual_seed(1)

    assert torch.equal(predicted, model.network.generate(input_ids, 12, **options)[:, 12:])


def test_padding_is_not_continued() -> None:
    """Each row goes on from its own end, as it would alone."""
    model = module("pytorch_lightning", max_new_tokens=4)
    rows = torch.arange(1, 31).reshape(3, 10)
    lengths = [10, 3, 7]
    mask = torch.arange(10) < torch.tensor(lengths)[:, None]
    batch = {"input_ids": rows.masked_fill(~mask, 0), "attention_mask": mask}
    (predicted,) = trainer("pytorch_lightning").predict(model, DataLoader([batch], batch_size=None))
    alone = [
        model.network.generate(row[None, :length], 4, temperature=0)[0, length:]
        for row, length in zip(rows, lengths, strict=True)
    ]

    assert torch.equal(predicted, torch.stack(alone))


def _rank(folder: Path) -> dict[str, Any]:
    """Four steps of two ranks, then the validation figures."""
    gpt = network()
    model = module("pytorch_lightning", gpt, optimizer=torch.optim.SGD(gpt.parameters(), lr=0.1))
    run = trainer("pytorch_lightning", strategy="ddp", devices=2)
    run.fit(model, datamodule=text_data("pytorch_lightning", folder, batch_size=4))
    figures = {name: float(value) for name, value in run.callback_metrics.items() if "val" in name}
    return {"figures": figures, "weights": nn.utils.parameters_to_vector(gpt.parameters()).detach()}


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Both ranks log the figures of the whole text, and end with the weights of one process."""
    gpt, data = network(), text_data("pytorch_lightning", tmp_path)
    model = module("pytorch_lightning", gpt, optimizer=torch.optim.SGD(gpt.parameters(), lr=0.1))
    trainer("pytorch_lightning").fit(model, datamodule=data)
    one = figures_by_hand(gpt, data, "val")
    ranks = run_ranks(_rank, tmp_path, 2, tmp_path)

    assert ranks[0]["figures"] == ranks[1]["figures"] == pytest.approx(one, rel=1e-4)
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    weights = nn.utils.parameters_to_vector(gpt.parameters())
    assert torch.allclose(ranks[0]["weights"], weights, atol=1e-5)


@pytest.mark.wide
def test_it_imports_one_namespace_only() -> None:
    """In a fresh interpreter; `lighter_freezers.lightning` is looked at with the TextDataModule."""
    code = "from lighter_freezers import GPTModule; import sys; sys.exit('lightning' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)

    assert run.returncode == 0


@both
def test_its_checkpoint_tells_what_the_weights_do_not(namespace: str, tmp_path: Path) -> None:
    """Two heads or four have the same weights; a GPT with the wrong number of heads does not load them."""
    run = trainer(namespace, max_steps=1)
    run.fit(module(namespace), datamodule=text_data(namespace, tmp_path))
    run.save_checkpoint(tmp_path / "last.ckpt")

    network(init_from_checkpoint=str(tmp_path / "last.ckpt"))
    with pytest.raises(ValueError, match="n_head=2"):
        network(n_head=4, init_from_checkpoint=str(tmp_path / "last.ckpt"))
