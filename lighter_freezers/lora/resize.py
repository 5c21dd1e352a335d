"""Factors of another rank: truncation and growth of an update B A, as pure functions of tensors.

Shapes: m outputs, n inputs, r rank before, k components kept; A (r, n), B (m, r), both of two dimensions.
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
]

ZeroFactor = Literal["A", "B"]  # the factor that PEFT initialises with zeros: B, and in an embedding A

_RIDGE = 1e-7  # share of the mean eigenvalue that keeps the root of a singular statistic invertible


@dataclass(frozen=True)
class Truncation:
    """A pair of factors with fewer components, and how these are made of the old ones.

    Attributes:
        A: T A, (k, n).
        B: B P, (m, k).
        T: (k, r), with T P = 1.
        P: (r, k).
        discarded: Frobenius norm of B A - B' A'.
    """

    A: Tensor
    B: Tensor
    T: Tensor
    P: Tensor
    discarded: float


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
    A, B = _precise(A), _precise(B)
    R_A, R_B = _triangle(A.T), _triangle(B)  # (r, r) each, fewer rows where n < r or m < r
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    k = _num_kept(S, rank, A, B)
    U, S, Vh = U[:, :k], S[:k], Vh[:k]
    T = (U.T @ R_B) / S[:, None]  # T A = V^T Q_A^T, with rows of length 1
    P = R_A.T @ Vh.T  # B P = Q_B U S
    return _balanced(A, B, T, P, zero_factor, R_A, R_B)


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
    S_z, S_g = _precise(S_z), _precise(S_g)
    if not (S_z.any() and S_g.any()):  # nothing has been seen, or the update is zero
        return truncated(A, B, rank, zero_factor)
    A, B = _precise(A), _precise(B)
    L_z, L_z_inverse = _root(S_z)
    L_g, L_g_inverse = _root(S_g)
    U, S, Vh = torch.linalg.svd(L_g.T @ L_z)
    k = _num_kept(S, rank, A, B)
    T = Vh[:k] @ L_z_inverse
    P = L_g_inverse.T @ (U[:, :k] * S[:k])
    return _balanced(A, B, T, P, zero_factor, _triangle(A.T), _triangle(B))


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


def _triangle(tall: Tensor) -> Tensor:
    """The triangular factor of a QR decomposition."""
    triangle: Tensor = torch.linalg.qr(tall, mode="r").R
    return triangle


def _num_kept(S: Tensor, rank: int, A: Tensor, B: Tensor) -> int:
    """The components wanted, without those that vanish: both factors of these would be zero, and stay so."""
    if not S.numel():
        return 0
    smallest = S[0] * max(*A.shape, *B.shape) * torch.finfo(S.dtype).eps
    return int((S[:rank] > smallest).sum())


def _root(S: Tensor) -> tuple[Tensor, Tensor]:
    """L with L L^T = S, and its inverse, of a symmetric matrix without negative eigenvalues."""
    eigenvalues, vectors = torch.linalg.eigh((S + S.T) / 2)
    eigenvalues = eigenvalues.clamp_min(0)
    root = (eigenvalues + _RIDGE * eigenvalues.mean()).sqrt()
    return vectors * root, (vectors / root).T


def _balanced(
    A: Tensor, B: Tensor, T: Tensor, P: Tensor, zero_factor: ZeroFactor, R_A: Tensor, R_B: Tensor
) -> Truncation:
    """Share the size of each component out between its two factors, and say what is lost."""
    if zero_factor == "B":
        size = A.square().sum(dim=1).mean().sqrt() / (T @ A).norm(dim=1)  # (k)
    else:
        size = (B @ P).norm(dim=0) / B.square().sum(dim=0).mean().sqrt()
    T, P = T * size[:, None], P / size
    lost = R_B @ (torch.eye(A.shape[0], dtype=T.dtype, device=T.device) - P @ T) @ R_A.T
    return Truncation(T @ A, B @ P, T, P, float(lost.norm()))
