"""`make stats`: how large the notebooks are and how long they run, and the lines of the package.

One line a notebook. `over` names what exceeds the style of the course, also where no test refuses
it: a code cell has about 5 lines and none over 20, the text between two cells about 40 words.
Seconds are those that tests/notebook_tools.py measured. Of the files that ship, `code` counts the
lines without docstrings, comments and blank lines.
"""

from __future__ import annotations

import ast
import base64
import re
from pathlib import Path
from statistics import median

import nbformat
from notebook_tools import ROOT

# "About 5" and "about 40" may be a third more.
LIMITS = {"lines": 6.7, "longest": 20, "words": 53, "kB": 600, "figure": 60, "seconds": 120}
HEAD = (
    f"{'':29}    cells   lines a cell      words        kB          \n"
    f"{'notebook':29} code text  median most   all median  file figure seconds  over"
)


def measure(path: Path) -> dict[str, float]:
    """Sizes of one notebook: visible code cells and text, file and largest figure, run time."""
    notebook = nbformat.read(path, as_version=4)
    text = [len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown"]
    shown = [c for c in notebook.cells if c.cell_type == "code"]
    figures = re.findall(r"base64,([\w+/=]+)", str([c.outputs for c in shown]))
    shown = [c for c in shown if "remove-cell" not in c.metadata.get("tags", [])]
    lines = [len(c.source.splitlines()) for c in shown]
    return {
        "code": len(shown),
        "text": len(text),
        "lines": median(lines),
        "longest": max(lines),
        "all words": sum(text),
        "words": median(text),
        "kB": path.stat().st_size / 1000,
        "figure": max((len(base64.b64decode(f)) for f in figures), default=0) / 1000,
        "seconds": notebook.metadata.get("run_seconds", 0),
    }


def over(sizes: dict[str, float]) -> list[str]:
    """The names of what exceeds its limit."""
    return [name for name, limit in LIMITS.items() if sizes[name] > limit]


def code_lines(source: str) -> int:
    """Lines of a Python file that are neither docstring nor comment nor blank."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            docs |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, source.splitlines()), start=1)
    return sum(bool(line) and line[0] != "#" and n not in docs for n, line in lines)


def main() -> None:
    print(HEAD)
    for path in sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("solutions/*/*.ipynb")]):
        sizes = measure(path)
        widths = (5, 5, 7, 5, 6, 7, 6, 7, 8)
        numbers = "".join(f"{v:{w}.0f}" for v, w in zip(sizes.values(), widths, strict=True))
        name = str(path.relative_to(ROOT).with_suffix("")).removeprefix("notebooks/")
        print(f"{name:29}{numbers}  {', '.join(over(sizes))}".rstrip())

    print(f"\n{'package':29} code  all")
    totals = [0, 0]
    for path in sorted((ROOT / "lowrank_course").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = code_lines(source), len(source.splitlines())
        print(f"{path.relative_to(ROOT / 'lowrank_course')!s:29}{lines[0]:5}{lines[1]:5}")
        if path.parent.name != "checks":
            totals = [a + b for a, b in zip(totals, lines, strict=True)]
    print(f"{'all but checks/':29}{totals[0]:5}{totals[1]:5}")


if __name__ == "__main__":
    main()
