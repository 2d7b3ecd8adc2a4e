"""The notebooks hold the outputs of all their cells, and use names that exist."""

import ast
import importlib
import json
import re
import tempfile
from pathlib import Path

import pytest

import ekg

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))
LARGEST = 10**6  # bytes
SYSTEM_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|usr|var|opt|mnt|work|Users|private)/|site-packages"
)


def text_of(lines):
    return lines if isinstance(lines, str) else "".join(lines)


def cells(path, kind):
    notebook = json.loads(path.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def texts(path):
    """Returns all outputs that a reader sees as text."""
    shown = []
    for output in outputs(path):
        data = output.get("data", {})
        shown += [text_of(lines) for kind, lines in data.items() if kind.startswith("text/")]
        shown.append(text_of(output.get("text", "")))
    return shown


def paths_in(text):
    own = [f"{path}/" for path in (DOCS.parent, Path.home(), tempfile.gettempdir())]
    return SYSTEM_PATH.findall(text) + [path for path in own if path in text]


def missing_names(source):
    """Returns the names of the library in a program, as "ekg.prune", that do not exist."""
    used = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ekg":
            module = importlib.import_module(node.module)
            used += [(module, alias.name) for alias in node.names]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "ekg":
                used.append((ekg, node.attr))
    return [f"{owner.__name__}.{name}" for owner, name in used if not hasattr(owner, name)]


def test_there_are_two_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["prune_your_network.ipynb", "the_method.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_was_executed_in_order_without_an_error(path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)) and len(counts) > 5
    assert [output for output in outputs(path) if output["output_type"] == "error"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_output_is_a_warning_or_names_a_path_of_the_machine(path):
    assert [output["text"] for output in outputs(path) if output.get("name") == "stderr"] == []
    assert [text for text in texts(path) if "warning" in text.lower()] == []
    assert [text for text in texts(path) if paths_in(text)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_name_of_the_library_exists(path):
    sources = [text_of(cell["source"]) for cell in cells(path, "code")]
    assert sum("ekg." in source for source in sources) >= 5
    assert [name for source in sources for name in missing_names(source)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_pictures_and_links_that_lead_somewhere_and_is_small(path):
    assert path.stat().st_size <= LARGEST
    assert sum("image/png" in output.get("data", {}) for output in outputs(path)) >= 4
    prose = "\n".join(text_of(cell["source"]) for cell in cells(path, "markdown"))
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose)
    assert len(links) >= 4 and [name for name in links if not (DOCS / name).exists()] == []


def test_a_name_that_does_not_exist_is_found():
    source = "import ekg\nfrom ekg.distil.bank import choose\n\nekg.prune\nekg.cut_all(ekg.search)"
    assert missing_names(source) == ["ekg.distil.bank.choose", "ekg.cut_all"]


def test_a_path_of_the_machine_is_found():
    assert paths_in("saved in /tmp/run1/pruned.tflite") and paths_in(f"{DOCS.parent}/ekg")
    assert paths_in("</td></tr>, 3/4 of ms/root, docs/usr") == []
