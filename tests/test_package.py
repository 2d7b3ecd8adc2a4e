"""The library as pip installs it, in an environment and a folder of its own."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

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


def run(*command, folder, **environment):
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
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds of the sources that git would hold, built in a copy of them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
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
        names = {name for name in archive.namelist() if name.startswith("ekg/")}
        metadata = archive.read(
            next(name for name in archive.namelist() if name.endswith("/METADATA"))
        ).decode()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ekg").rglob("*.py")}
    assert names == sources | {"ekg/py.typed"}
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    plain = [line for line in required if "extra ==" not in line]
    assert plain and not [line for line in plain if line.startswith("tensorflow")]
    assert any(line.startswith("tensorflow-cpu") and '"cpu"' in line for line in required)


def test_without_tensorflow_the_import_says_in_one_line_what_to_install(wheel, tmp_path):
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "try:\n    import ekg\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    shutil.unpack_archive(wheel, tmp_path / "library", format="zip")
    text = run(sys.executable, "-c", program, folder=tmp_path / "library")
    assert text.count("\n") == 1 and "pip install tensorflow" in text and "tensorflow-cpu" in text


def test_a_program_elsewhere_prunes_with_the_installed_library(wheel, tmp_path):
    """In a new environment, with modules in the working directory that go by the names of the
    repository's.
    """
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python3*")) / "site-packages"
    # TensorFlow is taken from this environment: installing it again would take minutes and prove
    # nothing.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        packages,
        wheel,
        folder=tmp_path,
    )
    work = tmp_path / "work"
    work.mkdir()
    for name in ("utils", "op_utils", "nets", "dataloader"):
        (work / f"{name}.py").write_text(HOSTILE)
    (work / "program.py").write_text(PROGRAM)
    place, rate = run(python, "program.py", folder=work).split()
    assert Path(place) == packages / "ekg" / "__init__.py" and float(rate) <= 0.5
