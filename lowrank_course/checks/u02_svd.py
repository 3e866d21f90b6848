"""Unit 02, the SVD: checks for a photograph compressor, one function per question.

`seed` draws the cases. The exercises leave it at 0; grading draws its own (`grading_seed`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_course.checks import check

Function = Callable[..., Any]


class Svd(NamedTuple):
    U: Tensor
    S: Tensor
    Vh: Tensor


class Factors(NamedTuple):
    left: Tensor
    right: Tensor


def truncate(function: Function, seed: int = 0) -> str:
    """Question 1: `truncate(matrix, rank)` gives U (m, r), S (r,) and Vh (r, n)."""

    def view(answer: Svd) -> dict[str, Any]:  # signs are free, so compare what they leave alone
        return {
            "S": answer.S,
            "U.T @ U": answer.U.T @ answer.U,
            "Vh @ Vh.T": answer.Vh @ answer.Vh.T,
            "U @ diag(S) @ Vh": answer.U @ torch.diag(answer.S) @ answer.Vh,
        }

    rng = random.Random(seed)
    long, side = rng.randint(7, 9), rng.randint(5, 6)
    cases = [
        (_matrix(long, 4, rng), 2),
        (_matrix(5, long, rng), 3),
        (_matrix(side, side, rng), 1),
        (_matrix(4, long, rng), 4),
    ]
    return check(function, _truncate, cases, view=view)


def relative_errors(function: Function, seed: int = 0) -> str:
    """Question 2: `relative_errors(singular_values)` gives the error at rank 0, 1, ..., k."""
    mistakes: dict[str, Function] = {
        "Yours is the square of the error.": lambda s: _relative_errors(s) ** 2,
        "Yours is the energy that is kept.": lambda s: 1 - _relative_errors(s) ** 2,
        "Yours is not yet relative to the whole matrix.": lambda s: _relative_errors(s) * s.norm(),
    }
    rng = random.Random(seed)
    simple = torch.tensor([4.0, 3.0], dtype=torch.float64)
    cases = [(simple,)] + [(_spectrum(rng.randint(3, 6), rng),) for _ in range(4)]
    return check(function, _relative_errors, cases, mistakes=mistakes)


def rank_for_error(function: Function, seed: int = 0) -> str:
    """Question 3: `rank_for_error(errors, target)` gives the smallest rank within the target."""
    mistakes: dict[str, Function] = {
        "Yours is one rank too many.": lambda errors, target: _rank_for_error(errors, target) + 1,
        "Yours is one rank too few.": lambda errors, target: _rank_for_error(errors, target) - 1,
    }
    simple = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    cases: list[tuple[Tensor, float]] = [(simple, target) for target in (0.5, 0.3, 1.0, 0.0)]
    rng = random.Random(seed)
    for _ in range(6):
        inner = sorted((round(rng.uniform(0.05, 0.95), 3) for _ in range(4)), reverse=True)
        errors = torch.tensor([1.0, *inner, 0.0], dtype=torch.float64)
        cases.append((errors, round(rng.uniform(0.05, 0.95), 2)))
    return check(function, _rank_for_error, cases, mistakes=mistakes)


def largest_rank(function: Function, seed: int = 0) -> str:
    """Question 4: `largest_rank(m, n, share)` gives the largest rank that fits the budget."""
    mistakes: dict[str, Function] = {
        "That is a share of the full rank, not of the numbers.": lambda m, n, share: int(
            share * min(m, n)
        ),
        "That rank needs more numbers than the budget allows.": lambda m, n, share: (
            _largest_rank(m, n, share) + 1
        ),
        "The next rank still fits the budget.": lambda m, n, share: _largest_rank(m, n, share) - 1,
    }
    rng = random.Random(seed)
    cases = [(8, 8, 0.5), (64, 576, 1.0), (10, 10, 0.1)]  # exactly full, break-even, nothing fits
    cases += [_budget_case(rng, 20, 400) for _ in range(6)]
    return check(function, _largest_rank, cases, mistakes=mistakes)


def compress_photo(function: Function, seed: int = 0) -> str:
    """Question 5: `compress_photo(photo, share)` gives left (H, r) and right (r, 3 W)."""

    def view(answer: Factors) -> dict[str, Any]:
        return {
            "left @ right": answer.left @ answer.right,
            "the length of each column of left": answer.left.norm(dim=0),
            "the length of each row of right": answer.right.norm(dim=1),
        }

    rng = random.Random(seed)
    cases = []
    for _ in range(3):
        height, width, share = _budget_case(rng, 8, 16, colours=3)
        cases.append((_matrix(height, width * 3, rng).reshape(height, width, 3), share))
    return check(function, _compress_photo, cases, view=view)


# What is right. The learner never sees these in a message.


def _truncate(matrix: Tensor, rank: int) -> Svd:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return Svd(U[:, :rank], S[:rank], Vh[:rank])


def _relative_errors(singular_values: Tensor) -> Tensor:
    lost = [singular_values[rank:].norm() for rank in range(len(singular_values) + 1)]
    return torch.stack(lost) / singular_values.norm()  # (k + 1,)


def _rank_for_error(errors: Tensor, target: float) -> int:
    return next(rank for rank, error in enumerate(errors.tolist()) if error <= target)


def _largest_rank(m: int, n: int, share: float) -> int:
    return int(share * m * n / (m + n))


def _compress_photo(photo: Tensor, share: float) -> Factors:
    matrix = photo.reshape(len(photo), -1)  # (H, 3 W)
    m, n = matrix.shape
    U, S, Vh = _truncate(matrix, _largest_rank(m, n, share))
    return Factors(U * S.sqrt(), S.sqrt()[:, None] * Vh)


# Cases.


def _matrix(m: int, n: int, rng: random.Random) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.rand(m, n, generator=generator, dtype=torch.float64)


def _spectrum(length: int, rng: random.Random) -> Tensor:
    """Singular values: positive, falling."""
    values = sorted((round(rng.uniform(0.5, 9), 2) for _ in range(length)), reverse=True)
    return torch.tensor(values, dtype=torch.float64)


def _budget_case(
    rng: random.Random, low: int, high: int, colours: int = 1
) -> tuple[int, int, float]:
    """Sizes and a share at which at least rank 1 fits, and rounding errors decide nothing."""
    while True:
        m, n, share = rng.randint(low, high), rng.randint(low, high), rng.randint(20, 90) / 100
        exact = share * m * n * colours / (m + n * colours)
        if exact > 1 and 0.01 < exact % 1 < 0.99:
            return m, n, share
