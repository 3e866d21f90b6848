"""Accuracy against cost for all our methods and all peers: one network, one run, one record.

    python -m pip install -e ".[peers]"
    python benchmarks/frontier.py                  # results/frontier.json; some hours, goes on
    python benchmarks/frontier.py --figure         # docs/frontier.png from it, and who is ahead

The record is that of `lowrank-course frontier`, with the methods of peers.py beside ours. A peer
that is not installed leaves one line in it, and is tried again by the next call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from peers import peers

from lowrank_course import plots
from lowrank_course.cli import check_writable
from lowrank_course.data import balanced_subset, find_data, load_images, make_loader
from lowrank_course.frontier import BUDGETS, frontier, mcnemar, ours, right_answers
from lowrank_course.models import load_resnet18

ROOT = Path(__file__).parents[1]
RECORD, PICTURE = ROOT / "results" / "frontier.json", ROOT / "docs" / "frontier.png"
OURS = "auto"  # the method that people get
PACKAGES = ("fasterai SVD", "fasterai Tucker", "tensorly-torch", "aimet")
AGAIN = ", recalibrated"


def record(data: str, profile: str, path: Path, budgets: list[float]) -> dict[str, Any]:
    """Measure everything that `path` does not hold yet."""
    name = find_data(data)
    held_out = load_images("holdout", name)
    if profile == "smoke":
        held_out = balanced_subset(held_out, 2)
    batches = tuple(make_loader(held_out, 64, load_resnet18(name).evaluation_size))
    return frontier(name, profile, path, {**ours(), **peers(batches)}, budgets)


def compared(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours against each peer at each budget: points ahead, p-value, and what the peer lost.

    In points of accuracy; the p-value is McNemar's, on the same images.
    """
    dense = next(p["accuracy"] for p in found["points"] if p["method"] == "dense")
    own = {p["budget"]: p for p in found["points"] if p["method"] == OURS and "right" in p}
    rows = []
    for point in found["points"]:
        method, budget = point["method"], point["budget"]
        if method in ("dense", *ours()) or "right" not in point or budget not in own:
            continue
        a, b = (right_answers(found, each, budget) for each in (OURS, method))
        ahead = own[budget]["accuracy"] - point["accuracy"]
        row = {"method": method, "budget": budget, "ahead": ahead, "p": mcnemar(a, b)}
        rows.append({**row, "lost": dense - point["accuracy"]})
    return rows


def summary(found: dict[str, Any]) -> str:
    """A line a peer, a column a budget: how far ours is ahead, * where that is significant."""
    rows = {(row["method"], row["budget"]): row for row in compared(found)}
    budgets = sorted({budget for _, budget in rows}, reverse=True)
    lines = ["points by which ours is ahead (* p < 0.05)"]
    lines.append(f"{'MACs left':29}" + "".join(f"{budget:7.0%} " for budget in budgets))
    for method in dict.fromkeys(method for method, _ in rows):
        cells = ""
        for row in (rows.get((method, budget)) for budget in budgets):
            cells += f"{row['ahead']:+7.1f}{'* '[row['p'] >= 0.05]}" if row else f"{'-':>7} "
        lines.append(f"{method:29}{cells}")
    failed = {p["method"]: p["failed"] for p in found["points"] if "failed" in p}
    return "\n".join(lines + [f"{method}: {reason}" for method, reason in failed.items()])


def draw(path: Path, picture: Path) -> None:
    """Packages and recipes in columns, as they come and recalibrated in rows; ours in all."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in found["points"]:
        if "accuracy" in point:
            at = (100 * point["macs"], point["accuracy"])
            lines.setdefault(point["method"], []).append(at)
    dense = lines.pop("dense")[0][1]
    others = [name for name in lines if name not in ours() and not name.endswith(AGAIN)]
    columns = {
        "packages": [name for name in others if name in PACKAGES],
        "published recipes": [name for name in others if name not in PACKAGES],
    }
    plots.style()
    figure, grid = plt.subplots(2, 2, figsize=(11, 8), sharex=True, sharey=True)
    for j, (title, names) in enumerate(columns.items()):
        for i, (again, says) in enumerate({"": "as they come", AGAIN: "recalibrated"}.items()):
            axes = grid[i, j]
            grey = plots.STAGE["dense"]
            axes.axhline(dense, color=grey, linewidth=1.5, linestyle=":", label="dense")
            for k, name in enumerate(names):
                colour = plots.COLOURS[1 + k % (len(plots.COLOURS) - 1)]
                style = {"color": colour, "marker": "osD^vP<"[k % 7], "linewidth": 1.8}
                dash = plots.DASHES[k // (len(plots.COLOURS) - 1)]
                if name + again in lines:
                    x, y = zip(*sorted(lines[name + again]), strict=True)
                    axes.plot(x, y, label=name, linestyle=dash, markersize=5, **style)
            x, y = zip(*sorted(lines[OURS]), strict=True)
            axes.plot(x, y, label="lowrank-course", color=plots.COLOURS[0], linestyle="-", lw=3.5)
            axes.set(title=f"{title}, {says}", ylim=(dense - 30, dense + 2))
    for axes in grid[1]:
        axes.set_xlabel("MACs left (%)")
        axes.legend(fontsize=11, loc="lower right")
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1 (%)")
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    figure.savefig(picture, metadata={"Source": source})
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=("auto", "imagenette", "digits"), default="imagenette")
    parser.add_argument("--profile", choices=("smoke", "laptop", "full"), default="full")
    parser.add_argument("--json", metavar="FILE", type=Path, default=RECORD, help="the record")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="of MACs")
    parser.add_argument("--figure", action="store_true", help="only draw what is recorded")
    args = parser.parse_args(argv)
    check_writable(args.json)
    if args.figure:
        draw(args.json, PICTURE if args.json == RECORD else args.json.with_suffix(".png"))
    else:
        record(args.data, args.profile, args.json, args.budgets)
    print(summary(json.loads(args.json.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
