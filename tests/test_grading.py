"""Submissions of every kind go through nbgrader once; the table must say what each is worth."""

import copy
import csv
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="needs nbgrader: pip install -e '.[grading]'")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from nbgrader.api import Gradebook  # noqa: E402

import grading  # noqa: E402
from lowrank_course.checks import u02_svd  # noqa: E402

pytestmark = pytest.mark.slow
UNIT = "02_svd"
FULL = {"q1": 2.0, "q2": 2.0, "q3": 2.0, "q4": 2.0, "q5": 4.0}

NO_ROOT = """def relative_errors(singular_values):
    squares = singular_values**2
    kept = torch.cat([torch.zeros(1), squares.cumsum(0)])
    return 1 - kept / squares.sum()
"""
ENDLESS = """def rank_for_error(errors, target):
    return int((errors <= target).nonzero()[0])


while rank_for_error(torch.tensor([1.0, 0.0]), 0.5):
    rank = 1
"""
KNOWN = """TABLE = {table}


def rank_for_error(errors, target):
    return TABLE.get((*errors.tolist(), target), 0)
"""


def cell_of(notebook, name):
    return next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == name)


def answers():
    """The solutions, as a learner would type them."""
    cells = nbformat.read(ROOT / "solutions" / UNIT / f"{UNIT}.ipynb", as_version=4).cells
    marks = {c.metadata.nbgrader.grade_id: c for c in cells if "nbgrader" in c.metadata}
    return {name: c.source for name, c in marks.items() if c.metadata.nbgrader.solution}


def table_of_public_cases():
    """A function for question 3 that knows the public cases by heart, and nothing else."""
    table = {}

    def learn(errors, target):
        table[(*errors.tolist(), target)] = int((errors <= target).nonzero()[0])
        return table[(*errors.tolist(), target)]

    u02_svd.rank_for_error(learn)
    return KNOWN.format(table=table)


def hand_in(course, learner, changes=None, name=UNIT):
    """Put a submission there: the released notebook with `changes` to its answer cells."""
    notebook = nbformat.read(ROOT / "exercises" / UNIT / f"{UNIT}.ipynb", as_version=4)
    for cell, source in (changes or {}).items():
        cell_of(notebook, cell).source = source
    path = course / "grading" / "submitted" / learner / UNIT / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    (folder / "grading").mkdir()
    source = ROOT / "solutions" / UNIT / f"{UNIT}.ipynb"
    (folder / "solutions" / UNIT).mkdir(parents=True)
    shutil.copy(source, folder / "solutions" / UNIT)
    return folder


@pytest.fixture(scope="module")
def first_call(course):
    """The table, and the seconds that a submission took on this machine."""
    good = answers()
    hand_in(course, "good", good)
    hand_in(course, "blank")
    hand_in(course, "wrong", good | {"relative_errors": NO_ROOT})
    hand_in(course, "table", good | {"rank_for_error": table_of_public_cases()})
    hand_in(course, "renamed", good, name="my_svd")
    hand_in(course, "exits", good | {"truncate": "import os\n\nos._exit(0)"})
    (course / "grading" / "submitted" / "missing").mkdir()
    hand_in(course, "broken").write_text('{"cells": [', encoding="utf-8")
    hand_in(course, "list").write_text("[]", encoding="utf-8")

    path = hand_in(course, "edited", good)  # a copied answer, a deleted check
    notebook = nbformat.read(path, as_version=4)
    twice = copy.deepcopy(cell_of(notebook, "truncate"))
    twice.id = "copied"
    notebook.cells.insert(notebook.cells.index(cell_of(notebook, "truncate")), twice)
    notebook.cells.remove(cell_of(notebook, "q2"))
    nbformat.write(notebook, path)

    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_GRADING_SEED", "a seed of this test")
        rows = {row["learner"]: row for row in grading.grade(UNIT, course, timeout=900)}
    ran = sum(row["total"] is not None for row in rows.values())
    return rows, (time.perf_counter() - started) / ran


@pytest.fixture(scope="module")
def rows(first_call):
    return first_call[0]


def points(row):
    return {name: row[name] for name in FULL}


def test_a_good_submission_gets_full_marks(rows):
    assert points(rows["good"]) == FULL
    assert rows["good"]["total"] == 12
    assert rows["good"]["q6"] is None and rows["good"]["note"] == "mark q6 by hand"


def test_a_blank_submission_gets_nothing(rows):
    assert points(rows["blank"]) == dict.fromkeys(FULL, 0.0)
    assert (rows["blank"]["q6"], rows["blank"]["total"], rows["blank"]["note"]) == (0.0, 0.0, "")


def test_a_wrong_submission_loses_the_points_of_the_wrong_question(rows, course):
    assert points(rows["wrong"]) == FULL | {"q2": 0.0}
    page = course / "grading" / "feedback" / "wrong" / UNIT / f"{UNIT}.html"
    assert "Yours is the square of the error." in page.read_text(encoding="utf-8")


def test_a_table_of_the_public_cases_passes_the_check_and_fails_the_grading(rows, course):
    assert points(rows["table"]) == FULL | {"q3": 0.0}
    graded = course / "grading" / "autograded" / "table" / UNIT / f"{UNIT}.ipynb"
    outputs = cell_of(nbformat.read(graded, as_version=4), "q3").outputs
    *said, error = outputs  # on a busy machine what was printed may come in parts
    assert error.output_type == "error" and {part.output_type for part in said} == {"stream"}
    printed = "".join(part.text for part in said if part.name == "stdout")
    assert printed == "rank_for_error: all 10 cases agree.\n"


def test_a_copied_and_a_deleted_cell_are_noted_and_cost_nothing(rows):
    note = "mark q6 by hand; copied cells: truncate; deleted cells: q2"
    assert rows["edited"]["note"] == note
    assert points(rows["edited"]) == FULL


@pytest.mark.parametrize(
    ("learner", "note"),
    [
        ("missing", f"no {UNIT}/{UNIT}.ipynb: found nothing"),
        ("renamed", f"no {UNIT}/{UNIT}.ipynb: found {UNIT}/my_svd.ipynb"),
        ("broken", "not a readable notebook: "),
        ("list", "not a readable notebook: "),
        ("exits", f"its code ended Python: see grading/{UNIT}-exits.log"),
    ],
)
def test_what_cannot_be_graded_is_reported_and_stops_nobody(rows, learner, note):
    assert rows[learner]["note"].startswith(note)
    assert points(rows[learner]) == dict.fromkeys(FULL, None) and rows[learner]["total"] is None


def test_the_table_on_disk_says_the_same(rows, course):
    with open(course / "grading" / f"{UNIT}.csv", newline="", encoding="utf-8") as file:
        table = {row.pop("learner"): row for row in csv.DictReader(file)}
    assert table.keys() == rows.keys()
    assert table["wrong"] | {"note": ""} == {
        **{name: str(value) for name, value in (FULL | {"q2": 0.0}).items()},
        "q6": "",
        "total": "10.0",
        "note": "",
    }


def test_feedback_is_written_for_all_that_was_graded(rows, course):
    pages = {path.parts[-3] for path in (course / "grading" / "feedback").rglob("*.html")}
    assert pages == {"good", "blank", "wrong", "table", "edited"}


def test_a_second_call_takes_up_marks_by_hand_and_stops_endless_loops(
    first_call, course, monkeypatch
):
    """A cell gets as long as a whole submission took, so that only the endless one is stopped."""
    rows, seconds = first_call
    monkeypatch.setenv("LOWRANK_GRADING_SEED", "a seed of this test")
    graded = course / "grading" / "autograded" / "good" / UNIT / f"{UNIT}.ipynb"
    before = graded.stat().st_mtime_ns
    with Gradebook(f"sqlite:///{course / 'grading' / 'gradebook.db'}") as gradebook:
        mark = gradebook.find_grade("q6", UNIT, UNIT, "good")
        mark.manual_score, mark.needs_manual_grade = 2.5, False
        gradebook.db.commit()
    shutil.rmtree(course / "grading" / "submitted" / "exits")
    hand_in(course, "endless", answers() | {"rank_for_error": ENDLESS})
    shutil.rmtree(course / "grading" / "submitted" / "blank")
    hand_in(course, "blank", answers())
    corrected = course / "grading" / "submitted" / "blank" / UNIT / f"{UNIT}.ipynb"
    os.utime(corrected, (0, 0))  # as unpacking leaves it: the time says nothing
    again = {row["learner"]: row for row in grading.grade(UNIT, course, timeout=round(seconds) + 5)}

    assert graded.stat().st_mtime_ns == before
    assert (again["good"]["q6"], again["good"]["total"], again["good"]["note"]) == (2.5, 14.5, "")
    assert again["wrong"] == rows["wrong"]
    assert points(rows["blank"]) != points(again["blank"]) == FULL
    note = "ran too long and was stopped: rank_for_error; mark q6 by hand"
    assert again["endless"]["note"] == note
    assert points(again["endless"]) == FULL  # what stands before the loop, and after it, counts


@pytest.mark.parametrize(
    ("seed", "unit", "words"),
    [("", UNIT, "LOWRANK_GRADING_SEED"), ("any", "99_none", "choose from 02_svd")],
)
def test_wrong_use_is_refused(course, monkeypatch, seed, unit, words):
    monkeypatch.setenv("LOWRANK_GRADING_SEED", seed)
    with pytest.raises(ValueError, match=words):
        grading.grade(unit, course)
