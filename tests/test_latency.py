"""Budgets in milliseconds. The stopwatch is replaced: a busy machine fails no test."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_course import latency
from lowrank_course.compress import apply, compress
from lowrank_course.layers import blank, full_rank
from lowrank_course.measure import compare_latency, count_macs, layer_shapes
from lowrank_course.plan import Plan

OVERHEAD, PER_MAC = 0.01, 1e-6  # ms a layer, and ms a MAC, on the machine that the tests pretend


def modelled(module, x):
    """ms of a layer, or of a network, whose other modules take time, too."""
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    others = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU)]
    macs = count_macs(module, x) * len(x)
    return OVERHEAD * len(layers) + 0.05 * len(others) + PER_MAC * macs


class Stopwatch:
    """Stands in for compare_latency, and notes what it was asked."""

    def __init__(self, ms=modelled):
        self.ms, self.calls = ms, []

    def __call__(self, models, example, batch_size, runs=9):
        assert len(example) == batch_size
        self.calls.append((dict(models), example))
        return {name: self.ms(model, example) for name, model in models.items()}


@pytest.fixture
def stopwatch(monkeypatch, tmp_path):
    watch = Stopwatch()
    monkeypatch.setattr(latency, "compare_latency", watch)
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path))
    return watch


def images(n=2, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def network():
    """Four convolutions, two of them alike, and a linear layer."""
    torch.manual_seed(0)
    widths = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1))
    parts = [
        part
        for c, o, stride in widths
        for part in (nn.Conv2d(c, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 40)).eval()


def prices(model, x, forms):
    return latency.prices(model, x, layer_shapes(model, x), forms)


def share(small, model, x):
    return modelled(small, x) / modelled(model, x)


# ---- prices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_prices_are_what_is_measured(stopwatch, form):
    """Time grows linearly here, so that interpolation is exact: at every rank, in every layer.

    Above 16, a rank costs as much as the next multiple, if there is one.
    """
    model, x = network(), images(3)
    forms = {name: [form] for name in ("0", "3", "6", "9")}
    price = prices(model, x, {**forms, "14": ["linear"]})
    y = x
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            own = form if isinstance(layer, nn.Conv2d) else "linear"
            given = y if own == form else y[:, None, None]
            assert price(name, "dense", 0) == pytest.approx(modelled(layer, given))
            for rank in range(8, 1 + full_rank(layer, own)):
                whole = rank if rank < 16 else min(-(-rank // 16) * 16, full_rank(layer, own))
                ms = modelled(blank(layer, own, whole, None), given)
                assert price(name, own, rank) == pytest.approx(ms)
        y = layer(y).detach()


def test_layers_are_timed_as_they_stand_in_the_network(stopwatch):
    model = network()
    x = images(5).to(memory_format=torch.channels_last)
    prices(model, x, {"3": ["channel", "spatial"], "14": ["linear"]})
    seen = {models["dense 0"]: (models, x) for models, x in stopwatch.calls}
    assert len(seen) == 4  # the two that are alike are timed once
    (models, given), (linear, rows) = seen[model[3]], seen[model[14]]
    assert given.shape == (5, 32, 16, 16) and rows.shape == (1, 1, 5, 64)
    assert given.is_contiguous(memory_format=torch.channels_last) and not given.is_contiguous()
    assert list(models)[:3] == ["channel 8", "channel 16", "channel 32"]
    assert {name.split()[0] for name in linear} == {"dense", "linear"}


def test_weights_in_channels_last_make_the_network_so(stopwatch):
    model = network().to(memory_format=torch.channels_last)
    prices(model, images(), {})
    given = stopwatch.calls[1][1]
    assert given.is_contiguous(memory_format=torch.channels_last) and not given.is_contiguous()


def test_a_layer_costs_all_its_calls_and_folded_images(stopwatch):
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(2, 2)

        def forward(self, x):
            x = self.conv(x.unflatten(2, (4, -1)).movedim(2, 1).flatten(0, 1))  # four an image
            return self.conv(self.conv(x))

    model = Folded()
    price = prices(model, images(2), {"conv": ["channel"]})
    one = torch.zeros(8, 3, 4, 16)
    assert price("conv", "dense", 0) == pytest.approx(3 * modelled(model.conv, one))
    version = blank(model.conv, "channel", 2, None)
    assert price("conv", "channel", 2) == pytest.approx(3 * modelled(version, one))
    assert price("unused", "dense", 0) == 0


def test_time_never_falls_with_the_rank(stopwatch):
    """A slow spell at a low rank does not make a higher one the bargain."""
    random = np.random.default_rng(0)
    stopwatch.ms = lambda module, x: modelled(module, x) * random.uniform(0.3, 3)
    price = prices(network(), images(), {"6": ["spatial"]})
    ms = [price("6", "spatial", rank) for rank in range(1, 193)]
    assert ms == sorted(ms) and ms[0] < ms[-1]


@pytest.mark.parametrize("full", [1, 2, 5, 21, 31, 32, 64, 100, 512, 1536, 4096])
def test_knots(full):
    knots = latency._knots(full)
    assert knots[0] == (8 if full >= 32 else 1) and knots[-1] == full
    assert len(knots) <= latency.KNOTS
    assert knots == sorted(set(knots))
    if full >= 32:
        assert all(rank % 16 == 0 for rank in knots[1:-1])
    if full >= 100:
        assert len(knots) == latency.KNOTS


def test_tucker2_is_refused_before_any_work(stopwatch):
    with pytest.raises(ValueError, match="no times for form='tucker2'"):
        compress(network(), images(), 0.5, "latency", "tucker2")
    plan = compress(network(), images(), 0.5).plan
    plan = Plan(plan.rows, "latency").edit("6", "tucker2", (8, 8))
    with pytest.raises(ValueError, match="no times for form='tucker2'"):
        apply(network(), images(), plan)


# ---- the cache ---------------------------------------------------------------------------------


def test_what_was_measured_is_remembered(stopwatch, tmp_path):
    model, x = network(), images()
    first = compress(model, x, 0.5, "latency")
    count = len(stopwatch.calls)
    assert count > 5
    second = compress(network(), x, 0.5, "latency")
    assert len(stopwatch.calls) == count and second.plan == first.plan
    assert [file.name for file in tmp_path.iterdir()] == ["latency.json"]
    compress(model, x, 0.6, "latency")  # layers are known; a new plan is timed
    assert {*map(len, (models for models, _ in stopwatch.calls[count:]))} == {2}


def test_other_circumstances_are_measured_anew(stopwatch, monkeypatch):
    model, x = network(), images()
    prices(model, x, {})
    assert len(stopwatch.calls) == 4

    def again(model, x):
        before = len(stopwatch.calls)
        prices(model, x, {})
        return len(stopwatch.calls) - before

    assert again(model, x) == 0
    assert again(model, images(3)) == 4
    assert again(model, images(size=24)) == 3  # the linear layer sees no image
    assert again(network().double(), x.double()) == 4
    assert again(model, x.to(memory_format=torch.channels_last)) == 3  # a linear layer has none
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert again(model, x) == 4
    monkeypatch.setattr(latency, "cpu_name", lambda: "another processor")
    assert again(model, x) == 4
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert again(model, x) == 4


def test_a_new_form_is_timed_beside_the_known_ones(stopwatch):
    model, x = network(), images()
    for forms in (["channel"], ["spatial"]):
        prices(model, x, {"6": forms})
    (models, _) = stopwatch.calls[-1]
    assert {name.split()[0] for name in models} == {"dense", "channel", "spatial"}
    count = len(stopwatch.calls)
    prices(model, x, {"6": ["channel", "spatial"]})
    assert len(stopwatch.calls) == count


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"text"', '{"a": 1}', '{"a": {"b": 2}}', '{"a": {"b": [3]}}',
     '{"a": {"b": [[1, "x"]]}}', '{"a": {"b": [["x", 1]]}}', '{"a": {"b": [[1, 0]]}}',
     '{"a": {"b": [[1, NaN]]}}', "\ufffd\u0000"],
)  # fmt: skip
def test_damaged_cache_is_measured_anew(stopwatch, tmp_path, text):
    model, x, file = network(), images(), tmp_path / "latency.json"
    plan = compress(model, x, 0.5, "latency").plan
    whole, count = file.read_text(), len(stopwatch.calls)
    file.write_text(text)
    assert compress(model, x, 0.5, "latency").plan == plan
    assert len(stopwatch.calls) == 2 * count and json.loads(file.read_text()) == json.loads(whole)


def test_half_a_cache_is_measured_anew(stopwatch, tmp_path):
    file = tmp_path / "latency.json"
    prices(network(), images(), {})
    file.write_bytes(file.read_bytes()[:-9])
    prices(network(), images(), {})
    assert len(stopwatch.calls) == 8


def test_without_a_place_for_the_cache(stopwatch, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "file" / "folder"))
    small = compress(network(), images(), 0.5, "latency")
    assert share(small, network(), images()) <= 0.5 + latency.NOISE
    assert os.listdir(tmp_path) == ["file"]


# ---- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["channel", "spatial", "auto"])
def test_budget_is_kept_and_used(stopwatch, form):
    model, x = network(), images(4)
    for budget in (0.4, 0.6, 0.8):
        small = compress(model, x, budget, "latency", form)
        assert 0.7 * budget < share(small, model, x) <= budget + latency.NOISE
        assert all(row.after < row.before for row in small.plan if row.rank)
        saved = sum(row.before - row.after for row in small.plan)
        assert saved == pytest.approx(modelled(model, x) - modelled(small, x))


def test_budget_is_kept_from_data(stopwatch):
    model, x = network(), images(4)
    data = [(images(32), torch.zeros(32))]
    small = compress(model, x, 0.5, "latency", data=data)
    assert 0.4 < share(small, model, x) <= 0.5 + latency.NOISE


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_budget_is_kept_where_layers_behave_otherwise_in_the_network(stopwatch, factor):
    """Alone, each layer takes `factor` of its time in the network."""

    def ms(module, x):
        alone = not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        return modelled(module, x) * (factor if alone else 1)

    stopwatch.ms = ms
    model, x = network(), images(4)
    for budget in (0.4, 0.7):
        small = compress(model, x, budget, "latency")
        assert 0.7 * budget < share(small, model, x) <= budget + latency.NOISE


def test_what_does_not_get_faster_stays_dense(stopwatch):
    """With much overhead a layer, only the heavy layers are worth two."""
    stopwatch.ms = lambda module, x: (
        modelled(module, x)
        + 2 * OVERHEAD * sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules())
    )
    model, x = network(), images(1, 8)
    forms = {row.name: row.form for row in compress(model, x, 0.85, "latency").plan}
    assert forms["0"] == forms["14"] == "dense" and forms["6"] != "dense" != forms["9"]
    by_macs = compress(model, x, 0.1).plan  # which knows no overhead
    assert by_macs.rows[0].form != "dense"


def test_budget_of_one_keeps_the_function_exactly(stopwatch):
    model, x = network(), images()
    small = compress(model, x, 1.0, "latency")
    assert torch.equal(small(x), model(x)) and not any(row.rank for row in small.plan)


def test_unreachable_budget_names_one_that_works(stopwatch):
    model, x = network(), images()
    with pytest.raises(ValueError, match="budget=0.01 cannot be reached: the least .* latency"):
        compress(model, x, 0.01, "latency")
    with pytest.raises(ValueError) as caught:
        compress(model, x, 0.01, "latency")
    named = float(str(caught.value).split("model is ")[1].split()[0])
    small = compress(model, x, named, "latency")
    assert share(small, model, x) <= named + latency.NOISE
    with pytest.raises(ValueError, match="cannot be reached"):
        compress(model, x, named - 0.002, "latency")


def test_a_network_that_does_not_get_faster_is_refused(stopwatch):
    stopwatch.ms = lambda module, x: 1.0
    with pytest.raises(ValueError, match="the least for this model is 1.000 of its latency"):
        compress(network(), images(), 0.99, "latency")


def test_no_plan_is_slower_than_dense(stopwatch):
    """Every layer seems to gain, but in the network only the cut of all of them does."""

    def ms(module, x):
        factors = sum(isinstance(m, nn.Sequential) for m in module.modules())
        return modelled(module, x) * (1.7 if 1 < factors < 5 else 1)

    stopwatch.ms = ms
    model, x = network(), images(4)
    for budget in (0.5, 0.95, 0.999):
        try:
            small = compress(model, x, budget, "latency")
        except ValueError as error:
            assert "saves less than this machine's noise" in str(error)
        else:
            assert ms(small, x) < ms(model, x)


# ---- plans -------------------------------------------------------------------------------------


def test_plan_is_in_ms_and_can_be_applied_again(stopwatch):
    model, x = network(), images(4)
    small = compress(model, x, 0.5, "latency")
    plan = Plan.from_json(small.plan.to_json())
    assert plan == small.plan and plan.cost == "latency"
    row = plan.rows[2]
    assert f"{row.before:.3f}" in str(plan) and str(plan).splitlines()[-1].startswith("latency")
    again = apply(model, x, plan)
    assert again.plan == plan and torch.equal(again(x), small(x))
    edited = apply(model, x, plan.edit("6", "channel", 11)).plan  # below a block of channels
    assert edited.rows[2].after == pytest.approx(
        modelled(blank(model[6], "channel", 11, None), torch.zeros(4, 64, 8, 8))
    )


# ---- a real stopwatch --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_heavy_network_runs_faster(tmp_path, monkeypatch):
    """Half of the time is asked for; a busy machine may take four fifths."""
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(256, 256, 3, padding=1) for _ in range(3))).eval()
    x = torch.randn(1, 256, 16, 16)
    small = compress(model, x, 0.5, "latency")
    ms = compare_latency({"dense": model, "small": small}, x, 1)
    assert ms["small"] < 0.8 * ms["dense"]
    table = json.loads((tmp_path / "latency.json").read_text())
    assert any(key.startswith("Conv2d(256, 256, kernel_size=(3, 3)") for key in table)
