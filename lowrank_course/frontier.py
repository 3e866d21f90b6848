"""Accuracy against cost, for several methods on one network, one calibration set, one machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .compress import compress
from .data import balanced_subset, find_data, load_images, make_loader, write_text
from .measure import compare_latency, count_macs, count_parameters
from .models import WEIGHTS, load_resnet18
from .recipes import machine
from .responses import Batches
from .train import answers

# A method takes (dense network, example, budget, calibration batches) and gives a network.
Method = Callable[[nn.Module, Tensor, float, Batches], nn.Module]

BUDGETS = (0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2)
PER_CLASS = {  # images for calibration and evaluation (None: all)
    "smoke": (5, 10),
    "laptop": (100, 100),
    "full": (100, None),
}


def ours() -> dict[str, Method]:
    """Every form by responses, with and without the refit, what weights alone give, and a budget
    of time that follows from that of the MACs.
    """

    def by(form: str, with_data: bool = True, **options: Any) -> Method:
        return lambda dense, example, budget, data: compress(
            dense, example, budget, form=form, data=data if with_data else None, **options
        )

    def by_time(dense: nn.Module, example: Tensor, budget: float, data: Batches) -> nn.Module:
        # For one image. Time falls less than the MACs: about two thirds as far.
        share = 1 - 0.65 * (1 - budget)
        return compress(dense, example[:1], share, cost="latency", data=data)

    methods = {form: by(form) for form in ("auto", "channel", "spatial", "tucker2")}
    methods["auto, by time"] = by_time
    methods["auto, not refitted"] = by("auto", recalibrate=False)
    methods["auto, weights only"] = by("auto", with_data=False)
    return methods


def frontier(
    data: str,
    profile: str,
    path: Path,
    methods: Mapping[str, Method] | None = None,
    budgets: Sequence[float] = BUDGETS,
) -> dict[str, Any]:
    """Compress the shipped network by every method to every budget (of MACs), and measure.

    The record is written to `path` after every network; a second call goes on where one stopped.
    A method that fails at a budget leaves its message in place of the figures; the next call tries
    it again.

    Returns
    -------
    dict with `points`: method, budget, accuracy (percent), parameters and macs (shares of the
        dense network's), time by batch size (median ms over the dense network's, in turns),
        seconds to compress, and `right`, the answers as packed bits in hex (see `right_answers`).
    """
    if profile not in PER_CLASS:
        raise ValueError(f"profile={profile!r} is unknown; use one of {', '.join(PER_CLASS)}")
    name = find_data(data, profile=profile)
    dense = load_resnet18(name).to(memory_format=torch.channels_last)
    size = dense.evaluation_size
    calibrate, judge = PER_CLASS[profile]
    calibration = make_loader(balanced_subset(load_images("train", name), calibrate), 64, size)
    judged = load_images("val", name)
    if judge is not None:
        judged = balanced_subset(judged, judge)
    loader = make_loader(judged, 64, size)
    example = next(iter(loader))[0].contiguous(memory_format=torch.channels_last)
    shipped = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    about = {
        "network": shipped["sha256"],
        "data": {"name": name, "size": size, "calibrate": calibrate, "evaluated": len(judged)},
        "machine": machine(),
    }
    record = _started(path, about)
    done = {(point["method"], point["budget"]) for point in record["points"]}
    todo: list[tuple[str, float]] = [("dense", 1.0)]
    methods = ours() if methods is None else methods
    todo += [(method, budget) for budget in budgets for method in methods]
    for method, budget in tqdm([pair for pair in todo if pair not in done], "networks"):
        point: dict[str, Any] = {"method": method, "budget": budget}
        try:
            start = time.perf_counter()
            small = dense
            if method != "dense":
                small = methods[method](dense, example, budget, calibration)
            point["seconds"] = time.perf_counter() - start
            point |= _measured(small.eval(), dense, example)
            right = answers(small, loader).numpy()
            point["accuracy"] = 100 * float(right.mean())
            point["right"] = np.packbits(right).tobytes().hex()
        except (RuntimeError, ValueError) as error:
            point["failed"] = str(error)
        record["points"].append(point)
        write_text(path, json.dumps(record, indent=1))
    return record


def accuracies(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, dict[float, float]]:
    """Percent by name and budget, from the least: `names` says which methods, and their names."""
    found: dict[str, dict[float, float]] = {name: {} for name in names.values()}
    for point in sorted(record["points"], key=lambda point: point["budget"]):
        if point["method"] in names and "accuracy" in point:
            found[names[point["method"]]][point["budget"]] = point["accuracy"]
    return found


def right_answers(record: dict[str, Any], method: str, budget: float) -> np.ndarray:
    """Which validation images that network named right: bool (N,), in the loader's order."""
    for point in record["points"]:
        if (point["method"], point["budget"]) == (method, budget) and "right" in point:
            bits = np.frombuffer(bytes.fromhex(point["right"]), dtype=np.uint8)
            return np.unpackbits(bits, count=record["data"]["evaluated"]).astype(bool)
    raise ValueError(f"method={method!r} at budget={budget} is not in this record")


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of the exact McNemar test (1947): are two networks equally often right?

    `a` and `b` (N,) bool say which of the same images each named right. Only the images on which
    they differ count.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def _measured(small: nn.Module, dense: nn.Module, example: Tensor) -> dict[str, Any]:
    pair = {"small": small, "dense": dense}
    times = {}
    for batch in (1, 32):
        ms = compare_latency(pair, example, batch)
        times[str(batch)] = ms["small"] / ms["dense"]
    return {
        "parameters": count_parameters(small) / count_parameters(dense),
        "macs": count_macs(small, example) / count_macs(dense, example),
        "time": times,
    }


def _started(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has left at `path`, if it measured the same network on this machine."""
    if not path.exists():
        return {**about, "points": []}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = all(record[key] == about[key] for key in about)
        record["points"] = [point for point in record["points"] if "failed" not in point]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a frontier: delete it, or name another"
        ) from error
    if not same:
        raise ValueError(f"{path} is of another network, data or machine; name another file")
    return record
