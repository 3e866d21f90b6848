"""The plan of a compressed network: read it, edit it, save it with the network, load both."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .data import written_beside
from .layers import Rank, blank, supported
from .measure import evaluating

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Row:
    """What the plan says of one layer; "" is no reason.

    `error` is what the ranks were chosen by. With data: a prediction of how far the answers move by
    this cut, in nats (KL divergence at temperature 2, to second order, errors at different places
    taken as unrelated). It is mostly too low: compare, do not quote. By weights alone: the squared
    relative error.
    """

    name: str
    form: str  # "dense", "channel", "spatial", "tucker2" or "linear"
    rank: Rank  # 0: dense; a pair (inputs, outputs) for tucker2
    error: float
    before: float
    after: float
    reason: str = ""  # why the layer could not be factorised

    def __post_init__(self) -> None:  # JSON has no pairs, and who edits it may forget the rank
        rank = tuple(self.rank) if isinstance(self.rank, list) else self.rank
        object.__setattr__(self, "rank", 0 if self.form == "dense" else rank)


@dataclass(frozen=True)
class Plan:
    """One row a layer; `before` and `after` are in units of `cost`: numbers, MACs for one image, or
    ms for the batch that was timed.
    """

    rows: tuple[Row, ...]
    cost: str

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self] + [5])
        lines = [f"{'layer':{width}} form       rank   error {'before':>13} {'after':>13}"]
        digits = ",.3f" if self.cost == "latency" else ",.0f"
        for r in self:
            rank, error = (_short(r.rank), f"{r.error:.1e}") if r.rank else ("-", "-")
            line = f"{r.name:{width}} {r.form:7} {rank:>7} {error:>7}"
            line = f"{line} {r.before:13{digits}} {r.after:13{digits}}"
            lines.append(f"{line}  {r.reason}".rstrip())
        before, after = (sum(getattr(r, key) for r in self) for key in ("before", "after"))
        lines.append(f"{self.cost:{width}} {'':23} {before:13{digits}} {after:13{digits}}")
        return "\n".join(lines)

    def to_json(self) -> str:
        table = {"cost": self.cost, "rows": [asdict(row) for row in self]}
        return json.dumps(table, default=int)  # for numpy's integers

    @staticmethod
    def from_json(text: str) -> Plan:
        try:
            table = json.loads(text)
            return Plan(tuple(Row(**row) for row in table["rows"]), table["cost"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"text holds no plan ({error}); write it with to_json") from error

    def edit(self, name: str, form: str, rank: Rank = 0) -> Plan:
        """A copy with another form and rank for one layer, to be applied by `apply`.

        form "dense" leaves the layer as it is.
        """
        names = [row.name for row in self]
        if name not in names:
            raise ValueError(f"name={name!r} is not in the plan; use one of {', '.join(names)}")
        rows = list(self.rows)
        i = names.index(name)
        if rows[i].reason and form != "dense":
            raise ValueError(f"name={name!r} stays dense: {rows[i].reason}")
        rows[i] = replace(rows[i], form=form, rank=rank)
        return Plan(tuple(rows), self.cost)


def _short(rank: Rank) -> str:
    return f"{rank[0]},{rank[1]}" if isinstance(rank, tuple) else str(rank)


def all_layers(model: nn.Module) -> dict[str, Layer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Layer)}


def dense_reasons(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Why each layer must stay dense; "" where it need not. Seen in one pass over one image."""
    layers = all_layers(model)
    called: set[nn.Module] = set()
    read: set[nn.Module] = set()
    inside: list[nn.Module] = []  # the layer that runs at the moment

    def watched(kind: type[nn.Module]) -> type[nn.Module]:
        class Watched(kind):  # type: ignore[misc, valid-type]
            def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
                called.add(self)
                inside.append(self)
                try:
                    return super().forward(*args, **named)
                finally:
                    inside.pop()

            def __getattr__(self, name: str) -> object:  # parameters are no plain attributes
                if name == "weight" and self not in inside:
                    read.add(self)
                return super().__getattr__(name)

        return Watched

    kinds = {layer: type(layer) for layer in layers.values()}
    try:
        for layer, kind in kinds.items():
            layer.__class__ = watched(kind)  # type: ignore[assignment]
        with evaluating(model), torch.no_grad():
            model(example[:1])
    finally:
        for layer, kind in kinds.items():
            layer.__class__ = kind
    held = Counter(id(p) for each in model.modules() for p in each._parameters.values())

    def reason(layer: nn.Module) -> str:
        if layer in read:
            return "its weight is read from outside"
        if layer not in called:
            return "not called"
        if (why := supported(layer)) or held[id(layer._parameters["weight"])] == 1:
            return why or ""
        return "its weight is another module's, too"

    return {name: reason(layer) for name, layer in layers.items()}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model` with `new` wherever it holds, or is, `old`."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):  # named_children skips repetitions
            if child is old:
                setattr(parent, key, new)
    return model


def rebuild(model: nn.Module, plan: Plan, state: dict[str, Tensor]) -> nn.Module:
    """A copy of the dense `model` in the shape of `plan`, filled with `state`."""
    small = copy.deepcopy(model).eval()
    layers = all_layers(small)
    for row in plan:
        if row.name not in layers:
            raise ValueError(f"the plan names {row.name!r}, which this model lacks")
        layer = layers[row.name]
        if row.form != "dense":
            last = 2 if row.form == "tucker2" else 1
            bias = state.get(f"{row.name}.{last}.bias".lstrip("."))  # "": model is that layer
            small = replace_module(small, layer, blank(layer, row.form, row.rank, bias))
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
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no compressed network ({error}); save it again") from error
    try:
        return rebuild(model, plan, state)
    except (RuntimeError, ValueError) as error:
        last = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} was made from another network than model: {last}") from error
