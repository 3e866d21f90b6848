"""Ranks under a budget against brute force over all combinations."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_course.linalg import low_rank
from lowrank_course.ranks import Choice, by_energy, candidate_ranks, errors, global_budget, uniform


def random_table(seed):
    """Four layers, the dearest up to 10,000 times as dear as the cheapest, five choices each."""
    numbers = torch.Generator().manual_seed(seed)
    table = {}
    for name in "abcd":
        price = 10 ** (4 * torch.rand(1, generator=numbers).item())
        left = torch.rand(4, generator=numbers).sort(descending=True).values.tolist()
        costs = torch.rand(4, generator=numbers).sort().values.tolist()
        table[name] = [Choice("dense", 0, 0.0, price)]
        table[name] += [
            Choice("channel", rank + 1, error, price * cost)
            for rank, (error, cost) in enumerate(zip(left, costs, strict=True))
        ]
    return table


def total(picked):
    choices = list(picked.values())
    return sum(c.cost for c in choices), sum(c.error for c in choices)


def everything(table):
    """(cost, error) of every combination."""
    return [total(dict(enumerate(combo))) for combo in itertools.product(*table.values())]


def lower_hull(points):
    """Corners of the lower convex hull, from the cheapest to the most exact (Andrew 1979)."""
    hull = []
    for x, y in sorted(points):
        if hull and y >= hull[-1][1]:
            continue  # dearer and no better
        while len(hull) > 1 and (hull[-1][0] - hull[-2][0]) * (y - hull[-2][1]) <= (
            hull[-1][1] - hull[-2][1]
        ) * (x - hull[-2][0]):
            hull.pop()
        hull.append((x, y))
    return hull


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_global_budget_is_the_best_corner_of_the_convex_hull(seed, share):
    """What a price can reach: the last corner within budget, less than a step from the optimum."""
    table = random_table(seed)
    points = everything(table)
    least, dense = min(points)[0], sum(options[0].cost for options in table.values())
    budget = least + share * (dense - least)
    cost, error = total(global_budget(table, budget))
    assert cost <= budget
    hull = lower_hull(points)
    corner = max(i for i, (x, _) in enumerate(hull) if x <= budget)
    assert (cost, error) == pytest.approx(hull[corner], rel=1e-9)
    best = min(y for x, y in points if x <= budget)
    following = hull[min(corner + 1, len(hull) - 1)][1]
    assert following <= best + 1e-9 and best <= error + 1e-9


def test_global_budget_grows_with_the_budget():
    table = random_table(7)
    points = everything(table)
    least, dense = min(points)[0], sum(options[0].cost for options in table.values())
    results = [
        total(global_budget(table, least + i / 40 * (dense - least) * (1 + 1e-12)))
        for i in range(41)
    ]
    costs, left = zip(*results, strict=True)
    assert list(costs) == sorted(costs) and list(left) == sorted(left, reverse=True)
    assert len(set(costs)) > 4  # it does move
    assert left[-1] == 0


def test_global_budget_names_the_least_that_can_be_reached():
    table = {
        "a": [Choice("dense", 0, 0.0, 100), Choice("channel", 1, 0.5, 30)],
        "b": [Choice("dense", 0, 0.0, 8)],
    }
    with pytest.raises(ValueError, match=r"budget=37 is below 38"):
        global_budget(table, 37)
    assert global_budget(table, 38)["a"].rank == 1


def test_global_budget_takes_the_cheaper_of_equals():
    table = {"a": [Choice("dense", 0, 0.0, 9), Choice("spatial", 3, 0.0, 5)]}
    assert global_budget(table, 100)["a"].form == "spatial"


def test_candidate_ranks():
    assert candidate_ranks(64) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert candidate_ranks(70)[-2:] == [64, 70]
    assert candidate_ranks(31) == list(range(1, 32))
    assert candidate_ranks(1) == [1]
    assert candidate_ranks(64, 16) == [16, 32, 48, 64]


def test_uniform():
    assert uniform({"a": 64, "b": 10, "c": 1}, 0.25) == {"a": 16, "b": 2, "c": 1}
    assert uniform({"a": 64}, 1.0) == {"a": 64}


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_uniform_refuses(ratio):
    with pytest.raises(ValueError, match=r"ratio=.* is not in \(0, 1\]"):
        uniform({"a": 64}, ratio)


def test_by_energy_is_the_least_rank_that_keeps_the_share():
    # Squares 9, 4, 1, 1 of 15: shares 0.6, 0.867, 0.933, 1.
    spectra = {"a": torch.tensor([3.0, 2.0, 1.0, 1.0]), "b": torch.ones(10)}
    assert by_energy(spectra, 0.59) == {"a": 1, "b": 6}
    assert by_energy(spectra, 0.61) == {"a": 2, "b": 7}
    assert by_energy(spectra, 0.9)["a"] == 3
    assert by_energy(spectra, 1.0) == {"a": 4, "b": 10}


def test_errors_are_those_of_the_truncated_matrix():
    matrix = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = errors(torch.linalg.svdvals(matrix))
    assert left.shape == (6,) and left[0] == 1 and left[5] == pytest.approx(0, abs=1e-12)
    for rank in range(1, 6):
        lost = (matrix - low_rank(matrix, rank)).square().sum() / matrix.square().sum()
        assert left[rank] == pytest.approx(lost.item(), abs=1e-12)
