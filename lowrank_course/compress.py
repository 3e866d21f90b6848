"""A whole network: statistics, plan, swap, refit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from . import latency, responses
from .layers import Rank, macs, parameters
from .measure import Shapes, check_example, count_macs, count_parameters, evaluating, layer_shapes
from .plan import Layer, Plan, Row, all_layers, dense_reasons, replace_module
from .ranks import Choice, global_budget
from .refit import refit
from .responses import Batches
from .weighted import Response, Way, way

COSTS = ("macs", "params", "latency")
FORMS = ("channel", "spatial", "tucker2", "auto")
Price = Callable[[str, str, Rank], float]  # of a layer, by name, in a form at a rank
TEMPERATURE = 2.0  # of the answers whose change is counted


def compress(
    model: nn.Module,
    example: Tensor,
    budget: float,
    cost: str = "macs",
    form: str = "auto",
    data: Batches | None = None,
    recalibrate: bool = True,
) -> nn.Module:
    """Replace convolutions and linear layers by low-rank ones, so that `budget` of the cost stays.

    Every layer takes part; the budget decides which ranks they get and which stay dense.

    Parameters
    ----------
    model : any nn.Module; it is left untouched
    example : float (N, C, H, W), sets the image size for which costs are counted, and for "latency"
        also the batch size N, the memory format and the device
    budget : fraction of the dense network's cost to keep, in (0, 1]; 1.0 keeps the function
    cost : "macs", "params" or "latency". The last is measured, see `latency`: how long the network
        takes for all of `example` with the threads that torch has now, on this machine. A layer
        that does not get faster stays dense. The first time takes half a minute, for large batches
        longer; then the times are read from the cache.
    form : "channel", "spatial", "tucker2" or "auto" for convolutions. "auto" takes for each layer
        the channel or the spatial form, whichever costs less for its error.
    data : batches (images, labels) that can be read several times, about a thousand training
        images, classes mixed (the costly parts see the first 256); labels are not used. Then what
        the layers' *responses* need is kept, in the measure in which the network feels it, and
        layers and batch norms are refitted, front to back, to what the dense ones give. None: the
        weights alone decide.
    recalibrate : False leaves the refit out: only the layers that are cut change

    Returns
    -------
    nn.Module
        An ordinary module in eval mode, with the `Plan` as its attribute `plan`.

    Raises
    ------
    ValueError
        For arguments outside these, NaN weights, an example that does not fit, a model without
        anything to factorise, and a budget that cannot be reached; the message says which can.
    """
    _check(model, example, budget, cost, form)
    small = copy.deepcopy(model).eval()
    layers, shapes = all_layers(small), layer_shapes(small, example)
    reasons = dense_reasons(small, example)
    free = [name for name, reason in reasons.items() if not reason]
    if not free:
        raise ValueError("model has no convolution or linear layer that can be factorised")
    forms = {name: _forms(layers[name], form) for name in free}
    price = _prices(small, example, shapes, forms, cost, data is not None)
    known = {} if data is None else _known(small, data, free)
    ways = {name: {f: way(layers[name], f, known.get(name)) for f in forms[name]} for name in free}
    choices = {name: _choices(name, ways[name], price) for name in free}
    if cost == "latency":
        picked = latency.pick(small, example, choices, budget)
    else:
        total = count_macs(small, example) if cost == "macs" else count_parameters(small)
        picked = _pick(choices, budget, total, cost)
    rows = []
    for name in layers:
        dense = price(name, "dense", 0)
        c = picked.get(name, Choice("dense", 0, 0.0, dense))
        rows.append(Row(name, c.form, c.rank, c.error, dense, c.cost, reasons[name]))
    return _swap(small, model, Plan(tuple(rows), cost), ways, data, recalibrate)


def _pick(
    choices: Mapping[str, list[Choice]], budget: float, total: float, cost: str
) -> dict[str, Choice]:
    fixed = total - sum(options[0].cost for options in choices.values())
    least = fixed + sum(min(c.cost for c in options) for options in choices.values())
    if budget * total < least:
        raise ValueError(
            f"budget={budget} cannot be reached: the least for this model is "
            f"{math.ceil(1000 * least / total) / 1000:.3f} of its {cost}"
        )
    return global_budget(choices, budget * total - fixed)


def apply(
    model: nn.Module,
    example: Tensor,
    plan: Plan,
    data: Batches | None = None,
    recalibrate: bool = True,
) -> nn.Module:
    """Compress `model` as `plan` says: forms and ranks from there, errors and costs counted anew.

    The other arguments, and what is returned, are those of `compress`. ValueError for a plan that
    names other layers than the model's, or a form or rank that does not fit.
    """
    _check(model, example, cost=plan.cost)
    small = copy.deepcopy(model).eval()
    layers, shapes = all_layers(small), layer_shapes(small, example)
    reasons = dense_reasons(small, example)
    names = [row.name for row in plan]
    if differing := set(names) ^ layers.keys() or {n for n in names if names.count(n) > 1}:
        raise ValueError(f"plan is of another model: they differ in {min(differing)!r}")
    cut = [row for row in plan if row.form != "dense"]
    for row in cut:
        if reasons[row.name]:
            raise ValueError(f"plan cuts {row.name!r}, which stays dense: {reasons[row.name]}")
        parameters(layers[row.name], row.form, row.rank)  # ValueError where they do not fit
    forms = {row.name: [row.form] for row in cut}
    price = _prices(small, example, shapes, forms, plan.cost, data is not None)
    known = {} if data is None else _known(small, data, [n for n, r in reasons.items() if not r])
    ways = {r.name: {r.form: way(layers[r.name], r.form, known.get(r.name))} for r in cut}
    rows = []
    for row in plan:
        dense, after = (price(row.name, *each) for each in (("dense", 0), (row.form, row.rank)))
        error = 0.0 if row.form == "dense" else ways[row.name][row.form].error(row.rank)
        rows.append(Row(row.name, row.form, row.rank, error, dense, after, reasons[row.name]))
    return _swap(small, model, Plan(tuple(rows), plan.cost), ways, data, recalibrate)


def _swap(
    small: nn.Module,
    model: nn.Module,
    plan: Plan,
    ways: Mapping[str, Mapping[str, Way]],
    data: Batches | None,
    recalibrate: bool,
) -> nn.Module:
    """`small`, still dense, with every layer replaced that the plan cuts, and refitted."""
    layers = all_layers(small)
    for row in plan:
        if row.form != "dense":
            new = ways[row.name][row.form].build(row.rank)
            small = replace_module(small, layers[row.name], new)
    if data is not None and recalibrate and any(row.form != "dense" for row in plan):
        refit(small, model, data, [row.name for row in plan if not row.reason])
    small.plan = plan  # type: ignore[assignment]
    return small.eval()


def _known(model: nn.Module, data: Batches, names: list[str]) -> dict[str, Response]:
    moments = responses.covariances(model, data, names)
    felt = responses.sensitivities(model, data, names, temperature=TEMPERATURE)
    inputs = responses.input_covariances(model, data, names)
    return {name: Response(*moments[name], felt[name], inputs.get(name)) for name in names}


def _forms(layer: Layer, form: str) -> list[str]:
    if isinstance(layer, nn.Linear):
        return ["linear"]
    if form != "auto":
        return [form]
    return ["channel"] if layer.kernel_size == (1, 1) else ["channel", "spatial"]


def _choices(name: str, ways: Mapping[str, Way], price: Price) -> list[Choice]:
    """Dense first, then every form and rank that costs less than dense."""
    dense = price(name, "dense", 0)
    choices = [Choice("dense", 0, 0.0, dense)]
    for form, each in ways.items():
        for rank, error in each.errors.items():
            after = price(name, form, rank)
            if after < dense:  # the floor: only the dense layer is exact
                choices.append(Choice(form, rank, max(1e-12, error), after))
    return choices


def _prices(
    model: nn.Module,
    example: Tensor,
    shapes: Mapping[str, Shapes],
    forms: Mapping[str, Collection[str]],
    cost: str,
    data: bool,
) -> Price:
    """What a layer, by name, costs in a form at a rank; `forms` are those that will be asked."""
    if cost == "latency":
        return latency.prices(model, example, shapes, forms)
    layers = all_layers(model)
    return lambda name, form, rank: _cost(layers[name], shapes[name], form, rank, cost, data)


def _cost(layer: Layer, calls: Shapes, form: str, rank: Rank, cost: str, data: bool) -> float:
    """Parameters of the layer, or MACs of all its calls for one image."""
    if cost == "params":
        if form == "dense":
            return count_parameters(layer)
        # From data, the last layer of these forms gets a bias.
        extra = data and form in ("channel", "linear") and layer.bias is None
        return parameters(layer, form, rank) + extra * len(layer.weight)
    result = 0
    for given, out in calls:  # (N, C, H, W); N > 1 where the model folds one image into several
        images, before, after = 1, given[:-1], out[:-1]
        if isinstance(layer, nn.Conv2d):
            images, before, after = math.prod(out[:-3]), given[-2:], out[-2:]
        if form == "dense":
            result += images * layer.weight.numel() * math.prod(after)
        else:
            result += images * macs(layer, form, rank, before, after)
    return result


def _check(
    model: nn.Module, example: Tensor, budget: float = 1, cost: str = "macs", form: str = "auto"
) -> None:
    check_example(example)
    if not 0 < budget <= 1:
        raise ValueError(f"budget={budget} is not in (0, 1]; it is the share of the cost to keep")
    if cost not in COSTS:
        raise ValueError(f"cost={cost!r} is unknown; use one of {', '.join(COSTS)}")
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; use one of {', '.join(FORMS)}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"parameter {name} holds NaN or infinite values; load the model again")


def fold_batch_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy for inference, with batch norms folded into the layers that they directly follow.

    In eval mode a batch norm scales and shifts each channel. Both go into the weight and the bias
    of the convolution or linear layer in front (the last of a factorised one), and an Identity
    takes its place. A batch norm stays where this would change what the model gives for `example`:
    there something else reads the layer's output, too.

    The copy has no plan and cannot be saved by `save_compressed`: save first, fold after loading.
    """
    layer_shapes(model, example)  # ValueError for an example that does not fit
    names = {module: name for name, module in model.named_modules()}
    behind = responses.following_batch_norms(model, example)
    pairs = [
        (name, names[norm])
        for name, norm in behind.items()
        if "weight" in model.get_submodule(name)._parameters  # and not made by a hook
    ]
    expected = _answers(model, example)

    def same(folded: nn.Module) -> bool:
        found = _answers(folded, example)
        return all(
            (y - z).norm() <= torch.finfo(z.dtype).eps ** 0.5 * z.norm()
            for y, z in zip(found, expected, strict=True)
        )

    folded = _folded(model, pairs)
    if not same(folded):  # then one by one
        kept: list[tuple[str, str]] = []
        for pair in pairs:
            if same(_folded(model, [*kept, pair])):
                kept.append(pair)
        folded = _folded(model, kept)
    return folded


def _folded(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    folded = copy.deepcopy(model).eval()
    for name, norm_name in pairs:
        layer: Any = folded.get_submodule(name)
        norm: Any = folded.get_submodule(norm_name)
        mean, variance = norm.running_mean, norm.running_var
        layer.weight, layer.bias = fuse_conv_bn_weights(  # serves linear layers, too
            layer.weight, layer.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        folded = replace_module(folded, norm, nn.Identity())
    folded.__dict__.pop("plan", None)
    return folded


def _answers(model: nn.Module, example: Tensor) -> list[Tensor]:
    """All float tensors that the model gives in eval mode."""
    with evaluating(model), torch.no_grad():
        leaves = tree_leaves(model(example))
    return [y for y in leaves if isinstance(y, Tensor) and y.is_floating_point()]
