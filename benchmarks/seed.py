"""The popular recipe, run in full as it was published, and recorded.

    python benchmarks/seed.py --json results/seed.json
    python benchmarks/seed.py --control --json results/seed-control.json

An untrained ResNet-18, two layers truncated to rank 8 in place, five epochs of plain SGD, images of
320 px. Only the calls are today's (chapter 04 lists them), and the images come from the 160 px
archive, cut to squares and enlarged. --control leaves the first truncation out. Interrupted, it
goes on from its checkpoint in the cache folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowrank_course import data, evaluate, linalg, measure, models, responses
from lowrank_course.cli import check_writable
from lowrank_course.data import ImageSet
from lowrank_course.recipes import machine

REPORTED = 64.79  # top-1 in percent
LAYERS = ("layer1.0.conv1", "layer1.0.conv2")  # each a (64, 576) matrix
RANK, BATCH, RATE, MOMENTUM = 8, 32, 0.001, 0.9
TOLERANCE = 576 * torch.finfo(torch.float32).eps  # of ranks: times the largest singular value
LOSS_EVERY, LOOK_AFTER, SAVE_EVERY = 100, (1, 2, 5, 10), 50  # batches
SEED = 0  # of weights and order


def batches(images: ImageSet, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (N, 3, size, size) in order, normalised by 0.5 as in the recipe: to [-1, 1]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.MEAN, data.STD))
    for x, labels in data.make_loader(images, BATCH, size):
        yield (x * std + mean - 0.5) / 0.5, labels


def truncate(model: nn.Module) -> None:
    """The recipe's step: cut two matrices to RANK and write them back in their old shape."""
    for name in LAYERS:
        W = model.get_parameter(f"{name}.weight").data  # (64, 64, 3, 3)
        W.copy_(linalg.low_rank(W.flatten(1), RANK).reshape(W.shape))


def look(model: nn.Module) -> dict[str, dict[str, float]]:
    """Numerical rank of each layer, and the share of energy in its first RANK directions."""
    found = {}
    for name in LAYERS:
        matrix = model.get_parameter(f"{name}.weight").data.flatten(1)  # (64, 576)
        held = float(linalg.energy(torch.linalg.svdvals(matrix))[RANK - 1])
        found[name] = {"rank": linalg.numerical_rank(matrix, TOLERANCE), "energy": held}
    return found


def retrain(
    images: ImageSet, size: int, epochs: int, path: Path, control: bool = False
) -> tuple[nn.Module, dict]:
    """Truncate and train, from the checkpoint at `path` if there is one; network and log."""
    torch.manual_seed(SEED)
    model = models.resnet18().train()
    if not control:
        truncate(model)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    log: dict[str, Any] = {"losses": [], "looks": [{"step": 0, **look(model)}], "seconds": 0.0}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        log = saved["log"]
    an_epoch, step = -(-len(images) // BATCH), len(log["losses"])  # the last batch is smaller
    bar = tqdm(total=epochs * an_epoch, initial=step, desc="recipe", unit="batch")
    begun = time.perf_counter()
    while step < epochs * an_epoch:
        epoch, done = divmod(step, an_epoch)
        order = np.random.default_rng((SEED, epoch)).permutation(len(images))
        for x, labels in batches(images.select(order[done * BATCH :]), size):
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            log["losses"].append(loss.item())
            if step % an_epoch == 0 or step in LOOK_AFTER:
                log["looks"].append({"step": step, **look(model)})
            if step % an_epoch == 0 or step % SAVE_EVERY == 0:
                now = time.perf_counter()
                log["seconds"], begun = log["seconds"] + now - begun, now
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                with data.written_beside(path) as beside:  # all of it or nothing
                    torch.save({"log": log, **state}, beside)
            bar.update()
    return model, log


def record(
    images: ImageSet, val: ImageSet, size: int, epochs: int, path: Path, control: bool = False
) -> dict[str, Any]:
    """Run the recipe, judge it on `val`, and measure it; accuracies in percent."""
    model, log = retrain(images, size, epochs, path, control)
    whole = len(log["losses"]) // epochs // LOSS_EVERY  # hundreds; the rest of an epoch is dropped
    losses = np.reshape(log["losses"], (epochs, -1))[:, : whole * LOSS_EVERY]
    begun = time.perf_counter()
    accuracy = {"retrained": evaluate(model, batches(val, size))}
    seconds = {"training": log["seconds"], "evaluation": time.perf_counter() - begun}
    x = next(batches(val, size))[0]
    costs = {"before": asdict(measure(models.resnet18(), x)), "after": asdict(measure(model, x))}
    some = images.select(np.random.default_rng(SEED).permutation(len(images))[:1024])

    def recalibrated() -> float:
        again = copy.deepcopy(model)
        responses.recalibrate(again, batches(some, size))
        return evaluate(again, batches(val, size))

    accuracy["retrained, recalibrated"] = recalibrated()
    truncate(model)
    accuracy["truncated again"] = evaluate(model, batches(val, size))
    accuracy["recalibrated"] = recalibrated()
    recipe = {"layers": LAYERS, "rank": RANK, "batch_size": BATCH, "learning_rate": RATE}
    return {
        "command": f"python benchmarks/seed.py --size {size} --epochs {epochs}"
        + " --control" * control,
        "control": control,
        "reported": REPORTED,
        "accuracy": accuracy,
        "costs": costs,
        "losses": losses.reshape(epochs, whole, LOSS_EVERY).mean(2).tolist(),  # by epoch
        "looks": log["looks"],
        "rank_tolerance": TOLERANCE,
        "recipe": {**recipe, "momentum": MOMENTUM, "size": size, "epochs": epochs, "seed": SEED},
        "data": {"train": len(images), "val": len(val), "source_pixels": images.pixels.shape[1]},
        "seconds": seconds,
        "machine": machine(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run the popular recipe in full and record it.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the record there")
    parser.add_argument("--size", type=int, default=320, help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--control", action="store_true", help="do not truncate at the start")
    args = parser.parse_args(argv)
    if args.json:
        check_writable(args.json)  # told before hours of work
    train, holdout, val = (data.load_images(s, "imagenette") for s in ("train", "holdout", "val"))
    index = np.concatenate([train.index, holdout.index])  # the recipe keeps no images aside
    images = replace(train, index=index, labels=np.concatenate([train.labels, holdout.labels]))
    name = f"seed{'-control' * args.control}-{args.size}px-{args.epochs}epochs.pt"
    path = data.cache_folder() / "training" / name
    made = record(images, val, args.size, args.epochs, path, args.control)
    print(json.dumps(made["accuracy"]))
    if args.json:
        data.write_text(args.json, json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
