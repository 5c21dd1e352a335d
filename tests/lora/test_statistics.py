"""What the loss-aware truncation is told, against autograd, and what it is good for."""

import pytest
import torch

from lighter_freezers import resize_lora_layer
from lighter_freezers.lora.sites import find_lora_sites
from lighter_freezers.lora.statistics import BottleneckStatistics
from tests.lora.lora_lab import KINDS, Single, inputs, steps, trained


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_by_hand(kind: str) -> None:
    """Means of z z^T and g g^T; g from a bottleneck that autograd can see."""
    model, x = trained(kind, lora_dropout=0.0), inputs(kind)
    statistics = BottleneckStatistics(find_lora_sites(model))
    statistics.install()
    seen: list[torch.Tensor] = []
    if kind == "Embedding":
        A, B = model.target.lora_embedding_A["default"], model.target.lora_embedding_B["default"]
        z = torch.nn.functional.embedding(x, A.T).detach().requires_grad_(True)
        base = model.target.base_layer(x)
        model.head(base + model.target.scaling["default"] * z @ B.T).square().sum().backward()
        z, g = z.detach().flatten(0, 1), z.grad.flatten(0, 1)
    else:
        hook = model.target.lora_A["default"].register_forward_hook(
            lambda *args: (args[2].retain_grad(), seen.append(args[2]))[2:] or None
        )
        model(x).square().sum().backward()
        hook.remove()
        z, g = (
            t.movedim(1, -1).flatten(0, -2) if t.ndim > 2 else t for t in (seen[0].detach(), seen[0].grad)
        )
    if kind == "Embedding":
        model(x).square().sum().backward()
    statistics.remove()
    S_z, S_g = statistics.of("target")

    assert torch.allclose(S_z, z.T @ z / len(z), rtol=1e-4, atol=1e-6)
    # up to the scaling of the update, which is one number and of no importance
    expected = g.T @ g / len(g)
    assert torch.allclose(S_g / S_g.trace(), expected / expected.trace(), rtol=1e-4, atol=1e-6)
    assert steps(model, torch.optim.SGD(model.parameters(), 0.0), x, 1)
    assert torch.equal(statistics.of("target")[0], S_z)  # it listens no more


def test_shrinking_by_them_costs_less_loss() -> None:
    """Where inputs and gradients are uneven; the running means outlive a checkpoint."""
    costs = {}
    for shrink in ("svd", "kfac"):
        model, x = uneven()
        statistics = BottleneckStatistics(find_lora_sites(model))
        statistics.install()
        before = steps(model, torch.optim.SGD(model.parameters(), 0.0), x, 8)[-1]
        statistics.remove()
        again = BottleneckStatistics(find_lora_sites(model))
        again.remember(statistics.state())
        resize_lora_layer(model.target, 3, shrink=shrink, statistics=again.of("target"))
        costs[shrink] = steps(model, torch.optim.SGD(model.parameters(), 0.0), x, 1)[0] - before

    assert costs["kfac"] < 0.8 * costs["svd"]


def uneven() -> tuple[Single, torch.Tensor]:
    """A layer that has learnt a task in which some inputs hardly vary."""
    torch.manual_seed(0)
    model = trained("Linear")
    x = inputs("Linear") * torch.linspace(0.05, 3.0, 32)
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.02), x, 150)
    return model, x


def test_a_batch_that_overflowed_is_passed_over() -> None:
    """Under mixed precision the first gradients may be infinite."""
    model, x = trained("Linear"), inputs("Linear")
    statistics = BottleneckStatistics(find_lora_sites(model))
    statistics.install()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    steps(model, optimizer, x, 1)
    seen = statistics.of("target")
    (model(x).sum() * torch.inf).backward()

    assert all(map(torch.equal, statistics.of("target"), seen))


def test_before_anything_was_seen_there_are_zeros() -> None:
    """Also at a rank that is new."""
    model, x = trained("Linear"), inputs("Linear")
    statistics = BottleneckStatistics(find_lora_sites(model))
    assert not statistics.of("target")[0].any()
    statistics.install()
    steps(model, torch.optim.SGD(model.parameters(), 0.0), x, 1)
    resize_lora_layer(model.target, 5)
    assert statistics.of("target")[0].shape == (5, 5)
    assert not statistics.of("target")[0].any()
    steps(model, torch.optim.SGD(model.parameters(), 0.0), x, 1)
    assert statistics.of("target")[0].any()
