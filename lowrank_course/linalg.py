"""Matrices: truncated SVD, energy, rank, orthogonality.

Every function takes and returns torch tensors. Matrices are float32 or float64, of shape (m, n).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor


def check_rank(rank: int, full: int, shape: Sequence[int], name: str = "rank") -> int:
    """Return `rank` as an int if it lies in 1..full, else raise a ValueError that says why.

    `shape` is that of the matrix or kernel with full rank `full`; it is used in the message only.
    """
    try:
        value = operator.index(rank)  # takes numpy integers, refuses 8.0
    except TypeError:
        value = None
    if value is None or isinstance(rank, bool):
        raise ValueError(f"{name}={rank!r} is not a whole number: give an int from 1 to {full}")
    if value < 1:
        raise ValueError(f"{name}={value} is too small: give an int from 1 to {full}")
    if value > full:
        size = f"{tuple(int(n) for n in shape)} {'matrix' if len(shape) == 2 else 'kernel'}"
        raise ValueError(f"{name}={value} exceeds {full}, the full rank of this {size}")
    return value


def _check_matrix(matrix: Tensor, name: str = "matrix") -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: give a 2-D, non-empty matrix")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} has dtype {matrix.dtype}: give float32 or float64, for example {name}.double()"
        )
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{name} holds NaN or infinite values: look for where they come from")


def _check_singular_values(values: Tensor) -> None:
    ordered = (
        values.ndim == 1
        and len(values) > 0
        and values.is_floating_point()
        and bool(torch.isfinite(values).all())
        and bool((values >= 0).all())
        and bool((values[1:] <= values[:-1]).all())
    )
    if not ordered:
        raise ValueError(
            f"singular_values of shape {tuple(values.shape)}: give a 1-D float tensor, finite, "
            "not negative, largest first, as torch.linalg.svdvals returns it"
        )


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `rank` largest singular values: matrix ≈ U diag(S) Vh.

    Returns U (m, rank), S (rank,), largest first, and Vh (rank, n). The signs of a pair (column of
    U, row of Vh) are not unique. ValueError for a rank outside 1..min(m, n) or a non-finite matrix.
    """
    _check_matrix(matrix)
    rank = check_rank(rank, min(matrix.shape), matrix.shape)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def gram_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin U, S, Vh, largest first, from the eigenvectors of matrix @ matrix^T: far faster.

    U diag(S) Vh equals the matrix as exactly as `torch.linalg.svd` would give it. But singular
    values below the root of eps (1e-8 of the largest in float64) are mixed with each other: that
    they are so small is all that is known, and their rows of Vh need not be orthogonal.
    """
    if matrix.shape[0] > matrix.shape[1]:
        V, S, Uh = gram_svd(matrix.mT)
        return Uh.mT, S, V.mT
    _check_matrix(matrix)
    U = torch.linalg.eigh(matrix @ matrix.mT)[1]
    rows = U.mT @ matrix  # S Vh
    S, order = rows.norm(dim=1).sort(descending=True)
    return U[:, order], S, rows[order] / S.clamp(min=torch.finfo(S.dtype).tiny)[:, None]


def low_rank(matrix: Tensor, rank: int) -> Tensor:
    """Best approximation (m, n) of rank at most `rank`, in the Frobenius and the spectral norm.

    Eckart and Young, Psychometrika 1936. The squared Frobenius error is the sum of the squared
    singular values that were left out.
    """
    U, S, Vh = truncated_svd(matrix, rank)
    return (U * S) @ Vh


def balanced_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors left (m, rank) and right (rank, n), with left @ right = low_rank(matrix, rank).

    Each takes sqrt(S), so both have the same Frobenius norm; that suits gradient steps on both.
    """
    U, S, Vh = truncated_svd(matrix, rank)
    root = S.sqrt()
    return U * root, root[:, None] * Vh


def rebalanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product left (m, r) @ right (r, n), as `balanced_factors` would give it.

    Factors of very different size, or nearly parallel columns, make gradient steps diverge.
    """
    (Q, R), (P, T) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    U, S, Vh = torch.linalg.svd(R @ T.mT)
    return Q @ (U * S.sqrt()), S.sqrt()[:, None] * (Vh @ P.mT)


def energy(singular_values: Tensor) -> Tensor:
    """Share (k,) of the squared Frobenius norm that ranks 1 to k hold; rises to exactly 1.

    `singular_values` (k,), largest first. The relative error at rank r is sqrt(1 - energy[r - 1]).
    A matrix of zeros loses nothing at any rank: all its shares are 1.
    """
    _check_singular_values(singular_values)
    if singular_values[0] == 0:
        return torch.ones_like(singular_values)
    # Divided by the largest first, so that squares neither overflow nor vanish.
    total = (singular_values / singular_values[0]).square().cumsum(0)
    return total / total[-1]


def rank_for_energy(singular_values: Tensor, share: float) -> int:
    """Smallest rank whose energy is at least `share`, a number in (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} is outside (0, 1]: 0.9 keeps 90 % of the energy")
    held = energy(singular_values.double())
    tolerance = 4 * torch.finfo(held.dtype).eps  # 9 of 10 counts as 0.9 after rounding
    return int((held < share - tolerance).sum()) + 1


def numerical_rank(matrix: Tensor, rtol: float | None = None) -> int:
    """Number of singular values above rtol times the largest one.

    The default tolerance is max(m, n) * eps of the dtype, as in `torch.linalg.matrix_rank`: it
    counts what stands out from rounding errors. The answer depends on it, so state it beside
    every rank that you report. A matrix of zeros has rank 0.
    """
    _check_matrix(matrix)
    if rtol is None:
        rtol = max(matrix.shape) * torch.finfo(matrix.dtype).eps
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol={rtol!r} is outside [0, 1): it is relative to the largest value")
    S = torch.linalg.svdvals(matrix)
    return int((S > rtol * S[0]).sum())


def break_even_rank(m: int, n: int) -> float:
    """Rank m n / (m + n) at which two factors hold as many numbers as the (m, n) matrix.

    Only ranks below it make the matrix smaller.
    """
    if m < 1 or n < 1:
        raise ValueError(f"m={m}, n={n}: both sides of a matrix are at least 1")
    return m * n / (m + n)


def orthogonality_error(U: Tensor) -> float:
    """Distance ||U^T U - I||_F of the columns of U (m, r) from orthonormal; 0 if they are."""
    _check_matrix(U, "U")
    identity = torch.eye(U.shape[1], dtype=U.dtype, device=U.device)
    return float(torch.linalg.matrix_norm(U.mT @ U - identity))


def matrix_root(matrix: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, each (n, n), of a positive semidefinite matrix.

    `ridge` times the mean of the diagonal is added to the diagonal first, and no eigenvalue is
    taken to be less, so that directions without any weight can be divided by. A matrix of zeros
    gives the identity twice.
    """
    _check_matrix(matrix)
    size = matrix.diagonal().mean()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    if size <= 0:
        return identity, identity
    values, V = torch.linalg.eigh(matrix / size + ridge * identity)
    root = values.clamp(min=max(ridge, torch.finfo(matrix.dtype).eps)).mul(size).sqrt()
    return (V * root) @ V.mT, (V / root) @ V.mT


def hooi(tensor: Tensor, ranks: tuple[int, int], sweeps: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Tucker-2: tensor (O, C, ...) ≈ core (p, q, ...) times P (O, p) and Q (C, q) in modes 0, 1.

    Higher-order orthogonal iteration, from the leading singular vectors of both unfoldings (De
    Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 2000). P and Q are orthonormal.
    """
    if tensor.ndim < 2:
        raise ValueError(f"tensor has shape {tuple(tensor.shape)}: give (O, C, ...)")
    _check_matrix(tensor.flatten(1), "tensor")
    p, q = (check_rank(r, n, tensor.shape) for r, n in zip(ranks, tensor.shape, strict=False))

    def leading(unfolded: Tensor, rank: int) -> Tensor:  # eigenvectors: n of them for any width
        return torch.linalg.eigh(unfolded @ unfolded.mT)[1].flip(1)[:, :rank]

    swapped = tensor.transpose(0, 1)  # (C, O, ...)
    P, Q = leading(tensor.flatten(1), p), leading(swapped.flatten(1), q)
    for _ in range(sweeps if p < len(tensor) or q < len(swapped) else 0):
        P = leading(torch.tensordot(Q.mT, swapped, 1).transpose(0, 1).flatten(1), p)
        Q = leading(torch.tensordot(P.mT, tensor, 1).transpose(0, 1).flatten(1), q)
    core = torch.tensordot(Q.mT, torch.tensordot(P.mT, tensor, 1).transpose(0, 1), 1)
    return core.transpose(0, 1), P, Q
