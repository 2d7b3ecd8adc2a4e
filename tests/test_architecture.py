"""The house rules that a program can see. Each test names the line that breaks its rule."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ekg", "nets", "dataloader", "analyses", "benchmarks")
# Keras brings h5py, and TensorFlow protobuf, whose package is google
LIBRARY_NEEDS = {"tensorflow", "keras", "numpy", "tqdm", "h5py", "google", "ekg"}
OPTIONAL = {"matplotlib", "scipy", "sklearn", "tensorflow_datasets"}
SHOWS_TIME = {"ekg.run.events"}  # TensorBoard shows when a number was written
IMPORTS_MATPLOTLIB = {"ekg.report.pictures"}  # imported inside functions alone
# who may import whom, besides packages from elsewhere
ALLOWED = {
    "ekg": {"ekg"},
    "ekg_command": {"ekg"},
    "nets": {"nets", "utils", "ekg"},
    "dataloader": {"dataloader", "utils", "ekg"},
    "utils": {"ekg", "ekg_command"},
    "op_utils": {"ekg", "utils"},
    "analyses": {"analyses", "ekg", "op_utils", "utils", "nets", "dataloader"},
}


def sources():
    paths = [
        *ROOT.glob("*.py"),
        *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")),
    ]
    return [(path, ast.parse(path.read_text())) for path in sorted(paths)]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def imports(tree, at_start_only=False):
    """Yields (node, full name) of every import; `from a import b` gives a and a.b."""
    function_nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in function_nodes for node in ast.walk(function)}
    for node in ast.walk(tree):
        if at_start_only and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, (
                f"line {node.lineno}: a relative import hides where a name comes from"
            )
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def functions(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


@pytest.fixture(scope="module")
def trees():
    return sources()


def test_the_library_imports_nothing_of_the_repository(trees):
    known = LIBRARY_NEEDS | OPTIONAL | set(sys.stdlib_module_names)
    wrong = [
        f"{place(path, node)} imports {name}"
        for path, tree in trees
        if module_of(path).split(".")[0] == "ekg"
        for node, name in imports(tree)
        if name.split(".")[0] not in known
    ]
    assert not wrong


def test_optional_packages_are_imported_where_they_are_used(trees):
    wrong = [
        f"{place(path, node)} imports {name}"
        for path, tree in trees
        if module_of(path).split(".")[0] == "ekg" and module_of(path) not in IMPORTS_MATPLOTLIB
        for node, name in imports(tree, at_start_only=True)
        if name.split(".")[0] in OPTIONAL or name in IMPORTS_MATPLOTLIB
    ]
    assert not wrong


def test_scripts_import_utils_before_anything_that_brings_tensorflow(trees):
    """It sets TensorFlow's environment, leaves its first lines out, and says at once what a script
    was asked for.
    """
    scripts = [
        (path, tree)
        for path, tree in trees
        if path.parent == ROOT and "run_script" in path.read_text()
    ]
    light = {"numpy", *sys.stdlib_module_names}
    first = {
        path.name: next(name for _, name in imports(tree) if name.split(".")[0] not in light)
        for path, tree in scripts
        if path.name != "utils.py"
    }
    assert len(first) >= 6 and set(first.values()) == {"utils"}, first


def test_the_console_command_imports_the_standard_library_alone(trees):
    """It sets TensorFlow's environment, so it must not import the package, which imports it."""
    (tree,) = [tree for path, tree in trees if path.name == "ekg_command.py"]
    assert {name.split(".")[0] for _, name in imports(tree)} <= set(sys.stdlib_module_names)


def test_nothing_depends_on_the_clock_on_the_wall(trees):
    """It jumps: durations are taken from clocks that do not. (strftime is for people.)"""
    wrong = [
        place(path, node)
        for path, tree in trees
        for node in ast.walk(tree)
        if module_of(path) not in SHOWS_TIME
        and isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now")
    ]
    assert not wrong


def test_every_import_points_down(trees):
    ours = {name for name in (*PACKAGES, *(path.stem for path in ROOT.glob("*.py")))}
    wrong = []
    for path, tree in trees:
        package = module_of(path).split(".")[0]
        for node, name in imports(tree):
            top = name.split(".")[0]
            if top in ours and top not in ALLOWED.get(package, ours):
                wrong.append(f"{place(path, node)}: {package} imports {name}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle(trees):
    modules = {module_of(path): tree for path, tree in trees}
    reads = {module: imported_modules(tree, modules) - {module} for module, tree in modules.items()}
    cleared = set()

    def find_circle(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in cleared:
            return None
        circle = next(
            (circle for other in reads[module] if (circle := find_circle(other, [*path, module]))),
            None,
        )
        cleared.add(module)
        return circle

    circles = [circle for module in modules if (circle := find_circle(module, []))]
    assert not circles, " -> ".join(circles[0])


def imported_modules(tree, modules):
    """Returns the modules that are imported: `from ekg import files` reads ekg.io.files, and not
    the face of ekg.
    """
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            read |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            read |= {
                name if (name := f"{node.module}.{alias.name}") in modules else node.module
                for alias in node.names
            }
    return read & set(modules)


def test_messages_name_arguments_and_not_flags(trees):
    """What is raised or logged in the library, the networks and the data sets is in the words of
    Python.
    """
    wrong = []
    for path, tree in trees:
        if module_of(path).split(".")[0] not in ("ekg", "nets", "dataloader"):
            continue
        for node in ast.walk(tree):
            is_call = isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
                ("logger.", "EkgError")
            )
            if isinstance(node, ast.Raise) or is_call:
                texts = [
                    text.value
                    for text in ast.walk(node)
                    if isinstance(text, ast.Constant) and isinstance(text.value, str)
                ]
                wrong += [
                    f"{place(path, node)}: {text!r}"
                    for text in texts
                    if re.search(r"--[a-z]", text)
                ]
    assert not wrong


SINGLE = {
    ("argparse", "ekg.command_line"),  # the one parser, and the place where flags are derived
    # a file is read back where nothing of this program is
    ("subprocess", "ekg.deploy.fresh"),
    ("subprocess", "ekg.io.h5_files"),  # HDF5's C code may never return
}


def test_the_library_starts_no_process_and_knows_no_script(trees):
    wrong = []
    for path, tree in trees:
        if module_of(path).split(".")[0] == "ekg":
            wrong += [
                f"{place(path, node)} imports {name}"
                for node, name in imports(tree)
                if name.split(".")[0] in ("subprocess", "multiprocessing", "argparse")
                and (name, module_of(path)) not in SINGLE
            ]
            wrong += [
                str(path) for name in ("train_cifar", "train_imagenet") if name in path.read_text()
            ]
    assert not wrong
