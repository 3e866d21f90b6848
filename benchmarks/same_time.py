"""What the course's way reaches in the time that the popular recipe takes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import seed
import torch
from jobs import Bench, Jobs, Run, check_idle, digest, judged, trained
from torch import nn
from two_limits import compress_within

from lowrank_course.models import resnet18
from lowrank_course.recipes import OPTIONS, RECIPES, machine
from lowrank_course.train import _bf16_pays, train

FEW = 1024  # images on which a pace is measured
PRECISIONS = {"float32": False, "bfloat16": True}


def same_time(run: Run) -> Jobs:
    """Dense training, compression and fine-tuning in the time that the popular recipe takes here.

    Dense training is the first cycle of its recipe. The epochs of both trainings are cut by one
    factor, so that the time at the pace of this machine is a little less than that. Both sides
    compute in the precision in which the recipe is faster here (`precision`); `seconds` holds the
    times of both sides in the other one, too, where this processor gains by it at all.
    """
    b, recipe = run.bench, RECIPES[run.bench.name]

    def network() -> Any:
        torch.manual_seed(0)
        model = resnet18(recipe["width"], len(b.train.classes))
        model.evaluation_size = recipe["evaluation_size"]
        return model

    def paces(precision: str) -> dict[str, Any]:
        """Seconds of the recipe, from a part of an epoch, and of our epochs by size.

        It is a dense network that is timed, also where a thin one will be trained.
        """
        few = b.train.select(np.arange(min(len(b.train), FEW)))
        laps: dict[str, float] = {}
        for size, teacher in _laps(recipe["sizes"], False) | _laps(run.settings["sizes"], True):
            given = network() if teacher else None
            with in_precision(precision):
                log = train(network(), few, 1, size, teacher=given, progress=False)
            laps[f"{size} {teacher}"] = log[0]["seconds"] * len(b.train) / len(few)
        ours = sum(laps[f"{size} False"] for size in recipe["sizes"])
        ours += sum(laps[f"{size} True"] for size in run.settings["sizes"])
        theirs = seconds_of_the_recipe(b, precision, **run.settings["recipe"])
        return {"recipe": theirs, "ours": ours, "laps": laps}

    def pace() -> dict[str, Any]:
        check_idle()
        pays = _bf16_pays(network(), b.size, recipe["batch_size"])
        found = {name: paces(name) for name, bf16 in PRECISIONS.items() if pays or not bf16}
        precision = min(found, key=lambda name: found[name]["recipe"])
        share = min(1.0, 0.95 * found[precision]["recipe"] / found[precision]["ours"])
        return {
            "precision": precision,
            "seconds": found,
            "share": share,
            "dense": _shortened(recipe["sizes"], share),
            "tune": _shortened(run.settings["sizes"], share),
        }

    def paced() -> dict[str, Any]:
        found = json.loads(run.path.read_text(encoding="utf-8"))["jobs"].get("pace")
        if found is None:
            raise RuntimeError("the pace is not measured yet; call again on an idle machine")
        if found["machine"] != machine():
            raise RuntimeError(f"the pace is that of another machine; move {run.path}")
        return found

    def dense_part(plan: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        """The dense network, trained, and its log."""
        model, key = network(), f"{run.label}-dense-{digest(plan['dense'])}"
        options = {name: recipe[name] for name in OPTIONS}
        with in_precision(plan["precision"]):
            return model, trained(b, key, model, plan["dense"], 0, **options)

    def dense() -> dict[str, Any]:
        model, log = dense_part(paced())
        return {**log, **judged(b, model)}

    def whole() -> dict[str, Any]:
        plan = paced()
        model, first = dense_part(plan)
        own = replace(b, dense=model)
        start = time.perf_counter()
        cut = compress_within(model.eval(), b.example, run.settings["compressed"], b.calibration)
        seconds = {"dense": _sum(first), "compress": time.perf_counter() - start}
        options = {"teacher": model, "learning_rate": run.settings["compressed rate"]}
        options["cutmix"] = run.settings["cutmix"]
        key = f"{run.label}-tune-{digest(plan)}"
        with in_precision(plan["precision"]):
            log = trained(own, key, cut, plan["tune"], 0, **options)
        seconds["tune"] = _sum(log)
        seconds["all"] = sum(seconds.values())
        seconds["recipe"] = plan["seconds"][plan["precision"]]["recipe"]
        return {**log, **judged(b, cut), "seconds": seconds}

    return {"pace": pace, "dense": dense, "whole": whole}


def in_precision(name: str) -> Any:
    """Within it, `train` computes in "float32" or "bfloat16" and measures nothing itself."""
    return mock.patch("lowrank_course.train._bf16_pays", return_value=PRECISIONS[name])


def seconds_of_the_recipe(b: Bench, precision: str, size: int, epochs: int) -> float:
    """How long the popular recipe trains on this machine, from a part of an epoch."""
    few = b.train.select(np.arange(min(len(b.train), FEW)))
    images = epochs * (len(b.train) + len(b.holdout))  # it keeps no images aside
    with tempfile.TemporaryDirectory() as folder:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision]):
            _, log = seed.retrain(few, size, 1, Path(folder) / "recipe.pt")
    return log["seconds"] * images / len(few)


def _laps(sizes: Sequence[int], teacher: bool) -> dict[tuple[int, bool], None]:
    return dict.fromkeys((size, teacher) for size in sizes)


def _shortened(sizes: Sequence[int], share: float) -> list[int]:
    """The same schedule with `share` of its epochs: at least one at each size."""
    counts = {size: max(1, int(share * sizes.count(size))) for size in dict.fromkeys(sizes)}
    return [size for size, count in counts.items() for _ in range(count)]


def _sum(found: dict[str, Any]) -> float:
    return sum(epoch["seconds"] for epoch in found["log"])
