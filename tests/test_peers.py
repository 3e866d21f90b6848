"""Peers and published recipes: within the budget, exact where they should be, told when absent."""

import ast
import copy
import hashlib
import importlib.util
import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lowrank_course import frontier, linalg, ranks
from lowrank_course.frontier import mcnemar, ours, right_answers
from lowrank_course.measure import count_macs

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # as for a script there

import peers  # noqa: E402
import published  # noqa: E402

SPEC = importlib.util.spec_from_file_location("frontier_benchmark", sys.path[-1] + "/frontier.py")
assert SPEC and SPEC.loader
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

RECIPES = ["uniform", "energy", "ALDS", "Tucker + EVBMF", "measured", "PCA", "PCA, asymmetric"]
MODULES = {"fasterai": "fasterai", "tensorly": "tltorch", "aimet": "aimet_torch"}


@pytest.fixture(scope="module")
def network():
    """Three convolutions with batch norms that have seen data, a linear layer; data, example."""
    torch.manual_seed(0)

    def block(name, *conv, **options):
        conv = nn.Conv2d(*conv, padding=1, **options)
        return [(f"conv{name}", conv), (f"bn{name}", nn.BatchNorm2d(conv.out_channels)),
                (f"relu{name}", nn.ReLU())]  # fmt: skip

    layers = [*block(1, 3, 16, 3, bias=False), *block(2, 16, 32, 3, stride=2), *block(3, 32, 32, 3)]
    pool = [("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(32, 10))]
    model = nn.Sequential(OrderedDict([*layers, *pool]))
    data = [torch.randn(32, 3, 12, 12) for _ in range(2)]
    with torch.no_grad():
        for images in data * 10:
            model(images)
        data = tuple((images, model.eval()(images).argmax(1)) for images in data)
    return model, data, data[0][0][:4]


def share(small, dense, example):
    return count_macs(small, example) / count_macs(dense, example)


# ---- Every method ------------------------------------------------------------------------------


def installed(name):
    return name in RECIPES or importlib.util.find_spec(MODULES[name.split("-")[0].split()[0]])


@pytest.mark.parametrize(
    "name", [*benchmark.PACKAGES[:3], pytest.param("aimet", marks=pytest.mark.slow), *RECIPES]
)
def test_every_method_meets_the_budget_or_says_what_is_missing(network, name):
    dense, data, example = network
    methods = peers.peers(data)
    before = copy.deepcopy(dense.state_dict())
    if not installed(name):
        with pytest.raises(RuntimeError, match=r"cannot be imported .*pip install -e '.\[peers\]'"):
            methods[name](dense, example, 0.5, data)
        return
    small = methods[name](dense, example, 0.5, data)
    least = 0 if name == "aimet" else 0.35  # its search takes large steps here
    assert least < share(small, dense, example) <= 0.5
    again = methods[f"{name}{benchmark.AGAIN}"](dense, example, 0.5, data)
    assert share(again, dense, example) == share(small, dense, example)
    assert not torch.equal(again.bn3.running_mean, small.bn3.running_mean)
    assert torch.equal(small.bn3.running_mean, dense.bn3.running_mean), "as it comes stays so"
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


def test_all_methods_are_listed_twice(network):
    names = list(peers.peers(network[1]))
    assert names[::2] == [*benchmark.PACKAGES, *RECIPES]
    assert names[1::2] == [f"{name}{benchmark.AGAIN}" for name in names[::2]]
    assert not set(names) & set(ours())


def test_a_broken_peer_is_one_plain_line(network):
    dense, data, example = network

    def run(method, budget=1.0):
        return peers.checked(method, dense, example, budget, data)

    def breaks(*_):
        raise KeyError("first\nsecond")

    def gives_nan(*_):
        small = copy.deepcopy(dense)
        nn.init.constant_(small.fc.bias, torch.nan)
        return small

    with pytest.raises(RuntimeError, match="^KeyError: 'first"):
        run(breaks)
    with pytest.raises(RuntimeError, match="no scores, or infinite"):
        run(gives_nan)
    with pytest.raises(RuntimeError, match=r"keeps 1.0000 of the MACs, over the budget"):
        run(lambda *_: copy.deepcopy(dense), 0.9)
    with pytest.raises(RuntimeError, match="cannot be reached"):
        run(peers.peers(data)["uniform"], 0.01)


def test_a_peer_that_cannot_be_imported(monkeypatch):
    def broken(name):
        raise AttributeError("module 'torch' has no attribute 'old'")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="no attribute 'old'.*pip install"):
        peers.imported("fasterai.misc.conv_decomposer")


def test_what_failed_is_tried_again(tmp_path):
    about, points = {"machine": "this"}, [{"method": "a"}, {"method": "b", "failed": "absent"}]
    (tmp_path / "record.json").write_text(json.dumps({**about, "points": points}))
    assert frontier._started(tmp_path / "record.json", about)["points"] == [{"method": "a"}]


def test_highest_is_just_below_the_edge():
    assert published.highest(lambda knob: knob <= 0.37) == pytest.approx(0.37, abs=1e-5)
    assert published.highest(lambda knob: knob <= 0.37) <= 0.37
    assert published.highest(lambda knob: True) == 1
    with pytest.raises(ValueError, match="cannot be reached"):
        published.highest(lambda knob: False)


# ---- Recipes -----------------------------------------------------------------------------------


def of_chapter_06(name, **given):
    """A function that the notebook writes out, with these globals."""
    tree = ast.parse((ROOT / "text/notebooks/06_choosing_ranks.py").read_text(encoding="utf-8"))
    (code,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    exec(compile(ast.Module([code], []), name, "exec"), names := {"np": np, **given})
    return names[name]


@pytest.mark.parametrize("shape", [(60, 60), (60, 200)])
@pytest.mark.parametrize("scale", [1, 1e3])
def test_evbmf_finds_what_was_planted(shape, scale):
    torch.manual_seed(0)
    noise = torch.randn(shape, dtype=torch.float64)
    assert published.evbmf(scale * torch.linalg.svdvals(noise), *shape) == 0
    for rank in (1, 5, 12):
        planted = 2 * noise.new_empty(shape[0], rank).normal_() @ noise[:rank]
        S = scale * torch.linalg.svdvals(planted + noise.roll(20, 0))
        assert published.evbmf(S, *shape) == rank


def test_evbmf_counts_what_its_paper_counts():
    """A square matrix, noise of strength 1: squared singular values above 4.911 times its side."""
    torch.manual_seed(0)
    S = torch.linalg.svdvals(torch.randn(200, 200).double())
    for factor, rank in ((0.92, 0), (1.08, 1)):
        S[0] = (200 * 4.911 * factor) ** 0.5
        assert S[0] > S[1] and published.evbmf(S, 200, 200) == rank


def test_rules_are_those_of_chapter_06(network):
    convs = published.convolutions(network[0])
    spectra = published.spectra(convs)
    given = {"spectra": spectra, "linalg": linalg, "full": {n: len(S) for n, S in spectra.items()}}
    for name, rule in {"uniform": "uniform", "by_energy": "energy", "alds": "alds"}.items():
        theirs, own = of_chapter_06(name, **given), getattr(published, rule)(convs)
        for knob in (0.05, 0.4, 0.8, 0.97):
            assert own(knob) == theirs(knob)
    theirs = of_chapter_06("evbmf")
    for n, S in spectra.items():
        shape = sorted(convs[n].weight.flatten(1).shape)
        assert published.evbmf(S, *shape) == theirs(S, *shape)
    rule = published.evbmf_tucker2(convs)
    assert rule(1)["conv2"] == (16, 32), "never above the full ranks, inputs first"
    found = rule(1 / 200)  # as EVBMF says, with the floor
    unfolded = convs["conv3"].weight.detach().double().transpose(0, 1).flatten(1)
    S = torch.linalg.svdvals(unfolded)
    assert found["conv3"][0] == max(1, theirs(S, *unfolded.shape))
    assert all(r >= 1 for pair in found.values() for r in pair)


def test_the_knob_is_turned_all_the_way(network):
    """One more rank in the wide layers would be over the budget."""
    dense, data, example = network
    small = published.by_rule(dense, example, 0.5, data, "channel", published.uniform)
    ratio = (small.conv3[0].out_channels + 0.51) / 32
    new = {}
    for n, r in ranks.uniform({"conv1": 16, "conv2": 32, "conv3": 32}, ratio).items():
        new[n] = published.way(dense.get_submodule(n), "channel", None).build(r)
    assert share(published.swapped(dense, new), dense, example) > 0.5


def test_what_convolutions_may_cost(network):
    dense, _, example = network
    price, room = published.prices(dense, example, 0.5)
    convs = sum(price(n, "dense", 0) for n in published.convolutions(dense))
    others = count_macs(dense, example) - convs
    assert others == 32 * 10 and room == 0.5 * (convs + others) - others


def test_asymmetric_pca_is_exact_at_full_rank(network):
    dense, data, example = network
    D = torch.linspace(0.5, 2, 32).double()
    full = {"conv1": (16, -D[:16]), "conv2": (32, D), "conv3": (32, D)}
    small = published.behind_the_cut(dense, data, full)
    assert all(isinstance(small.get_submodule(n), nn.Sequential) for n in full)
    with torch.no_grad():
        assert torch.allclose(small(example), dense(example), atol=1e-5)


def test_asymmetric_pca_makes_up_for_the_layers_in_front(network):
    """conv1 loses much; what conv2 then gives is nearer to dense when it was fitted to that."""
    dense, data, _ = network
    ones = torch.ones(32).double()
    chosen = {"conv1": (3, ones[:16]), "conv2": (16, ones)}
    fitted = published.behind_the_cut(dense, data, chosen)
    alone = copy.deepcopy(fitted)
    alone.conv2 = published.behind_the_cut(dense, data, {"conv2": (16, ones)}).conv2
    images = torch.cat([images for images, _ in data])
    with torch.no_grad():
        y, z, unfitted = (net[:4](images) for net in (dense, fitted, alone))
    assert (y - z).norm() < 0.95 * (y - unfitted).norm()


def test_measured_sensitivity(network):
    dense, data, example = network
    found = published.measured(dense, data)
    for name, conv in published.convolutions(dense).items():
        (m, n), tried = conv.weight.flatten(1).shape, list(found[name])
        assert 8 <= len(tried) <= 10 and max(tried) * (m + n) < m * n
        assert found[name][tried[0]] > 2 * found[name][tried[-1]] > 0
    name, rank = "conv3", list(found["conv3"])[0]
    pair = published.way(dense.conv3, "channel", None).build(rank)
    small = published.swapped(dense, {name: pair})
    images = torch.cat([images for images, _ in data])
    with torch.no_grad():
        p, q = dense(images).double().softmax(1), small(images).double().softmax(1)
    assert found[name][rank] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3)


# ---- The record --------------------------------------------------------------------------------


def made_up(**right):
    """A record at budget 0.5 of 200 images; so many are named right."""
    points = [{"method": "dense", "budget": 1.0, "macs": 1.0, "accuracy": 90.0}]
    for name, count in right.items():
        bits = np.packbits(np.arange(200) < count).tobytes().hex()
        point = {"method": name, "budget": 0.5, "accuracy": count / 2, "right": bits, "macs": 0.5}
        points.append(point)
    points.append({"method": "absent", "budget": 0.5, "failed": "cannot be imported"})
    return {"data": {"evaluated": 200}, "points": points}


def test_comparison_with_each_peer(tmp_path):
    found = made_up(auto=170, channel=100, near=168, behind=120, better=190)
    rows = {row["method"]: row for row in benchmark.compared(found)}
    assert rows.keys() == {"near", "behind", "better"}, "not with dense, ours and the absent"
    assert rows["near"]["ahead"] == 1 and rows["near"]["p"] == 0.5
    assert rows["behind"]["ahead"] == 25 and rows["behind"]["p"] < 1e-6
    assert rows["behind"]["lost"] == 30 and rows["better"]["ahead"] == -10
    text = benchmark.summary(found).splitlines()
    assert text[1].split() == ["MACs", "left", "50%"]
    assert [line.split()[1] for line in text[2:5]] == ["+1.0", "+25.0*", "-10.0*"]
    assert text[5] == "absent: cannot be imported"
    path, picture = tmp_path / "record.json", tmp_path / "picture.png"
    path.write_text(json.dumps(found))
    benchmark.draw(path, picture)
    assert Image.open(picture).text["Source"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def recorded():
    if not benchmark.RECORD.exists():
        pytest.skip("results/frontier.json is not recorded yet: python benchmarks/frontier.py")
    return json.loads(benchmark.RECORD.read_text(encoding="utf-8"))


def test_ours_is_never_behind_a_peer(recorded):
    rows = benchmark.compared(recorded)
    tried = {point["method"] for point in recorded["points"]}
    assert {n for name in RECIPES for n in (name, name + benchmark.AGAIN)} <= tried
    for row in rows:
        assert row["ahead"] >= 0 or row["p"] >= 0.05, f"significantly behind: {row}"
        assert row["ahead"] > 0 or row["lost"] <= 0.5, f"not ahead of a peer that loses: {row}"


def test_the_other_forms_are_seldom_ahead(recorded):
    points = {(p["method"], p["budget"]): p for p in recorded["points"] if "right" in p}
    found = []
    for (method, budget), point in points.items():
        if method in ("channel", "spatial", "tucker2"):
            ahead = point["accuracy"] - points["auto", budget]["accuracy"]
            a, b = (right_answers(recorded, each, budget) for each in (method, "auto"))
            found += [(method, ahead)] if ahead > 0 and mcnemar(a, b) < 0.05 else []
    assert sorted(method for method, _ in found) == ["spatial", "tucker2"]  # "once each"
    assert all(ahead < 0.5 for _, ahead in found)


def test_ours_keeps_its_promises(recorded):
    points = {(p["method"], p["budget"]): p for p in recorded["points"]}
    dense = points["dense", 1.0]["accuracy"]
    for budget, most in ((0.5, 0.4), (0.35, 1.0), (0.25, 3.0)):
        assert dense - points["auto", budget]["accuracy"] <= most
    by_time = [p for (method, _), p in points.items() if method == "auto, by time"]
    for point in by_time:  # what was asked of it, and no plan is slower than dense
        assert point["time"]["1"] <= 1 - 0.65 * (1 - point["budget"]) + 0.02
        assert point["time"]["32"] < 1
        if point["macs"] <= 0.35:
            assert 1 - point["time"]["32"] >= 0.65 * (1 - point["macs"])
    quick = [p for p in by_time if max(p["time"].values()) <= 1 / 1.7]
    assert max(p["accuracy"] for p in quick) >= dense - 0.5


def test_the_picture_of_the_frontier_is_of_this_record(recorded):
    content = benchmark.RECORD.read_bytes()
    drawn_from = Image.open(benchmark.PICTURE).text["Source"]
    again = "run python benchmarks/frontier.py --figure"
    assert drawn_from == hashlib.sha256(content).hexdigest(), again
