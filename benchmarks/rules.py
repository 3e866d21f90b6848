"""Rules for ranks from chapter 06, for a whole network in the channel form under a budget of MACs.

Each rule has a knob from 0 to 1 that only raises ranks; bisection finds the highest setting within
the budget. The layers themselves are built as `compress` builds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from lowrank_course import linalg
from lowrank_course.compress import apply
from lowrank_course.layers import layer_matrix
from lowrank_course.measure import count_macs, layer_shapes
from lowrank_course.plan import Plan, Row, all_layers
from lowrank_course.responses import Batches

Spectra = Mapping[str, Tensor]  # singular values (k,) by layer
Ranks = dict[str, int]
Rule = Callable[[Spectra, Mapping[str, int]], Callable[[float], Ranks]]  # also takes the columns


def uniform(spectra: Spectra, columns: Mapping[str, int]) -> Callable[[float], Ranks]:
    """The same share of the full rank."""
    return lambda knob: {n: max(1, round(knob * len(S))) for n, S in spectra.items()}


def by_energy(spectra: Spectra, columns: Mapping[str, int]) -> Callable[[float], Ranks]:
    """The least rank that holds the same share of the energy."""
    held = {n: linalg.energy(S) for n, S in spectra.items()}  # (k,)
    return lambda knob: {n: min(len(e), int((e < knob).sum()) + 1) for n, e in held.items()}


def alds(spectra: Spectra, columns: Mapping[str, int]) -> Callable[[float], Ranks]:
    """The same limit on the largest relative error (Liebenwein 2021, without channel groups)."""
    return lambda knob: {n: max(1, int((S / S[0] > 1 - knob).sum())) for n, S in spectra.items()}


def scaled_evbmf(spectra: Spectra, columns: Mapping[str, int]) -> Callable[[float], Ranks]:
    """The ranks of `evbmf`, at least 1, all times one factor."""
    found = {n: max(1, evbmf(S, columns[n])) for n, S in spectra.items()}

    def at(knob: float) -> Ranks:
        return {n: min(len(spectra[n]), max(1, round(r * 200 * knob))) for n, r in found.items()}

    return at


def evbmf(S: Tensor, columns: int) -> int:
    """How many singular values stand out of the noise (Nakajima 2013), which is estimated.

    S (k,) of a matrix with k rows and `columns` columns, k <= columns. It can be 0.
    """
    a = len(S) / columns
    tau = 2.5129 * a**0.5
    edge = (1 + tau) * (1 + a / tau)  # where noise ends, in units of the noise

    def misfit(noise: float) -> float:
        x = S**2 / (columns * noise)
        above, below = x[x > edge], x[x <= edge]
        t = (above - (1 + a) + ((above - (1 + a)) ** 2 - 4 * a).sqrt()) / 2
        fit = (below - below.log()).sum() + (above - t).sum()
        return float(fit + ((t + 1) / above).log().sum() + a * (t / a + 1).log().sum())

    tried = float(S.square().sum()) / (len(S) * columns) * np.logspace(-3, 0, 300)
    return int((S**2 > columns * edge * min(tried, key=misfit)).sum())


RULES: dict[str, Rule] = {
    "uniform": uniform,
    "energy": by_energy,
    "ALDS": alds,
    "EVBMF": scaled_evbmf,
}


def by_rule(
    rule: Rule, dense: nn.Module, example: Tensor, budget: float, data: Batches
) -> nn.Module:
    """The network with the ranks of `rule` at `budget` of its MACs; the linear layer stays."""
    layers, shapes = all_layers(dense), layer_shapes(dense, example)
    convs = {n: layer for n, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    matrices = {n: layer_matrix(conv, "channel") for n, conv in convs.items()}
    spectra = {n: linalg.gram_svd(W)[1] for n, W in matrices.items()}
    columns = {n: W.shape[1] for n, W in matrices.items()}
    places = {n: math.prod(shapes[n][0][1][-2:]) for n in convs}

    def saved(ranks: Mapping[str, int]) -> int:
        less = {n: W.numel() - ranks[n] * sum(W.shape) for n, W in matrices.items()}
        return sum(places[n] * max(0, less[n]) for n in convs)

    ranks_at = rule(spectra, columns)
    least = (1 - budget) * count_macs(dense, example)
    low, high = 0.0, 1.0
    for _ in range(30):
        knob = (low + high) / 2
        low, high = (knob, high) if saved(ranks_at(knob)) >= least else (low, knob)
    ranks = ranks_at(low)
    if saved(ranks) < least:
        raise ValueError(f"budget={budget} cannot be reached by this rule; raise it")
    thin = {n for n, W in matrices.items() if ranks[n] * sum(W.shape) < W.numel()}
    rows = [
        Row(n, "channel" if n in thin else "dense", ranks.get(n, 0), 0.0, 0.0, 0.0) for n in layers
    ]
    return apply(dense, example, Plan(tuple(rows), "macs"), data)
