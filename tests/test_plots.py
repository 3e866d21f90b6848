"""Figures: they go out with their text, nothing is cut off, and no name lies on another."""

from __future__ import annotations

import html
import itertools
import re

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from lowrank_course import layers, plots

ALT = "A figure that is looked at here."
CONV = nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False)
FORMS = ("channel", "spatial")
STAGES = ("dense", "truncated", "recalibrated", "retrained")


def boxes():
    rows = {form: layers.factorise(CONV, form, 32) for form in FORMS}
    three = nn.Sequential(nn.Conv2d(64, 8, 1), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 128, 1))
    plots.layer_boxes({"dense": CONV, **rows, "Tucker-2": three}, alt=ALT)


def costs(forms=FORMS):
    ranks = {form: range(1, layers.full_rank(CONV, form) + 1) for form in forms}
    numbers = {form: [layers.parameters(CONV, form, r) for r in rs] for form, rs in ranks.items()}
    plots.cost_against_rank(numbers, CONV.weight.numel(), alt=ALT)


def lines(names=STAGES):
    pairs = {name: ([0, 1, 2], [i, i + 1.0, i + 2.0]) for i, name in enumerate(names)}
    plots.curves(pairs, alt=ALT, xlabel="epoch", ylabel="top-1 (%)", levels={"recipe": 64.79})


def panels(measures=3, names=STAGES):
    table = {name: 70.0 + i for i, name in enumerate(names)}
    plots.bars({f"measure {i} (%)": table for i in range(measures)}, alt=ALT)


def photos(count=4, title="(a) English springer\n→ cassette player"):
    plots.pictures({title + " " * i: torch.rand(64, 64, 3) for i in range(count)}, alt=ALT)


KINDS = {
    "boxes": boxes,
    "costs": costs,
    "one form": lambda: costs(("channel",)),
    "curves": lambda: lines(STAGES[:2]),
    "many curves": lines,
    "bars": lambda: panels(4, ("dense", "compressed")),
    "many bars": panels,
    "photographs": photos,
    "eight filters": lambda: photos(8, "0"),
    "spectrum": lambda: plots.spectrum({"one": torch.linspace(1, 0.1, 64)}, alt=ALT, share=0.9),
}


def texts_of(figure):
    """Every text that one sees."""
    found = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        found += [axes.title, axes._left_title, *axes.texts]
        legend = axes.get_legend()
        found += legend.get_texts() if legend else []
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [axis.label, *(tick.label1 for tick in ticks)]
    return [text for text in found if text.get_text().strip()]


@pytest.fixture
def drawn(monkeypatch):
    """Draw with a function of KINDS; gives the figure."""
    kept = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: kept.append(figure))
    plots.style()

    def draw(kind):
        kind()
        FigureCanvasAgg(kept[-1]).draw()
        return kept[-1]

    yield draw
    plt.rcdefaults()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_text_is_cut_off_or_lies_on_another(kind, drawn):
    figure = drawn(kind)
    places = [(text, text.get_window_extent()) for text in texts_of(figure)]
    assert len(places) > 2
    for text, place in places:
        assert place.x0 > -1 and place.y0 > -1, f"{text} is cut off"
        assert place.x1 < figure.bbox.x1 + 1 and place.y1 < figure.bbox.y1 + 1, f"{text} is cut off"
    level = [(text, place) for text, place in places if text.get_rotation() in (0, 90)]
    for (one, a), (other, b) in itertools.combinations(level, 2):
        assert not a.overlaps(b), f"{one} lies on {other}"


def test_break_even_is_named_for_every_form_that_reaches_it(drawn):
    figure = drawn(costs)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["dense", "channel, break-even 104.7", "spatial, break-even 128"]


def test_bars_say_three_digits(drawn):
    figure = drawn(lambda: plots.bars({"x": {"a": 80.0, "b": 11_181_642, "c": 8}}, alt=ALT))
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels == ["80.0", "11.2M", "8"]


def test_a_figure_goes_out_with_its_text_and_without_noise(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, raw: shown.append(data))
    alt = 'The "dense" line lies above 5 < 6.'
    pairs = {"dense": ([0, 1], [1.0, 2.0])}
    assert plots.curves(pairs, alt=alt, xlabel="epoch", ylabel="top-1 accuracy (%)") is None
    found = re.search(r'alt="([^"]*)"', shown[0]["text/html"])
    assert found and html.unescape(found[1]) == alt == shown[0]["text/plain"]
    assert not plt.get_fignums() and capsys.readouterr().out == ""


def test_a_figure_without_text_or_with_a_strange_layer_is_refused():
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(plt.figure(), alt=" ")
    with pytest.raises(ValueError, match="ReLU: give Conv2d or Linear"):
        plots.layer_boxes({"one": nn.Sequential(nn.Linear(2, 2), nn.ReLU())}, alt="Two boxes.")
    plt.close("all")
