"""The runs on compressed networks, and on others that got the same training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jobs import Jobs, Run, as_stored, check_idle, digest, judged, kept, times, trained
from torch import nn
from two_limits import compress_within

from lowrank_course.compress import apply, fold_batch_norms
from lowrank_course.data import write_text
from lowrank_course.measure import count_parameters
from lowrank_course.models import resnet18, save_weights
from lowrank_course.plan import Plan
from lowrank_course.recipes import RECIPES, cycles, machine
from lowrank_course.responses import recalibrate


def cut(run: Run, name: str) -> nn.Module:
    """The compressed, not yet trained network of the run `name`, made once for all runs.

    Where the record of that run lies beside this one's, the plan comes from there: forms and ranks
    that were chosen by measured times would be others on another machine.
    """
    b, limits = run.bench, run.settings[name]

    def make() -> nn.Module:
        if rows := recorded_plan(run, name):
            plan = Plan.from_json(json.dumps({"cost": "macs", "rows": rows}))
            return apply(b.dense, b.example, plan, b.calibration)
        example = b.example
        if "latency" in limits:
            check_idle()
            example = example[: run.settings["latency batch"]]
        return compress_within(b.dense, example, limits, b.calibration)

    of = [limits, run.settings["latency batch"], b.about()]
    return kept(f"{name}-{digest(of)}", b, make)


def recorded_plan(run: Run, name: str) -> list[dict[str, Any]]:
    """Rows of the plan in the record of the run `name`; none where that is of other settings."""
    path = run.path.with_name(run.path.name.replace(run.name, name, 1))
    if not path.exists():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    wanted = {"data": run.bench.about(), name: run.settings[name]}
    same = all(record["configuration"].get(key) == value for key, value in wanted.items())
    return record["jobs"].get("cut", {}).get("plan", []) if same else []


def tune(run: Run, key: str, model: nn.Module, seed: int, **options: Any) -> dict[str, Any]:
    """Fine-tune `model` in place, with the dense network as its teacher, and judge it."""
    options = {"teacher": run.bench.dense, "cutmix": run.settings["cutmix"], **options}
    label = f"{run.label}-{key}-{seed}"
    log = trained(run.bench, label, model, run.settings["sizes"], seed, **options)
    return {**log, **judged(run.bench, model)}


def compressing(run: Run) -> Jobs:
    """`compressed`, `extreme` and `latency`: cut, fine-tune with every seed, measure the time."""
    b, rate = run.bench, run.settings[f"{run.name} rate"]

    def first() -> dict[str, Any]:
        small = cut(run, run.name)
        plan = json.loads(small.plan.to_json())["rows"]  # type: ignore[union-attr, operator]
        return {**judged(b, small, ("holdout",)), "plan": plan}

    def tuned(seed: int) -> dict[str, Any]:
        small = cut(run, run.name)
        found = tune(run, "tuned", small, seed, learning_rate=rate)
        if (run.name, seed) == ("compressed", 0):
            found["sha256"] = ship(run, small, found)
        return found

    def timed() -> dict[str, Any]:
        plain = {"dense": b.dense, "small": cut(run, run.name)}
        x = b.example
        folded = {f"{key}, folded": fold_batch_norms(m, x) for key, m in plain.items()}
        return times({**plain, **folded}, x)

    jobs: Jobs = {"dense": lambda: judged(b, b.dense), "cut": first}
    jobs |= {f"tuned, seed {seed}": partial(tuned, seed) for seed in run.settings["seeds"]}
    return {**jobs, "times": timed}


def ship(run: Run, small: nn.Module, found: dict[str, Any]) -> str:
    """Write the compressed network and its record as `load_resnet18` wants them; the SHA-256."""
    b, name = run.bench, f"{run.bench.name}-compressed"
    about = {
        "width": RECIPES[b.name]["width"],
        "classes": b.train.classes,
        "evaluation_size": b.size,
        "plan": small.plan.to_json(),  # type: ignore[union-attr, operator]
    }
    sha256 = save_weights(as_stored(small).state_dict(), run.out / f"{name}.safetensors", about)
    record = {
        "command": run.command,
        "sha256": sha256,
        "accuracy": {split: round(top1, 2) for split, top1 in found["accuracy"].items()},
        "parameters": found["parameters"],
        "macs": found["macs"],
        "recipe": {
            key: run.configuration[key]
            for key in ("compressed", "compressed rate", "sizes", "cutmix")
        },
        "seed": 0,
        "data": b.about(),
        "machine": machine(),
        "log": found["log"],
    }
    write_text(run.out / f"{name}.json", json.dumps(record, indent=1))
    return sha256


def trials(run: Run) -> Jobs:
    """Short fine-tunings at several learning rates, on held-out images."""

    def one(name: str, rate: float) -> dict[str, Any]:
        small, key = cut(run, name), f"{run.label}-{name}-{rate}"
        options = {"teacher": run.bench.dense, "cutmix": run.settings["cutmix"]}
        options["learning_rate"] = rate
        log = trained(run.bench, key, small, run.settings["trials"]["sizes"], 0, **options)
        return {**log, **judged(run.bench, small, ("holdout",))}

    rates = run.settings["trials"]["rates"]
    return {f"{n}, rate {r}": partial(one, n, r) for n in ("extreme", "compressed") for r in rates}


def controls(run: Run) -> Jobs:
    """Is it the compression? Networks that get the compressed one's training, and one more each.

    dense: the same extra epochs, taught by itself. narrow: a ResNet-18 with no more parameters
    than the compressed network, trained as the dense one was and then tuned as the compressed
    one. scratch: likewise the compressed architecture, from random (spectral) factors. The dense
    network that they are compared with has batch norms measured anew: `recalibrated` holds what
    that does to each.
    """
    b, recipe = run.bench, RECIPES[run.bench.name]
    rate, seeds = run.settings["compressed rate"], run.settings["seeds"]

    def narrow() -> nn.Module:
        limit, width = count_parameters(cut(run, "compressed")), 1
        with torch.device("meta"):  # only to count
            while count_parameters(resnet18(width + 1, len(b.train.classes))) <= limit:
                width += 1
        return resnet18(width, len(b.train.classes))

    def scratch() -> nn.Module:
        random = resnet18(recipe["width"], len(b.train.classes))
        return apply(random, b.example, cut(run, "compressed").plan)  # type: ignore[arg-type]

    def tuned(kind: str, model: nn.Module, seed: int, rate: float = rate) -> dict[str, Any]:
        found = tune(run, f"{kind}-{rate}", model, seed, learning_rate=rate)
        recalibrate(model, b.calibration)
        return {**found, "recalibrated": judged(b, model)}

    def fresh(kind: str, build: Callable[[], nn.Module], seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = build()
        log: list[dict[str, float]] = []
        for number, cycle in enumerate(cycles(recipe)):
            key, sizes = f"{run.label}-{kind}-{number}-{seed}", cycle.pop("size")
            log += trained(b, key, model, sizes, seed + 1000 * number, **cycle)["log"]
        found = tuned(kind, model, seed)
        return {**found, "log": log + found["log"]}

    def dense(seed: int, rate: float = rate) -> dict[str, Any]:
        return tuned("dense", copy.deepcopy(b.dense), seed, rate)

    def timed() -> dict[str, Any]:
        networks = {"dense": b.dense, "compressed": cut(run, "compressed")}
        networks["narrow"] = narrow().eval().to(memory_format=torch.channels_last)
        return times({n: fold_batch_norms(m, b.example) for n, m in networks.items()}, b.example)

    jobs: Jobs = {"times": timed}
    other = run.settings["extreme rate"]  # was the rate too low for a network that is whole?
    jobs[f"dense, rate {other}"] = partial(dense, seeds[0], other)
    for seed in seeds:
        jobs[f"dense, seed {seed}"] = partial(dense, seed)
        jobs[f"scratch, seed {seed}"] = partial(fresh, "scratch", scratch, seed)
        jobs[f"narrow, seed {seed}"] = partial(fresh, "narrow", narrow, seed)
    return jobs
