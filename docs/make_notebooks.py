"""Executes the notebooks of this folder in place, so that their outputs match the code.

    python docs/make_notebooks.py

They run with the root of the repository as their folder, in the environment of this program.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
TIMEOUT = 600  # seconds per cell
# What TensorFlow's C++ code writes during the import, before it reads its log level
FIRST_LINE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\) is called|I\d{4} [\d:.]+ |$"
)


def execute(path):
    """Executes a notebook from its first cell, and writes it with the outputs.

    A cell that fails raises nbclient's CellExecutionError, and the file stays as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(DOCS.parent)}}
    # Times of execution would change the file at every call.
    client = NotebookClient(notebook, timeout=TIMEOUT, resources=place, record_timing=False)
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_start_up(output)]
    nbformat.write(notebook, path)


def _is_start_up(output):
    """Returns whether an output holds nothing but TensorFlow's messages during its import."""
    lines = output.get("text", "").splitlines()
    is_error = output.output_type == "stream" and output.name == "stderr"
    return is_error and all(FIRST_LINE.match(line) for line in lines)


def main(names):
    """Executes the notebooks with these names; all of the folder without any."""
    for path in [DOCS / name for name in names] or sorted(DOCS.glob("*.ipynb")):
        print(f"executing {path.name}", flush=True)
        execute(path)


if __name__ == "__main__":
    main(sys.argv[1:])
