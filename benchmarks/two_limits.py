"""Compress under limits of parameters and of MACs at once.

`compress` takes one budget of one cost. A network within both limits also keeps to any mixture of
them: w parameters / limit + (1 - w) MACs / limit is at most 1. So `compress_within` tries many w,
lowers the budget of the mixture until both limits hold, and takes the plan that harms least.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from lowrank_course.compress import _choices, _forms, _known, _pick, _prices, apply, compress
from lowrank_course.layers import Rank
from lowrank_course.measure import count_macs, count_parameters, layer_shapes
from lowrank_course.plan import Plan, Row, all_layers, dense_reasons
from lowrank_course.ranks import Choice
from lowrank_course.responses import Batches
from lowrank_course.weighted import way

WEIGHTS = np.linspace(0, 1, 41)  # w above
BUDGETS = np.arange(1, 0.5, -0.01)  # of the mixture


def compress_within(
    dense: nn.Module, example: Tensor, limits: Mapping[str, float], data: Batches
) -> nn.Module:
    """A network that keeps to all `limits`: shares of the dense network's cost, by its name.

    One limit ("params", "macs" or "latency") is what `compress` does; else "params" and "macs".
    ValueError where the limits cannot be reached.
    """
    if len(limits) == 1:
        ((cost, budget),) = limits.items()
        return compress(dense, example, budget, cost, data=data)
    layers, shapes = all_layers(dense), layer_shapes(dense, example)
    reasons = dense_reasons(dense, example)
    free = [name for name, reason in reasons.items() if not reason]
    forms = {name: _forms(layers[name], "auto") for name in free}
    known = _known(dense, data, free)
    ways = {name: {f: way(layers[name], f, known[name]) for f in forms[name]} for name in free}
    totals = {"params": count_parameters(dense), "macs": count_macs(dense, example)}
    prices = {cost: _prices(dense, example, shapes, forms, cost, True) for cost in limits}

    def share(picked: Mapping[str, Choice], cost: str) -> float:
        """Of the dense network's cost."""
        price = prices[cost]
        saved = (price(n, "dense", 0) - price(n, c.form, c.rank) for n, c in picked.items())
        return 1 - sum(saved) / totals[cost]

    best: dict[str, Choice] = {}
    least = float("inf")  # harm, in nats
    for w in WEIGHTS:
        unit = {"params": w / limits["params"], "macs": (1 - w) / limits["macs"]}

        def mixture(name: str, form: str, rank: Rank, unit: dict[str, float] = unit) -> float:
            return sum(unit[c] * prices[c](name, form, rank) / totals[c] for c in limits)

        choices = {name: _choices(name, ways[name], mixture) for name in free}
        total = sum(unit.values())  # the dense network's cost in this mixture
        for budget in BUDGETS:
            try:
                picked = _pick(choices, min(1, budget / total), total, "cost")
            except ValueError:  # not even the least ranks
                break
            harm = sum(choice.error for choice in picked.values())
            if harm >= least:
                break
            if all(share(picked, cost) <= limit for cost, limit in limits.items()):
                best, least = picked, harm
                break
    if not best:
        raise ValueError(f"limits={dict(limits)} cannot be reached together; raise one of them")
    kept = {name: (c.form, c.rank) for name, c in best.items()}
    rows = [Row(n, *kept.get(n, ("dense", 0)), 0.0, 0.0, 0.0, reasons[n]) for n in layers]
    return apply(dense, example, Plan(tuple(rows), "params"), data)  # counts errors and costs anew
