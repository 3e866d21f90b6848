"""exercises/ is what nbgrader makes of solutions/, and gives no answer away."""

import json
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="needs nbgrader: pip install -e '.[grading]'")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grading  # noqa: E402

UNITS = sorted(path.name for path in (ROOT / "solutions").iterdir() if path.is_dir())


def solution(unit):
    return nbformat.read(ROOT / "solutions" / unit / f"{unit}.ipynb", as_version=4)


def exercise(unit):
    return nbformat.read(ROOT / "exercises" / unit / f"{unit}.ipynb", as_version=4)


def hidden_lines(unit):
    """Lines of code and prose of the solution that no learner may see."""
    for cell in solution(unit).cells:
        hidden = "remove-cell" in cell.metadata.get("tags", [])
        for line in cell.source.splitlines():
            if "BEGIN SOLUTION" in line or "BEGIN HIDDEN" in line:
                hidden = True
            elif "END SOLUTION" in line or "END HIDDEN" in line:
                hidden = False
            elif hidden and len(line.strip()) > 15:
                yield line.strip()


def test_there_is_at_least_one_unit():
    assert "02_svd" in UNITS


def test_the_committed_exercises_are_what_the_solutions_give(tmp_path):
    grading.make_exercises(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    folder = ROOT / "exercises"
    committed = {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*.*")
        if ".ipynb_checkpoints" not in path.parts
    }
    assert made.keys() == committed.keys() == {Path(unit, f"{unit}.ipynb") for unit in UNITS}
    old = [str(path) for path in made if made[path] != committed[path]]
    assert not old, f"{old} differ from solutions/: run `python grading.py exercises`"


@pytest.mark.parametrize("unit", UNITS)
def test_no_answer_leaks(unit):
    text = (ROOT / "exercises" / unit / f"{unit}.ipynb").read_text(encoding="utf-8")
    lines = list(hidden_lines(unit))
    assert len(lines) >= 10  # otherwise this test looks at nothing
    leaked = [line for line in lines if json.dumps(line, ensure_ascii=False)[1:-1] in text]
    assert not leaked
    for word in ("BEGIN SOLUTION", "HIDDEN", "grading_seed", "remove-cell"):
        assert word not in text


@pytest.mark.parametrize("unit", UNITS)
def test_the_released_notebook_is_clean(unit):
    notebook = exercise(unit)
    assert not {"jupytext", "run_seconds"} & notebook.metadata.keys()
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert "lines_to_next_cell" not in cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("unit", UNITS)
def test_released_checks_let_run_all_go_on_and_solutions_stop_it(unit):
    def tagged(notebook):
        graded = [
            cell
            for cell in notebook.cells
            if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("grade")
        ]
        assert len(graded) >= 4
        return {"raises-exception" in cell.metadata.get("tags", []) for cell in graded}

    assert tagged(exercise(unit)) == {True}
    assert tagged(solution(unit)) == {False}


@pytest.mark.parametrize("unit", UNITS)
def test_every_question_has_a_card_a_hint_a_check_and_hidden_cases(unit):
    """Four to six graded questions and one that is marked by hand; the cards tell the points."""
    cells = solution(unit).cells
    checks = [
        c for c in cells if c.cell_type == "code" and c.metadata.get("nbgrader", {}).get("grade")
    ]
    written = [
        c for c in cells if c.cell_type != "code" and c.metadata.get("nbgrader", {}).get("grade")
    ]
    cards = [c.source for c in cells if c.source.startswith("## Question")]
    assert 4 <= len(checks) <= 6 and len(written) == 1
    assert len(cards) == len(checks) + 1
    for number, (card, cell) in enumerate(zip(cards, [*checks, *written], strict=True), start=1):
        points = cell.metadata.nbgrader.points
        assert cell.metadata.nbgrader.grade_id == f"q{number}"
        assert card.startswith(f"## Question {number}:")
        assert f"{points} points" in card and "minutes" in card and "Difficulty" in card
        if cell in checks:
            assert "<details><summary>Hint</summary>" in card
            assert "BEGIN HIDDEN TESTS" in cell.source and "grading_seed()" in cell.source
    total = sum(cell.metadata.nbgrader.points for cell in [*checks, *written])
    assert f"**Points:** {total}," in "".join(cell.source for cell in cells[:3])
