"""Jobs of the long runs: each is recorded when it is done, and none is done twice.

A job is a function that gives a dict. A training inside a job goes on from its last epoch, a
compressed network is kept before it is trained: both in the cache folder, under `training`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import statistics
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowrank_course import models
from lowrank_course.data import (
    ImageSet,
    balanced_subset,
    cache_folder,
    load_images,
    make_loader,
    write_text,
)
from lowrank_course.measure import compare_latency, count_macs, count_parameters
from lowrank_course.plan import load_compressed, save_compressed
from lowrank_course.recipes import machine
from lowrank_course.responses import Batches
from lowrank_course.train import answers, train

Jobs = dict[str, Callable[[], dict[str, Any]]]

CALIBRATE = {"imagenette": 100, "digits": 50}  # training images of each class, for the cut
BUSY = 15.0  # percent of the processor that others may use while time is measured


@dataclass(frozen=True)
class Bench:
    """What all jobs share: the dense network and the images."""

    name: str  # of the dense network and of the data
    dense: nn.Module
    train: ImageSet
    holdout: ImageSet
    val: ImageSet
    calibrate: int = 100  # images of each class

    @property
    def size(self) -> int:
        return self.dense.evaluation_size  # type: ignore[return-value]

    @property
    def example(self) -> Tensor:
        x = next(iter(make_loader(self.holdout, 32, self.size)))[0]  # (32, 3, H, W)
        return x.contiguous(memory_format=torch.channels_last)

    @property
    def calibration(self) -> Batches:
        return make_loader(balanced_subset(self.train, self.calibrate), 64, self.size)

    def about(self) -> dict[str, Any]:
        record = json.loads((models.WEIGHTS / f"{self.name}.json").read_text(encoding="utf-8"))
        counts = {split: len(getattr(self, split)) for split in ("train", "holdout", "val")}
        about = {"name": self.name, **counts, "source_pixels": self.train.pixels.shape[1]}
        return {**about, "calibrate": self.calibrate, "size": self.size, "dense": record["sha256"]}


def bench(name: str) -> Bench:
    """The shipped network "imagenette" or "digits" with all its images."""
    dense = models.load_resnet18(name).to(memory_format=torch.channels_last)
    train, holdout, val = (load_images(split, name) for split in ("train", "holdout", "val"))
    return Bench(name, dense, train, holdout, val, CALIBRATE[name])


@dataclass(frozen=True)
class Run:
    """One run: what it works on, what its record must agree with, where its files go."""

    name: str
    bench: Bench
    settings: dict[str, Any]
    configuration: dict[str, Any]
    path: Path  # of the record
    out: Path  # for the network that ships

    @property
    def label(self) -> str:
        """Begins the names of the run's checkpoints: other settings, other files."""
        return f"{self.name}-{digest(self.configuration)}"

    @property
    def command(self) -> str:
        return f"python benchmarks/runs.py {self.name} --data {self.bench.name}"


# ---- parts of jobs -----------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Ten characters that stand for a configuration, to name files by."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def kept(label: str, bench: Bench, make: Callable[[], nn.Module]) -> nn.Module:
    """The compressed network `label`, from the cache folder, or as `make` makes it."""
    path = cache_folder() / "training" / f"{label}-cut.safetensors"
    if not path.exists():
        save_compressed(make(), path)
    return load_compressed(path, bench.dense).to(memory_format=torch.channels_last)


def trained(
    bench: Bench, label: str, model: nn.Module, sizes: Sequence[int], seed: int, **options: Any
) -> dict[str, Any]:
    """`train` the model in place, or go on where the training `label` stopped; its log."""
    path = cache_folder() / "training" / f"{label}.pt"
    options = {"holdout": bench.holdout, "seed": seed, "checkpoint": path, **options}
    log = train(model, bench.train, len(sizes), list(sizes), **options)
    model.cpu()  # it may have been on a GPU
    return {"log": log, "bf16": torch.load(path, map_location="cpu", weights_only=True)["bf16"]}


def as_stored(model: nn.Module) -> nn.Module:
    """A copy for evaluation, its numbers rounded to float16 as in a file of weights."""
    rounded = copy.deepcopy(model).cpu().eval()
    for value in [*rounded.parameters(), *rounded.buffers()]:
        if value.is_floating_point():
            value.data = value.data.half().float()
    return rounded.to(memory_format=torch.channels_last)


def judged(
    bench: Bench, model: nn.Module, splits: Sequence[str] = ("holdout", "val")
) -> dict[str, Any]:
    """Costs and accuracy (percent) of `as_stored(model)`, and which images it names right."""
    model = as_stored(model)
    costs = {"parameters": count_parameters(model), "macs": count_macs(model, bench.example)}
    return {**costs, **graded(bench, model, splits)}


def graded(
    bench: Bench, model: nn.Module, splits: Sequence[str] = ("holdout", "val")
) -> dict[str, Any]:
    """Accuracy in percent by split; `right` holds packed bits in hex, as `frontier` writes them."""
    right = {}
    for split in splits:
        loader = make_loader(getattr(bench, split), 128, bench.size)
        right[split] = answers(model, loader).numpy()
    return {
        "accuracy": {split: 100 * float(bits.mean()) for split, bits in right.items()},
        "right": {split: np.packbits(bits).tobytes().hex() for split, bits in right.items()},
    }


def times(networks: Mapping[str, nn.Module], example: Tensor) -> dict[str, Any]:
    """Median ms of each network by batch size, in turns; RuntimeError on a busy machine."""
    check_idle()
    ms = {str(batch): compare_latency(networks, example, batch) for batch in (1, 32)}
    return {"latency_ms": ms}


def check_idle() -> None:
    """RuntimeError if the processor has other work: then no time that is measured counts."""
    if (used := psutil.cpu_percent(interval=2)) > BUSY:
        raise RuntimeError(f"time is not measured, other programs use {used:.0f} % of this machine")


# ---- the record --------------------------------------------------------------------------------


def started(path: Path, configuration: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call has left at `path`; ValueError if its configuration was another."""
    wanted = json.loads(json.dumps(configuration))
    if not path.exists():
        return {"configuration": wanted, "summary": {}, "jobs": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, _ = record["configuration"].items(), record["jobs"].items()
    except (AttributeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a run: move it, or name another folder"
        ) from error
    old = dict(found)
    for key in wanted.keys() | old.keys():
        if old.get(key) != wanted.get(key):
            raise ValueError(
                f"{path} is of another configuration ({key}: {old.get(key)}, not "
                f"{wanted.get(key)}); move it to start again, or name another folder"
            )
    return record


def finish(run: Run, jobs: Jobs) -> list[str]:
    """Do what the record of `run` lacks, and write it there after every job.

    A job that fails leaves its message on the screen and is tried again by the next call.

    Returns
    -------
    The keys of the jobs that failed.
    """
    record = {"command": run.command, **started(run.path, run.configuration)}
    failed = []
    bar = tqdm([key for key in jobs if key not in record["jobs"]], run.path.stem, unit="job")
    for key in bar:
        bar.set_postfix_str(key)
        try:
            found = jobs[key]()
        except Exception as error:  # of whatever kind: the next job may well succeed
            told = isinstance(error, (RuntimeError, ValueError))  # else it is a fault of the code
            tqdm.write(f"{run.path.stem}, {key}: {error if told else traceback.format_exc()}")
            failed.append(key)
            continue
        record |= started(run.path, run.configuration)  # another call may have written meanwhile
        record["jobs"][key] = {**found, "machine": machine()}
        record["summary"] = summary(record["jobs"])
        write_text(run.path, json.dumps(record, indent=1))
    return failed


def summary(jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy of the jobs "..., seed N", by the rest of their name and by split.

    `mean` and `spread` (standard deviation, None for one seed), in percent, and the `seeds`.
    """
    groups: dict[str, dict[int, Mapping[str, float]]] = {}
    for key, found in jobs.items():
        if match := re.fullmatch(r"(.*), seed (\d+)", key):
            groups.setdefault(match[1], {})[int(match[2])] = found["accuracy"]
    result: dict[str, Any] = {}
    for group, by_seed in groups.items():
        result[group] = {"seeds": sorted(by_seed)}
        for split in next(iter(by_seed.values())):
            values = [accuracy[split] for accuracy in by_seed.values()]
            spread = statistics.stdev(values) if len(values) > 1 else None
            result[group][split] = {"mean": statistics.fmean(values), "spread": spread}
    return result
