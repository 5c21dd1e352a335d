"""Head and cross-entropy in one, against the plain two."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighter_freezers.gpt import fused_loss
from lighter_freezers.gpt.fused_loss import fused_cross_entropy, is_fusion_better
from tests.gpt.networks import gradients, ignored, small, tokens


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 6, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(11, 6, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(11, (13,), generator=generator)
    targets[3:7] = ignored()
    return hidden, weight, targets


@pytest.mark.parametrize("chunk_size", [1, 11 * 4, 11 * 5, None])
def test_loss_and_gradients_are_those_of_the_plain_way(chunk_size: int | None) -> None:
    """In chunks of one position, of four, of five, and all at once; with another gradient above."""
    hidden, weight, targets = case()
    ours = fused_cross_entropy(hidden, weight, targets, ignored(), chunk_size=chunk_size)
    theirs = F.cross_entropy(hidden @ weight.T, targets)

    assert torch.allclose(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)),
        torch.autograd.grad(3 * theirs, (hidden, weight)),
        strict=True,
    ):
        assert torch.allclose(mine, other)


def test_gradients_are_the_slopes_of_the_loss() -> None:
    """By finite differences."""
    hidden, weight, targets = case()

    assert torch.autograd.gradcheck(
        lambda h, w: fused_cross_entropy(h, w, targets, ignored(), chunk_size=44), (hidden, weight)
    )


def test_large_logits_do_not_overflow() -> None:
    """Nor does a confident mistake become infinite."""
    hidden, weight, targets = case()
    ours = fused_cross_entropy(hidden * 1000, weight, targets, ignored(), chunk_size=44)

    assert torch.allclose(ours, F.cross_entropy(hidden @ weight.T * 1000, targets))
    assert ours.isfinite()


@pytest.mark.parametrize("trained", ["hidden", "weight", "none"])
def test_only_what_trains_gets_a_gradient(trained: str) -> None:
    """A frozen head, a frozen trunk, and evaluation."""
    hidden, weight, targets = case()
    hidden = hidden.detach().requires_grad_(trained == "hidden")
    weight = weight.detach().requires_grad_(trained == "weight")
    loss = fused_cross_entropy(hidden, weight, targets, ignored(), chunk_size=44)

    assert torch.allclose(loss, F.cross_entropy(hidden @ weight.T, targets))
    assert loss.requires_grad == (trained != "none")
    if loss.requires_grad:
        loss.backward()
    assert [part.grad is not None for part in (hidden, weight)] == [trained == "hidden", trained == "weight"]


def test_without_a_target_the_loss_is_zero() -> None:
    """And its gradients too."""
    hidden, weight, targets = case()
    loss = fused_cross_entropy(hidden, weight, torch.full_like(targets, ignored()), ignored())
    loss.backward()

    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_retained_graph_goes_backward_again() -> None:
    """With the same gradients, scaled once; a freed graph is an error."""
    hidden, weight, targets = case()
    loss = fused_cross_entropy(hidden, weight, targets, ignored())
    first = torch.autograd.grad(2 * loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (hidden, weight), retain_graph=True)
    last = torch.autograd.grad(loss, (hidden, weight))

    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert all(torch.allclose(one, 2 * two) for one, two in zip(first, last, strict=True))
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(loss, (hidden, weight))


def test_autocast_is_heeded() -> None:
    """Products in its dtype, the rest in float32, gradients in the dtype of what they belong to."""
    hidden, weight, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = fused_cross_entropy(hidden, weight, targets, ignored(), chunk_size=44)
        theirs = F.cross_entropy(F.linear(hidden, weight), targets)
    exact = F.cross_entropy(hidden @ weight.T, targets)

    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, rtol=1e-2)
    assert not torch.equal(ours, exact)
    for mine, other in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(exact, (hidden, weight)),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine, other, rtol=0.1, atol=2e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_trains_the_same_with_it(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the head's weight is the embedding's, which has a second gradient."""
    model = small(tie_weights=tied)
    _, plain = model(tokens(), tokens().flip(1))
    assert plain is not None
    plain.backward()
    expected = gradients(model)
    model.zero_grad()
    monkeypatch.setattr(fused_loss, "FUSED_FROM", 1)
    loss = model.loss(tokens(), tokens().flip(1))
    loss.backward()

    assert type(loss.grad_fn).__name__ == "_FusedCrossEntropyBackward"
    assert torch.allclose(loss, plain)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-7), name


def test_size_dtype_and_head_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large and float32, and a head that is its weight and nothing else."""
    head, hidden = nn.Linear(4, 64, bias=False), torch.zeros(8, 4)
    monkeypatch.setattr(fused_loss, "FUSED_FROM", 512)

    assert is_fusion_better(head, hidden)
    assert not is_fusion_better(head, hidden[:7])
    assert not is_fusion_better(nn.Linear(4, 64), hidden)
    assert not is_fusion_better(nn.Sequential(head), hidden)
    assert not is_fusion_better(nn.Linear(4, 64, bias=False, dtype=torch.bfloat16), hidden.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fusion_better(head, hidden)
    head.register_forward_hook(lambda *_: None)
    assert not is_fusion_better(head, hidden)
