"""Published recipes in a few lines each: how to choose ranks, and what to keep.

They cut convolutions in one form (channel, or Tucker-2 where the paper does), and leave a layer
dense where it would not get cheaper. Where a recipe knows no budget, its one knob is turned up
until the budget is met. Chapter 06 explains the rules.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowrank_course import layers, ranks, responses
from lowrank_course.linalg import gram_svd
from lowrank_course.measure import count_macs, evaluating, layer_shapes
from lowrank_course.plan import all_layers
from lowrank_course.responses import Batches
from lowrank_course.weighted import way

IMAGES, SAMPLES = 256, 8192  # of the asymmetric PCA; as `refit` takes
Convs = dict[str, nn.Conv2d]
Rule = Callable[[float], Mapping[str, Any]]  # from the knob, 0 to 1, to ranks by layer
F = TypeVar("F", bound=Callable)


def keep_last(function: F) -> F:
    """The same function, which remembers its last call; networks and data must be the same ones."""
    return cast(F, lru_cache(maxsize=1)(function))


def highest(fits: Callable[[float], bool]) -> float:
    """The highest setting of a knob that fits, from just above 0 to 1, by bisection."""
    low, high = 1e-3, 1.0
    if not fits(low):
        raise ValueError("the budget cannot be reached, not even by the least ranks")
    if fits(high):
        return high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def convolutions(model: nn.Module) -> Convs:
    """What may be cut: plain convolutions. The one linear layer has 0.01 % of the MACs."""
    return {
        name: layer
        for name, layer in all_layers(model).items()
        if isinstance(layer, nn.Conv2d) and layers.supported(layer) is None
    }


def swapped(dense: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of `dense` with these layers in place of its own."""
    small = copy.deepcopy(dense)
    for name, layer in new.items():
        small.set_submodule(name, layer)
    return small


# ---- One knob ----------------------------------------------------------------------------------


def ranks_by_rule(
    dense: nn.Module, example: Tensor, budget: float, form: str, make: Callable[[Convs], Rule]
) -> dict[str, Any]:
    """The ranks of a rule whose knob is turned up to the budget; layers that stay dense are absent.

    ValueError if the least setting is over the budget.
    """
    price, room = prices(dense, example, budget)
    rule = make(convolutions(dense))

    def cost(knob: float) -> int:
        return sum(min(price(n, form, r), price(n, "dense", 0)) for n, r in rule(knob).items())

    chosen = rule(highest(lambda knob: cost(knob) <= room)).items()
    return {n: r for n, r in chosen if price(n, form, r) < price(n, "dense", 0)}


def by_rule(
    dense: nn.Module,
    example: Tensor,
    budget: float,
    data: Batches,
    form: str,
    make: Callable[[Convs], Rule],
) -> nn.Module:
    """Weights alone, in one form, at the ranks of a rule."""
    chosen, convs = ranks_by_rule(dense, example, budget, form, make), convolutions(dense)
    return swapped(dense, {n: way(convs[n], form, None).build(r) for n, r in chosen.items()})


def prices(
    dense: nn.Module, example: Tensor, budget: float
) -> tuple[Callable[[str, str, Any], int], float]:
    """MACs of a convolution, by name, in a form at a rank; and what all of them may cost."""
    convs, shapes = convolutions(dense), layer_shapes(dense, example)

    def price(name: str, form: str, rank: Any) -> int:
        conv = convs[name]
        if form == "dense":
            return sum(conv.weight.numel() * math.prod(out[-2:]) for _, out in shapes[name])
        calls = [(given[-2:], out[-2:]) for given, out in shapes[name]]
        return sum(layers.macs(conv, form, rank, *call) for call in calls)

    total = count_macs(dense, example)
    return price, budget * total - (total - sum(price(name, "dense", 0) for name in convs))


def spectra(convs: Convs) -> dict[str, Tensor]:
    """Singular values of each kernel as an (O, C*kh*kw) matrix."""
    return {n: gram_svd(layers.layer_matrix(conv, "channel"))[1] for n, conv in convs.items()}


def uniform(convs: Convs) -> Rule:
    """The same share of the full rank in every layer."""
    full = {n: len(values) for n, values in spectra(convs).items()}
    return lambda knob: ranks.uniform(full, knob)


def energy(convs: Convs) -> Rule:
    """The same share of the energy in every layer."""
    values = spectra(convs)
    return lambda knob: ranks.by_energy(values, knob)


def alds(convs: Convs) -> Rule:
    """Liebenwein et al., NeurIPS 2021: the same largest error, sigma_(r+1) / sigma_1, everywhere.

    One subspace a layer; the published method also tries to split a layer into groups.
    """
    values = spectra(convs)
    return lambda knob: {n: max(1, int((S / S[0] > 1 - knob).sum())) for n, S in values.items()}


def evbmf_tucker2(convs: Convs) -> Rule:
    """Kim et al., ICLR 2016: Tucker-2 at the ranks that EVBMF finds in both unfoldings."""
    found = {
        n: [scaled_evbmf(c.weight.transpose(0, i).flatten(1)) for i in (1, 0)]
        for n, c in convs.items()
    }
    return lambda knob: {n: tuple(at(knob) for at in pair) for n, pair in found.items()}


def evbmf_channel(convs: Convs) -> Rule:
    """The rank that EVBMF finds in the matrix of the channel form."""
    found = {n: scaled_evbmf(c.weight.flatten(1)) for n, c in convs.items()}
    return lambda knob: {n: at(knob) for n, at in found.items()}


def scaled_evbmf(matrix: Tensor) -> Callable[[float], int]:
    """From the knob to the rank: that of `evbmf`, times 0 to 200, for it knows no budget.

    At least 1, for EVBMF returns 0 where nothing stands out of the noise.
    """
    matrix = matrix.detach().double()
    full, found = min(matrix.shape), evbmf(gram_svd(matrix)[1], *sorted(matrix.shape))
    return lambda knob: min(full, max(1, round(max(1, found) * 200 * knob)))


def evbmf(S: Tensor, rows: int, columns: int) -> int:
    """How many singular values stand out of noise of unknown strength; rows <= columns.

    The global analytic solution of empirical variational Bayesian matrix factorisation (Nakajima
    et al., JMLR 2013), with the best of 300 strengths.
    """
    a = rows / columns
    tau = 2.5129 * a**0.5
    edge = (1 + tau) * (1 + a / tau)  # where noise ends, in units of the noise

    def misfit(noise: float) -> float:
        x = S**2 / (columns * noise)
        above, below = x[x > edge], x[x <= edge]
        t = (above - (1 + a) + ((above - (1 + a)) ** 2 - 4 * a).sqrt()) / 2
        out = above - t + ((t + 1) / above).log() + a * (t / a + 1).log()
        return float((below - below.log()).sum() + out.sum())

    tried = float(S.square().sum()) / (rows * columns) * np.logspace(-3, 0, 300)
    return int((S**2 > columns * edge * min(tried, key=misfit)).sum())


# ---- A price for MACs --------------------------------------------------------------------------


def chosen_ranks(
    dense: nn.Module, example: Tensor, budget: float, errors: Mapping[str, Mapping[int, float]]
) -> dict[str, int]:
    """Ranks with the least sum of errors within the budget; layers that stay dense are absent."""
    price, room = prices(dense, example, budget)
    choices = {}
    for n, by_rank in errors.items():
        dense_one = ranks.Choice("dense", 0, 0.0, price(n, "dense", 0))
        cut = [ranks.Choice("channel", r, e, price(n, "channel", r)) for r, e in by_rank.items()]
        choices[n] = [dense_one, *(choice for choice in cut if choice.cost < dense_one.cost)]
    picked = ranks.global_budget(choices, room)
    return {n: c.rank for n, c in picked.items() if isinstance(c.rank, int) and c.rank}


def sensitivity(
    dense: nn.Module, example: Tensor, budget: float, data: Batches, held_out: Batches
) -> nn.Module:
    """Each layer is cut alone to ten ranks; the sum of what was measured is made small."""
    chosen = chosen_ranks(dense, example, budget, measured(dense, held_out))
    convs = convolutions(dense)
    return swapped(dense, {n: way(convs[n], "channel", None).build(r) for n, r in chosen.items()})


@keep_last
def measured(dense: nn.Module, held_out: Batches) -> dict[str, dict[int, float]]:
    """KL divergence in nats from the dense network's answers to `held_out`, by layer and rank."""

    def log_answers(model: nn.Module) -> Tensor:
        with evaluating(model), torch.inference_mode():
            return torch.cat([model(images).log_softmax(1) for images, _ in held_out])  # (N, K)

    log_p = log_answers(dense)
    found: dict[str, dict[int, float]] = {}
    for name, conv in tqdm(convolutions(dense).items(), "one layer at a time"):
        build, (m, n) = way(conv, "channel", None).build, layers.layer_matrix(conv, "channel").shape
        most = min(m, n, (m * n - 1) // (m + n))  # above it, the layer would not get cheaper
        tried = {max(1, round(most * tenths / 10)) for tenths in range(1, 11)}
        found[name] = {}
        for r in sorted(tried):
            log_q = log_answers(swapped(dense, {name: build(r)}))
            found[name][r] = float((log_p.exp() * (log_p - log_q)).sum(1).mean().clamp(min=1e-12))
    return found


def response_pca(
    dense: nn.Module, example: Tensor, budget: float, data: Batches, asymmetric: bool = False
) -> nn.Module:
    """Zhang et al., TPAMI 2016: the leading directions of what each layer gives out.

    In units of the batch norm behind, which these networks have and the paper's had not. Ranks by
    relative errors, multiples of 8. `asymmetric`: each layer is fitted behind those already cut.
    """
    convs = convolutions(dense)
    bases: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    errors: dict[str, dict[int, float]] = {}
    norms = responses.following_batch_norms(dense, example)
    for name, (mean, covariance) in covariances(dense, data).items():
        norm, scale = norms.get(name), torch.ones(len(mean))
        if norm is not None and norm.running_var is not None:
            scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        D = layers.floored_scale(scale)
        values, U = torch.linalg.eigh(D[:, None] * covariance * D)
        bases[name] = (U.flip(1), D, mean)
        lost = ranks.errors(values.flip(0).clamp(min=0).sqrt())
        tried = ranks.candidate_ranks(min(layers.layer_matrix(convs[name], "channel").shape))
        errors[name] = {r: max(1e-12, float(lost[r])) for r in tried}
    chosen = chosen_ranks(dense, example, budget, errors)
    if asymmetric:
        return behind_the_cut(dense, data, {n: (r, bases[n][1]) for n, r in chosen.items()})
    new = {}
    for n, r in chosen.items():
        U, D, mean = bases[n]
        new[n] = layers.channel_from_basis(convs[n], U[:, :r], D, mean)
    return swapped(dense, new)


@keep_last
def covariances(dense: nn.Module, data: Batches) -> dict[str, tuple[Tensor, Tensor]]:
    return responses.covariances(dense, data, list(convolutions(dense)))


def behind_the_cut(
    dense: nn.Module, data: Batches, chosen: Mapping[str, tuple[int, Tensor]]
) -> nn.Module:
    """Cut front to back to (rank, D): dense responses y are regressed on those behind the cut, z.

    D y ≈ B z, and U holds the leading eigenvectors of the fitted D y: the factors are U^T B W and
    D^-1 U. All images go through together, so that one pass does.
    """
    images = torch.cat([batch for batch, _ in responses.first_images(data, IMAGES)])
    targets: dict[str, Tensor] = {}
    new: dict[str, nn.Module] = {}

    def some_rows(output: Tensor, conv: nn.Module) -> Tensor:
        y = responses.rows(output, conv)  # (P, O)
        drawn = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:SAMPLES]
        return y[drawn].double()

    def note(name: str) -> Callable:
        return lambda conv, _, output: targets.update({name: some_rows(output, conv)})

    def cut(name: str) -> Callable:
        def hook(conv: nn.Conv2d, given: tuple[Tensor], output: Tensor) -> Tensor:
            (rank, D), y, z = chosen[name], targets.pop(name), some_rows(output, conv)
            mean_y, mean_z = y.mean(0), z.mean(0)
            y, z = y - mean_y, z - mean_z
            A, identity = z.mT @ z, torch.eye(len(D), dtype=y.dtype)
            ridge = max(0.01, len(D) / len(z)) * A.diagonal().mean() * identity  # as in `refit`
            B = D[:, None] * torch.linalg.solve(A + ridge, z.mT @ y + ridge).mT  # (O, O)
            U = torch.linalg.eigh(B @ A @ B.mT)[1].flip(1)[:, :rank]
            left, right = U / D[:, None], U.mT @ B
            own = 0 if conv.bias is None else conv.bias.double()
            bias = mean_y - left @ (right @ (mean_z - own))
            right = right @ layers.layer_matrix(conv, "channel")
            new[name] = layers.from_factors(conv, "channel", left, right, bias)
            return new[name](given[0])

        return hook

    small = copy.deepcopy(dense)
    with evaluating(dense, small), torch.no_grad():
        with responses.hooks_on(dense, list(chosen), note):
            dense(images)
        with responses.hooks_on(small, list(chosen), cut):
            small(images)
    return swapped(dense, new)
