"""Factors of another rank: truncation and growth of an update B A, as pure functions of tensors.

Shapes: m outputs, n inputs, r rank before, k components kept; A (r, n), B (m, r), both of two dimensions;
g pairs of equal shapes in a stack, decomposed together.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Truncation",
    "ZeroFactor",
    "alpha_for",
    "generator_for",
    "new_components",
    "truncated",
    "truncated_by_loss",
    "truncations",
]

ZeroFactor = Literal["A", "B"]  # the factor that PEFT initialises with zeros: B, and in an embedding A

_RIDGE = 1e-7  # share of the mean eigenvalue that keeps the root of a singular statistic invertible


@dataclass(frozen=True)
class Truncation:
    """A pair of factors with fewer components, and how these are made of the old ones; or a stack of pairs.

    Attributes:
        A: T A, (..., k, n).
        B: B P, (..., m, k).
        T: (..., k, r), with T P = 1.
        P: (..., r, k).
        discarded: Frobenius norm of B A - B' A', (...).
    """

    A: Tensor
    B: Tensor
    T: Tensor
    P: Tensor
    discarded: Tensor


def truncated(A: Tensor, B: Tensor, rank: int, zero_factor: ZeroFactor = "B") -> Truncation:
    """The best approximation of B A by factors of a lower rank, in the Frobenius norm (Eckart and Young).

    Only r x r matrices are decomposed, in double precision; B A itself is never formed. The factor that does
    not start from zeros keeps the size of its components, so that Adam's step on the product stays as it was.

    Args:
        A: (r, n).
        B: (m, r).
        rank: The components wanted. Fewer come back where B A has a lower rank.
        zero_factor: The factor that starts from zeros.
    """
    return _only(truncations(A[None], B[None], rank, zero_factor))


def truncated_by_loss(
    A: Tensor, B: Tensor, rank: int, S_z: Tensor, S_g: Tensor, zero_factor: ZeroFactor = "B"
) -> Truncation:
    """The approximation of B A by factors of a lower rank that disturbs the loss least, to second order.

    It is optimal in the norm that Kronecker-factored curvature (K-FAC, arXiv 1503.05671) gives to the update,
    of which only what the bottleneck sees is needed.

    Args:
        A: (r, n).
        B: (m, r).
        rank: The components wanted.
        S_z: Mean of z z^T over positions, where z = A x is what passes the bottleneck, (r, r).
        S_g: Mean of g g^T, where g is the gradient of the loss with respect to z, (r, r). Its scale is of no
            importance.
        zero_factor: The factor that starts from zeros.
    """
    if not (S_z.any() and S_g.any()):  # nothing has been seen, or the update is zero
        return truncated(A, B, rank, zero_factor)
    return _only(truncations(A[None], B[None], rank, zero_factor, S_z[None], S_g[None]))


def truncations(
    A: Tensor,
    B: Tensor,
    rank: int,
    zero_factor: ZeroFactor = "B",
    S_z: Tensor | None = None,
    S_g: Tensor | None = None,
) -> list[tuple[list[int], Truncation]]:
    """`truncated` of a stack of g pairs, or `truncated_by_loss`.

    Args:
        A: (g, r, n).
        B: (g, m, r).
        rank: The components wanted.
        zero_factor: The factor that starts from zeros.
        S_z: For `truncated_by_loss`, (g, r, r).
        S_g: The same.

    Returns:
        For each number of components that is left somewhere: which pairs have so many, and their truncation.
    """
    A, B = _precise(A), _precise(B)
    R_A, R_B = _triangle(A.mT), _triangle(B)  # (g, r, r) each, fewer rows where n < r or m < r
    if S_z is None or S_g is None:
        S, T, P = _by_weight(R_A, R_B)
    else:
        S, T, P = _by_loss(_precise(S_z), _precise(S_g))
    stacks: dict[int, list[int]] = {}
    for index, num_kept in enumerate(_nums_kept(S, rank, A, B)):
        stacks.setdefault(num_kept, []).append(index)
    cuts = []
    for k, chosen in stacks.items():
        parts = A, B, T[:, :k], P[..., :k], R_A, R_B
        if len(stacks) > 1:
            parts = tuple(part[chosen] for part in parts)  # type: ignore[assignment]
        cuts.append((chosen, _balanced(*parts, zero_factor)))
    return cuts


def new_components(
    num_new: int,
    num_inputs: int,
    num_outputs: int,
    zero_factor: ZeroFactor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Components to append, as PEFT initialises them: one factor is zero, so B A stays as it is.

    Args:
        num_new: How many.
        num_inputs: n.
        num_outputs: m.
        zero_factor: Which factor is zero.
        generator: Where the other one is drawn from, on the CPU, so that every rank and device has the same.
            None for torch's own generator.

    Returns:
        Rows of A (num_new, n) and columns of B (m, num_new).
    """
    if zero_factor == "A":
        rows = torch.zeros(num_new, num_inputs)
        return rows, torch.randn(num_outputs, num_new, generator=generator)
    bound = 1 / math.sqrt(num_inputs)  # of kaiming_uniform_(a=sqrt(5))
    rows = torch.empty(num_new, num_inputs).uniform_(-bound, bound, generator=generator)
    return rows, torch.zeros(num_outputs, num_new)


def generator_for(seed: str | None, name: str) -> torch.Generator | None:
    """A generator of the same numbers for the same words, on every rank and after every resume.

    Args:
        seed: Names the draw. None for torch's own generator, which is then returned as None.
        name: Whose draw it is.
    """
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def alpha_for(scaling: float, rank: int, use_rslora: bool) -> float:
    """The `lora_alpha` that gives a scaling at a rank, to the last bit where there is one that does."""
    divisor = math.sqrt(rank) if use_rslora else rank
    alpha = scaling * divisor
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    alpha = next((candidate for candidate in near if candidate / divisor == scaling), alpha)
    return int(alpha) if alpha == int(alpha) else alpha


def _precise(x: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


def _only(cuts: list[tuple[list[int], Truncation]]) -> Truncation:
    [(_, cut)] = cuts
    return Truncation(cut.A[0], cut.B[0], cut.T[0], cut.P[0], cut.discarded[0])


def _triangle(tall: Tensor) -> Tensor:
    """The triangular factor of a QR decomposition."""
    triangle: Tensor = torch.linalg.qr(tall, mode="r").R
    return triangle


def _by_weight(R_A: Tensor, R_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of all components, largest first, and the T and P that make them."""
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return S, (U.mT @ R_B) / S[..., None], R_A.mT @ Vh.mT  # T A = V^T Q_A^T has rows of length 1


def _by_loss(S_z: Tensor, S_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by what the loss sees of them."""
    L_z, L_z_inverse = _root(S_z)
    L_g, L_g_inverse = _root(S_g)
    U, S, Vh = torch.linalg.svd(L_g.mT @ L_z)
    return S, Vh @ L_z_inverse, L_g_inverse.mT @ (U * S[..., None, :])


def _nums_kept(S: Tensor, rank: int, A: Tensor, B: Tensor) -> list[int]:
    """The components wanted, without those that vanish: both factors of these would be zero, and stay so."""
    smallest = S[..., :1] * max(*A.shape[1:], *B.shape[1:]) * torch.finfo(S.dtype).eps
    nums: list[int] = (S[..., :rank] > smallest).sum(-1).tolist()
    return nums


def _root(S: Tensor) -> tuple[Tensor, Tensor]:
    """L with L L^T = S, and its inverse, of a symmetric matrix without negative eigenvalues."""
    eigenvalues, vectors = torch.linalg.eigh((S + S.mT) / 2)
    eigenvalues = eigenvalues.clamp_min(0)
    root = (eigenvalues + _RIDGE * eigenvalues.mean(-1, keepdim=True)).sqrt()[..., None, :]
    return vectors * root, (vectors / root).mT


def _balanced(
    A: Tensor, B: Tensor, T: Tensor, P: Tensor, R_A: Tensor, R_B: Tensor, zero_factor: ZeroFactor
) -> Truncation:
    """Share the size of each component out between its two factors, and say what is lost."""
    if zero_factor == "B":
        size = _mean_size(A, dim=-1) / (T @ A).norm(dim=-1)  # (g, k)
    else:
        size = (B @ P).norm(dim=-2) / _mean_size(B, dim=-2)
    T, P = T * size[..., None], P / size[..., None, :]
    lost = R_B @ (torch.eye(A.shape[-2], dtype=T.dtype, device=T.device) - P @ T) @ R_A.mT
    return Truncation(T @ A, B @ P, T, P, lost.flatten(1).norm(dim=1))


def _mean_size(factor: Tensor, dim: int) -> Tensor:
    """Root mean square of the lengths of components, (g, 1)."""
    return factor.square().sum(dim=dim).mean(dim=-1, keepdim=True).sqrt()
