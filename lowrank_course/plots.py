"""The course's pictures: one palette, one style, alt text on every figure.

Call `style()` once. Each drawing function shows its figure, with the sentence `alt` for those who
cannot see it, and returns None. For a figure of your own, call `show(figure, alt)`.
Tensors, arrays and lists are all taken as numbers.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import nn

from lowrank_course.linalg import energy

# Okabe and Ito, "Color universal design", 2008: told apart with every kind of colour vision.
PALETTE = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
}  # their yellow is too pale for a line on white
COLOURS = list(PALETTE.values())
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3))]
GREY = "#595959"
# The stages of the story look the same in every chapter.
STAGE = {
    "dense": GREY,
    "truncated": PALETTE["vermillion"],
    "recalibrated": PALETTE["orange"],
    "retrained": PALETTE["blue"],
    "compressed": PALETTE["blue"],
}


def style() -> None:
    """Set matplotlib's defaults for the course: large type, thin axes, the palette."""
    plt.rc("figure", figsize=(7.5, 3.6), dpi=110)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("font", size=13)
    plt.rc("axes", titlesize=13, grid=True, prop_cycle=cycler(color=COLOURS, linestyle=DASHES))
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("grid", color="#E0E0E0")
    plt.rc("lines", linewidth=2.4)
    plt.rc("image", cmap="gray")
    plt.rc("legend", frameon=False, handlelength=2.8)  # long enough to tell the dashes apart


def show(figure: Figure, alt: str) -> None:
    """Show a figure with alternative text, then close it.

    The image goes out as HTML, because JupyterLab, nbconvert and myst-nb drop the alternative text
    of plain image outputs. Where no picture can be shown, the text takes its place.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what one sees in the figure")
    # Photographs are small as JPEG, drawings as PNG with 64 colours. The course's limit is 60 kB.
    kind = "jpeg" if any(axes.images for axes in figure.axes) else "png"
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB")
    few = picture if kind == "jpeg" else picture.quantize(64, dither=Image.Dither.NONE)
    few.save(buffer, format=kind, quality=75, optimize=True)
    plt.close(figure)
    source = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{source}">'
    display({"text/html": image, "text/plain": alt}, raw=True)


def spectrum(values: Mapping[str, Any], *, alt: str, share: float | None = None) -> None:
    """Singular values relative to the largest (left), and the energy that a rank holds (right).

    `values` maps a name to singular values (k,), largest first. `share` in (0, 1] draws a line.
    """
    figure, (left, right) = _subplots(1, 2, figsize=(9, 3.6))
    for name, singular in values.items():
        S = torch.as_tensor(singular)
        ranks = np.arange(1, len(S) + 1)
        left.semilogy(ranks, S / S[0], **_line(name))
        right.plot(ranks, 100 * energy(S), **_line(name))
    left.set(xlabel="index of the singular value", ylabel="singular value / largest")
    right.set(xlabel="rank", ylabel="energy held (%)", ylim=(0, 103))
    if share is not None:
        right.axhline(100 * share, color=GREY, linewidth=1.5, linestyle=":")
    right.legend()
    show(figure, alt)


def pictures(images: Mapping[str, Any], *, alt: str) -> None:
    """Pictures in a row, titles above; each (H, W) or (H, W, 3), numbers in [0, 1]."""
    tall, wide = next(iter(images.values())).shape[:2]
    side = min(2.1, 10.5 / len(images))  # inches; a wider figure would be shrunk, letters and all
    lines = max(title.count("\n") for title in images) + 1
    size = (side * len(images), (side - 0.1) * tall / wide + 0.25 * lines + 0.15)
    figure, row = _subplots(1, len(images), figsize=size, squeeze=False)
    for axes, (title, image) in zip(row[0], images.items(), strict=True):
        axes.imshow(np.clip(_numbers(image), 0, 1), vmin=0, vmax=1)
        axes.set(title=title, xticks=[], yticks=[])
        axes.set_anchor("S")  # room that is left over stays above the title
        axes.spines[:].set(visible=True, color="#C8C8C8")  # where white ends on a white page
    show(figure, alt)


def curves(
    lines: Mapping[str, tuple[Any, Any]],
    *,
    alt: str,
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Lines, each a pair (x, y) under its name, with named horizontal levels for comparison."""
    figure, axes = _subplots()
    long = max(len(x) for x, _ in lines.values()) > 20
    for name, (x, y) in lines.items():
        marker = "o" if len(x) <= 20 else ""  # it says where a measurement is
        (line,) = axes.plot(_numbers(x), _numbers(y), marker=marker, **_line(name))
        line.set_linewidth(0 if marker and long else 2.4)  # dots only, beside a long curve
    for name, level in (levels or {}).items():
        axes.axhline(level, color=STAGE.get(name, GREY), linewidth=1.5, linestyle=":", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if all((_numbers(x) % 1 == 0).all() for x, _ in lines.values()):  # epochs, ranks
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    names = len(lines) + len(levels or {})
    if names > 2:  # too many to find a free place among the lines
        figure.legend(loc="outside right center")
    elif names > 1:
        axes.legend()
    show(figure, alt)


def cost_against_rank(
    costs: Mapping[str, Any], dense: float, *, alt: str, unit: str = "numbers to store"
) -> None:
    """Cost of factorised forms at ranks 1, 2, ..., beside the dense cost; break-even marked.

    `costs` maps a form to its costs (k,), which rise with the rank.
    """
    figure, axes = _subplots()
    axes.axhline(dense, color=STAGE["dense"], linewidth=1.8, label="dense")
    for name, cost in ((name, _numbers(values)) for name, values in costs.items()):
        ranks = np.arange(1, len(cost) + 1)
        (line,) = axes.plot(ranks, cost, **_line(name))
        if cost[0] < dense <= cost[-1]:
            even, colour = float(np.interp(dense, cost, ranks)), line.get_color()
            line.set_label(f"{name}, break-even {round(even, 1):g}")
            axes.vlines(even, 0, dense, color=colour, linewidth=1.5, linestyle=":")
            axes.scatter(even, dense, s=60, color=colour, zorder=3)
    axes.set(xlabel="rank", ylabel=unit, ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "ncols": 3}
    axes.legend(**place, fontsize=11, handlelength=2.2, columnspacing=1)
    show(figure, alt)


def bars(table: Mapping[str, Mapping[str, float]], *, alt: str) -> None:
    """One panel a measure (its name holds the unit), one labelled bar a network.

    `table` maps a measure to {network: value}.
    """
    counts = [len(values) for values in table.values()]
    wide = min(1.3, 10.4 / sum(counts))  # inches a bar
    longest = max(len(name) for values in table.values() for name in values)
    size = (wide * sum(counts) + 0.6, 3.4)
    figure, row = _subplots(1, len(table), figsize=size, squeeze=False, widths=counts)
    for axes, (measure, values) in zip(row[0], table.items(), strict=True):
        names = list(values)
        colours = [STAGE.get(n, COLOURS[i % len(COLOURS)]) for i, n in enumerate(names)]
        drawn = axes.bar(names, _numbers(list(values.values())), color=colours, width=0.65)
        axes.bar_label(drawn, labels=[_short(v) for v in values.values()], padding=2)
        axes.set_title(measure)
        axes.margins(y=0.15)
        axes.grid(False)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        if wide < 0.1 * longest:  # the names would run into each other
            plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    show(figure, alt)


def layer_boxes(rows: Mapping[str, nn.Module], *, alt: str) -> None:
    """Layers as boxes between tensors, one row a version of the layer.

    Each value is a `Conv2d`, a `Linear`, or a `Sequential` of those. A tensor's height shows its
    channels; a box says the kernel and the number of weights.
    """
    versions = {name: _leaves(module) for name, module in rows.items()}
    most = max(size for layers in versions.values() for _, sizes in layers for size in sizes)
    figure, column = _subplots(len(rows), figsize=(8.5, 1.9 * len(rows)), squeeze=False)
    for axes, (name, layers) in zip(column[:, 0], versions.items(), strict=True):
        axes.set_title(name, loc="left", fontweight="bold")
        axes.axis("off")
        edge = STAGE["dense"] if len(layers) == 1 else PALETTE["blue"]
        box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": edge}
        _tensor(axes, 0, layers[0][1][0], most)
        axes.text(-0.3, -0.52, "channels", ha="right", va="top", color=GREY)
        for place, (label, sizes) in enumerate(layers):
            x = 3.0 * place
            axes.annotate(
                "", (x + 2.85, 0), (x + 0.15, 0), arrowprops={"arrowstyle": "->", "color": GREY}
            )
            axes.text(x + 1.5, 0, label, ha="center", va="center", bbox=box)
            _tensor(axes, x + 3.0, sizes[1], most)
        axes.set(ylim=(-0.75, 0.55), xlim=(-1.3, 3.0 * max(map(len, versions.values())) + 0.4))
    show(figure, alt)


def _subplots(
    rows: int = 1,
    columns: int = 1,
    squeeze: bool = True,
    widths: list[int] | None = None,
    **settings: Any,
) -> Any:
    """As `plt.subplots`, for a figure that pyplot does not know.

    JupyterLab moves sliders in a second thread, and after each move every figure that pyplot knows
    is drawn: while ours is still being drawn, it would come out blank.
    """
    figure = Figure(**settings)
    return figure, figure.subplots(rows, columns, squeeze=squeeze, width_ratios=widths)


def _line(name: str) -> dict[str, Any]:
    return {"label": name} | ({"color": STAGE[name]} if name in STAGE else {})


def _numbers(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _short(value: float) -> str:
    """Three digits that matter: 93.4, 80.0, 0.372, 11.2M. A whole number stays one: 8."""
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    sizes = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
    letter = next((key for key, size in sizes.items() if abs(value) >= size), "")
    return f"{value / sizes[letter]:#.3g}".rstrip(".") + letter


def _tensor(axes: Axes, x: float, channels: int, most: int) -> None:
    height = max(0.04, 0.9 * channels / most)
    axes.add_patch(Rectangle((x - 0.1, -height / 2), 0.2, height, color=PALETTE["sky"]))
    axes.text(x, -0.52, f"{channels}", ha="center", va="top", color=GREY)


def _leaves(module: nn.Module) -> list[tuple[str, tuple[int, int]]]:
    """(label, (channels in, channels out)) of each layer."""
    found = []
    for layer in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(layer, nn.Conv2d):
            kind = "{} × {} convolution".format(*layer.kernel_size)
            if max(layer.stride) > 1:
                kind += "\nstride {} × {}".format(*layer.stride)
            sizes = (layer.in_channels, layer.out_channels)
        elif isinstance(layer, nn.Linear):
            kind, sizes = "linear", (layer.in_features, layer.out_features)
        else:
            raise ValueError(f"rows holds a {type(layer).__name__}: give Conv2d or Linear layers")
        found.append((f"{kind}\n{layer.weight.numel():,} weights", sizes))
    return found
