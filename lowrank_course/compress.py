"""A whole network: statistics, plan, swap, recalibrate; saving and loading."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import responses
from .data import written_beside
from .layers import (
    channel_from_basis,
    factorise,
    floored_scale,
    from_factors,
    full_rank,
    layer_matrix,
    macs,
    parameters,
    supported,
)
from .measure import Shapes, check_example, count_macs, count_parameters, layer_shapes
from .ranks import Choice, candidate_ranks, errors, global_budget
from .responses import Batches

COSTS = ("macs", "params")
FORMS = ("channel", "spatial", "auto")
Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Row:
    """What the plan says of one layer. `error` is relative and squared; "" is no reason."""

    name: str
    form: str  # "dense", "channel", "spatial" or "linear"
    rank: int  # 0: dense
    error: float
    before: float
    after: float
    reason: str = ""  # why the layer could not be factorised


@dataclass(frozen=True)
class Plan:
    """One row a layer; `before` and `after` are in units of `cost`, for one image."""

    rows: tuple[Row, ...]
    cost: str

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self] + [5])
        lines = [f"{'layer':{width}} form    rank   error {'before':>13} {'after':>13}"]
        for r in self:
            rank, error = (f"{r.rank:4d}", f"{r.error:7.4f}") if r.rank else ("   -", "      -")
            line = f"{r.name:{width}} {r.form:7} {rank} {error} {r.before:13,.0f} {r.after:13,.0f}"
            lines.append(f"{line}  {r.reason}".rstrip())
        before, after = (sum(getattr(r, key) for r in self) for key in ("before", "after"))
        lines.append(f"{self.cost:{width}} {'':20} {before:13,.0f} {after:13,.0f}")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps({"cost": self.cost, "rows": [asdict(row) for row in self]})

    @staticmethod
    def from_json(text: str) -> Plan:
        table = json.loads(text)
        return Plan(tuple(Row(**row) for row in table["rows"]), table["cost"])


def compress(
    model: nn.Module,
    example: Tensor,
    budget: float,
    cost: str = "macs",
    form: str = "auto",
    data: Batches | None = None,
    recalibrate: bool = True,
) -> nn.Module:
    """Replace convolutions and linear layers by low-rank pairs, so that `budget` of the cost stays.

    Every layer takes part; the budget decides which ranks they get and which stay dense.

    Parameters
    ----------
    model : any nn.Module; it is left untouched
    example : float (N, C, H, W), sets the image size for which costs are counted
    budget : fraction of the dense network's cost to keep, in (0, 1]; 1.0 keeps the function
    cost : "macs" or "params"
    form : "channel", "spatial" or "auto" for convolutions. "auto" takes for each layer the one
        that costs less for its error; with `data` it takes "channel".
    data : batches (images, labels) that can be read twice, about a thousand training images. The
        channel form then keeps what the layers' *responses* need (Zhang et al. 2016), and batch
        norms are recalibrated. None: the weights alone decide.
    recalibrate : False leaves the batch norms as they were

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
    layers = _layers(small)
    shapes = layer_shapes(small, example)
    reasons = {
        name: (supported(layer) or "") if shapes[name] else "not called, or read from outside"
        for name, layer in layers.items()
    }
    free = [name for name, reason in reasons.items() if not reason]
    if not free:
        raise ValueError("model has no convolution or linear layer that can be factorised")

    bases: dict[str, _Basis] = {}
    if data is not None and form != "spatial":
        bases = _bases(small, example, data, free)
    choices = {
        name: _choices(layers[name], shapes[name], form, cost, bases.get(name)) for name in free
    }
    total = count_macs(small, example) if cost == "macs" else count_parameters(small)
    fixed = total - sum(options[0].cost for options in choices.values())
    least = fixed + sum(min(c.cost for c in options) for options in choices.values())
    if budget * total < least:
        raise ValueError(
            f"budget={budget} cannot be reached: the least for this model is "
            f"{math.ceil(1000 * least / total) / 1000:.3f} of its {cost}"
        )
    picked = global_budget(choices, budget * total - fixed)

    rows = []
    for name, layer in layers.items():
        dense = _cost(layer, shapes[name], "dense", 0, cost)
        c = picked.get(name, Choice("dense", 0, 0.0, dense))
        rows.append(Row(name, c.form, c.rank, c.error, dense, c.cost, reasons[name]))
        if c.rank:
            basis = bases.get(name)
            if basis is None or c.form == "spatial":
                new = factorise(layer, c.form, c.rank)
            else:
                new = channel_from_basis(layer, basis.U[:, : c.rank], basis.scale, basis.mean)
            small = _replace(small, layer, new)
    small.plan = Plan(tuple(rows), cost)  # type: ignore[assignment]
    if data is not None and recalibrate and any(row.rank for row in rows):
        responses.recalibrate(small, data)
    return small.eval()


@dataclass(frozen=True)
class _Basis:
    """Eigenvectors of a layer's responses, largest first, in units of the batch norm behind."""

    U: Tensor  # (O, O)
    values: Tensor  # (O,), eigenvalues
    mean: Tensor  # (O,)
    scale: Tensor | None  # (O,)


def _bases(model: nn.Module, example: Tensor, data: Batches, names: list[str]) -> dict[str, _Basis]:
    norms = responses.following_batch_norms(model, example)
    found = {}
    for name, (mean, covariance) in responses.covariances(model, data, names).items():
        scale = responses.batch_norm_scale(norms[name]) if name in norms else None
        D = torch.ones_like(mean) if scale is None else floored_scale(scale)
        values, U = torch.linalg.eigh(D[:, None] * covariance * D)  # ascending
        found[name] = _Basis(U.flip(1), values.flip(0).clamp(min=0), mean, scale)
    return found


def _choices(
    layer: Layer, calls: Shapes, form: str, cost: str, basis: _Basis | None
) -> list[Choice]:
    """Dense first, then every form and rank that costs less than dense."""
    dense = _cost(layer, calls, "dense", 0, cost)
    choices = [Choice("dense", 0, 0.0, dense)]
    both = ["channel", "spatial"] if basis is None else ["channel"]
    forms = ["linear"] if isinstance(layer, nn.Linear) else both if form == "auto" else [form]
    for each in forms:
        if basis is not None and each != "spatial":
            left = errors(basis.values.sqrt())
        else:
            left = errors(torch.linalg.svdvals(layer_matrix(layer, each)))
        for rank in candidate_ranks(full_rank(layer, each)):
            price = _cost(layer, calls, each, rank, cost)
            if cost == "params" and basis is not None and layer.bias is None:
                price += len(basis.mean)  # the second layer gets a bias
            if price < dense:
                error = max(1e-12, float(left[rank]))  # only the dense layer is exact
                choices.append(Choice(each, rank, error, price))
    return choices


def _cost(layer: Layer, calls: Shapes, form: str, rank: int, cost: str) -> float:
    """Parameters of the layer, or MACs of all its calls for one image."""
    if cost == "params":
        return count_parameters(layer) if form == "dense" else parameters(layer, form, rank)
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


def _layers(model: nn.Module) -> dict[str, Layer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Layer)}


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model` with `new` wherever it holds, or is, `old`."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):  # named_children skips repetitions
            if child is old:
                setattr(parent, key, new)
    return model


def _check(model: nn.Module, example: Tensor, budget: float, cost: str, form: str) -> None:
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


def rebuild(model: nn.Module, plan: Plan, state: dict[str, Tensor]) -> nn.Module:
    """A copy of the dense `model` in the shape of `plan`, filled with `state`."""
    small = copy.deepcopy(model).eval()
    layers = _layers(small)
    for row in plan:
        if row.name not in layers:
            raise ValueError(f"the plan names {row.name!r}, which this model lacks")
        layer = layers[row.name]
        if row.rank:
            m, n = layer_matrix(layer, row.form).shape
            bias = state.get(f"{row.name}.1.bias".lstrip("."))  # "": model is that layer
            factors = torch.zeros(m, row.rank), torch.zeros(row.rank, n)
            new = from_factors(layer, row.form, *factors, bias)
            small = _replace(small, layer, new)
    small.load_state_dict(state)
    small.plan = plan  # type: ignore[assignment]
    return small.eval()


def save_compressed(model: nn.Module, path: str | Path) -> None:
    """Write a network that `compress` gave: tensors and plan, no pickle, all or nothing."""
    plan = getattr(model, "plan", None)
    if not isinstance(plan, Plan):
        raise ValueError("model has no plan; pass what compress returned")
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    with written_beside(Path(path)) as beside:
        beside.write_bytes(save(state, metadata={"plan": plan.to_json()}))


def load_compressed(path: str | Path, model: nn.Module) -> nn.Module:
    """Read such a file back; `model` is a dense network of the same kind, its weights any.

    Raises ValueError for a file that is damaged or was made from another kind of network.
    """
    try:
        with safe_open(path, "pt") as file:
            plan = Plan.from_json((file.metadata() or {})["plan"])
            state = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no compressed network ({error}); save it again") from error
    try:
        return rebuild(model, plan, state)
    except (RuntimeError, ValueError) as error:
        last = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} was made from another network than model: {last}") from error
