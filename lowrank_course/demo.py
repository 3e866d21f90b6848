"""The main job: a trained ResNet-18, factorised, recalibrated, retrained and measured."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn

from .compress import compress
from .data import balanced_subset, find_data, load_images, make_loader
from .measure import compare_latency, count_macs, count_parameters, file_mb
from .models import load_resnet18
from .recipes import machine
from .refit import refit
from .train import evaluate, fine_tune

BUDGET = 0.2  # of the dense network's MACs
BATCH_SIZES = (1, 32)  # for which latency is measured

# Images per class for calibration, fine-tuning and evaluation (None: all), epochs, and peak
# learning rate: one short epoch wants small steps.
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"calibrate": 5, "tune": 20, "evaluate": 10, "epochs": 1, "learning_rate": 0.005},
    "laptop": {"calibrate": 100, "tune": 400, "evaluate": 200, "epochs": 1, "learning_rate": 0.01},
    "full": {"calibrate": 100, "tune": None, "evaluate": None, "epochs": 3, "learning_rate": 0.015},
}


def demo(
    data: str = "auto", profile: str = "laptop", say: Callable[[str], object] = lambda line: None
) -> dict[str, Any]:
    """Compress the shipped network to BUDGET of its MACs and follow its accuracy.

    Parameters
    ----------
    data : "auto", "imagenette" or "digits"
    profile : "smoke" (for tests), "laptop" (minutes) or "full" (every image, more epochs)
    say : takes a line before each step, for a person who waits; `print`, for example

    Returns
    -------
    dict with `rows` (dense, truncated, recalibrated, retrained: accuracy in percent, parameters,
        MACs, latency in ms by batch size, file in MB), and how they were made.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} is unknown; use one of {', '.join(PROFILES)}")
    start = time.perf_counter()
    options = PROFILES[profile]
    name = find_data(data, profile=profile)
    dense = load_resnet18(name)
    size = dense.evaluation_size
    train_images, val_images = load_images("train", name), load_images("val", name)

    def part(images, per_class):  # type: ignore[no-untyped-def]
        return images if per_class is None else balanced_subset(images, per_class)

    if name == "digits":  # the digits are few: every profile but smoke takes them all
        options = {**options, "epochs": 10 * options["epochs"]}
        if profile != "smoke":
            options |= {"tune": None, "evaluate": None}
    calibrating = part(train_images, options["calibrate"])
    calibration = make_loader(calibrating, 64, size)
    judged = part(val_images, options["evaluate"])
    loader = make_loader(judged, 64, size)
    example = next(iter(loader))[0]

    say(f"1/4 compressing to {BUDGET:.0%} of the MACs, {len(calibrating)} images of {name}")
    truncated = compress(dense, example, BUDGET, data=calibration, recalibrate=False)
    say("2/4 recalibrating: the layers are refitted to what the dense ones give")
    recalibrated = copy.deepcopy(truncated)
    free = [row.name for row in truncated.plan if not row.reason]  # type: ignore[union-attr]
    refit(recalibrated, dense, calibration, free)
    say("3/4 retraining")
    retrained = copy.deepcopy(recalibrated)
    # CutMix: a teacher has more to say about images that it does not know by heart.
    history = fine_tune(
        retrained, dense, part(train_images, options["tune"]), options["epochs"], size,
        learning_rate=options["learning_rate"], cutmix=0.5,
    )  # fmt: skip
    networks: dict[str, nn.Module] = {
        "dense": dense,
        "truncated": truncated,
        "recalibrated": recalibrated,
        "retrained": retrained,
    }
    for network in networks.values():  # alike for the stopwatch: training has turned one of them
        network.cpu().to(memory_format=torch.channels_last)
    example = example.contiguous(memory_format=torch.channels_last)
    say(f"4/4 measuring four networks, {len(judged)} validation images")
    latency = {batch: compare_latency(networks, example, batch) for batch in BATCH_SIZES}
    rows = [
        {
            "network": key,
            "accuracy": evaluate(network, loader),
            "parameters": count_parameters(network),
            "macs": count_macs(network, example),
            "latency_ms": {str(batch): latency[batch][key] for batch in BATCH_SIZES},
            "file_mb": file_mb(network),
        }
        for key, network in networks.items()
    ]
    return {
        "command": f"lowrank-course demo --data {name} --profile {profile}",
        "rows": rows,
        "data": {"name": name, "size": size, "evaluated": len(judged), **options},
        "plan": json.loads(truncated.plan.to_json())["rows"],  # type: ignore[operator, union-attr]
        "log": history,
        "machine": machine(),
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": peak_memory_mb(),
    }


def table(record: dict[str, Any]) -> str:
    """The rows of `demo` as text, each cost also as a share of the dense network's."""
    dense = record["rows"][0]
    head = ["network", "accuracy", "parameters", "MACs", "file"]
    head += [f"batch {batch}" for batch in dense["latency_ms"]]
    lines = [head]
    for row in record["rows"]:
        cells = [row["network"], f"{row['accuracy']:.2f} %"]
        cells.append(_share(row, dense, "parameters", 1e6, "M"))
        cells.append(_share(row, dense, "macs", 1e6, "M"))
        cells.append(f"{row['file_mb']:.1f} MB")
        cells += [f"{ms:.1f} ms" for ms in row["latency_ms"].values()]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines = [[name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])] for name, *rest in lines]
    text = ["  ".join(line) for line in lines]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def _share(row: dict[str, Any], dense: dict[str, Any], key: str, unit: float, name: str) -> str:
    return f"{row[key] / unit:.2f} {name} ({100 * row[key] / dense[key]:5.1f} %)"


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MB; mapped images count too."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, kB on Linux
