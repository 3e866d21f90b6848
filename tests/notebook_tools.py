"""For authors: run notebooks in place and keep their text twins equal.

    python tests/notebook_tools.py notebooks/02_svd.ipynb      run it, then write its twin
    python tests/notebook_tools.py text/notebooks/02_svd.py    build it from its twin, run it

A twin is the same notebook as a Python file in jupytext's percent format, without outputs:
notebooks/02_svd.ipynb has text/notebooks/02_svd.py, solutions/02_svd/02_svd.ipynb has
text/solutions/02_svd.py. Edit either one, run this tool on the one that you edited, commit both.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def twin_path(notebook: Path) -> Path:
    """Where the text twin of a notebook lies."""
    top = notebook.resolve().relative_to(ROOT).parts[0]
    return ROOT / "text" / top / f"{notebook.stem}.py"


def notebook_path(twin: Path) -> Path:
    """Where the notebook of a text twin lies."""
    top = twin.resolve().relative_to(ROOT / "text").parts[0]
    folder = ROOT / top if top == "notebooks" else ROOT / top / twin.stem
    return folder / f"{twin.stem}.ipynb"


def twin_text(notebook: NotebookNode) -> str:
    """The text of the twin that belongs to a notebook."""
    plain = nbformat.reads(nbformat.writes(notebook), as_version=4)  # a copy, keys in order
    header = {"notebook_metadata_filter": "kernelspec,-jupytext"}  # no version to disagree on
    plain.metadata = nbformat.from_dict({"kernelspec": KERNEL, "jupytext": header})
    return jupytext.writes(plain, fmt="py:percent")


def build(twin: Path) -> NotebookNode:
    """A notebook without outputs from its twin. A cell's id comes from its text: no diff noise."""
    notebook = jupytext.reads(twin.read_text(encoding="utf-8"), fmt="py:percent")
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def keep(output: NotebookNode) -> bool:
    """Not for a slider or progress bar, dead without a kernel, nor for a machine's warnings."""
    return WIDGET not in output.get("data", {}) and output.get("name") != "stderr"


def clean(notebook: NotebookNode, seconds: float) -> None:
    """Leave out, in place, whatever would differ from run to run or needs a live kernel."""
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": language, "run_seconds": round(seconds)}
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.get("name") == "stderr":  # for the author, not for the reader
                    print(f"left out of {cell.id}: {output.text}", file=sys.stderr)
            cell.outputs = [o for o in cell.outputs if keep(o)]


def run(path: Path) -> None:
    """Build if `path` is a twin, run in a fresh kernel, write the notebook and its twin."""
    target = notebook_path(path) if path.suffix == ".py" else path
    notebook = build(path) if path.suffix == ".py" else nbformat.read(path, as_version=4)
    started, used = time.perf_counter(), sum(os.times()[2:4])
    NotebookClient(
        notebook,
        timeout=900,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(target.parent)}},
    ).execute()
    seconds = time.perf_counter() - started
    # On a busy machine the processor time of the kernel says better how long a reader waits.
    seconds = min(seconds, sum(os.times()[2:4]) - used or seconds)
    clean(notebook, seconds)
    target.parent.mkdir(parents=True, exist_ok=True)
    twin_path(target).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    twin_path(target).write_text(twin_text(notebook), encoding="utf-8")
    print(f"{target}: {len(notebook.cells)} cells, {seconds:.0f} s, {target.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        run(Path(argument))
