"""The library as pip installs it, in an environment and a folder of its own."""

import inspect
import re
import shutil
import subprocess
import sys
import sysconfig
import typing
import venv
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import ekg
from tests.helpers.digits import digits, network, softmax

ROOT = Path(__file__).parents[1]
HOSTILE = 'raise SystemExit("a module of the working directory was imported")\n'
PROGRAM = """
import sys
for name in ("matplotlib", "scipy", "sklearn", "tensorboard"):
    sys.modules[name] = None  # importing it fails: none of them is needed here
import importlib.util
find_spec = importlib.util.find_spec

def find_importable(name, *more):
    return None if sys.modules.get(name, name) is None else find_spec(name, *more)

importlib.util.find_spec = find_importable

import keras, numpy as np
from keras import layers
import ekg
from ekg.data.dataset import Dataset, Split

keras.utils.set_random_seed(0)
inputs = keras.Input((8, 8, 3))
x = layers.Conv2D(8, 3, activation="relu", name="one")(inputs)
x = layers.Conv2D(6, 3, activation="relu", name="two")(x)
x = layers.GlobalAveragePooling2D(name="pool")(x)
model = keras.Model(inputs, layers.Dense(3, name="fc")(x))
labels = np.arange(96, dtype=np.int32) % 3
images = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3)).astype(np.uint8)
data = Dataset("noise", 3, Split(images, labels), Split(images, labels), (128.0,) * 3, (64.0,) * 3)
supernet = ekg.Supernet(model)
result = ekg.search(supernet, data, target_rate=0.5)
smaller = supernet.cut(result.subnetwork)
batch = np.asarray(data.normalise(images[:4]))
masked = supernet.logits(batch, result.subnetwork, training=False)
difference = np.abs(smaller(batch) - masked).max()
assert difference < 1e-5, difference
params = supernet.complexity(result.subnetwork).params
assert smaller.count_params() == params < model.count_params()
assert not [name for name in ("utils", "op_utils", "nets", "dataloader") if name in sys.modules]
arrays = images.astype(np.float32) / 255, labels
pruned = ekg.prune(model, arrays, target_rate=0.5, epochs=1, verbose=False,
                   bank={"num_teacher": 2}, run_dir="run")
assert pruned.rate <= 0.5 and pruned.model(batch).shape == (4, 3)
print(ekg.__file__, f"{supernet.rate(result.subnetwork):.3f}")
"""


def run(*command, folder, code=0, **environment):
    """Returns what a command writes: to its output, or to its error stream where it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environment,
        },
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds of the sources that git would hold, built in a copy of them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ekg_command.py"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    sources = [path for pattern in ("*.py", "py.typed") for path in (ROOT / "ekg").rglob(pattern)]
    for path in sources:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    left_over = folder / "build" / "lib" / "ekg" / "left_over.py"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("A module of an earlier build.\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "-w",
        "out",
        folder=folder,
    )
    return next((folder / "out").glob("ekg_pruning-*.whl"))


def test_the_wheel_holds_the_sources_and_leaves_the_build_of_tensorflow_open(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(
            next(name for name in archive.namelist() if name.endswith("/METADATA"))
        ).decode()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ekg").rglob("*.py")}
    assert names == sources | {"ekg/py.typed", "ekg_command.py"}
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    plain = [line for line in required if "extra ==" not in line]
    assert plain and not [line for line in plain if line.startswith("tensorflow")]
    assert any(line.startswith("tensorflow-cpu") and '"cpu"' in line for line in required)


@pytest.mark.parametrize("found", ["None", "types.SimpleNamespace(__version__='2.19.1')"])
def test_without_tensorflow_or_with_an_old_one_the_import_says_in_one_line_what_to_install(
    wheel, tmp_path, found
):
    program = (
        f"import sys, types; sys.modules['tensorflow'] = {found}\n"
        "try:\n    import ekg\nexcept ImportError as error:\n    print(error)\n"
    )
    shutil.unpack_archive(wheel, tmp_path / "library", format="zip")
    text = run(sys.executable, "-c", program, folder=tmp_path / "library")
    assert text.count("\n") == 1 and "pip install" in text and "tensorflow-cpu" in text
    assert "2.19.1" in text or found == "None"


def public_functions():
    """Yields (name, function) of every function, method and property that `ekg` offers."""
    for name in ekg.__all__:
        value = getattr(ekg, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for key, member in vars(value).items():
                if key.startswith("_") and key != "__init__":
                    continue
                function = getattr(member, "fget", None) or getattr(member, "func", member)
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function):
                    yield f"{name}.{key}", function
    for name in ("check_prunable", "random_subnetwork", "random_inputs"):
        yield f"testing.{name}", getattr(ekg.testing, name)


def test_everything_public_is_annotated_with_names_that_exist():
    functions = dict(public_functions())
    assert len(functions) > 100
    for name, function in functions.items():
        hints = typing.get_type_hints(function)
        asked = [key for key in inspect.signature(function).parameters if key != "self"]
        assert {*asked, "return"} - {"cls"} <= set(hints), name


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Folder of a new virtual environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = packages_of(folder)
    # TensorFlow is taken from this environment: installing it again would take minutes and prove
    # nothing.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        "--quiet",
        wheel,
        folder=folder,
    )
    return folder


def packages_of(environment):
    return next((environment / "lib").glob("python3*")) / "site-packages"


def write_hostile_modules(folder):
    """Writes modules that have the names of the repository's."""
    for name in ("utils", "op_utils", "nets", "dataloader"):
        (folder / f"{name}.py").write_text(HOSTILE)


def test_a_program_elsewhere_prunes_with_the_installed_library(environment, tmp_path):
    write_hostile_modules(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    place, rate = run(environment / "bin" / "python", "program.py", folder=tmp_path).split()
    assert Path(place) == packages_of(environment) / "ekg" / "__init__.py" and float(rate) <= 0.5


def test_the_command_inspects_prunes_exports_and_evaluates_in_an_empty_folder(
    environment, tmp_path
):
    command = environment / "bin" / "ekg"
    model = network(softmax)
    model.save(tmp_path / "my.keras")
    images, labels = digits(90)
    np.savez(tmp_path / "digits.npz", x=images, y=labels)
    write_hostile_modules(tmp_path)
    assert run(command, "--version", folder=tmp_path) == f"ekg {ekg.__version__}\n"
    listed = run(command, "inspect", "my.keras", folder=tmp_path)
    assert all(group.name in listed for group in ekg.Supernet(model).groups)
    data = ("--data_path", "digits.npz", "--quiet")
    quick = ("--search_step", "1", "--val_per_class", "4", "--subset_per_class", "6")
    table = run(command, "prune", "my.keras", *data, *quick, "--search_only", folder=tmp_path)
    assert re.search(r"^\| +slimmed \|", table, re.MULTILINE)
    exported = run(command, "export", "runs/my_0.5", "--out", "copy.keras", folder=tmp_path)
    assert exported.startswith("copy.keras: keras, ")
    row = run(command, "evaluate", "copy.keras", *data, "--runtimes", folder=tmp_path)
    pruned = keras.models.load_model(tmp_path / "copy.keras")
    assert f" {pruned.count_params():,} |" in row and "measured on 90 examples" in row
    assert pruned.count_params() < model.count_params()


def test_a_wrong_path_is_one_line_and_exit_code_2(environment, tmp_path):
    command = (environment / "bin" / "ekg", "prune", "no.keras", "--data_path", "no", "--quiet")
    said = run(*command, folder=tmp_path, code=2)
    assert said == "error: --model no.keras: no such file, and no network of keras.applications.\n"
    assert not (tmp_path / "runs").exists()
