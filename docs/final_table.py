"""Draw docs/final_table.png from results/demo-full.json: python docs/final_table.py."""

import hashlib
import json
from pathlib import Path

import matplotlib.pyplot as plt

from lowrank_course import plots

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "demo-full.json"
PICTURE = ROOT / "docs" / "final_table.png"


def draw() -> None:
    """The four rows, costs as shares of the dense network's; the record's hash in the header."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    dense = record["rows"][0]
    head = ["network", "top-1", "parameters", "MACs", "batch 1", "batch 32", "file"]
    cells = []
    for row in record["rows"]:
        shares = [
            f"{row[key] / 1e6:.2f} M\n{100 * row[key] / dense[key]:.0f} %"
            for key in ("parameters", "macs")
        ]
        times = [f"{ms:.1f} ms" for ms in row["latency_ms"].values()]
        accuracy = f"{row['accuracy']:.2f} %"
        cells.append([row["network"], accuracy, *shares, *times, f"{row['file_mb']:.1f} MB"])
    plots.style()
    figure, axes = plt.subplots(figsize=(10, 3.3))
    axes.axis("off")
    table = axes.table(cells, colLabels=head, cellLoc="center", bbox=(0, 0.1, 1, 0.9))
    table.auto_set_font_size(False)
    table.set_fontsize(13)
    for (line, column), cell in table.get_celld().items():
        cell.set_edgecolor("#D0D0D0")
        if line == 0:
            cell.set_text_props(fontweight="bold")
        elif column == 0:
            colour = plots.STAGE[record["rows"][line - 1]["network"]]
            cell.set_text_props(color=colour, fontweight="bold")
    about = record["data"]
    made_on = (
        f"ResNet-18, {about['name'].capitalize()}, {about['evaluated']} validation images at "
        f"{about['size']} px; {record['machine']['threads']} CPU threads"
    )
    axes.text(0, 0, made_on, color=plots.GREY, fontsize=11)
    figure.savefig(PICTURE, metadata={"Source": hashlib.sha256(RECORD.read_bytes()).hexdigest()})


if __name__ == "__main__":
    draw()
