"""Recipes for the networks that ship with the course: `lowrank-course train`.

How a shipped file itself was made, stage by stage, says its own record, `weights/<name>.json`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torchvision

from .data import balanced_subset, cache_folder, load_images, make_loader, write_text
from .measure import cpu_name
from .models import load_state, read_weights, resnet18, save_weights
from .responses import recalibrate
from .train import evaluate, train

# Of `train`, where a recipe says nothing else.
OPTIONS = {"learning_rate": 0.06, "weight_decay": 5e-4, "batch_size": 64, "label_smoothing": 0.1}

# Small images first: early epochs need no detail, and an epoch at 64 px takes a quarter of the
# time of one at 128 px. Random crops enlarge what they show: a network trained at 96 px is at its
# best at about 128 px (Touvron et al. 2019), so that few epochs at 128 px suffice. CutMix and crops
# leave batch norms with means and variances of images that nobody will ask about: at the end,
# `statistics` whole training images of each class give better ones (Wu and Johnson, 2021).
RECIPES: dict[str, dict[str, Any]] = {
    "imagenette": {
        "width": 64,
        "sizes": [64] * 14 + [96] * 44 + [128] * 4,
        "again": [
            {"size": [128] * 16, "learning_rate": 0.03, "cutmix": 0.5},
            {"size": [112] * 36 + [128] * 6, "learning_rate": 0.04, "cutmix": 0.5},
        ],
        "evaluation_size": 128,
        "statistics": 200,
        **OPTIONS,
    },
    "digits": {"width": 16, "sizes": [32] * 60, "evaluation_size": 32, **OPTIONS},
}


def machine() -> dict[str, Any]:
    """What a record says about where it was made."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cycles(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Options of `train` for each one-cycle schedule of a recipe; the later ones change some."""
    first = {"size": recipe["sizes"], **{key: recipe[key] for key in OPTIONS}}
    return [first, *({**first, **changed} for changed in recipe.get("again", []))]


def train_shipped(name: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train one of the shipped networks from scratch and write it with its record.

    An interrupted training goes on from its last epoch; one of several cycles also from the last
    one that `folder` holds. Writes `<name>.safetensors` (float16) and `<name>.json` (recipe, seed,
    log, data, machine, accuracy of the file just written) after each cycle.
    """
    if name not in RECIPES:
        raise ValueError(f"name={name!r} has no recipe; use one of {', '.join(RECIPES)}")
    recipe, path = RECIPES[name], folder / f"{name}.safetensors"
    parts = {split: load_images(split, name) for split in ("train", "holdout", "val")}
    images, classes, side = parts["train"], parts["train"].classes, recipe["evaluation_size"]
    torch.manual_seed(seed)
    model = resnet18(recipe["width"], len(classes))
    record = _begun(path, recipe, seed)
    log: list[dict[str, float]] = record.get("log", [])
    done = len(cycles(record["recipe"])) if record else 0
    if record:
        load_state(model, read_weights(path)[0], path)
    for number, cycle in list(enumerate(cycles(recipe)))[done:]:
        label = f"{name}-{seed}-{number}" if number else f"{name}-{seed}"
        cycle["checkpoint"] = cache_folder() / "training" / f"{label}.pt"
        cycle["seed"] = seed + 1000 * number  # other crops, another order
        found = train(model, images, len(cycle["size"]), holdout=parts["holdout"], **cycle)
        if "statistics" in recipe:
            some = balanced_subset(images, recipe["statistics"])
            recalibrate(model.cpu(), make_loader(some, 128, side))
        log = log + [{**epoch, "epoch": len(log) + epoch["epoch"]} for epoch in found]
        about = {"width": recipe["width"], "classes": classes, "evaluation_size": side}
        digest = save_weights(model.cpu().state_dict(), path, about)
        load_state(model, read_weights(path)[0], path)
        loaders = {split: make_loader(parts[split], 128, side) for split in ("holdout", "val")}
        accuracy = {split: round(evaluate(model, loader), 2) for split, loader in loaders.items()}
        counts = {split: len(part) for split, part in parts.items()}
        again = {"again": recipe["again"][:number]} if "again" in recipe else {}
        record = {
            "command": f"lowrank-course train --data {name} --seed {seed}",
            "sha256": digest,
            "accuracy": accuracy,
            "recipe": {**recipe, **again},
            "seed": seed,
            "data": {"name": name, **counts, "source_pixels": images.pixels.shape[1]},
            "machine": machine(),
            "log": log,
        }
        write_text(path.with_suffix(".json"), json.dumps(record, indent=1))
    return record


def _begun(path: Path, recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The record at `path` if its network came from the first cycles of this training, else {}."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        done = cycles(record["recipe"])
        same = [record["seed"], record["sha256"]] == [seed, sha256(path.read_bytes()).hexdigest()]
    except (OSError, AttributeError, KeyError, TypeError, json.JSONDecodeError):
        return {}
    first = {**record["recipe"], "again": 0} == {**recipe, "again": 0}
    return record if same and first and done == cycles(recipe)[: len(done)] else {}
