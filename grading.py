"""Make exercises/ from solutions/, and grade what learners hand in. docs/grading.md says how.

    python grading.py exercises        rebuild exercises/ for every unit
    python grading.py grade 02_svd     grade grading/submitted/NAME/02_svd/02_svd.ipynb of all names

Grades go to grading/02_svd.csv, one line a learner, and feedback pages to grading/feedback/.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.utils import capture_log
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

ROOT = Path(__file__).resolve().parent
Row = dict[str, str | float | None]


def make_exercises(exercises: Path, root: Path = ROOT) -> None:
    """Write the learners' notebook of every unit in `root`/solutions to the folder `exercises`.

    The same solutions give the same bytes: cell ids are kept, and nothing tells the time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        course = Path(scratch)
        shutil.copytree(root / "solutions", course / "solutions")
        for unit in sorted(path.name for path in (course / "solutions").iterdir()):
            _must(_nbgrader(GenerateAssignment, course, unit), f"solutions/{unit}")
        shutil.copytree(course / "exercises", exercises, dirs_exist_ok=True)


def grade(unit: str, root: Path = ROOT, timeout: int = 120) -> list[Row]:
    """Grade what is new under `root`/grading/submitted; write the CSV file and the feedback.

    A submission that cannot be graded gets a line that says why, and stops nobody else's.
    A second call keeps what is graded already, and takes up marks given by hand.
    """
    if not os.environ.get("LOWRANK_GRADING_SEED"):
        raise ValueError(
            "LOWRANK_GRADING_SEED is not set: the hidden cases are drawn from it. "
            "Set it to a text that only you know."
        )
    source = root / "solutions" / unit / f"{unit}.ipynb"
    if not source.exists():
        units = ", ".join(sorted(path.name for path in (root / "solutions").iterdir()))
        raise ValueError(f"unit={unit} has no solution: choose from {units}")
    folder, submitted = root / "grading", root / "grading" / "submitted"
    if not submitted.is_dir():
        raise ValueError(
            f"{submitted} is missing: put NAME/{unit}/{unit}.ipynb there for each learner"
        )
    aside = Config()
    aside.CourseDirectory.release_directory = "grading/release"  # exercises/ stays as it is
    _must(_nbgrader(GenerateAssignment, root, unit, aside), f"solutions/{unit}")

    cells = _nbgrader_cells(source)
    questions = [mark["grade_id"] for mark in cells if mark["grade"]]
    rows: list[Row] = []
    for learner in sorted(path.name for path in submitted.iterdir() if path.is_dir()):
        submission = submitted / learner / unit / f"{unit}.ipynb"
        row: Row = {"learner": learner, **dict.fromkeys(questions), "total": None}
        failure = problem(submission) or _autograde(submission, root, unit, learner, timeout)
        if not failure:
            scores, notes = _scores(root, unit, learner)
            row |= scores
            notes += _changed_cells(_nbgrader_cells(submission), cells)
        rows.append(row | {"note": failure or "; ".join(notes)})
    table = folder / f"{unit}.csv"
    with open(f"{table}.part", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["learner", *questions, "total", "note"])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(f"{table}.part", table)
    return rows


def problem(submission: Path) -> str:
    """Why a submitted notebook cannot be graded, in a sentence; empty if it can."""
    if not submission.exists():
        learner = submission.parents[1]
        files = [str(path.relative_to(learner)) for path in learner.rglob("*") if path.is_file()]
        wanted = submission.relative_to(learner)
        return f"no {wanted}: found {', '.join(sorted(files)) or 'nothing'}"
    try:
        cells = _nbgrader_cells(submission)
    except Exception as error:  # whatever a stranger's file can do to a parser
        return f"not a readable notebook: {str(error).splitlines()[0][:100]}"
    return (
        "" if cells else "it has none of the exercise's cells: was it rebuilt by another program?"
    )


def _nbgrader(
    step: type, root: Path, unit: str, config: Config | None = None, learner: str = "*"
) -> str:
    """Run one step of nbgrader with the course's settings. Returns its log if it failed."""
    settings = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    settings.merge(config or Config())
    settings.CourseDirectory.root = str(root)
    settings.CourseDirectory.db_url = f"sqlite:///{root / 'grading' / 'gradebook.db'}"
    settings.CourseDirectory.assignment_id = unit
    settings.CourseDirectory.student_id = learner
    (root / "grading").mkdir(exist_ok=True)
    app = step(coursedir=CourseDirectory(config=settings), config=settings)
    app.force = True
    # nbgrader calls alembic, which lies beside this Python; the environment may not be activated.
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with patch.dict(os.environ, PATH=programs):  # nbgrader's own setenv loses the old PATH
        result = capture_log(app)
    return "" if result["success"] else result.get("log", "") + result["error"]


def _nbgrader_cells(notebook: Path) -> list[dict[str, Any]]:
    """What nbgrader knows about each question's cells, in the order of the notebook."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]


def _changed_cells(submitted: list[dict[str, Any]], source: list[dict[str, Any]]) -> list[str]:
    """Notes about cells that a learner copied or deleted."""
    names = Counter(cell.get("grade_id") for cell in submitted)
    copied = [cell["grade_id"] for cell in source if names[cell["grade_id"]] > 1]
    deleted = [cell["grade_id"] for cell in source if names[cell["grade_id"]] == 0]
    return [
        f"{what} cells: {', '.join(found)}"
        for what, found in (("copied", copied), ("deleted", deleted))
        if found
    ]


def _autograde(submission: Path, root: Path, unit: str, learner: str, timeout: int) -> str:
    """Run a submission if it is new, and write its feedback. Returns why that failed, or ""."""
    graded = root / "grading" / "autograded" / learner / unit / f"{unit}.ipynb"
    # Not the files' times: what is unpacked keeps the time at which its author saved it.
    hashed = hashlib.sha256(submission.read_bytes()).hexdigest()
    note = root / "grading" / f"{unit}-{learner}.sha256"
    log = ""
    if not graded.exists() or not note.exists() or note.read_text() != hashed:
        limit = Config()
        limit.Execute.timeout = timeout
        log = _nbgrader(Autograde, root, unit, limit, learner)
        if not log:
            note.write_text(hashed)
    log = log or _nbgrader(GenerateFeedback, root, unit, learner=learner)
    if not log:
        return ""
    (root / "grading" / f"{unit}-{learner}.log").write_text(log, encoding="utf-8")
    why = "its code ended Python" if "DeadKernelError" in log else "nbgrader failed"
    return f"{why}: see grading/{unit}-{learner}.log"


def _scores(root: Path, unit: str, learner: str) -> tuple[Row, list[str]]:
    """Points by question and their total, None where a person has to give them; and notes."""
    graded = root / "grading" / "autograded" / learner / unit / f"{unit}.ipynb"
    notes = _failed_cells(graded)
    with Gradebook(f"sqlite:///{root / 'grading' / 'gradebook.db'}") as gradebook:
        grades = gradebook.find_submission_notebook(unit, unit, learner).grades
        row: Row = {"total": sum(grade.score for grade in grades)}
        for grade in grades:
            by_hand = grade.needs_manual_grade and grade.manual_score is None
            row[grade.name] = None if by_hand else grade.score
            notes += [f"mark {grade.name} by hand"] if by_hand else []
    return row, notes


def _failed_cells(graded: Path) -> list[str]:
    """Notes about what is not a wrong answer: the time limit, or a package that is missing here."""
    found: dict[str, list[str]] = {}
    for number, cell in enumerate(nbformat.read(graded, as_version=4).cells, start=1):
        name = cell.metadata.get("nbgrader", {}).get("grade_id", f"cell {number}")
        errors = {output.get("ename") for output in cell.get("outputs", [])}
        if errors & {"CellTimeoutError", "KeyboardInterrupt"}:
            found.setdefault("ran too long and was stopped", []).append(name)
        if errors & {"ImportError", "ModuleNotFoundError"}:
            found.setdefault("could not import", []).append(name)
    return [f"{what}: {', '.join(names)}" for what, names in found.items()]


def _must(log: str, what: str) -> None:
    if log:
        raise RuntimeError(f"nbgrader cannot read {what}:\n{log}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("exercises")
    verbs.add_parser("grade").add_argument("unit")
    options = parser.parse_args()
    if options.verb == "exercises":
        make_exercises(ROOT / "exercises")
        return
    try:
        rows = grade(options.unit)
    except ValueError as error:
        sys.exit(str(error))
    for row in rows:
        print(*(f"{key}={value}" for key, value in row.items() if value not in (None, "")))


if __name__ == "__main__":
    main()
