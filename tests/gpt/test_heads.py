"""What the modes predict, and their losses: classes for tokens, and scores for sequences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lighter_freezers import GPT
from tests.gpt.networks import CLS, classifier, gradients, ignored, scorer, small, tokens, with_cls


def classes() -> Tensor:
    targets = tokens() % 3
    targets[:, :5] = ignored()
    return targets


def test_a_classifier_predicts_classes_for_every_token() -> None:
    """Ignored positions have no loss; its head has a bias and is called classifier_head."""
    model = classifier()
    logits, loss = model(tokens(), classes())

    assert logits.shape == (3, 16, 3)
    assert torch.allclose(loss, F.cross_entropy(logits.view(-1, 3), classes().view(-1)))
    assert model.head is model.classifier_head
    assert not hasattr(model, "lm_head")


def test_another_ignore_index_is_heeded() -> None:
    """Class 0 can be what does not count."""
    model = classifier(ignore_index=0)
    logits, loss = model(tokens(), tokens() % 3)

    assert torch.allclose(loss, F.cross_entropy(logits.view(-1, 3), (tokens() % 3).view(-1), ignore_index=0))


@pytest.mark.parametrize("weights", [(0.5, 2.0, 1.0), "balanced"])
def test_class_weights_weigh_the_mean(weights: Any) -> None:
    """Fixed, or so that each class of the batch counts the same."""
    logits, loss = classifier(class_weights=weights)(tokens(), classes())
    targets = classes().view(-1)
    if weights == "balanced":
        counts = targets[targets >= 0].bincount(minlength=3)
        weights = counts.sum() / (3 * counts)
    expected = F.cross_entropy(logits.view(-1, 3), targets, torch.as_tensor(weights))

    assert torch.allclose(loss, expected)


def test_class_weights_are_not_saved_but_move() -> None:
    """They are a part of the config, not of what was learnt."""
    model = classifier(class_weights=[1, 2, 3])

    assert not any("class_weights" in name for name in model.state_dict())
    assert model.to("meta").objective.class_weights.is_meta


def test_soft_targets_are_probabilities_of_classes() -> None:
    """Rows that sum to 0 do not count."""
    soft = torch.rand(3, 16, 3).softmax(dim=-1)
    soft[:, :5] = 0
    logits, loss = classifier()(tokens(), soft)
    expected = F.cross_entropy(logits[:, 5:].reshape(-1, 3), soft[:, 5:].reshape(-1, 3))

    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("weights", [None, "balanced", (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_without_targets_has_loss_zero(weights: Any, soft: bool) -> None:
    """With gradients of zero, not NaN; so has a language model's."""
    targets = torch.zeros(3, 16, 3) if soft else torch.full((3, 16), ignored())
    models: list[GPT] = [classifier(class_weights=weights)] + ([] if soft else [small()])
    for model in models:
        for loss in (model(tokens(), targets)[1], model.loss(tokens(), targets)):
            assert loss is not None
            loss.backward()
            assert loss.item() == 0
        assert gradients(model)
        assert not any(gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (classifier(), torch.zeros(3, 15, dtype=torch.long), r"one per token, here \(3, 16\). Got \(3, 15\)"),
        (classifier(), torch.zeros(3, 16), "whole numbers"),
        (classifier(), torch.zeros(3, 16, 2), r"here \(3, 16, 3\). Got \(3, 16, 2\)"),
        (classifier(), torch.zeros(3, 16, 3, dtype=torch.long), "Soft targets are probabilities"),
        (small(), torch.zeros(3, 16, 61), "one per token"),
        (scorer(), torch.zeros(3, 1), r"one target per sequence, here 3. Got targets of shape \(3, 1\)"),
    ],
)
def test_targets_of_another_shape_are_refused(model: GPT, targets: Tensor, message: str) -> None:
    """Broadcasting would make a loss of something else."""
    with pytest.raises(ValueError, match=message):
        model(with_cls(), targets)


def test_a_scorer_gives_one_score_per_sequence() -> None:
    """In (0, 1), by a linear head and a sigmoid; squared error; half at the start, nearly."""
    model, targets = scorer(), torch.tensor([0.0, 0.5, 1.0])
    scores, loss = model(with_cls(), targets.double())

    assert scores.shape == (3,)
    assert ((scores > 0.4) & (scores < 0.6)).all()
    assert torch.allclose(loss, ((scores - targets) ** 2).mean())
    assert model.head is model.sequence_head
    assert model.bfloat16()(with_cls())[0].dtype == torch.float32


def test_the_cls_embedding_stands_at_the_first_position() -> None:
    """It is a parameter of its own, so the token embedding's row is not used."""
    model = scorer()
    before, loss = model(with_cls(), torch.zeros(3))
    assert loss is not None
    loss.backward()
    assert model.cls_embedding is not None
    assert model.cls_embedding.grad is not None
    assert model.cls_embedding.grad.any()
    assert not model.transformer.wte.weight.grad[CLS].any()
    with torch.no_grad():
        model.cls_embedding.mul_(-1)
    assert not torch.allclose(before, model(with_cls())[0])


def test_a_sequence_without_cls_is_refused() -> None:
    """With what to do."""
    input_ids = with_cls()
    input_ids[1, 0] = 3

    with pytest.raises(ValueError, match="begins with cls_token_id=60: put it before"):
        scorer()(input_ids)


def full_scores(model: GPT, input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """The same model, with every position going through the last block."""
    trunk = model.transformer
    x = torch.cat((model.cls_embedding.expand(len(input_ids), 1, -1), trunk.wte(input_ids[:, 1:])), dim=1)
    x = x if trunk.wpe is None else x + trunk.wpe.weight[: input_ids.shape[1]]
    for block in trunk.h:
        x = block(x, mask)
    return model.sequence_head(trunk.ln_f(x)[:, 0]).sigmoid()[:, 0]


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("changes", [{}, {"bias": True}, {"use_rotary_embeddings": True}])
def test_only_cls_goes_through_the_last_block(changes: dict[str, bool], is_padded: bool) -> None:
    """And the loss and all gradients are those of the full computation."""
    model, targets = scorer(**changes), torch.tensor([0.0, 0.5, 1.0])
    real = torch.arange(16) < torch.tensor([16, 9, 1])[:, None] if is_padded else None
    _, loss = model(with_cls(), targets, attention_mask=real)
    assert loss is not None
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    full = F.mse_loss(full_scores(model, with_cls(), None if real is None else real[:, None, None]), targets)
    full.backward()

    assert torch.allclose(loss, full)
    assert ours.keys() == gradients(model).keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients(model).items():
        assert torch.allclose(ours[name], gradient, atol=1e-7), name


def test_a_scorer_saves_the_operations_of_the_last_block() -> None:
    """Counted: of 12 C * C per token and block, the last keeps 2 C * C for keys and values."""
    model = scorer(n_layer=6, n_embd=64)

    def operations(forward: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            forward().sum().backward()
        return counter.get_total_flops()

    ours = operations(lambda: model(with_cls())[0])
    full = operations(lambda: full_scores(model, with_cls(), None))
    assert ours / full < (5 * 12 + 2) / (6 * 12) + 0.01
    assert ours / full > (5 * 12 + 2) / (6 * 12) - 0.01


def test_an_addition_to_the_last_attention_is_not_left_out() -> None:
    """A module around the packed projection, as LoRA has it, or a hook on it, is called as it is."""

    class Doubled(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.base(x)

    wrapped, hooked = scorer(), scorer()
    wrapped.transformer.h[-1].attn.c_attn = Doubled(wrapped.transformer.h[-1].attn.c_attn)
    hooked.transformer.h[-1].attn.c_attn.register_forward_hook(lambda module, args, output: 2 * output)
    doubled = scorer()
    with torch.no_grad():
        doubled.transformer.h[-1].attn.c_attn.weight.mul_(2)

    expected = doubled(with_cls())[0]
    assert not torch.equal(expected, scorer()(with_cls())[0])
    assert torch.allclose(wrapped(with_cls())[0], expected)
    assert torch.allclose(hooked(with_cls())[0], expected)


class Spy:
    """A pipeline that says what it was asked, and is active for one mode."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.calls: list[Any] = []

    def is_active(self, mode: str) -> bool:
        return mode == self.mode

    def token_loss(self, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        self.calls.append((logits.shape, targets, options))
        return logits.sum()

    def score_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        self.calls.append((scores.shape, targets))
        return scores.sum()


def test_an_active_pipeline_makes_the_loss() -> None:
    """From all logits, in forward and in loss, with the weights and the index of the config."""
    spy, model = Spy("token_classifier"), classifier(class_weights=[1, 2, 3])
    logits, loss = model(tokens(), classes(), loss_modifiers=spy)
    alone = model.loss(tokens(), classes(), loss_modifiers=spy)

    assert torch.equal(loss, logits.sum())
    assert torch.equal(loss, alone)
    shape, targets, options = spy.calls[1]
    assert shape == (3, 16, 3)
    assert torch.equal(targets, classes())
    assert options.pop("class_weights").tolist() == [1, 2, 3]
    assert options == {"mode": "token_classifier", "ignore_index": ignored()}


def test_a_pipeline_of_scores_gets_scores() -> None:
    """(B) and (B)."""
    spy = Spy("sequence_scorer")
    scores, loss = scorer()(with_cls(), torch.zeros(3), loss_modifiers=spy)

    assert torch.equal(loss, scores.sum())
    assert spy.calls[0][0] == (3,)


def test_a_pipeline_without_effect_in_this_mode_leaves_the_plain_loss() -> None:
    """It is not even called."""
    spy, model = Spy("another"), small()
    _, loss = model(tokens(), tokens(), loss_modifiers=spy)

    assert torch.equal(loss, model(tokens(), tokens())[1])
    assert torch.equal(loss, model.loss(tokens(), tokens(), loss_modifiers=spy))
    assert not spy.calls


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("with_logits", [False, True])
def test_the_loss_of_a_language_model_is_float32(precision: str, ignored: bool, with_logits: bool) -> None:
    """Through `training_step` under a Trainer: at most 1e-3 from the same weights in float32."""
    import pytorch_lightning as pl

    from lighter_freezers import GPT, GPTConfig, GPTModule

    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 97, "block_size": 16}
    module = GPTModule(GPT(GPTConfig(**shape)))
    kept: dict[str, torch.Tensor] = {}

    class Compare(pl.Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, _: int
        ) -> None:
            if "whole" not in kept:
                whole = GPT(GPTConfig(**shape)).float()
                whole.load_state_dict({k: v.float() for k, v in module.network.state_dict().items()})
                kept["whole"] = whole(batch["input_ids"], batch["targets"], with_logits=with_logits)[1]

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            kept.setdefault("loss", trainer.callback_metrics["train/loss"])

    tokens = torch.randint(97, (8, 16), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    if ignored:
        targets[:, :5] = -100
    rows = [{"input_ids": row, "targets": target} for row, target in zip(tokens, targets, strict=True)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        precision=precision,
        callbacks=[Compare()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    trainer.fit(module, loader, loader)
    assert kept["loss"].dtype == torch.float32
    assert abs(kept["loss"].double() - kept["whole"].detach().double()) < 1e-3
