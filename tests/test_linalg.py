"""Matrices, against numpy and against random competitors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from lowrank_course.linalg import (
    balanced_factors,
    break_even_rank,
    check_rank,
    energy,
    gram_svd,
    hooi,
    low_rank,
    matrix_root,
    numerical_rank,
    orthogonality_error,
    rank_for_energy,
    rebalanced,
    truncated_svd,
)

NAN = torch.tensor([[1.0, math.nan], [0.0, 1.0]])


@st.composite
def matrices(draw, largest=9):
    """A float64 matrix (m, n), a rank that fits, and the random numbers it came from."""
    m, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    matrix = torch.randn(m, n, generator=numbers, dtype=torch.float64)
    return matrix, draw(st.integers(1, min(m, n))), numbers


def error(matrix, copy):
    return float(torch.linalg.matrix_norm(matrix - copy))


@given(matrices())
def test_truncated_svd_agrees_with_numpy(drawn):
    matrix, rank, _ = drawn
    U, S, Vh = truncated_svd(matrix, rank)
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    assert U.shape == (matrix.shape[0], rank) and Vh.shape == (rank, matrix.shape[1])
    np.testing.assert_allclose(S, s[:rank], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        low_rank(matrix, rank), (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-9
    )
    assert orthogonality_error(U) < 1e-12 and orthogonality_error(Vh.mT) < 1e-12


@given(matrices())
def test_eckart_young_no_competitor_is_better(drawn):
    matrix, rank, numbers = drawn
    best = error(matrix, low_rank(matrix, rank))
    tail = np.linalg.svd(matrix.numpy(), compute_uv=False)[rank:]
    assert best == pytest.approx(math.sqrt((tail**2).sum()), abs=1e-10)
    left, right = balanced_factors(matrix, rank)
    for _ in range(20):
        random = torch.randn(left.shape, generator=numbers, dtype=torch.float64)
        for basis in (random, left + 0.01 * random):  # far from the best and near it
            fitted = basis @ torch.linalg.lstsq(basis, matrix).solution
            assert error(matrix, fitted) >= best - 1e-10


@given(matrices())
def test_error_never_rises_with_rank_and_ends_at_zero(drawn):
    matrix, _, _ = drawn
    errors = [error(matrix, low_rank(matrix, r + 1)) for r in range(min(matrix.shape))]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-12


@given(matrices())
def test_both_factors_have_the_same_size(drawn):
    matrix, rank, _ = drawn
    left, right = balanced_factors(matrix, rank)
    S = torch.diag(torch.linalg.svdvals(matrix)[:rank])
    torch.testing.assert_close(left @ right, low_rank(matrix, rank))
    torch.testing.assert_close(left.mT @ left, S)
    torch.testing.assert_close(right @ right.mT, S)


@given(matrices(), st.booleans())
def test_gram_svd_is_the_svd(drawn, low):
    matrix, rank, _ = drawn
    matrix = low_rank(matrix, rank) if low else matrix
    U, S, Vh = gram_svd(matrix)
    k = min(matrix.shape)
    assert U.shape == (len(matrix), k) and Vh.shape == (k, matrix.shape[1])
    largest = float(S[0])
    np.testing.assert_allclose(
        S, np.linalg.svd(matrix.numpy(), compute_uv=False), atol=1e-7 * largest
    )
    torch.testing.assert_close((U * S) @ Vh, matrix, rtol=0, atol=1e-13 * largest * k)
    best = low_rank(matrix, rank)
    held = error(matrix, (U[:, :rank] * S[:rank]) @ Vh[:rank])
    assert held == pytest.approx(error(matrix, best), abs=1e-7 * largest)
    energy(S)  # largest first, not negative


def test_gram_svd_of_extreme_matrices():
    U, S, Vh = gram_svd(torch.zeros(3, 5))
    assert S.tolist() == [0, 0, 0] and torch.equal((U * S) @ Vh, torch.zeros(3, 5))
    wide = 10.0 ** -torch.arange(12.0).double()  # singular values from 1 down to 1e-11
    Q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    U, S, Vh = gram_svd(Q * wide)
    torch.testing.assert_close((U * S) @ Vh, Q * wide, rtol=0, atol=1e-14)
    torch.testing.assert_close(S[:7], wide[:7], rtol=1e-3, atol=0)


@given(matrices())
def test_rebalanced_factors_are_those_of_the_product(drawn):
    matrix, rank, numbers = drawn
    mixed = torch.randn(rank, rank, generator=numbers, dtype=torch.float64)
    left, right = balanced_factors(matrix, rank)
    left, right = left @ mixed * 1e3, torch.linalg.solve(mixed, right) * 1e-3
    P, Q = rebalanced(left, right)
    assert P.shape == left.shape and Q.shape == right.shape
    torch.testing.assert_close(P @ Q, left @ right, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(P.mT @ P, Q @ Q.mT, rtol=1e-6, atol=1e-8)


@given(matrices(), st.sampled_from([0.0, 1e-3, 0.5]))
def test_matrix_root_is_numpys(drawn, ridge):
    matrix, _, _ = drawn
    matrix = matrix.mT @ matrix + 0.1 * torch.eye(matrix.shape[1]).double()
    root, inverse = matrix_root(matrix, ridge)
    shifted = matrix.numpy() + ridge * np.trace(matrix.numpy()) / len(matrix) * np.eye(len(matrix))
    values, vectors = np.linalg.eigh(shifted)
    expected = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(root, expected, atol=1e-10)
    np.testing.assert_allclose(inverse, np.linalg.inv(expected), atol=1e-9)
    torch.testing.assert_close(root, root.mT)


def test_matrix_root_of_matrices_without_a_root():
    for inverse_or_root in matrix_root(torch.zeros(3, 3)):
        assert torch.equal(inverse_or_root, torch.eye(3))
    # Directions without weight are divided by the ridge, and by no less where rounding, or
    # an estimate, made an eigenvalue negative.
    for least in (0.0, -1e-9, -0.3):
        matrix = torch.diag(torch.tensor([3.0, 1.0, least]).double())
        root, inverse = matrix_root(matrix, 1e-2)
        assert float(inverse.diagonal().max()) <= 1 / math.sqrt(0.99e-2 * float(matrix.trace()) / 3)
        torch.testing.assert_close(root @ inverse, torch.eye(3).double())
    root, inverse = matrix_root(torch.diag(torch.tensor([1.0, 0.0])))  # no ridge: finite anyway
    assert torch.isfinite(inverse).all() and root[1, 1] < 1e-3


@st.composite
def tensors(draw):
    """A tensor (O, C, ...), of one to four dimensions behind, with noise on a low rank."""
    shape = [draw(st.integers(2, 9)) for _ in range(2)]
    shape += draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ranks = tuple(draw(st.integers(1, n)) for n in shape[:2])
    core = torch.randn(*ranks, *shape[2:], generator=numbers, dtype=torch.float64)
    P, Q = (
        torch.randn(n, r, generator=numbers, dtype=torch.float64)
        for n, r in zip(shape[:2], ranks, strict=True)
    )
    noise = torch.randn(shape, generator=numbers, dtype=torch.float64)
    return torch.einsum("op,cq,pq...->oc...", P, Q, core) + 0.05 * noise, ranks


def rebuilt(core, P, Q):
    return torch.einsum("op,cq,pq...->oc...", P, Q, core)


@given(tensors())
def test_hooi_is_tensorlys_partial_tucker(drawn):
    """The same subspaces, and no larger an error, from two implementations."""
    tensor, ranks = drawn
    area = math.prod(tensor.shape[2:])
    assume(ranks[0] <= ranks[1] * area and ranks[1] <= ranks[0] * area)  # else any direction fits
    core, P, Q = hooi(tensor, ranks)
    assert core.shape == (*ranks, *tensor.shape[2:])
    assert orthogonality_error(P) < 1e-10 and orthogonality_error(Q) < 1e-10
    error = float((rebuilt(core, P, Q) - tensor).norm() / tensor.norm())
    (_, factors), _ = partial_tucker(
        tensor.numpy(), rank=list(ranks), modes=[0, 1], n_iter_max=200, tol=1e-12
    )
    p, q = (torch.from_numpy(np.ascontiguousarray(factor)) for factor in factors)
    projected = torch.einsum("op,ap,cq,bq,ab...->oc...", p, p, q, q, tensor)
    theirs = float((projected - tensor).norm() / tensor.norm())
    assert error <= theirs + 1e-4
    for ours, other, r in ((P, p, ranks[0]), (Q, q, ranks[1])):
        overlap = float((ours.mT @ other).square().sum())
        assert overlap == pytest.approx(r, abs=0.05)


@given(tensors())
def test_hooi_error_falls_with_each_sweep_and_vanishes_at_full_rank(drawn):
    tensor, ranks = drawn
    errors = [
        float((rebuilt(*hooi(tensor, ranks, sweeps)) - tensor).norm()) for sweeps in (0, 1, 3, 10)
    ]
    assert all(later <= earlier + 1e-9 for earlier, later in zip(errors, errors[1:], strict=False))
    assert float((rebuilt(*hooi(tensor, tensor.shape[:2])) - tensor).norm()) < 1e-10
    matrix = tensor.flatten(1)  # without further modes: the truncated SVD
    r = min(ranks)
    best = error(matrix, low_rank(matrix, r))
    assert error(matrix, rebuilt(*hooi(matrix, (r, r)))) == pytest.approx(best, abs=1e-9)


@given(matrices())
def test_energy_is_the_share_that_a_copy_keeps(drawn):
    matrix, rank, _ = drawn
    held = energy(torch.linalg.svdvals(matrix))
    lost = error(matrix, low_rank(matrix, rank)) ** 2 / float(matrix.square().sum())
    assert 1 - float(held[rank - 1]) == pytest.approx(lost, abs=1e-10)
    assert held[-1] == 1


@given(matrices(), st.floats(0.01, 1))
def test_rank_for_energy_is_the_smallest_that_suffices(drawn, share):
    S = torch.linalg.svdvals(drawn[0])
    rank = rank_for_energy(S, share)
    held = energy(S)
    assert held[rank - 1] >= share - 1e-12
    assert rank == 1 or held[rank - 2] < share


def test_energy_of_extreme_values():
    assert energy(torch.zeros(3)).tolist() == [1, 1, 1]
    assert rank_for_energy(torch.zeros(3), 0.9) == 1
    for scale in (1e-200, 1e200):  # squares would vanish or overflow
        values = scale * torch.tensor([3.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(energy(values), torch.tensor([0.9, 1.0], dtype=torch.float64))
        assert rank_for_energy(values, 0.9) == 1
        assert rank_for_energy(values, 0.91) == 2


@given(matrices())
def test_numerical_rank_finds_the_rank_that_was_built_in(drawn):
    matrix, rank, numbers = drawn
    built = low_rank(matrix, rank)
    assert numerical_rank(built) == rank == np.linalg.matrix_rank(built.numpy())
    noisy = built + 1e-7 * torch.randn(built.shape, generator=numbers, dtype=torch.float64)
    assert numerical_rank(noisy) == min(matrix.shape)  # noise hides it ...
    smallest = float(torch.linalg.svdvals(built)[rank - 1] / torch.linalg.svdvals(built)[0])
    if smallest > 1e-4:
        assert numerical_rank(noisy, rtol=1e-5) == rank  # ... and a tolerance brings it back


def test_a_matrix_of_zeros_has_rank_0():
    assert numerical_rank(torch.zeros(3, 4)) == 0


@given(st.integers(1, 300), st.integers(1, 300))
def test_factors_are_smaller_exactly_below_break_even(m, n):
    for rank in range(1, min(m, n) + 1):
        assert (rank * (m + n) < m * n) == (rank < break_even_rank(m, n))


def test_orthogonality_error():
    assert orthogonality_error(torch.eye(4)[:, :2]) == 0
    assert orthogonality_error(2 * torch.eye(4)) == pytest.approx(6)  # 4 - 1 on the diagonal
    assert orthogonality_error(torch.ones(1, 3)) > 1  # rows cannot be 3 orthonormal columns


def test_ranks_may_be_numpy_integers():
    assert check_rank(np.int64(8), 8, (8, 9)) == 8


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (80, r"rank=80 exceeds 64, the full rank of this \(64, 576\) matrix"),
        (0, "rank=0 is too small"),
        (-3, "rank=-3 is too small"),
        (8.0, "rank=8.0 is not a whole number: give an int from 1 to 64"),
        (math.nan, "rank=nan is not a whole number"),
        (True, "rank=True is not a whole number"),
        ("8", "rank='8' is not a whole number"),
        (None, "rank=None is not a whole number"),
    ],
)
def test_bad_ranks(rank, message):
    for function in (truncated_svd, low_rank, balanced_factors):
        with pytest.raises(ValueError, match=message):
            function(torch.ones(64, 576), rank)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hooi(NAN, (1, 1)), "tensor holds NaN or infinite"),
        (lambda: hooi(torch.ones(3), (1, 1)), r"tensor has shape \(3,\): give \(O, C, ...\)"),
        (lambda: hooi(torch.ones(4, 3, 2), (5, 3)), "rank=5 exceeds 4"),
        (lambda: hooi(torch.ones(4, 3, 2), (4, 0)), "rank=0 is too small"),
        (lambda: gram_svd(NAN), "matrix holds NaN or infinite"),
        (lambda: matrix_root(NAN), "matrix holds NaN or infinite"),
        (lambda: truncated_svd(NAN, 1), "matrix holds NaN or infinite"),
        (lambda: low_rank(NAN.nan_to_num(math.inf), 1), "matrix holds NaN or infinite"),
        (lambda: balanced_factors(NAN, 1), "matrix holds NaN or infinite"),
        (lambda: numerical_rank(NAN), "matrix holds NaN or infinite"),
        (lambda: orthogonality_error(NAN), "U holds NaN or infinite"),
        (lambda: energy(NAN[0]), "singular_values"),
        (lambda: energy(torch.tensor([1.0, 2.0])), "largest first"),
        (lambda: energy(torch.tensor([1.0, -1.0])), "not negative"),
        (lambda: energy(torch.empty(0)), "singular_values"),
        (lambda: rank_for_energy(torch.ones(3), 0.0), r"share=0.0 is outside \(0, 1\]"),
        (lambda: rank_for_energy(torch.ones(3), 90), "share=90 is outside"),
        (lambda: rank_for_energy(torch.ones(3), math.nan), "share=nan is outside"),
        (lambda: numerical_rank(torch.eye(2), rtol=-1), "rtol=-1 is outside"),
        (lambda: truncated_svd(torch.ones(2, 3, 4), 1), "matrix has shape .* 2-D"),
        (lambda: truncated_svd(torch.ones(0, 3), 1), "non-empty"),
        (lambda: truncated_svd(torch.ones(2, 3, dtype=torch.int64), 1), r"matrix.double\(\)"),
        (lambda: break_even_rank(0, 5), "m=0, n=5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
