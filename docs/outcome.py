"""Draw docs/outcome.png from recorded runs: python docs/outcome.py."""

import hashlib
import json
from pathlib import Path

import matplotlib.pyplot as plt

from lowrank_course import plots

ROOT = Path(__file__).parents[1]
NAMES = ("seed", "compressed", "extreme", "controls")
RECORDS = [ROOT / "results" / f"{name}.json" for name in NAMES]
PICTURE = ROOT / "docs" / "outcome.png"

# FasterAI Labs, "resnet18, Imagenette pilot", at huggingface.co: million parameters and top-1
# in percent, at 160 px, of a fine-tuned network and of its pruned copy.
PILOT = {"FasterAI, fine-tuned": (11.2, 93.3), "pruned": (5.3, 91.4)}


def draw() -> None:
    """Accuracy against parameters; lines begin at a dense network. The header holds a hash."""
    seed, *runs, controls = (json.loads(path.read_text(encoding="utf-8")) for path in RECORDS)
    runs = [run for run in runs if "tuned" in run["summary"]]  # others have only begun
    dense = runs[0]["jobs"]["dense"]
    ours = {"lowrank-course, dense": (dense["parameters"] / 1e6, dense["accuracy"]["val"])}
    for run in runs:
        first, tuned = run["jobs"]["tuned, seed 0"], run["summary"]["tuned"]
        mean, n = tuned["val"]["mean"], len(tuned["seeds"])
        name = f"lowrank-course\n{mean:.1f} %, {n} training{'s' * (n > 1)}"
        ours[name] = first["parameters"] / 1e6, mean
    recipe = seed["costs"]["after"]["parameters"] / 1e6, seed["accuracy"]["retrained"]
    reported = {"the popular recipe, as reported": (recipe[0], seed["reported"])}
    again = {"the popular recipe, run again": recipe}
    control = controls["jobs"]["narrow, seed 0"]
    right = control["accuracy"]["val"]
    small = {f"narrow ResNet-18\n{right:.1f} %, 1 training": (control["parameters"] / 1e6, right)}
    plots.style()
    figure, axes = plt.subplots(figsize=(9, 4.4))
    lines = [
        (ours, plots.PALETTE["blue"], "o", 12),
        (small, plots.GREY, "^", -12),
        (PILOT, plots.PALETTE["green"], "s", 12),
        (reported, plots.PALETTE["vermillion"], "D", 12),
        (again, plots.PALETTE["vermillion"], "d", -12),
    ]
    for points, colour, marker, shift in lines:
        across, top1 = zip(*points.values(), strict=True)
        axes.plot(across, top1, "-", marker=marker, color=colour, markersize=9)
        for i, (name, point) in enumerate(points.items()):
            up = -shift if points is ours and i == 0 else shift  # below FasterAI's
            place = {"xytext": (0, up), "textcoords": "offset points", "ha": "center"}
            place["va"] = "bottom" if up > 0 else "top"
            axes.annotate(name, point, **place, color=colour, fontsize=11)
    axes.set(xscale="log", xlim=(0.3, 25), ylim=(55, 100))
    axes.set(xlabel="parameters (million)", ylabel="top-1 on Imagenette (%)")
    axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
    content = b"".join(path.read_bytes() for path in RECORDS)
    figure.savefig(PICTURE, metadata={"Source": hashlib.sha256(content).hexdigest()})


if __name__ == "__main__":
    draw()
