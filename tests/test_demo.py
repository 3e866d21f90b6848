"""The main job and the training of the shipped networks, through the command line."""

import contextlib
import hashlib
import io
import json

import pytest
import torch

from lowrank_course import cli, demo, models, recipes
from lowrank_course.data import balanced_subset, load_images, make_loader
from lowrank_course.models import load_resnet18
from lowrank_course.responses import recalibrate
from lowrank_course.train import evaluate

NETWORKS = ["dense", "truncated", "recalibrated", "retrained"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of `lowrank-course demo`: what `demo` returned, the file, the terminal."""
    path = tmp_path_factory.mktemp("demo") / "new" / "record.json"
    returned = []
    with pytest.MonkeyPatch.context() as patch:
        original = demo.demo
        patch.setattr(
            demo, "demo", lambda *a, **k: returned.append(original(*a, **k)) or returned[0]
        )
        with contextlib.redirect_stdout(io.StringIO()) as text:
            status = cli.main(
                ["demo", "--data", "digits", "--profile", "smoke", "--json", str(path)]
            )
    assert status == 0
    return returned[0], path, text.getvalue()


def test_demo_has_four_rows(finished):
    record, _, _ = finished
    assert [row["network"] for row in record["rows"]] == NETWORKS
    for row in record["rows"]:
        assert 0 <= row["accuracy"] <= 100
        assert row["latency_ms"].keys() == {"1", "32"}
        assert 0 < row["latency_ms"]["1"] < row["latency_ms"]["32"]
    dense, truncated, recalibrated, retrained = record["rows"]
    assert dense["accuracy"] > 95
    assert retrained["accuracy"] > dense["accuracy"] - 5  # 100 images in this profile


def test_demo_keeps_its_budget(finished):
    """Three networks of one shape: at most a fifth of the MACs, and of the parameters."""
    dense, *compressed = finished[0]["rows"]
    for key in ("parameters", "macs", "file_mb"):
        assert len({row[key] for row in compressed}) == 1
    assert 0.17 < compressed[0]["macs"] / dense["macs"] <= demo.BUDGET == 0.2
    assert compressed[0]["parameters"] / dense["parameters"] <= 0.2
    assert compressed[0]["file_mb"] < 0.25 * dense["file_mb"]
    plan = finished[0]["plan"]
    assert sum(row["before"] for row in plan) == dense["macs"]
    assert sum(row["after"] for row in plan) == compressed[0]["macs"]


def test_demo_writes_what_it_returns(finished):
    record, path, _ = finished
    assert json.loads(path.read_text()) == record
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    assert record["data"]["name"] == "digits" and record["data"]["evaluated"] == 100
    assert record["command"] == "lowrank-course demo --data digits --profile smoke"
    assert len(record["log"]) == record["data"]["epochs"]
    assert 100 < record["peak_memory_mb"] < 3000 and record["seconds"] > 0


def test_demo_ends_in_the_table(finished):
    record, _, printed = finished
    lines = demo.table(record).splitlines()
    assert demo.table(record) in printed
    assert lines[0].split() == ["network", "accuracy", "parameters", "MACs", "file", "batch", "1",
                                "batch", "32"]  # fmt: skip
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert [line.split()[0] for line in lines[2:]] == NETWORKS
    for line, row in zip(lines[2:], record["rows"], strict=True):
        share = 100 * row["macs"] / record["rows"][0]["macs"]
        assert f"{row['accuracy']:.2f} %" in line and f"({share:5.1f} %)" in line
        assert f"{row['macs'] / 1e6:.2f} M" in line and f"{row['file_mb']:.1f} MB" in line
    assert "digits, 32 px, 100 validation images" in printed
    steps = [line[:3] for line in printed.splitlines() if line[1:3] == "/4"]
    assert steps == ["1/4", "2/4", "3/4", "4/4"]


# ---- what goes wrong ---------------------------------------------------------------------------


def never(*_, **__):
    pytest.fail("the work had begun")


@pytest.mark.parametrize("place", ["file/record.json", ".", "folder"])
def test_a_bad_path_is_told_before_the_work(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(demo, "demo", never)
    before = sorted(tmp_path.iterdir())
    assert cli.main(["demo", "--data", "digits", "--json", str(tmp_path / place)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("lowrank-course demo: ") and str(tmp_path) in message
    assert len(message.splitlines()) == 1 and sorted(tmp_path.iterdir()) == before


def test_a_demo_that_fails_keeps_the_earlier_record(tmp_path, monkeypatch, capsys):
    path = tmp_path / "record.json"
    path.write_text("earlier")

    def fails(*_, **__):
        raise RuntimeError("no images; download them")

    monkeypatch.setattr(demo, "demo", fails)
    for target in (path, tmp_path / "other.json"):
        assert cli.main(["demo", "--data", "digits", "--json", str(target)]) == 1
    assert "lowrank-course demo: no images; download them\n" in capsys.readouterr().err
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_unknown_profile(monkeypatch, capsys):
    with pytest.raises(ValueError, match="profile='fast' is unknown; use one of smoke, laptop"):
        demo.demo("digits", "fast")
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--profile", "fast"])
    assert caught.value.code == 2 and "smoke" in capsys.readouterr().err


def test_profiles_are_those_of_the_command_line():
    assert tuple(demo.PROFILES) == cli.PROFILES


# ---- train -------------------------------------------------------------------------------------


@pytest.fixture
def short_recipe(tmp_path, monkeypatch):
    recipe = {**recipes.RECIPES["digits"], "width": 8, "sizes": [16, 24], "evaluation_size": 24}
    monkeypatch.setitem(recipes.RECIPES, "digits", recipe)
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    return recipe


def test_train_writes_a_network_that_loads(tmp_path, monkeypatch, capsys, short_recipe):
    out = tmp_path / "out"
    command = ["train", "--data", "digits", "--out", str(out), "--seed", "3"]
    assert cli.main(command) == 0
    assert sorted(file.name for file in out.iterdir()) == ["digits.json", "digits.safetensors"]
    record = json.loads((out / "digits.json").read_text())
    assert record["recipe"] == short_recipe and record["seed"] == 3
    assert [epoch["size"] for epoch in record["log"]] == [16, 24]
    assert record["command"] == "lowrank-course train --data digits --seed 3"
    assert f"{record['accuracy']['val']:.2f} %" in capsys.readouterr().out

    monkeypatch.setattr(models, "WEIGHTS", out)
    model = load_resnet18("digits")
    assert (model.evaluation_size, model.conv1.out_channels) == (24, 8)
    for split, recorded in record["accuracy"].items():
        found = evaluate(model, make_loader(load_images(split, "digits"), 128, 24))
        assert found == pytest.approx(recorded, abs=0.006)  # the very file, as rounded there

    # A second call goes on from the last epoch, which here is the end.
    weights = (out / "digits.safetensors").read_bytes()
    assert cli.main(command) == 0
    assert (out / "digits.safetensors").read_bytes() == weights
    assert json.loads((out / "digits.json").read_text())["log"] == record["log"]


def test_a_second_cycle_goes_on_from_the_network_of_the_first(tmp_path, monkeypatch, short_recipe):
    both = {**short_recipe, "again": [{"size": [24], "cutmix": 0.5}]}
    monkeypatch.setitem(recipes.RECIPES, "digits", both)
    whole = recipes.train_shipped("digits", tmp_path / "whole")
    assert [epoch["epoch"] for epoch in whole["log"]] == [1, 2, 3]
    assert whole["recipe"] == both

    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "another machine"))  # no checkpoints there
    out = tmp_path / "out"
    monkeypatch.setitem(recipes.RECIPES, "digits", short_recipe)
    first = recipes.train_shipped("digits", out)
    assert first["recipe"] == short_recipe and len(first["log"]) == 2
    weights = out / "digits.safetensors"
    assert first["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest() != whole["sha256"]
    monkeypatch.setitem(recipes.RECIPES, "digits", both)
    second = recipes.train_shipped("digits", out)
    assert second["log"][:2] == first["log"], "the first cycle is not trained again"
    assert second["sha256"] == whole["sha256"]

    # What is no beginning of this training is not taken for one.
    assert recipes._begun(weights, both, 0) == second
    assert recipes._begun(weights, both, 1) == recipes._begun(weights, short_recipe, 0) == {}
    weights.write_bytes(b"damaged")
    assert recipes._begun(weights, both, 0) == {}


def test_the_statistics_are_those_of_whole_images(tmp_path, monkeypatch, short_recipe):
    monkeypatch.setitem(recipes.RECIPES, "digits", {**short_recipe, "statistics": 20})
    recipes.train_shipped("digits", tmp_path)
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    norm = load_resnet18("digits").bn1
    again = load_resnet18("digits")
    some = balanced_subset(load_images("train", "digits"), 20)
    recalibrate(again, make_loader(some, 128, 24))
    for key in ("running_mean", "running_var"):
        found = getattr(again.bn1, key)
        assert torch.allclose(getattr(norm, key), found, rtol=1e-2, atol=1e-3)  # float16 in a file
    monkeypatch.setitem(recipes.RECIPES, "digits", short_recipe)  # the same training without
    recipes.train_shipped("digits", tmp_path)
    crops = load_resnet18("digits").bn1
    assert not torch.allclose(norm.running_mean, crops.running_mean, rtol=0.1)


def test_train_names_the_checkpoint_that_stops_it(tmp_path, capsys, short_recipe):
    command = ["train", "--data", "digits", "--out", str(tmp_path / "out")]
    checkpoint = tmp_path / "cache" / "training" / "digits-0.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert f"checkpoint={checkpoint} is damaged; delete it to start again" in error
    assert not (tmp_path / "out").exists() and checkpoint.read_bytes() == b"damaged"


def test_train_of_what_has_no_recipe(tmp_path):
    with pytest.raises(
        ValueError, match="name='cats' has no recipe; use one of imagenette, digits"
    ):
        recipes.train_shipped("cats", tmp_path)
