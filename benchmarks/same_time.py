"""What the course's way reaches in the time that the popular recipe takes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import seed
import torch
from jobs import Bench, Jobs, Run, check_idle, digest, judged, trained
from torch import nn
from two_limits import compress_within

from lowrank_course.models import resnet18
from lowrank_course.recipes import OPTIONS, RECIPES
from lowrank_course.train import train

FEW = 800  # images on which the recipe is timed: 25 of its batches


def same_time(run: Run) -> Jobs:
    """Dense training, compression and fine-tuning in the time that the popular recipe takes here.

    Dense training is the first cycle of its recipe. The epochs of both trainings are cut by one
    factor, so that the time at the pace of this machine is a little less than that. Each side
    computes in the precision that is faster here (`bf16`; `recipe` holds both of its times).
    """
    b, recipe = run.bench, RECIPES[run.bench.name]

    def network() -> Any:
        torch.manual_seed(0)
        model = resnet18(recipe["width"], len(b.train.classes))
        model.evaluation_size = recipe["evaluation_size"]
        return model

    def pace() -> dict[str, Any]:
        """Seconds of the recipe, and of our epochs by size, without and with a teacher.

        It is a dense network that is timed, also where a thin one will be trained.
        """
        check_idle()
        theirs = seconds_of_the_recipe(b, **run.settings["recipe"])
        few = b.train.select(np.arange(min(len(b.train), 512)))
        laps: dict[str, float] = {}
        for size, teacher in _laps(recipe["sizes"], False) | _laps(run.settings["sizes"], True):
            given = network() if teacher else None
            log = train(network(), few, 1, size, teacher=given, progress=False)
            laps[f"{size} {teacher}"] = log[0]["seconds"] * len(b.train) / len(few)
        whole = sum(laps[f"{size} False"] for size in recipe["sizes"])
        whole += sum(laps[f"{size} True"] for size in run.settings["sizes"])
        share = min(1.0, 0.95 * min(theirs.values()) / whole)
        return {
            "recipe": theirs,
            "laps": laps,
            "share": share,
            "dense": _shortened(recipe["sizes"], share),
            "tune": _shortened(run.settings["sizes"], share),
        }

    def dense_part() -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
        """The dense network, trained, its log, and what `pace` found."""
        paced = json.loads(run.path.read_text(encoding="utf-8"))["jobs"].get("pace")
        if paced is None:
            raise RuntimeError("the pace is not measured yet; call again on an idle machine")
        model, key = network(), f"{run.label}-dense-{digest(paced['dense'])}"
        options = {name: recipe[name] for name in OPTIONS}
        log = trained(b, key, model, paced["dense"], 0, **options)
        return model, log, paced

    def dense() -> dict[str, Any]:
        model, log, _ = dense_part()
        return {**log, **judged(b, model)}

    def whole() -> dict[str, Any]:
        model, first, paced = dense_part()
        own = replace(b, dense=model)
        start = time.perf_counter()
        cut = compress_within(model.eval(), b.example, run.settings["compressed"], b.calibration)
        seconds = {"dense": _sum(first), "compress": time.perf_counter() - start}
        options = {"teacher": model, "learning_rate": run.settings["compressed rate"]}
        options["cutmix"] = run.settings["cutmix"]
        key = f"{run.label}-tune-{digest(paced)}"
        log = trained(own, key, cut, paced["tune"], 0, **options)
        seconds["tune"] = _sum(log)
        seconds["all"] = sum(seconds.values())
        return {**log, **judged(b, cut), "seconds": seconds}

    return {"pace": pace, "dense": dense, "whole": whole}


def seconds_of_the_recipe(b: Bench, size: int, epochs: int) -> dict[str, float]:
    """How long the popular recipe trains on this machine, by precision, from a few batches."""
    few = b.train.select(np.arange(min(len(b.train), FEW)))
    images = epochs * (len(b.train) + len(b.holdout))  # it keeps no images aside
    found = {}
    for name, bf16 in {"float32": False, "bfloat16": True}.items():
        with tempfile.TemporaryDirectory() as folder:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                _, log = seed.retrain(few, size, 1, Path(folder) / "recipe.pt")
        found[name] = log["seconds"] * images / len(few)
    return found


def _laps(sizes: Sequence[int], teacher: bool) -> dict[tuple[int, bool], None]:
    return dict.fromkeys((size, teacher) for size in sizes)


def _shortened(sizes: Sequence[int], share: float) -> list[int]:
    """The same schedule with `share` of its epochs: at least one at each size."""
    counts = {size: max(1, int(share * sizes.count(size))) for size in dict.fromkeys(sizes)}
    return [size for size, count in counts.items() for _ in range(count)]


def _sum(found: dict[str, Any]) -> float:
    return sum(epoch["seconds"] for epoch in found["log"])
