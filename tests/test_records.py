"""Recorded runs in results/: what they promise, and what is drawn from them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowrank_course import models
from lowrank_course.frontier import mcnemar

ROOT = Path(__file__).parents[1]


def record(profile: str) -> dict:
    return json.loads((ROOT / "results" / f"demo-{profile}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("profile", "points", "minutes"), [("laptop", 2, 6), ("full", 1, 60)])
def test_the_main_job_keeps_its_promise(profile, points, minutes):
    run = record(profile)
    dense, truncated, recalibrated, retrained = run["rows"]
    assert retrained["macs"] <= 0.35 * dense["macs"]
    assert retrained["parameters"] <= 0.30 * dense["parameters"]
    assert retrained["accuracy"] >= dense["accuracy"] - points
    assert truncated["accuracy"] < recalibrated["accuracy"] < retrained["accuracy"]
    assert all(retrained["latency_ms"][n] < dense["latency_ms"][n] for n in ("1", "32"))
    assert run["seconds"] < 60 * minutes
    assert run["peak_memory_mb"] < 3000


def test_the_record_is_of_the_shipped_network():
    shipped = json.loads((models.WEIGHTS / "imagenette.json").read_text(encoding="utf-8"))
    assert round(record("full")["rows"][0]["accuracy"], 2) == shipped["accuracy"]["val"]
    assert record("full")["data"]["evaluated"] == shipped["data"]["val"]


@pytest.mark.parametrize(
    ("picture", "names"),
    [("final_table", ["demo-full"]), ("outcome", ["seed", "compressed", "extreme", "controls"])],
)
def test_a_picture_is_of_these_records(picture, names):
    paths = [ROOT / "results" / f"{name}.json" for name in names]
    content = b"".join(path.read_bytes() for path in paths if path.exists())
    drawn_from = Image.open(ROOT / "docs" / f"{picture}.png").text["Source"]
    assert drawn_from == hashlib.sha256(content).hexdigest(), f"run python docs/{picture}.py"


def test_the_popular_recipe_made_nothing_smaller():
    run = json.loads((ROOT / "results" / "seed.json").read_text(encoding="utf-8"))
    before, after = run["costs"]["before"], run["costs"]["after"]
    assert (after["parameters"], after["macs"]) == (before["parameters"], before["macs"])
    assert run["recipe"]["size"] == 320 and len(run["losses"]) == run["recipe"]["epochs"] == 5
    assert run["reported"] == 64.79 and run["data"]["val"] == 3925


def right(job: dict) -> np.ndarray:
    """Which of the 3,925 validation images a recorded network names right."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(job["right"]["val"]), np.uint8))
    return bits[:3925] == 1


def test_the_extreme_network_keeps_its_promise():
    run = json.loads((ROOT / "results" / "extreme.json").read_text(encoding="utf-8"))
    dense, ours = run["jobs"]["dense"], run["summary"]["tuned"]
    for seed in ours["seeds"]:
        assert run["jobs"][f"tuned, seed {seed}"]["parameters"] <= 0.5e6
    assert ours["val"]["mean"] > dense["accuracy"]["val"] - 2.5
    many = ("one training", "the mean of two trainings", "the mean of three trainings")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"(less than a twentieth, {many[len(ours['seeds']) - 1]})" in readme


def test_the_compressed_network_keeps_its_promise():
    run = json.loads((ROOT / "results" / "compressed.json").read_text(encoding="utf-8"))
    dense, ours = run["jobs"]["dense"], run["summary"]["tuned"]
    for seed in ours["seeds"]:
        tuned = run["jobs"][f"tuned, seed {seed}"]
        assert tuned["parameters"] <= 1.15e6 and tuned["macs"] <= 0.25 * dense["macs"]
        assert mcnemar(right(dense), right(tuned)) > 0.05  # "show no difference"
    assert ours["val"]["mean"] > dense["accuracy"]["val"] - 0.5 and len(ours["seeds"]) == 3
    ms = run["jobs"]["times"]["latency_ms"]["1"]
    assert ms["small"] < 0.5 * ms["dense"] and ms["small, folded"] < 0.5 * ms["dense, folded"]
    shipped = json.loads((models.WEIGHTS / "imagenette-compressed.json").read_text("utf-8"))
    assert shipped["sha256"] == run["jobs"]["tuned, seed 0"]["sha256"]


def test_the_fast_network_keeps_its_promise():
    run = json.loads((ROOT / "results" / "latency.json").read_text(encoding="utf-8"))
    dense, ours = run["jobs"]["dense"], run["summary"]["tuned"]
    ms = run["jobs"]["times"]["latency_ms"]["1"]
    assert ms["small"] < 0.5 * ms["dense"] and ms["small, folded"] < 0.5 * ms["dense, folded"]
    assert ours["val"]["mean"] > dense["accuracy"]["val"] - 0.5 and len(ours["seeds"]) == 3
    told = f"ends at {ours['val']['mean']:.1f} % (the mean of three trainings"
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_time_of_the_recipe_is_told_as_it_is():
    path = ROOT / "results" / "same_time.json"
    jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
    dense, whole = jobs["dense"], jobs["whole"]
    assert whole["seconds"]["all"] < whole["seconds"]["recipe"]
    assert dense["machine"] == whole["machine"] == jobs["pace"]["machine"]
    assert whole["parameters"] < 0.105 * dense["parameters"]  # "a tenth"
    ends = [f"{job['accuracy']['val']:.1f} %" for job in (whole, dense)]
    told = f"ends at {ends[0]} with a tenth of the parameters; its dense network has {ends[1]}"
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_controls_are_told_as_they_are():
    jobs = {
        name: json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))["jobs"]
        for name in ("controls", "compressed")
    }
    keys = ("narrow, seed 0", "scratch, seed 0", "scratch, seed 1")
    narrow, *shapes = (jobs["controls"][key] for key in keys)
    three = [jobs["compressed"][f"tuned, seed {seed}"] for seed in range(3)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(mcnemar(right(job), right(narrow)) < 0.05 for job in three)
    assert all(narrow["accuracy"]["val"] < job["accuracy"]["val"] for job in three)
    assert narrow["parameters"] <= three[0]["parameters"]
    assert narrow["macs"] < 0.5 * three[0]["macs"]
    ms = jobs["controls"]["times"]["latency_ms"]["1"]
    assert 0.4 < ms["narrow"] / ms["compressed"] < 0.6  # "about half of the time"
    assert f"ends at {narrow['accuracy']['val']:.1f} %, behind each of the three" in readme
    for scratch in shapes:
        assert all(scratch["accuracy"]["val"] >= job["accuracy"]["val"] for job in three)
        assert scratch["macs"] == three[0]["macs"]
        assert scratch["parameters"] <= three[0]["parameters"]
        assert (len(three[0]["log"]), len(scratch["log"])) == (16, 136)
    mean = np.mean([scratch["accuracy"]["val"] for scratch in shapes])
    assert f"end at {mean:.1f} % (the same record, the mean of two trainings)" in readme
    dense = [jobs["controls"][f"dense, seed {seed}"] for seed in range(3)]
    higher = jobs["controls"]["dense, rate 0.03"]
    points = []
    for job in (*dense, higher):
        ahead = [other for other in three if mcnemar(right(other), right(job)) < 0.05]
        assert ahead == three[:1]  # "for the two other trainings ... no difference"
        points.append(job["accuracy"]["val"] - three[0]["accuracy"]["val"])
    ends = [np.mean([job["accuracy"]["val"] for job in side]) for side in (dense, [higher], three)]
    for told in (
        f"it ends at {ends[0]:.1f} % (the mean of three trainings), or at {ends[1]:.1f} % with a",
        f"which has {jobs['compressed']['dense']['accuracy']['val']:.1f} %. "
        f"The three end at {ends[2]:.1f} % in the mean",
        f"by {min(points):.1f} to {max(points):.1f} points",
    ):
        assert told in readme


def test_compressing_is_quick_and_needs_little_memory():
    path = ROOT / "results" / "cost.json"
    if not path.exists():
        pytest.skip("results/cost.json is not recorded yet: python benchmarks/cost.py")
    run = json.loads(path.read_text(encoding="utf-8"))
    rows = {(row["network"], row["images"]): row for row in run["rows"]}
    largest = rows["resnet18", 1024]
    assert (run["size"], run["machine"]["threads"]) == (128, 2)
    assert largest["seconds"] < 45 and largest["memory_mb"] < 1536
    seconds = [rows["resnet18", images]["seconds"] for images in (256, 512, 1024)]
    assert seconds == sorted(seconds)
    # No faster than linearly: twice the images, at most twice the time (and some noise).
    assert all(b < 2.1 * a for a, b in zip(seconds[:-1], seconds[1:], strict=True))
