"""What `compress` itself costs: seconds and memory, by number of images and by network.

    python benchmarks/cost.py --json results/cost.json

Every figure comes from a process of its own, so that the memory of one does not hide in another;
each is taken RUNS times in turns, and the median counts. Images are random numbers of 128 px: what
they show does not change the work. ResNet-18 is the shipped network, the others have random
weights. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torchvision import models
from tqdm.auto import tqdm

from lowrank_course import compress, load_resnet18
from lowrank_course.cli import check_writable
from lowrank_course.data import write_text
from lowrank_course.demo import peak_memory_mb
from lowrank_course.recipes import machine

SIZE, BATCH, BUDGET, RUNS = 128, 64, 0.35, 3
CASES = [  # network, images
    ("resnet18", 256),
    ("resnet18", 512),
    ("resnet18", 1024),
    ("resnet50", 1024),
    ("vgg16", 1024),
]


def measure(network: str, images: int) -> dict[str, float]:
    """Seconds, and memory above what the dense network with its images and one batch needs."""
    torch.manual_seed(0)
    if network == "resnet18":
        dense: nn.Module = load_resnet18("imagenette")
    else:
        dense = models.get_model(network, weights=None, num_classes=10).eval()
    batches = [
        (torch.randn(BATCH, 3, SIZE, SIZE), torch.zeros(BATCH, dtype=torch.long))
        for _ in range(images // BATCH)
    ]
    with torch.inference_mode():
        dense(batches[0][0])
    before, start = peak_memory_mb(), time.perf_counter()
    small = compress(dense, batches[0][0][:8], BUDGET, data=batches)
    seconds = time.perf_counter() - start
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in dense.modules())
    cut = sum(row.form != "dense" for row in small.plan)  # type: ignore[union-attr]
    return {
        "seconds": seconds,
        "memory_mb": peak_memory_mb() - before,
        "layers": layers,
        "cut": cut,
    }


def apart(network: str, images: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", network, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", default="cost.json", help="where the record goes")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    path = Path(args.json)
    check_writable(path)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in CASES}
    for case in tqdm(CASES * RUNS, "compressing"):
        runs[case].append(apart(*case))
    rows: list[dict[str, Any]] = []
    for (network, images), found in runs.items():
        middle = {key: median(run[key] for run in found) for key in found[0]}
        spread = [run["seconds"] for run in found]
        rows.append({"network": network, "images": images, **middle, "runs": spread})
        print(
            f"{network:9} {images:5} images  {middle['seconds']:6.1f} s  "
            f"{middle['memory_mb']:6.0f} MB  {middle['layers']:.0f} layers"
        )
    command = f"python benchmarks/cost.py --json {path.as_posix()}"
    about = {"command": command, "size": SIZE, "batch": BATCH, "budget": BUDGET}
    write_text(path, json.dumps({**about, "rows": rows, "machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
