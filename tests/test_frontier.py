"""The frontier: measured once, resumed, and honest about what fails."""

import json

import numpy as np
import pytest

from lowrank_course import cli, frontier
from lowrank_course.compress import compress


def by_weights(dense, example, budget, data):
    return compress(dense, example, budget, data=None)


def broken(dense, example, budget, data):
    raise ValueError("this method breaks here")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("frontier") / "record.json"
    methods = {"weights": by_weights, "broken": broken}
    return frontier.frontier("digits", "smoke", path, methods, (0.6,)), path


def test_points_are_measured_against_dense(recorded):
    record, path = recorded
    assert json.loads(path.read_text()) == record
    dense, weights, failed = record["points"]
    assert (dense["method"], dense["macs"], dense["parameters"]) == ("dense", 1, 1)
    assert 0.5 < weights["macs"] <= 0.6 and 0 < weights["parameters"] < 1
    assert weights["time"].keys() == {"1", "32"} and min(weights["time"].values()) > 0
    assert failed["failed"] == "this method breaks here" and "accuracy" not in failed


def test_answers_come_back(recorded):
    record, _ = recorded
    for point in record["points"][:2]:
        right = frontier.right_answers(record, point["method"], point["budget"])
        assert right.shape == (record["data"]["evaluated"],)
        assert 100 * right.mean() == pytest.approx(point["accuracy"])
    with pytest.raises(ValueError, match="method='broken' at budget=0.6 is not in this record"):
        frontier.right_answers(record, "broken", 0.6)


def test_a_second_call_goes_on(recorded, tmp_path):
    record, whole = recorded
    path = tmp_path / "part.json"
    path.write_text(json.dumps({**record, "points": record["points"][:1]}))
    called = []

    def spy(dense, example, budget, data):
        called.append(budget)
        return by_weights(dense, example, budget, data)

    again = frontier.frontier("digits", "smoke", path, {"weights": spy}, (0.6,))
    assert called == [0.6] and len(again["points"]) == 2
    assert again["points"][0] == record["points"][0]
    assert again["points"][1]["right"] == record["points"][1]["right"]
    assert frontier.frontier("digits", "smoke", path, {"weights": spy}, (0.6,)) == again
    assert called == [0.6]


@pytest.mark.parametrize("content", ["{", "[]", '{"points": []}'])
def test_other_files_are_not_overwritten(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no record of a frontier"):
        frontier.frontier("digits", "smoke", path, {}, ())
    assert path.read_text() == content


@pytest.mark.parametrize("key", ["network", "data", "machine"])
def test_a_record_of_something_else_is_told(recorded, tmp_path, key):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**recorded[0], key: {}}))
    with pytest.raises(ValueError, match="is of another network, data or machine"):
        frontier.frontier("digits", "smoke", path, {}, ())


def test_mcnemar_is_scipys():
    binomtest = pytest.importorskip("scipy.stats").binomtest
    numbers = np.random.default_rng(0)
    for share in (0.5, 0.8, 1.0):
        a, b = numbers.random(300) < 0.8, numbers.random(300) < share
        only = int((a & ~b).sum()), int((b & ~a).sum())
        expected = binomtest(only[0], sum(only)).pvalue
        assert frontier.mcnemar(a, b) == pytest.approx(expected)
    assert frontier.mcnemar(a, a) == 1


def test_the_command_prints_every_point(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(frontier, "BUDGETS", (0.5,))
    monkeypatch.setattr(frontier, "ours", lambda: {"weights": by_weights, "broken": broken})
    monkeypatch.setattr(frontier.frontier, "__defaults__", (None, (0.5,)))
    path = tmp_path / "new" / "record.json"
    command = ["frontier", "--data", "digits", "--profile", "smoke", "--json", str(path)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(json.loads(path.read_text())["points"]) == 3
    assert "this method breaks here" in printed[2]
