"""How nbgrader makes exercises/ from solutions/ and grades. docs/grading.md explains the steps."""

from nbgrader import preprocessors as steps
from nbgrader.preprocessors import NbGraderPreprocessor


class ForLearners(NbGraderPreprocessor):
    """Make a released notebook run through although nothing is answered yet."""

    def preprocess(self, notebook, resources):
        notebook.metadata.pop("jupytext", None)  # the twin is an author's matter
        notebook.metadata.pop("run_seconds", None)
        # Cells that guard the numbers in the text use the solution, so they stay behind.
        notebook.cells = [cell for cell in notebook.cells if "remove-cell" not in _tags(cell)]
        for cell in notebook.cells:
            cell.metadata.pop("lines_to_next_cell", None)  # jupytext's
            graded = cell.metadata.get("nbgrader", {}).get("grade", False)
            if cell.cell_type == "code" and (graded or "uses-answer" in _tags(cell)):
                cell.metadata["tags"] = [*_tags(cell), "raises-exception"]  # Run All goes on
        return notebook, resources


class DropCopies(steps.DeduplicateIds):
    """Let a copied cell be an ordinary cell; nbgrader's own step stops the whole batch."""

    def preprocess_cell(self, cell, resources, cell_index):
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if cell.metadata.get("nbgrader") == {}:  # github.com/jupyter/nbgrader/issues/1083
            del cell.metadata["nbgrader"]
        return cell, resources


def _tags(cell):
    return cell.metadata.get("tags", [])


c = get_config()  # noqa: F821  traitlets puts it there

c.CourseDirectory.course_id = "lowrank-course"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
c.CourseDirectory.submitted_directory = "grading/submitted"
c.CourseDirectory.autograded_directory = "grading/autograded"
c.CourseDirectory.feedback_directory = "grading/feedback"
c.CourseDirectory.db_url = "sqlite:///grading/gradebook.db"
# Whatever lies beside a solution would be copied to the learners, so nothing may.
c.CourseDirectory.ignore = [".*", "__pycache__", "*.py", "*.md", "*.txt", "*.html"]

c.ClearSolutions.code_stub = {"python": "# Your code here.\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.GenerateAssignment.preprocessors = [
    steps.LockCells,
    steps.ClearSolutions,
    steps.ClearOutput,
    steps.CheckCellMetadata,
    steps.ComputeChecksums,
    steps.SaveCells,  # the gradebook keeps the hidden tests
    steps.ClearHiddenTests,
    steps.ClearMarkScheme,
    ForLearners,
    steps.ComputeChecksums,
    steps.CheckCellMetadata,
]

c.Autograde.sanitize_preprocessors = [
    steps.ClearOutput,
    DropCopies,
    steps.OverwriteKernelspec,
    steps.OverwriteCells,
    steps.CheckCellMetadata,
]
c.OverwriteCells.add_missing_cells = True  # a deleted check comes back, and fails
c.Execute.timeout = 120  # seconds a cell; an endless loop is stopped, the rest still runs
c.Execute.iopub_timeout = 60  # the 4 seconds that are usual fail honest work on a busy machine
