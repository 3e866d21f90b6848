"""Which rank for which layer, under a budget.

A layer's choices are a list of `Choice`: dense, or a form at a rank, each with its error and its
cost. The dense layer has error 0. By weights, errors are squared and relative; with data, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import Rank
from .linalg import energy, rank_for_energy


@dataclass(frozen=True)
class Choice:
    """One way to build a layer. form "dense" has rank 0 and error 0."""

    form: str
    rank: Rank
    error: float
    cost: float


def candidate_ranks(full: int, step: int = 8) -> list[int]:
    """Multiples of `step` up to `full`, which is included; for a narrow layer all ranks.

    Processors work on 8 or 16 channels at a time: rank 17 takes as long as rank 24.
    """
    if full < 4 * step:
        return list(range(1, full + 1))
    return sorted({*range(step, full + 1, step), full})


def uniform(full_ranks: Mapping[str, int], ratio: float) -> dict[str, int]:
    """The same share of the full rank in every layer, at least 1."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} is not in (0, 1]")
    return {name: max(1, round(ratio * full)) for name, full in full_ranks.items()}


def by_energy(spectra: Mapping[str, Tensor], share: float) -> dict[str, int]:
    """The least rank that keeps `share` of the energy of each layer's singular values (k,)."""
    return {name: rank_for_energy(values, share) for name, values in spectra.items()}


def errors(singular_values: Tensor) -> Tensor:
    """Relative squared error left at rank 0, 1, ..., k: (k + 1,), from 1 down to 0."""
    return torch.cat([singular_values.new_ones(1), 1 - energy(singular_values)])


def global_budget(choices: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, Choice]:
    """One choice for each layer, with little error in sum, whose costs sum to `budget` at most.

    Bisects the price lambda of a unit of cost; at a given price each layer by itself takes the
    choice with the least error + lambda cost (Everett, Operations Research 1963). The result has
    the least sum of errors for what it costs; within the budget another may have a little less.

    Raises
    ------
    ValueError
        If even the cheapest choices cost more than `budget`; its message names their cost.
    """

    def at(price: float) -> dict[str, Choice]:
        return {
            name: min(options, key=lambda c: (c.error + price * c.cost, c.cost))
            for name, options in choices.items()
        }

    def cost(picked: Mapping[str, Choice]) -> float:
        return sum(choice.cost for choice in picked.values())

    least = sum(min(choice.cost for choice in options) for options in choices.values())
    if least > budget:
        raise ValueError(f"budget={budget} is below {least}, the cost of the least ranks")
    if cost(at(0.0)) <= budget:
        return at(0.0)
    low, high = 0.0, 1.0
    while cost(at(high)) > budget:  # ends: a high enough price leaves only the cheapest
        high *= 2
    best = at(high)
    for _ in range(200):
        price = (low * high) ** 0.5 if low > 0 else high * 1e-12
        picked = at(price)
        if cost(picked) <= budget:
            best, high = picked, price
        else:
            low = price
        if low > 0 and high / low < 1 + 1e-9:
            break
    return best
