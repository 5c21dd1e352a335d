"""Truncation and growth against torch.linalg.svd of the whole product and hand-made references."""

import math

import pytest
import torch

from lighter_freezers.lora.resize import new_components, truncated, truncated_by_loss

SHAPES = [(40, 60, 16), (60, 40, 16), (10, 50, 10), (50, 10, 16), (8, 8, 1)]


def factors(m: int, n: int, r: int, decay: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors whose product has a decaying spectrum, and that are nowhere near orthogonal."""
    generator = torch.Generator().manual_seed(m * n + r)
    mix = torch.randn(r, r, generator=generator) + torch.eye(r)
    A = torch.randn(r, n, generator=generator) * decay ** torch.arange(r)[:, None]
    B = torch.randn(m, r, generator=generator)
    return mix @ A, B @ torch.linalg.inv(mix)


def best(A: torch.Tensor, B: torch.Tensor, rank: int) -> torch.Tensor:
    """Eckart and Young, from the whole product."""
    U, S, Vh = torch.linalg.svd(B.double() @ A.double(), full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


@pytest.mark.parametrize("zero_factor", ["A", "B"])
@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_is_the_optimum(shape: tuple[int, int, int], zero_factor: str) -> None:
    """Within 1e-6 of the error that no factors of this rank can beat; the loss reported is the true one."""
    A, B = factors(*shape)
    product = B.double() @ A.double()
    for rank in range(shape[2] + 1):
        cut = truncated(A, B, rank, zero_factor)
        optimum = (product - best(A, B, rank)).norm()
        error = (product - cut.B @ cut.A).norm()

        assert abs(error - optimum) <= 1e-6 * optimum + 1e-12 * product.norm()
        assert cut.discarded == pytest.approx(float(error), rel=1e-6, abs=1e-12 * float(product.norm()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_maps_say_what_the_components_are_made_of(shape: tuple[int, int, int]) -> None:
    """A' = T A, B' = B P, T P = 1: what the optimizer's moments are rotated with."""
    A, B = factors(*shape)
    cut = truncated(A, B, max(1, shape[2] // 2))

    assert torch.allclose(cut.T @ A.double(), cut.A, rtol=0, atol=1e-12)
    assert torch.allclose(B.double() @ cut.P, cut.B, rtol=0, atol=1e-12)
    assert torch.allclose(cut.T @ cut.P, torch.eye(len(cut.A), dtype=torch.double), rtol=0, atol=1e-11)


def test_components_keep_the_size_of_the_factor_that_is_not_zero_at_first() -> None:
    """So that Adam's step on the product stays what it was."""
    A, B = factors(40, 60, 16)
    linear, embedding = truncated(A, B, 6, "B"), truncated(A, B, 6, "A")

    before = A.square().sum(1).mean().sqrt().double()
    assert torch.allclose(linear.A.norm(dim=1), before.expand(6), rtol=1e-6)
    before = B.square().sum(0).mean().sqrt().double()
    assert torch.allclose(embedding.B.norm(dim=0), before.expand(6), rtol=1e-6)


def test_vanishing_components_do_not_come_back() -> None:
    """Their factors would both be zero, and a component of two zeros never learns."""
    A, B = factors(40, 60, 4)
    A, B = torch.cat([A, torch.randn(6, 60)]), torch.cat([B, torch.zeros(40, 6)], dim=1)
    cut = truncated(A, B, 7)

    assert cut.A.shape == (4, 60)
    assert torch.allclose(cut.B @ cut.A, B.double() @ A.double(), rtol=0, atol=1e-12)
    assert truncated(A, torch.zeros(40, 10), 7).A.shape == (0, 60)
    assert truncated(A[:0], B[:, :0], 0).discarded == 0.0


def weighted_error(
    A: torch.Tensor, B: torch.Tensor, cut: torch.Tensor, C: torch.Tensor, F: torch.Tensor
) -> torch.Tensor:
    """|| F^1/2 (B A - cut) C^1/2 ||, from the whole matrices."""
    lost = B.double() @ A.double() - cut
    return torch.trace(F @ lost @ C @ lost.T).sqrt()


def test_the_loss_aware_truncation_is_optimal_in_its_norm() -> None:
    """Against the SVD of the whole weighted product, with curvature of inputs C and of outputs F."""
    A, B = factors(30, 50, 8, decay=1.0)
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(400, 50, generator=generator, dtype=torch.double) * torch.linspace(0.1, 3, 50)
    G = torch.randn(400, 30, generator=generator, dtype=torch.double) * torch.linspace(3, 0.1, 30)
    C, F = X.T @ X / 400, G.T @ G / 400
    Z, g = X @ A.double().T, G @ B.double()
    for rank in (1, 3, 6):
        cut = truncated_by_loss(A, B, rank, Z.T @ Z / 400, g.T @ g / 400)
        L_F, L_C = torch.linalg.cholesky(F), torch.linalg.cholesky(C)
        S = torch.linalg.svdvals(L_F.T @ B.double() @ A.double() @ L_C)
        optimum = S[rank:].square().sum().sqrt()
        plain = truncated(A, B, rank)

        assert weighted_error(A, B, cut.B @ cut.A, C, F) == pytest.approx(float(optimum), rel=1e-4)
        assert weighted_error(A, B, plain.B @ plain.A, C, F) > 1.05 * optimum
        lost = (B.double() @ A.double() - cut.B @ cut.A).norm()
        assert cut.discarded == pytest.approx(float(lost), rel=1e-9)


def test_without_statistics_the_loss_aware_truncation_is_the_plain_one() -> None:
    A, B = factors(30, 50, 8)
    nothing = torch.zeros(8, 8)

    assert torch.equal(truncated_by_loss(A, B, 3, nothing, nothing).A, truncated(A, B, 3).A)


@pytest.mark.parametrize("zero_factor", ["A", "B"])
def test_new_components_are_what_peft_draws(zero_factor: str) -> None:
    """One factor zero; the other as `LoraLayer.reset_lora_parameters` has it; the same for the same seed."""

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        return new_components(200, 64, 48, zero_factor, torch.Generator().manual_seed(3))

    before = torch.get_rng_state()
    A, B = drawn()

    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(A, drawn()[0])
    assert torch.equal(B, drawn()[1])
    if zero_factor == "B":
        assert not B.any()
        assert A.abs().max() <= 1 / math.sqrt(64)
        assert A.std() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.02)
    else:
        assert not A.any()
        assert B.std() == pytest.approx(1.0, rel=0.02)
