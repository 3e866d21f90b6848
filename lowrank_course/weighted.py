"""One layer to its factorised form, where an error counts as much as the network feels it.

The weight alone does not say what matters. Let a layer give y (O,) over real images, with
covariance S, and let g be the gradient of the network's answer there. To second order, an error e
in y moves the answer by e^T G e / 2 nats, with G = E[g g^T] (the Fisher information), if errors at
different places, and errors and gradients, are unrelated: mostly they are not quite. With H =
G^(1/2) the best rank-r copy keeps the leading eigenvectors U of H S H, and loses half the sum of
the other eigenvalues. With H = I this is the PCA of the responses (Zhang et al., TPAMI 2016).

The spatial and Tucker-2 forms have no closed form for such errors, unless the inputs' covariance
is a Kronecker product, of channels, rows and columns: then it is again an SVD, between the square
roots of both sides (as in Martens and Grosse, ICML 2015, for the curvature).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Rank, factorise, from_factors, full_rank, layer_matrix, tucker2_from_factors
from .linalg import gram_svd, hooi, matrix_root, rebalanced
from .ranks import candidate_ranks, errors

RIDGE = 1e-3  # of the mean eigenvalue, before a root is inverted


@dataclass(frozen=True)
class Response:
    """What is known of one layer over real images: float64, on the CPU."""

    mean: Tensor  # (O,), of its outputs
    covariance: Tensor  # (O, O), of its outputs
    sensitivity: Tensor  # (O, O), G above, summed over the positions of an image
    inputs: tuple[Tensor, Tensor, Tensor] | None  # (C, C), (kh, kh), (kw, kw); None: linear


@dataclass(frozen=True)
class Way:
    """One form of one layer: the error at each rank, and how to build it."""

    errors: dict[Rank, float]  # for the ranks that are worth trying
    error: Callable[[Rank], float]  # for any rank
    build: Callable[[Rank], nn.Sequential]


def way(layer: nn.Conv2d | nn.Linear, form: str, known: Response | None) -> Way:
    """How to bring `layer` to `form`: by its weight alone, or by what is `known` of it.

    Errors are relative and squared without `known`, else in nats.
    """
    if known is None:
        return _by_weight(layer, form)
    H, H_inverse = matrix_root(known.sensitivity, RIDGE)
    values, U = torch.linalg.eigh(H @ known.covariance @ H)
    values, U = values.flip(0).clamp(min=0), U.flip(1)  # largest first
    values = values * bool(known.sensitivity.any())  # no error counts where no answer feels it
    own = layer._parameters["bias"]
    if form in ("channel", "linear"):
        mean0 = known.mean if own is None else known.mean - own.detach().double().cpu()

        def pair(rank: Rank) -> nn.Sequential:
            project = U[:, :rank].mT @ H  # (r, O)
            left = H_inverse @ U[:, :rank]  # (O, r)
            bias = known.mean - left @ (project @ mean0)  # the mean is kept
            right = project @ layer_matrix(layer, form)
            return from_factors(layer, form, *rebalanced(left, right), bias)

        return _way(_tail(values)[: 1 + full_rank(layer, form)], pair)  # type: ignore[operator]
    assert known.inputs is not None and isinstance(layer, nn.Conv2d)
    A, A_inverse = matrix_root(known.inputs[0], RIDGE)  # channels
    (V, V_inverse), (R, R_inverse) = (matrix_root(part, RIDGE) for part in known.inputs[1:])
    if form == "spatial":
        M = _kron(A, V, layer_matrix(layer, form))  # (C*kh, O*kw)
        P, S, Qh = gram_svd(_kron(H, R, M.mT).mT)
        root = S.sqrt()
        P = _kron(A_inverse, V_inverse, P * root)
        Qh = _kron(H_inverse, R_inverse, Qh.mT * root).mT
        total = values.sum() if S[0] > 0 else 0.0  # a layer of zeros loses nothing
        return _way(
            _tail((1 - errors(S)).diff() * total),  # one scale for all forms
            lambda r: from_factors(layer, form, *rebalanced(P[:, :r], Qh[:r]), own),
        )
    W = layer.weight.detach().to("cpu", torch.float64)
    T = torch.einsum("op,pcij,cd,ik,jl->odkl", H, W, A, V, R)  # (O, C, kh, kw)
    spectra = [gram_svd(T.transpose(0, 1).flatten(1))[1], values.sqrt()]

    def build(rank: Rank) -> nn.Sequential:
        core, P, Q = hooi(T, rank[::-1])  # type: ignore[index]
        (P, left), (Q, right) = torch.linalg.qr(H_inverse @ P), torch.linalg.qr(A_inverse @ Q)
        core = torch.einsum("pr,rsij,qs,ik,jl->pqkl", left, core, right, V_inverse, R_inverse)
        return tucker2_from_factors(layer, P, core, Q.mT, own)

    return _pairs(layer, spectra, float(values.sum()) / 2, build)


def _by_weight(layer: nn.Conv2d | nn.Linear, form: str) -> Way:
    if form == "tucker2":
        assert isinstance(layer, nn.Conv2d)
        weight = layer.weight.detach().to("cpu", torch.float64)
        spectra = [gram_svd(weight.transpose(0, i).flatten(1))[1] for i in (1, 0)]
        return _pairs(layer, spectra, 1.0, lambda rank: factorise(layer, form, rank))
    U, S, Vh = gram_svd(layer_matrix(layer, form))
    root, bias = S.sqrt(), layer._parameters["bias"]
    return _way(
        errors(S),
        lambda r: from_factors(layer, form, (U * root)[:, :r], (root[:, None] * Vh)[:r], bias),
    )


def _way(left: Tensor, build: Callable) -> Way:
    """`left` (k + 1,): the error at rank 0, 1, ..., k."""
    ranks: list[Rank] = [*candidate_ranks(len(left) - 1)]
    return Way({r: float(left[r]) for r in ranks}, lambda rank: float(left[rank]), build)


def _pairs(layer: nn.Conv2d, spectra: list[Tensor], scale: float, build: Callable) -> Way:
    """Ranks (r1, r2); their error is the sum of both truncations'. By weights it is a bound."""
    left = [scale * errors(values) for values in spectra]

    def error(rank: Rank) -> float:
        parts = zip(left, rank, strict=True)  # type: ignore[arg-type]
        return float(sum(part[min(r, len(part) - 1)] for part, r in parts))

    full, area = (layer.in_channels, layer.out_channels), math.prod(layer.kernel_size)
    first, second = (candidate_ranks(n, max(8, n // 16)) for n in full)
    pairs = [(p, q) for p in first for q in second if p <= q * area and q <= p * area]
    return Way({pair: error(pair) for pair in pairs}, error, build)


def _kron(left: Tensor, right: Tensor, matrix: Tensor) -> Tensor:
    """(left ⊗ right) @ matrix, where left ⊗ right itself would not fit into memory."""
    matrix = right @ matrix.unflatten(0, (len(left), len(right)))
    return torch.tensordot(left, matrix, 1).flatten(0, 1)


def _tail(values: Tensor) -> Tensor:
    """Half the sum of what follows rank 0, 1, ..., k: (k + 1,)."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)]) / 2
