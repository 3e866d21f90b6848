"""Recipes for the networks that ship with the course: `lowrank-course train`.

How a shipped file itself was made, stage by stage, says its own record, `weights/<name>.json`.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
import torchvision

from .data import cache_folder, load_images, make_loader, write_text
from .measure import cpu_name
from .models import load_state, read_weights, resnet18, save_weights
from .train import evaluate, train

# Small images first: early epochs need no detail, and an epoch at 64 px takes a quarter of the
# time of one at 128 px. Random crops enlarge what they show: a network trained at 96 px is at its
# best at about 128 px (Touvron et al. 2019), so that few epochs at 128 px suffice.
RECIPES: dict[str, dict[str, Any]] = {
    "imagenette": {
        "width": 64,
        "sizes": [64] * 16 + [96] * 50 + [128] * 6,
        "evaluation_size": 128,
        "learning_rate": 0.06,
        "weight_decay": 5e-4,
        "batch_size": 64,
        "label_smoothing": 0.1,
    },
    "digits": {
        "width": 16,
        "sizes": [32] * 60,
        "evaluation_size": 32,
        "learning_rate": 0.06,
        "weight_decay": 5e-4,
        "batch_size": 64,
        "label_smoothing": 0.1,
    },
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


def train_shipped(name: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train one of the shipped networks from scratch and write it with its record.

    An interrupted training goes on from its last epoch. Writes `<name>.safetensors` (float16) and
    `<name>.json` (recipe, seed, log, data, machine, accuracy of the file just written).
    """
    if name not in RECIPES:
        raise ValueError(f"name={name!r} has no recipe; use one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    images, holdout, val = (load_images(split, name) for split in ("train", "holdout", "val"))
    checkpoint = cache_folder() / "training" / f"{name}-{seed}.pt"
    torch.manual_seed(seed)
    model = resnet18(recipe["width"], len(images.classes))
    log = train(
        model,
        images,
        len(recipe["sizes"]),
        recipe["sizes"],
        holdout=holdout,
        seed=seed,
        checkpoint=checkpoint,
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        batch_size=recipe["batch_size"],
        label_smoothing=recipe["label_smoothing"],
    )
    about = {
        "width": recipe["width"],
        "classes": images.classes,
        "evaluation_size": recipe["evaluation_size"],
    }
    path = folder / f"{name}.safetensors"
    digest = save_weights(model.cpu().state_dict(), path, about)
    load_state(model, read_weights(path)[0], path)
    accuracy = {
        split: round(evaluate(model, make_loader(part, 128, recipe["evaluation_size"])), 2)
        for split, part in (("holdout", holdout), ("val", val))
    }
    record = {
        "command": f"lowrank-course train --data {name} --seed {seed}",
        "sha256": digest,
        "accuracy": accuracy,
        "recipe": recipe,
        "seed": seed,
        "data": {
            "name": name,
            "train": len(images),
            "holdout": len(holdout),
            "val": len(val),
            "source_pixels": images.pixels.shape[1],
        },
        "machine": machine(),
        "log": log,
    }
    write_text(folder / f"{name}.json", json.dumps(record, indent=1))
    return record
