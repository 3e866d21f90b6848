"""The recorded runs, on a few digits: limits hold, and an interrupted run goes on."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_course import compress, models
from lowrank_course.data import balanced_subset, make_loader
from lowrank_course.measure import count_macs, count_parameters
from lowrank_course.models import load_resnet18, resnet18
from lowrank_course.train import evaluate

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import ablations  # noqa: E402
import compressed  # noqa: E402
import jobs  # noqa: E402
import runs  # noqa: E402
import same_time  # noqa: E402
from two_limits import compress_within  # noqa: E402

train = sys.modules["lowrank_course.train"]  # the package has a function of this name

LIMITS = {"params": 0.18, "macs": 0.35}
SETTINGS = {
    "seeds": [0, 1],
    "sizes": [16, 24],
    "cutmix": 0.5,
    "compressed": LIMITS,
    "compressed rate": 0.01,
    "extreme": {"params": 0.15},
    "extreme rate": 0.01,
    "latency": {"latency": 0.9},
    "latency batch": 32,
    "latency rate": 0.01,
    "recipe": {"size": 16, "epochs": 5},
    "trials": {"sizes": [16], "rates": [0.01, 0.02]},
    "ablations": {**runs.SETTINGS["digits"]["ablations"], "size": 16},
}
RECIPE = {**runs.RECIPES["digits"], "sizes": [16, 24], "again": [{"size": [24]}]}


@pytest.fixture(scope="module")
def tiny():
    """Two batches an epoch, 20 images held out, 30 to validate, 50 for the cut."""
    whole = jobs.bench("digits")
    parts = {"train": 13, "holdout": 2, "val": 3}
    few = {split: balanced_subset(getattr(whole, split), n) for split, n in parts.items()}
    return replace(whole, **few, calibrate=5)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def call(tiny, shared_cache, monkeypatch, tmp_path):
    """Call the command with the tiny bench; every test has its own records."""
    monkeypatch.setenv("LOWRANK_CACHE", str(shared_cache))
    monkeypatch.setitem(runs.SETTINGS, "digits", dict(SETTINGS))
    monkeypatch.setitem(runs.RECIPES, "digits", RECIPE)
    monkeypatch.setattr(runs, "bench", lambda name: tiny)
    monkeypatch.setattr(jobs.psutil, "cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr(train, "_bf16_pays", lambda *_: False)  # measured: it could change
    monkeypatch.setattr(jobs, "compare_latency", lambda nets, x, batch: dict.fromkeys(nets, 1.0))

    def main(*names):
        place = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
        return runs.main([*names, "--data", "digits", *place])

    return main


@pytest.fixture
def record(tmp_path):
    def read(name):
        path = tmp_path / "results" / f"{name}-digits.json"
        return json.loads(path.read_text(encoding="utf-8"))

    return read


@pytest.fixture
def one_run(call, tiny, tmp_path):
    """A run, to call single jobs of it."""

    def make(name):
        path = tmp_path / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        found = runs.configuration(name, tiny)
        return jobs.Run(name, tiny, runs.SETTINGS["digits"], found, path, tmp_path / "out")

    return make


# ---- two limits --------------------------------------------------------------------------------


def test_both_limits_hold_and_harm_less_than_one_budget_alone(tiny):
    dense, x, data = tiny.dense, tiny.example, list(tiny.calibration)
    small = compress_within(dense, x, LIMITS, data)
    assert count_parameters(small) <= LIMITS["params"] * count_parameters(dense)
    assert count_macs(small, x) <= LIMITS["macs"] * count_macs(dense, x)

    def harm(model):
        return sum(row.error for row in model.plan)

    for budget in np.arange(LIMITS["macs"], 0.1, -0.03):  # lowered until both hold
        alone = compress(dense, x, budget, data=data, recalibrate=False)
        if count_parameters(alone) <= LIMITS["params"] * count_parameters(dense):
            break
    assert harm(small) < harm(alone)


def test_limits_out_of_reach(tiny):
    with pytest.raises(ValueError, match="cannot be reached together; raise one of them"):
        compress_within(tiny.dense, tiny.example, {"params": 0.01, "macs": 0.9}, tiny.calibration)


# ---- a whole run, its record, and the network that ships ----------------------------------------


def test_the_compressed_run(call, record, tiny, tmp_path, monkeypatch):
    assert call("compressed") == 0
    made = record("compressed")
    found = made["jobs"]
    assert list(found) == ["dense", "cut", "tuned, seed 0", "tuned, seed 1", "times"]
    dense, cut = found["dense"], found["cut"]
    assert cut["accuracy"].keys() == {"holdout"}  # val is for final networks
    for seed in (0, 1):
        tuned = found[f"tuned, seed {seed}"]
        assert tuned["parameters"] <= LIMITS["params"] * dense["parameters"]
        assert tuned["macs"] <= LIMITS["macs"] * dense["macs"]
        assert [epoch["size"] for epoch in tuned["log"]] == [16, 24]
        for split in ("holdout", "val"):
            bits = np.frombuffer(bytes.fromhex(tuned["right"][split]), np.uint8)
            right = np.unpackbits(bits, count=len(getattr(tiny, split)))
            assert 100 * right.mean() == pytest.approx(tuned["accuracy"][split])
    accuracies = [found[f"tuned, seed {seed}"]["accuracy"]["val"] for seed in (0, 1)]
    val = made["summary"]["tuned"]["val"]
    assert val["mean"] == pytest.approx(np.mean(accuracies))
    assert val["spread"] == pytest.approx(np.std(accuracies, ddof=1))
    assert found["times"]["latency_ms"]["1"].keys() == {
        *("dense", "small", "dense, folded", "small, folded")
    }
    assert all(job["machine"]["threads"] for job in found.values())

    monkeypatch.setattr(models, "WEIGHTS", tmp_path / "out")
    monkeypatch.setattr(models, "NETWORKS", ("digits-compressed",))
    shipped = load_resnet18("digits-compressed")
    accuracy = evaluate(shipped, make_loader(tiny.val, 128, tiny.size))
    assert accuracy == pytest.approx(found["tuned, seed 0"]["accuracy"]["val"])
    about = json.loads((tmp_path / "out" / "digits-compressed.json").read_text())
    assert about["accuracy"]["val"] == round(accuracy, 2)
    assert about["sha256"] == found["tuned, seed 0"]["sha256"]
    assert about["parameters"] == count_parameters(shipped)
    assert {row.name: row.rank for row in shipped.plan if row.rank} == {
        row["name"]: row["rank"] for row in cut["plan"] if row["rank"]
    }


def alike(record):
    """What two equal runs agree in: all but seconds."""
    return {
        key: {
            **{k: v for k, v in found.items() if k not in ("log", "machine")},
            "losses": [epoch["loss"] for epoch in found.get("log", [])],
        }
        for key, found in record["jobs"].items()
    }


def test_an_interrupted_run_goes_on_to_the_same_record(call, record, monkeypatch, tmp_path):
    assert call("extreme") == 0
    whole = record("extreme")
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "fresh"))
    path = tmp_path / "results" / "extreme-digits.json"
    path.unlink()
    original, seen = train.evaluate, []

    def breaking(*args):
        seen.append(args)
        if len(seen) == 2:  # after the second epoch of the first seed
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "evaluate", breaking)
    with pytest.raises(KeyboardInterrupt):
        call("extreme")
    assert list(record("extreme")["jobs"]) == ["dense", "cut"]
    monkeypatch.setattr(train, "evaluate", original)
    monkeypatch.setattr(compressed, "compress_within", lambda *_: pytest.fail("cut again"))
    (made,) = (tmp_path / "fresh" / "training").glob("extreme-*-cut.safetensors")
    made.unlink()  # as on another machine: the record's plan is enough
    assert call("extreme") == 0
    again = record("extreme")
    assert alike(again) == alike(whole) and again["summary"] == whole["summary"]
    before = path.read_bytes()
    monkeypatch.setattr(jobs, "train", lambda *_, **__: pytest.fail("trained again"))
    assert call("extreme") == 0
    assert path.read_bytes() == before


def test_another_configuration_is_refused_before_the_work(call, monkeypatch, tmp_path):
    path = tmp_path / "results" / "extreme-digits.json"
    monkeypatch.setitem(runs.RUNS, "extreme", (lambda run: {"none": dict}, ("extreme", "sizes")))
    monkeypatch.setitem(runs.RUNS, "trials", (lambda run: pytest.fail("begun"), ("trials",)))
    assert call("extreme") == 0
    assert json.loads(path.read_text())["jobs"].keys() == {"none"}
    runs.SETTINGS["digits"]["sizes"] = [16]
    with pytest.raises(ValueError, match=r"another configuration \(sizes: \[16, 24\], not \[16\]"):
        call("trials", "extreme")


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": []}'])
def test_other_files_are_not_overwritten(call, tmp_path, content):
    path = tmp_path / "results" / "extreme-digits.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match="is no record of a run"):
        call("extreme")
    assert path.read_text() == content


def test_time_is_not_measured_on_a_busy_machine(one_run, monkeypatch, capsys):
    run = one_run("extreme")
    timed = {"other": dict, "times": lambda: jobs.times({}, None)}
    monkeypatch.setattr(jobs.psutil, "cpu_percent", lambda interval: 55.0)
    assert jobs.finish(run, timed) == ["times"]
    assert "other programs use 55 %" in capsys.readouterr().out
    assert json.loads(run.path.read_text())["jobs"].keys() == {"other"}
    monkeypatch.setattr(jobs.psutil, "cpu_percent", lambda interval: 1.0)
    assert jobs.finish(run, timed) == []
    assert json.loads(run.path.read_text())["jobs"].keys() == {"other", "times"}


def test_a_cut_by_time_is_not_made_on_a_busy_machine(call, record, monkeypatch):
    monkeypatch.setattr(jobs.psutil, "cpu_percent", lambda interval: 55.0)
    monkeypatch.setattr(compressed, "compress_within", lambda *_: pytest.fail("cut"))
    assert call("latency") == 1
    assert list(record("latency")["jobs"]) == ["dense"]


def test_summary_by_seed():
    accuracies = {"a, seed 0": 90.0, "a, seed 1": 92.0, "a, seed 10": 94.0, "b, x, seed 3": 50.0}
    found = {key: {"accuracy": {"val": value}} for key, value in accuracies.items()}
    summary = jobs.summary({**found, "cut": {"plan": []}})
    assert summary == {
        "a": {"seeds": [0, 1, 10], "val": {"mean": 92.0, "spread": 2.0}},
        "b, x": {"seeds": [3], "val": {"mean": 50.0, "spread": None}},
    }


# ---- trials, controls, the same time ------------------------------------------------------------


def test_trials_look_at_held_out_images_only(call, record):
    assert call("trials") == 0
    found = record("trials")["jobs"]
    assert list(found) == [
        f"{name}, rate {rate}" for name in ("extreme", "compressed") for rate in (0.01, 0.02)
    ]
    assert all(job["accuracy"].keys() == {"holdout"} for job in found.values())


def test_rates_do_as_well_as_any_in_the_recorded_trials():
    path = ROOT / "results" / "trials.json"
    record = json.loads(path.read_text()) if path.exists() else {"jobs": {}}
    settings, found = runs.SETTINGS["imagenette"], record["jobs"]
    rates = settings["trials"]["rates"]
    if len(found) < 2 * len(rates):
        pytest.skip(f"{path} lacks runs: python benchmarks/runs.py trials")
    n = record["configuration"]["data"]["holdout"]
    for name in ("compressed", "extreme"):
        by_rate = {r: found[f"{name}, rate {r}"]["accuracy"]["holdout"] for r in rates}
        best = max(by_rate.values())
        error = (best * (100 - best) / n) ** 0.5  # so few images tell no smaller differences
        assert by_rate[settings[f"{name} rate"]] > best - error, (name, by_rate)


@pytest.mark.slow
def test_controls_get_the_same_training(one_run):
    run = one_run("controls")
    found = compressed.controls(run)
    kinds = [f"{kind}, seed {s}" for s in (0, 1) for kind in ("dense", "scratch", "narrow")]
    assert list(found) == ["times", "dense, rate 0.01", *kinds]
    small = compressed.cut(run, "compressed")
    made = {kind: found[f"{kind}, seed 0"]() for kind in ("dense", "narrow", "scratch")}
    assert made["dense"]["parameters"] == count_parameters(run.bench.dense)
    assert 0.7 * count_parameters(small) < made["narrow"]["parameters"] <= count_parameters(small)
    assert made["scratch"]["macs"] == count_macs(small, run.bench.example)
    assert all(
        job["recalibrated"]["accuracy"].keys() == {"holdout", "val"} for job in made.values()
    )
    assert [epoch["size"] for epoch in made["dense"]["log"]] == [16, 24]
    assert [epoch["size"] for epoch in made["narrow"]["log"]] == [16, 24, 24, 16, 24]
    assert [epoch["size"] for epoch in made["scratch"]["log"]] == [16, 24, 24, 16, 24]


@pytest.mark.slow
def test_the_same_time(call, record, monkeypatch):
    theirs = {"float32": 2e3, "bfloat16": 1e3}
    monkeypatch.setattr(same_time, "seconds_of_the_recipe", lambda b, name, **_: theirs[name])
    monkeypatch.setattr(same_time, "_bf16_pays", lambda *_: True)
    sizes = [40, 48]  # on maps of one pixel bfloat16 may give NaN
    monkeypatch.setitem(runs.RECIPES, "digits", {**RECIPE, "sizes": sizes})
    monkeypatch.setitem(runs.SETTINGS["digits"], "sizes", sizes)
    assert call("same_time") == 0
    pace, dense, whole = record("same_time")["jobs"].values()
    assert pace["precision"] == "bfloat16" and dense["bf16"] and whole["bf16"]
    assert pace["seconds"].keys() == theirs.keys() and whole["seconds"]["recipe"] == 1e3
    assert pace["share"] == 1 and pace["dense"] == pace["tune"] == sizes
    assert dense["log"][-1]["epoch"] == 2 and dense["macs"] > whole["macs"]
    seconds = whole["seconds"]
    assert seconds["all"] == pytest.approx(seconds["dense"] + seconds["compress"] + seconds["tune"])


@pytest.mark.slow
def test_the_pace_of_another_machine_is_refused(one_run, monkeypatch):
    run = one_run("same_time")
    run.path.write_text(json.dumps({"jobs": {"pace": {"machine": {"cpu": "another"}}}}))
    with pytest.raises(RuntimeError, match="the pace is that of another machine; move"):
        same_time.same_time(run)["dense"]()


@pytest.mark.slow
def test_the_recipe_is_timed_on_a_few_batches(tiny, monkeypatch):
    given = []

    def retrain(images, size, epochs, path):
        given.append((len(images), size, epochs, torch.is_autocast_enabled("cpu")))
        return None, {"seconds": 2.0}

    monkeypatch.setattr(same_time.seed, "retrain", retrain)
    monkeypatch.setattr(same_time, "FEW", 40)
    for name in ("float32", "bfloat16"):
        found = same_time.seconds_of_the_recipe(tiny, name, size=16, epochs=5)
        assert found == pytest.approx(2.0 * 5 * 150 / 40)
    assert given == [(40, 16, 1, False), (40, 16, 1, True)]


def test_a_schedule_is_shortened_in_all_its_parts():
    sizes = [64] * 16 + [96] * 50 + [128] * 6
    assert same_time._shortened(sizes, 0.5) == [64] * 8 + [96] * 25 + [128] * 3
    assert same_time._shortened(sizes, 1.0) == sizes
    assert same_time._shortened(sizes, 0.01) == [64, 96, 128]


# ---- ablations ---------------------------------------------------------------------------------


@pytest.fixture
def few(one_run):
    return ablations.ablations(one_run("ablations"))


def test_ablations_hold_what_the_chapters_ask_for(few):
    changes = ("ours", "weights", "weight directions", "not refitted", "no distillation")
    wanted = {f"{name}, seed {seed}" for name in changes for seed in (0, 1)}
    wanted |= {"ours, 2 epochs", "ours, rate 0.06", "int8", "dense, int8", "times", "spatial"}
    wanted |= {"tucker2", "channel, uniform", "channel, EVBMF", "prepared, nuclear norm"}
    assert wanted | {"scratch, spectral, Frobenius decay", "no CutMix, seed 1"} <= few.keys()


def test_a_record_of_ablations_may_grow(call, tiny):
    before = runs.configuration("ablations", tiny)
    own = runs.SETTINGS["digits"]["ablations"]
    runs.SETTINGS["digits"]["ablations"] = {**own, "lengths": [1, 2, 3], "seeds": [0, 1, 2]}
    assert runs.configuration("ablations", tiny) == before
    runs.SETTINGS["digits"]["ablations"] = {**own, "epochs": 7}
    assert runs.configuration("ablations", tiny) != before


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    ["ours, seed 1", "weights, seed 0", "weight directions, refitted, seed 0", "ours, recalibrated",
     "channel, uniform", "int8", "times", "scratch, random, Frobenius decay",
     "prepared, nuclear norm", "prepared, orthogonality"],
)  # fmt: skip
def test_an_ablation(few, tiny, key):
    found = few[key]()
    if key == "times":
        assert found["latency_ms"]["1"].keys() == {"dense", "ours", "dense, int8", "ours, int8"}
        return
    assert found["accuracy"].keys() == {"holdout", "val"}
    if key == "int8":
        assert 0 < found["file_mb"] < 0.5 * found["float32_mb"] < 1
        assert found["float32"]["accuracy"].keys() == {"holdout", "val"}
        return
    limit = SETTINGS["ablations"]["budget"] * count_macs(tiny.dense, tiny.example)
    assert found["macs"] <= limit and len(found.get("log", [1])) == 1
    if "before" in found:
        assert found["before"]["macs"] == found["macs"] and len(found["plan"]) == 21
    if key.startswith("prepared"):
        assert found["prepared"]["macs"] == count_macs(tiny.dense, tiny.example)
        assert found["cut by weights"]["macs"] <= limit
        assert len(found["spectra"]) == 17
        assert not {row["form"] for row in found["plan"]} & {"spatial", "tucker2"}


@pytest.mark.slow
def test_a_training_with_penalties_goes_on_after_an_interruption(call, tiny, monkeypatch):
    """The penalties are set again, and a kernel that is trained as an SVD is loaded as one."""

    def prepared(label):
        dense = copy.deepcopy(tiny.dense)
        ablations.as_svd(dense, 0.006, 0.02)
        jobs.trained(tiny, label, dense, [16, 16], 0)
        return ablations.without_svd(dense).state_dict()

    whole, original, seen = prepared("svd-whole"), train.evaluate, []

    def breaking(*args):
        seen.append(args)
        if len(seen) == 2:  # after the second epoch
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "evaluate", breaking)
    with pytest.raises(KeyboardInterrupt):
        prepared("svd-again")
    monkeypatch.setattr(train, "evaluate", original)
    again = prepared("svd-again")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.fixture(scope="module")
def thin(tiny):
    return compress(tiny.dense, tiny.example, 0.4)


def gradients_of(model, strength_loss, hooked):
    """Gradients by autograd of a loss of the weights, and those that the hooks add to zero."""
    plain = copy.deepcopy(model)
    strength_loss(plain).backward()
    hooked(model)
    sum(0.0 * p.sum() for p in model.parameters()).backward()
    return [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]


def test_frobenius_decay_is_that_of_the_products(thin):
    model = copy.deepcopy(thin)

    def products(model):
        total, paired = 0.0, set()
        for row in model.plan:
            if row.form == "dense":
                continue
            first, second = model.get_submodule(row.name)
            A, B = second.weight, first.weight
            paired |= {id(A), id(B)}
            A = A.flatten(2) if A.ndim > 2 else A[..., None]  # (O, r, ...)
            product = torch.einsum("ork,rm->okm", A, B.flatten(1))
            total = total + product.square().sum() / 2
        rest = [p for p in model.parameters() if p.ndim > 1 and id(p) not in paired]
        return 0.1 * (total + sum(p.square().sum() for p in rest) / 2)

    pairs = gradients_of(model, products, lambda m: ablations.frobenius_decay(m, 0.1))
    assert any(expected is not None for _, expected in pairs)
    for found, expected in pairs:
        torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected)


def test_nuclear_norm_has_the_gradient_of_autograd():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))

    def norm(model):
        return 0.1 * torch.linalg.matrix_norm(model[0].weight.flatten(1), "nuc")

    pairs = gradients_of(model, norm, lambda m: ablations.nuclear_norm(m, 0.1))
    torch.testing.assert_close(*pairs[0], rtol=1e-3, atol=1e-5)
    assert all(not found.any() for found, _ in pairs[1:])


def test_as_svd_keeps_the_function_and_has_the_gradients_of_autograd():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    ablations.as_svd(model, 0.0, 0.0)
    torch.testing.assert_close(model(x), expected)
    U, s, V = model[0].parametrizations.weight.parameters()
    for tensor in (U, V):  # no longer orthonormal
        tensor.data += 0.1 * torch.randn_like(tensor)
    torch.testing.assert_close(ablations.without_svd(model)[0].weight.flatten(1), U * s @ V.mT)

    ablations.as_svd(model, 0.3, 0.2)
    U, s, V = model[0].parametrizations.weight.parameters()
    U.data += 0.1 * torch.randn_like(U)
    sum(0.0 * p.sum() for p in (U, s, V)).backward()
    found = [p.grad.clone() for p in (U, s, V)]
    apart = sum((f.mT @ f - torch.eye(8)).square().sum() for f in (U, V))
    loss = 0.3 * s.abs().sum() ** 2 / s.square().sum() + 0.2 * apart
    for mine, theirs in zip(found, torch.autograd.grad(loss, (U, s, V)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_random_factors_are_new_and_the_rest_is_not(thin):
    model = copy.deepcopy(thin)
    ablations.reset_factors(model)
    pairs = {f"{r.name}.{i}.weight" for r in thin.plan if r.form != "dense" for i in (0, 1)}
    before, after = thin.state_dict(), model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert pairs <= changed and {key.replace("bias", "weight") for key in changed} == pairs


# ---- rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ablations.RULES)
def test_rules_keep_to_the_budget(tiny, name):
    small = ablations.by_rule(name, tiny.dense, tiny.example, 0.6, tiny.calibration)
    share = count_macs(small, tiny.example) / count_macs(tiny.dense, tiny.example)
    assert 0.5 < share <= 0.6
    assert {row.form for row in small.plan} <= {"channel", "dense"}


def test_networks_differ_by_nothing_but_width():
    with torch.device("meta"):
        sizes = [count_parameters(resnet18(width)) for width in (19, 20, 64)]
    assert sizes[0] < 1.15e6 < sizes[2]  # `narrow` has room at full size
