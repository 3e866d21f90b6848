"""What a layer costs in milliseconds: measured at a few ranks of each form, and remembered.

MACs do not tell how long a layer takes, so each is timed by itself, as torch runs it. Its dense and
its factorised versions take turns: slow spells of the machine fall on all alike. Times are for the
batch size of `example`, on this machine, with the threads that torch has now. They are kept in
`latency.json` in the cache folder; delete that file to measure again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .data import cache_folder, write_text
from .layers import Rank, blank, full_rank
from .measure import Shapes, compare_latency, cpu_name
from .plan import Layer, all_layers, replace_module
from .ranks import Choice, candidate_ranks, global_budget

KNOTS = 4  # ranks of a form that are measured
BLOCK = 16  # channels that many processors work on at a time
RUNS = 3  # rounds for a layer, of which the median counts
TURNS = 5  # rounds for a network
TRIES = 4  # plans that are measured to meet a budget
STEP = 1.1  # by which the saving grows, at most, from plan to plan
NOISE = 0.01  # of the dense network's time: so far may a measured plan lie above its budget

Times = dict[str, list[tuple[int, float]]]  # of each form: (rank, ms), "dense" at rank 0


def prices(
    model: nn.Module,
    example: Tensor,
    shapes: Mapping[str, Shapes],
    forms: Mapping[str, Collection[str]],
) -> Callable[[str, str, Rank], float]:
    """Time in ms of layer `name` in `form` at `rank`: all its calls, for all images of `example`.

    Linear between the ranks that were measured, and never less than at a lower rank; a rank above
    BLOCK costs as much as its next multiple. `shapes` are those of one image (see `layer_shapes`).
    `forms` says which forms each layer is asked for; all can be asked for "dense". Layers of one
    geometry are measured once, in a few seconds, unless the cache knows them.

    ValueError for the form tucker2, whose pairs of ranks would need too many measurements.
    """
    table, found = _read(), dict[str, list[Times]]()
    for name, layer in tqdm(all_layers(model).items(), "timing layers", delay=1):
        asked, found[name] = {"dense", *forms.get(name, ())}, []
        if "tucker2" in asked:
            raise ValueError("cost='latency' has no times for form='tucker2'; use another of both")
        for given, _ in shapes[name]:
            x = _input(model, layer, given, example)
            key = f"{layer} on {_about(x)}"
            times = table.get(key, {})
            if not asked <= times.keys():
                times = table[key] = _measured(layer, x, asked | times.keys())
                _write(table)
            found[name].append(times)

    def price(name: str, form: str, rank: Rank) -> float:
        knots = [zip(*times[form], strict=True) for times in found[name]]
        whole = rank if rank < BLOCK else math.ceil(rank / BLOCK) * BLOCK  # type: ignore[operator]
        return sum(float(np.interp(whole, r, np.maximum.accumulate(ms))) for r, ms in knots)

    return price


def pick(
    model: nn.Module, example: Tensor, choices: Mapping[str, Sequence[Choice]], budget: float
) -> dict[str, Choice]:
    """`global_budget` for time: the whole network, as measured, keeps `budget` of its time.

    The layers' times do not add up to the network's: other layers run in between, and a layer by
    itself finds its data in the processor's caches. So plans are timed in turns with the dense
    network, their weights zero; the prices only say how a saving is shared among the layers. TRIES
    plans are measured at most. The last one stands, even if it lies somewhat above the budget.

    ValueError where even the fastest plan takes longer, or saves nothing that can be measured.
    """
    dense = {name: options[0] for name, options in choices.items()}
    picked = {name: min(options, key=lambda c: c.cost) for name, options in choices.items()}
    if budget == 1:
        return dense
    least, share = _sum(picked), _share(model, example, picked)
    if share > budget:
        raise ValueError(
            f"budget={budget} cannot be reached: the least for this model is "
            f"{math.ceil(1000 * share) / 1000:.3f} of its latency"
        )
    for _ in range(TRIES):
        # What the last plan saves by the prices, times what is wanted over what it really saved:
        # but in small steps, for a busy machine measures badly.
        saving = (_sum(dense) - _sum(picked)) * min(STEP, (1 - budget) / max(1e-9, 1 - share))
        picked = global_budget(choices, max(least, _sum(dense) - saving))
        share = _share(model, example, picked)
        if share <= budget + NOISE:
            break
    if share >= 1:
        raise ValueError(f"budget={budget} saves less than this machine's noise; ask for less")
    return picked


def _sum(picked: Mapping[str, Choice]) -> float:
    return sum(choice.cost for choice in picked.values())


def _share(model: nn.Module, example: Tensor, picked: Mapping[str, Choice]) -> float:
    """Time of the network with these layers, as a share of the dense network's."""
    cut = {name: (choice.form, choice.rank) for name, choice in picked.items() if choice.rank}
    if not cut:
        return 1.0
    table = _read()
    key = f"{hashlib.sha256(f'{model} {cut}'.encode()).hexdigest()} on {_about(example)}"
    if key not in table:
        small = copy.deepcopy(model)
        for name, (form, rank) in cut.items():
            layer = small.get_submodule(name)
            small = replace_module(small, layer, _version(layer, form, rank))  # type: ignore[arg-type]
        ms = compare_latency({"dense": model, "cut": small}, example, len(example), runs=TURNS)
        table[key] = {name: [(0, time)] for name, time in ms.items()}
        _write(table)
    return table[key]["cut"][0][1] / table[key]["dense"][0][1]


def _measured(layer: Layer, x: Tensor, forms: Collection[str]) -> Times:
    ranks = {f: [0] if f == "dense" else _knots(full_rank(layer, f)) for f in sorted(forms)}  # type: ignore[arg-type]
    versions = {f"{f} {rank}": _version(layer, f, rank) for f in ranks for rank in ranks[f]}
    ms = compare_latency(versions, x, len(x), runs=RUNS)
    return {f: [(rank, ms[f"{f} {rank}"]) for rank in ranks[f]] for f in ranks}


def _version(layer: Layer, form: str, rank: Rank) -> nn.Module:
    """With a bias, which the responses' mean, or a folded batch norm, brings."""
    return blank(layer, form, rank, torch.zeros(len(layer.weight))) if rank else layer


def _knots(full: int) -> list[int]:
    """Both ends of the ranks worth trying, and multiples of 16 between them, in even ratios."""
    tried = candidate_ranks(full)
    even = tried[1::2] or tried  # of 8, 16, 24, 32, ...
    places = np.geomspace(tried[0], full, KNOTS)[1:-1]
    between = {min(even, key=lambda rank: abs(rank - place)) for place in places}
    return sorted({tried[0], full} | between)


def _input(model: nn.Module, layer: Layer, given: Sequence[int], example: Tensor) -> Tensor:
    """Ones in shape (`given` is that of one image) and layout of what the layer gets."""
    if isinstance(layer, nn.Linear):
        return example.new_ones(1, 1, len(example) * math.prod(given[:-1]), given[-1])
    x = example.new_ones(len(example) * math.prod(given[:-3]), *given[-3:])
    held = [example, *(p for p in model.parameters() if p.ndim == 4)]  # one such makes all such
    last = any(map(_channels_last, held))
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _about(x: Tensor) -> str:
    layout = "channels_last" if _channels_last(x) else "contiguous"
    where = torch.cuda.get_device_name(x.device) if x.is_cuda else cpu_name()
    threads = torch.get_num_threads()
    return f"{tuple(x.shape)} {x.dtype} {layout}, {where}, {threads} threads, {torch.__version__}"


def _read() -> dict[str, Times]:
    """What was measured before; nothing if the file is not there, or damaged."""
    try:
        table = json.loads((cache_folder() / "latency.json").read_text(encoding="utf-8"))
        points = [p for times in table.values() for form in times.values() for p in form]
        return table if all(rank >= 0 and ms > 0 for rank, ms in points) else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(table: dict[str, Times]) -> None:
    with suppress(OSError):  # no room, or no right to write: then it is measured again next time
        write_text(cache_folder() / "latency.json", json.dumps(table))
