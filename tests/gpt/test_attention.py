"""Who sees whom, with padding and without, by either way of computing it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lighter_freezers.gpt import attention
from lighter_freezers.gpt.attention import attended, rotated
from tests.gpt.networks import classifier, scorer, small, tokens, with_cls

LENGTHS = (16, 9, 1)


def padding() -> Tensor:
    """Three rows of 16, 9 and 1 real tokens."""
    return torch.arange(16) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("rotary", [False, True])
def test_no_position_sees_what_comes_after(rotary: bool) -> None:
    """Changing the last tokens leaves the logits before them alone, bit for bit."""
    torch.set_num_threads(1)
    model, changed = small(use_rotary_embeddings=rotary), tokens()
    changed[:, 10:] = (changed[:, 10:] + 1) % 61

    before, after = model(tokens())[0], model(changed)[0]
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_bidirectional_attention_sees_all() -> None:
    """Changing the last token changes the first position's logits; forced causal, it does not."""
    changed = tokens()
    changed[:, -1] = (changed[:, -1] + 1) % 61
    both, back = classifier(), classifier(attention_type="causal", force_attention_type=True)

    assert not torch.equal(both(tokens())[0][:, 0], both(changed)[0][:, 0])
    assert torch.equal(back(tokens())[0][:, :15], back(changed)[0][:, :15])


def test_rotary_products_depend_on_the_distance_only() -> None:
    """Query at 7 and key at 4 as query at 3 and key at 0; lengths are kept."""
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    q, k = rotated(query.expand(1, 1, 9, 8)), rotated(key.expand(1, 1, 9, 8))
    products = (q @ k.transpose(-1, -2))[0, 0]

    assert torch.allclose(products[7, 4], products[3, 0], atol=1e-5)
    assert not torch.allclose(products[7, 4], products[7, 0], atol=1e-2)
    assert torch.allclose(q.norm(dim=-1), query.norm(dim=-1).expand(1, 1, 9), atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_nothing(rotary: bool, dtype: torch.dtype) -> None:
    """A row's logits are those that it has alone, unpadded; the mask may be of 0 and 1."""
    model = classifier(use_rotary_embeddings=rotary).to(dtype)
    logits, _ = model(tokens(), attention_mask=padding().long())

    for row, length in enumerate(LENGTHS):
        alone, _ = model(tokens()[row : row + 1, :length])
        assert torch.allclose(logits[row, :length], alone[0], atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_padding_has_no_loss() -> None:
    """Even where the targets of padding were not marked: the loss is that of the real tokens."""
    model, targets = classifier(), tokens() % 3
    logits, loss = model(tokens(), targets, attention_mask=padding())
    _, soft = model(tokens(), F.one_hot(targets, 3).float(), attention_mask=padding())
    expected = F.cross_entropy(logits[padding()], targets[padding()])

    assert torch.allclose(loss, expected)
    assert torch.allclose(soft, expected)


def test_a_causal_model_needs_the_mask_for_the_loss_only() -> None:
    """What comes after is not seen anyway: the logits of real tokens are the same to the last bit."""
    model = small()
    logits, loss = model(tokens(), tokens(), attention_mask=padding())

    assert torch.equal(logits, model(tokens())[0])
    assert torch.allclose(loss, F.cross_entropy(logits[padding()], tokens()[padding()]))


def test_a_scorer_does_not_see_padding() -> None:
    """The score of a row is that of the row alone."""
    model = scorer()
    scores, _ = model(with_cls(), attention_mask=padding())

    for row, length in enumerate(LENGTHS):
        assert torch.allclose(scores[row], model(with_cls()[row : row + 1, :length])[0][0], atol=1e-6)


def test_masks_are_made_only_where_rows_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """None for causal attention, and none for a mask that masks nothing."""
    masks = []

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: object) -> Tensor:
        masks.append(mask)
        return q

    monkeypatch.setattr(attention, "attended", spy)
    small()(tokens(), attention_mask=padding())
    classifier()(tokens(), attention_mask=torch.ones(3, 16, dtype=torch.bool))
    assert masks == [None] * 4
    classifier()(tokens(), attention_mask=padding())
    assert [mask.shape for mask in masks[4:]] == [(3, 1, 1, 16)] * 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (padding().flip(1), "pad on the right"),
        (torch.zeros(3, 16, dtype=torch.bool), "pad on the right"),
        (padding()[:, :8], r"attention_mask is \(3, 8\), but input_ids are \(3, 16\)"),
        (padding().float(), "give truth values"),
    ],
)
def test_other_masks_are_refused(mask: Tensor, message: str) -> None:
    """Padding in front would shift positions; additive masks mean something else."""
    for model in (small(), classifier()):
        with pytest.raises(ValueError, match=message):
            model(tokens(), attention_mask=mask)


@pytest.mark.parametrize("kind", ["causal", "full", "padded", "first only", "first only, causal"])
def test_products_of_matrices_equal_the_fused_attention(kind: str) -> None:
    """In bfloat16 on a CPU, where they are the faster way; values and gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 16, 8)
    q, k, v = (torch.randn(shape, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    queries = q[:, :, :1] if "first" in kind else q
    mask = padding()[:, None, None, :] if kind == "padded" else None
    ours = attended(queries, k, v, mask, "causal" in kind, 0.0)
    exact = F.scaled_dot_product_attention(
        queries.float(), k.float(), v.float(), attn_mask=mask, is_causal="causal" in kind
    )

    assert ours.dtype == torch.bfloat16
    assert torch.allclose(ours.float(), exact, atol=3e-2)
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), (q, k, v)), torch.autograd.grad(exact.sum(), (q, k, v)), strict=True
    ):
        assert torch.allclose(mine.float(), other.float(), atol=6e-2)


def test_long_sequences_and_float32_take_the_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """By length and dtype, also under autocast."""
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].dtype) or fused(*a, **k)
    )
    small(n_layer=1)(tokens())
    assert calls == [torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        small(n_layer=1)(tokens())
    assert calls == [torch.float32]
    monkeypatch.setattr(attention, "LONGEST_FOR_MATRICES", 15)
    small(n_layer=1).bfloat16()(tokens())
    assert calls == [torch.float32, torch.bfloat16]
