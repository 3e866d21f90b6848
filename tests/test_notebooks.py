"""The committed notebooks: executed, readable, accessible, and equal to their text twins.

nbval runs their cells (see the Makefile); these tests read the files as a visitor gets them.
"""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from urllib.parse import unquote

import jupytext
import nbformat
import pytest
from notebook_tools import ROOT, twin_path, twin_text

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = CHAPTERS + sorted((ROOT / "solutions").glob("*/*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*/*.ipynb"))
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
IMAGE = re.compile(r"<img\b[^>]*>")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|\b(?:href|src)=\"([^\"]+)\"")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def figures(path: Path) -> list[str]:
    """Every <img> tag among a notebook's outputs."""
    shown = [o.data for cell in code(path) for o in cell.outputs if "data" in o]
    return [tag for data in shown for tag in IMAGE.findall(data.get("text/html", ""))]


def links(text: str) -> list[str]:
    """Targets of the links and pictures in Markdown, without those of the web."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    found = [a or b for a, b in LINK.findall(text)]
    return [link for link in found if not re.match(r"[a-z]+:|#", link)]


every = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name)


def test_the_first_chapters_are_there():
    assert {path.stem[:2] for path in CHAPTERS} >= {"00", "02", "05", "08"}


@every
def test_executed_from_top_to_bottom_without_errors(path):
    cells = [cell for cell in code(path) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds


@every
def test_valid_and_free_of_what_differs_from_run_to_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "run_seconds"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    text = str([cell.outputs for cell in code(path)])
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    for noise in (r" at 0x[0-9a-f]+", r"<Figure size", r"widget-view", r"/(?:home|root|Users)/"):
        assert not re.search(noise, text), noise
    assert not any(o.get("name") == "stderr" for cell in code(path) for o in cell.outputs)


@every
def test_twin_is_the_same_notebook(path):
    twin = twin_path(path)
    mend = f"run `python tests/notebook_tools.py` on the one that you edited: {name(path)}"
    assert twin.exists(), mend
    text = twin.read_text(encoding="utf-8")
    assert text == twin_text(read(path)), mend
    # And back: the twin gives the same cells, so that nothing of them is lost in it.
    cells = jupytext.reads(text, fmt="py:percent").cells
    assert [c.source for c in cells] == [c.source for c in read(path).cells], mend


@every
def test_markdown_shows_as_it_was_meant(path):
    text = prose(path)
    broken = re.search(r"^ +\d+\. .*", text, re.M)  # a year at the start of a line begins a list
    assert not broken, broken[0]
    for fold in re.findall(r"<summary>.*?</details>", text, re.S):
        if "</summary>\n\n" not in fold:  # without an empty line it is plain HTML
            assert not re.search(r"\]\(|[`*]", re.sub(r"<code>.*?</code>", "", fold)), fold


@every
def test_small_enough_for_a_web_page(path):
    assert path.stat().st_size < 600_000


@every
def test_figures_are_small_and_have_alternative_text(path):
    raw = [o.data for cell in code(path) for o in cell.outputs if "data" in o]
    assert not any(mime.startswith("image/") for data in raw for mime in data), "use plots.show"
    for tag in figures(path):
        found = re.search(r'\balt="([^"]*)"', tag)
        assert found and len(html.unescape(found[1]).split()) >= 5, "alt text: a sentence"
        data = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]*)"', tag)
        assert data and len(base64.b64decode(data[1])) < 60_000


@every
def test_pictures_in_the_prose_have_alternative_text(path):
    text = prose(path)
    assert not re.search(r"!\[\s*\]", text)
    assert all(re.search(r'\balt="[^"]+"', tag) for tag in IMAGE.findall(text))


@every
def test_cells_are_short(path):
    long = [cell.source for cell in code(path) if len(cell.source.splitlines()) > 20]
    assert not long, f"over 20 lines: {long[0].splitlines()[0]!r}"


@every
def test_hidden_guards_are_hidden(path):
    for cell in code(path):
        tags = cell.metadata.get("tags", [])
        if "test" in tags:
            assert "remove-cell" in tags
            assert cell.metadata.get("jupyter", {}).get("source_hidden") is True


@pytest.mark.parametrize("path", CHAPTERS + EXERCISES + PAGES, ids=name)
def test_links_between_files_resolve(path):
    text = prose(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    broken = [t for t in links(text) if not (path.parent / unquote(t.split("#")[0])).exists()]
    assert not broken


def test_the_set_up_cell_is_the_same_everywhere():
    first = {code(path)[0].source for path in CHAPTERS}
    assert len(first) <= 1
    assert all('find_spec("lowrank_course") is None' in source for source in first)


@chapter
def test_opens_and_closes_as_every_chapter_does(path):
    notebook = read(path)
    opening = notebook.cells[0].source
    for part in ("# ", "**The question:**", "**After this chapter you can**", "**You need:**"):
        assert part in opening
    assert 3 <= len(re.findall(r"^- ", opening, re.M)) <= 5
    if not path.stem.startswith("00"):
        headings = re.findall(r"^## (.+)$", prose(path), re.M)
        assert {"Recap", "Check yourself", "Now you", "References"} <= set(headings)
        assert 3 <= prose(path).count("<details>") == prose(path).count("</details>") <= 5


@chapter
def test_minutes_are_those_that_were_measured(path):
    notebook = read(path)
    line = re.search(
        r"\*\*Time:\*\* (\d+) minutes to read, (under|about) (\d+) minutes? to run",
        notebook.cells[0].source,
    )
    assert line, "**Time:** 25 minutes to read, under 1 minute to run"
    seconds = notebook.metadata.run_seconds
    assert seconds < 60 * int(line[3]) * (1 if line[2] == "under" else 1.3)
    # Reading: 150 words a minute, and half a minute for a code cell.
    visible = [cell for cell in code(path) if "remove-cell" not in cell.metadata.get("tags", [])]
    minutes = len(prose(path).split()) / 150 + len(visible) / 2
    assert 0.75 < int(line[1]) / minutes < 1.33, f"about {minutes:.0f} minutes to read"
