"""GPTModule as a token classifier and as a sequence scorer, under real Trainers of both namespaces."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lighter_freezers import GPT, LossModifierPipeline
from lighter_freezers.gpt.losses import (
    EntropyModifier,
    SequenceVarianceModifier,
    TargetSmoothingModifier,
    create_loss_modifier_pipeline,
)
from tests.distributed.run_ranks import run_ranks
from tests.experiments.training.gpts import CLASSES, batch_of, loader_of, module, network, own_data
from tests.lab import NAMESPACES, recorder, trainer

PL = "pytorch_lightning"
NEW_MODES = ("token_classifier", "sequence_scorer")
FIGURES = {
    "language_model": {"loss", "perplexity", "bits_per_byte"},
    "token_classifier": {"loss", "accuracy", "macro_f1", *(f"f1/{name}" for name in CLASSES)},
    "sequence_scorer": {"loss", "mse", "r2", "pearson"},
}
both = pytest.mark.parametrize("namespace", NAMESPACES)
each_new_mode = pytest.mark.parametrize("mode", NEW_MODES)
torch.set_num_threads(1)


@torch.no_grad()
def rows_one_by_one(gpt: GPT, data: Any, split: str) -> list[tuple[Tensor, Tensor]]:
    """What the model says of each row alone, without its padding, and the row's targets."""
    rows = []
    for batch in getattr(data, f"{split}_dataloader")():
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]).bool())
        for ids, targets, real in zip(batch["input_ids"], batch["targets"], mask, strict=True):
            rows.append((gpt(ids[real][None])[0][0], targets[real] if targets.ndim else targets))
    return rows


def figures_by_hand(gpt: GPT, data: Any, split: str) -> dict[str, float]:
    """The figures of a mode in plain arithmetic."""
    rows = rows_one_by_one(gpt, data, split)
    if gpt.config.mode == "sequence_scorer":
        guess, truth = (np.array([float(row[i]) for row in rows]) for i in (0, 1))
        mse = ((guess - truth) ** 2).mean()
        pearson = np.corrcoef(guess, truth)[0, 1]
        found = {"loss": mse, "mse": mse, "r2": 1 - mse / truth.var(), "pearson": pearson}
        return {f"{split}/{name}": float(value) for name, value in found.items()}
    pairs = [(c, int(t)) for logits, row in rows for c, t in zip(logits, row, strict=True) if t >= 0]
    guessed, actual = [int(chances.argmax()) for chances, _ in pairs], [truth for _, truth in pairs]
    met = [a for g, a in zip(guessed, actual, strict=True) if g == a]
    f1 = [2 * met.count(k) / max(1, guessed.count(k) + actual.count(k)) for k in range(len(CLASSES))]
    found = {
        "loss": -sum(float(chances.double().log_softmax(-1)[truth]) for chances, truth in pairs) / len(pairs),
        "accuracy": len(met) / len(pairs),
        "macro_f1": sum(f1) / sum(k in guessed + actual for k in range(len(CLASSES))),
        **{f"f1/{name}": value for name, value in zip(CLASSES, f1, strict=True)},
    }
    return {f"{split}/{name}": value for name, value in found.items()}


@both
@pytest.mark.parametrize("mode", FIGURES)
def test_each_mode_learns_from_rows_and_logs(mode: str, namespace: str, tmp_path: Path) -> None:
    """The training loss at each step, the figures of the mode at each check, and it gets better."""
    model, run = module(namespace, network(mode), learning_rate=0.01), trainer(namespace, max_epochs=10)
    data = own_data(namespace, mode, tmp_path)
    (before,) = run.validate(model, datamodule=data, verbose=False)
    run.fit(model, datamodule=data)
    after = {name: float(value) for name, value in run.callback_metrics.items()}

    assert set(after) == {"train/loss", *(f"val/{name}" for name in FIGURES[mode])}
    assert after["val/loss"] < 0.8 * before["val/loss"]
    assert all(math.isfinite(value) for value in after.values())


@both
@each_new_mode
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_figures_are_those_of_all_rows(namespace: str, mode: str, split: str, tmp_path: Path) -> None:
    """Not means over batches of unequal size, and padding changes nothing."""
    model, data = module(namespace, network(mode)), own_data(namespace, mode, tmp_path)
    run = trainer(namespace)
    (logged,) = {"val": run.validate, "test": run.test}[split](model, datamodule=data, verbose=False)

    assert logged == pytest.approx(figures_by_hand(model.network, data, split), rel=1e-4)


@both
@each_new_mode
def test_a_second_evaluation_starts_from_nothing(namespace: str, mode: str, tmp_path: Path) -> None:
    """Nor does the sanity check before a fit leave anything behind."""
    model, data = module(namespace, network(mode), learning_rate=1e-9), own_data(namespace, mode, tmp_path)
    run = trainer(namespace, num_sanity_val_steps=1)
    run.fit(model, datamodule=data)
    fitted = {name: float(value) for name, value in run.callback_metrics.items() if "val/" in name}
    (again,) = run.validate(model, datamodule=data, verbose=False)

    assert fitted == pytest.approx(again, rel=1e-4)
    assert again == pytest.approx(figures_by_hand(model.network, data, "val"), rel=1e-4)


def test_without_names_the_classes_are_numbers() -> None:
    """A DataLoader alone knows none."""
    run = trainer(PL)
    (logged,) = run.validate(
        module(PL, network("token_classifier")), loader_of("token_classifier"), verbose=False
    )

    assert set(logged) == {f"val/{name}" for name in ("loss", "accuracy", "macro_f1", "f1/0", "f1/1", "f1/2")}


def test_soft_targets_train_and_are_evaluated() -> None:
    """Probabilities of the classes, (B, T, K), as they come from a larger model."""
    hard = batch_of("token_classifier")
    soft = {**hard, "targets": F.one_hot(hard["targets"], 3).float() * 0.8 + 0.2 / 3}
    model, run = module(PL, network("token_classifier")), trainer(PL)
    loader = DataLoader([soft], batch_size=None)
    (before,) = run.validate(model, loader, verbose=False)
    logits = model(soft["input_ids"]).detach()
    expected = F.cross_entropy(logits.flatten(0, 1), soft["targets"].flatten(0, 1))
    run.fit(model, loader, loader)

    assert before["val/loss"] == pytest.approx(float(expected))
    assert run.callback_metrics["train/loss"] == pytest.approx(float(expected))


@both
@pytest.mark.parametrize(
    ("mode", "modifiers"),
    [
        ("language_model", [TargetSmoothingModifier(factor=0.3)]),
        ("token_classifier", [EntropyModifier(), TargetSmoothingModifier(factor=0.3)]),
        ("sequence_scorer", [SequenceVarianceModifier()]),
    ],
)
def test_loss_modifiers_act_in_training_only(
    namespace: str, mode: str, modifiers: list[Any], tmp_path: Path
) -> None:
    """The training loss is the modified one, the validation loss the plain one, of the same batch."""
    gpt, batch = network(mode), batch_of(mode)
    with torch.no_grad():
        gpt.head.weight.mul_(30)  # surer than at the start, or a modifier would hardly change a thing
    loss = LossModifierPipeline(modifiers)
    modified = gpt.loss(batch["input_ids"], batch["targets"], loss_modifiers=loss).detach()
    plain = gpt.loss(batch["input_ids"], batch["targets"]).detach()
    loader = DataLoader([batch], batch_size=None)
    model = module(namespace, gpt, loss_modifiers=loss, learning_rate=1e-9)
    run = trainer(namespace)
    run.fit(model, loader, loader)
    logged = run.callback_metrics

    assert float(logged["train/loss"]) == pytest.approx(float(modified), rel=1e-5)
    assert float(logged["val/loss"]) == pytest.approx(float(plain), rel=1e-5)
    assert float(modified) != pytest.approx(float(plain), rel=1e-3)
    assert any("train/modifier/" in name for name in logged)


def test_loss_modifiers_can_be_given_as_keys() -> None:
    """Those of `create_loss_modifier_pipeline`, as YAML has them."""
    keys = {"loss_modifiers_enabled": True, "target_smoothing_enabled": True, "target_smoothing_factor": 0.3}
    batch = batch_of("token_classifier")
    losses = []
    for given in (keys, create_loss_modifier_pipeline(keys), None):
        run = trainer(PL)
        model = module(PL, network("token_classifier"), loss_modifiers=given)
        run.fit(model, *[DataLoader([batch], batch_size=None)] * 2)
        losses.append(float(run.callback_metrics["train/loss"]))

    assert losses[0] == losses[1] != losses[2]


def test_their_figures_reach_the_logger_when_it_wants_some(tmp_path: Path) -> None:
    """Each is that of the step it is logged at, at the logger's interval."""
    pipeline = LossModifierPipeline([EntropyModifier()])
    model = module(PL, network("token_classifier"), loss_modifiers=pipeline, learning_rate=1e-9)
    run = trainer(PL, logger=CSVLogger(tmp_path), log_every_n_steps=2, limit_val_batches=0)
    run.fit(model, *[loader_of("token_classifier")] * 2)
    rows = [
        line.split(",") for line in Path(run.logger.experiment.metrics_file_path).read_text().splitlines()
    ]
    logged = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    by_hand = []
    for seed in (1, 3):
        batch = batch_of("token_classifier", seed=seed)
        alone = LossModifierPipeline([EntropyModifier()])
        model.network.loss(batch["input_ids"], batch["targets"], loss_modifiers=alone)
        by_hand.append(float(alone.get_all_metrics()["EntropyModifier.entropy"]))

    assert [row["step"] for row in logged] == ["1", "3"]
    found = [float(row["train/modifier/EntropyModifier.entropy"]) for row in logged]
    assert found == pytest.approx(by_hand, rel=1e-5)


@both
@each_new_mode
def test_data_that_do_not_fit_are_refused_with_what_to_set(namespace: str, mode: str, tmp_path: Path) -> None:
    """Other classes, another [CLS], or fewer rows of embeddings than tokens."""
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "token_classifier": (
            {"num_token_classes": 5},
            r"3 classes \(O, PERSON, PLACE\).*num_token_classes=5. Set the GPT's num_token_classes to 3",
        ),
        "sequence_scorer": (
            {"cls_token_id": 7},
            "the token 299.*cls_token_id=7. Set the GPT's cls_token_id to",
        ),
    }
    changes, message = wrong[mode]
    for gpt, expected in (
        (network(mode, **changes), message),
        (
            network(mode, vocab_size=260, **({"cls_token_id": 259} if mode == NEW_MODES[1] else {})),
            "vocab_size=",
        ),
    ):
        with pytest.raises(ValueError, match=expected):
            trainer(namespace).fit(module(namespace, gpt), datamodule=own_data(namespace, mode, tmp_path))


@both
def test_a_classifier_predicts_tokens_with_their_classes(namespace: str, tmp_path: Path) -> None:
    """For each row, without its padding, the text of each token and the name of its class."""
    model = module(namespace, network("token_classifier"))
    data = own_data(namespace, "token_classifier", tmp_path)
    predicted = trainer(namespace).predict(model, datamodule=data)
    rows = [row for batch in predicted for row in batch]
    by_hand = [logits.argmax(-1).tolist() for logits, _ in rows_one_by_one(model.network, data, "test")]

    texts = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").read_text().splitlines()]

    assert ["".join(token for token, _ in row) for row in rows] == texts
    assert [[name for _, name in row] for row in rows] == [[CLASSES[k] for k in row] for row in by_hand]


@both
def test_a_scorer_predicts_scores(namespace: str, tmp_path: Path) -> None:
    """One for each row, that which it would have alone."""
    model = module(namespace, network("sequence_scorer"))
    data = own_data(namespace, "sequence_scorer", tmp_path)
    scores = torch.cat(trainer(namespace).predict(model, datamodule=data))
    alone = torch.stack([score for score, _ in rows_one_by_one(model.network, data, "test")])

    assert scores.shape == (10,)
    assert torch.allclose(scores, alone, atol=1e-6)


def test_from_a_loader_alone_predictions_are_numbers() -> None:
    """The names of tokens and classes are unknown."""
    model = module(PL, network("token_classifier"))
    batch = {"input_ids": batch_of("token_classifier")["input_ids"]}
    (predicted,) = trainer(PL).predict(model, DataLoader([batch], batch_size=None))
    classes = model(batch["input_ids"]).argmax(-1)

    expected = zip(batch["input_ids"].tolist(), classes.tolist(), strict=True)
    assert predicted == [list(zip(ids, found, strict=True)) for ids, found in expected]


@each_new_mode
def test_options_of_generation_are_for_a_language_model(mode: str) -> None:
    """Given to another mode they would be ignored."""
    with pytest.raises(ValueError, match=f"top_k, eos_token_id: for mode: language_model.*is {mode}"):
        module(PL, network(mode), top_k=5, eos_token_id=0)


def rank(folder: Path) -> dict[str, dict[str, Any]]:
    """Four steps of two ranks in both modes, then the validation figures."""
    found = {}
    for mode in NEW_MODES:
        gpt = network(mode)
        model = module(PL, gpt, optimizer=torch.optim.SGD(gpt.parameters(), lr=0.1))
        run = trainer(PL, strategy="ddp", devices=2, max_epochs=1)
        run.fit(model, datamodule=own_data(PL, mode, folder / mode / f"rank{run.global_rank}", batch_size=4))
        figures = {name: float(value) for name, value in run.callback_metrics.items() if "val/" in name}
        found[mode] = {"figures": figures, "weights": dict(gpt.state_dict())}
    return found


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Both log the figures of all rows of the model that they have trained together."""
    for mode in NEW_MODES:
        for index in range(2):
            (tmp_path / mode / f"rank{index}").mkdir(parents=True)
    ranks = run_ranks(rank, tmp_path, 2, tmp_path)
    for mode in NEW_MODES:
        gpt = network(mode)
        gpt.load_state_dict(ranks[0][mode]["weights"])
        data = own_data(PL, mode, tmp_path)
        data.setup("fit")

        expected = pytest.approx(figures_by_hand(gpt, data, "val"), rel=1e-3)  # merged in float32
        assert ranks[0][mode]["figures"] == ranks[1][mode]["figures"] == expected
        vectors = [nn.utils.parameters_to_vector(r[mode]["weights"].values()) for r in ranks]
        assert torch.equal(*vectors)


@both
def test_a_step_costs_no_host_read(namespace: str) -> None:
    """With modifiers and their figures, no value of a batch is looked at in a step of the module."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        num = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.num += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
            return func(*args, **(kwargs or {}))

    model = module(
        namespace, network("token_classifier"), loss_modifiers=LossModifierPipeline([EntropyModifier()])
    )
    reads = Reads()
    step = model.training_step

    def watched(*arguments: Any) -> Tensor:
        with reads:
            return step(*arguments)

    model.training_step = watched
    seen = recorder(namespace, lambda *_: reads.num)
    trainer(namespace, callbacks=[seen], limit_val_batches=0).fit(model, *[loader_of("token_classifier")] * 2)

    assert seen.seen == [0] * 4
