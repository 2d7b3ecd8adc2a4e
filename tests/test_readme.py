"""The programs that the documents show run as they stand."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOURNEY = """
import keras

import ekg

data = keras.utils.image_dataset_from_directory(
    "images", image_size=(96, 96), batch_size=8, shuffle=False)
base = keras.applications.MobileNet((96, 96, 3), alpha=0.25, weights=None, classes=3)
inputs = keras.Input((96, 96, 3))
model = keras.Model(inputs, base(keras.layers.Rescaling(1 / 127.5, -1)(inputs)))
result = ekg.prune(model, data, target_rate=0.5, epochs=1,
                   search={"search_step": 1.0}, bank={"num_teacher": 2})
result.model.save("pruned.keras")
print(result.rate)
"""


def run(program, folder):
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def programs(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def count_lines(program):
    return len([line for line in program.splitlines() if line.strip()])


def test_the_readmes_first_program_prunes_a_network_of_digits(tmp_path):
    program = next(text for text in programs("README.md") if "ekg.prune" in text)
    assert count_lines(program) <= 25
    rows = [
        line.split("|") for line in run(program, tmp_path).splitlines() if line.startswith("|")
    ][2:]
    accuracy = {row[1].strip(): float(row[3].split()[0]) for row in rows}
    assert list(accuracy) == ["baseline", "slimmed", "fine-tuned"]
    assert accuracy["baseline"] > 88 and accuracy["fine-tuned"] > 85 and float(rows[2][7]) <= 0.5
    assert (tmp_path / "pruned.keras").exists()


def test_the_readmes_library_programs_run_one_after_the_other(tmp_path):
    first, second = (
        text for text in programs("README.md") if "Supernet" in text or "with_widths" in text
    )
    assert "conv1" in run(first + second, tmp_path) and (tmp_path / "smaller.keras").exists()


def test_a_network_of_keras_is_pruned_on_a_folder_of_images_in_twelve_lines(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in range(3):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for number in range(8):
            picture = image.effect_noise((120, 100), 60).convert("RGB")
            picture.paste(255 * (label == 0), (10 * number, 20, 10 * number + 30, 50 + 20 * label))
            picture.save(tmp_path / "images" / str(label) / f"{number}.png")
    assert count_lines(JOURNEY) <= 12
    rate = float(run(JOURNEY, tmp_path).splitlines()[-1])
    check = (
        "import keras, sys; sys.modules['ekg'] = None; m = "
        "keras.models.load_model('pruned.keras', safe_mode=True); "
        "print(m.output_shape, m.count_params())"
    )
    shape, params = run(check, tmp_path).splitlines()[-1].rsplit(" ", 1)
    assert 0.3 < rate <= 0.5 and shape == "(None, 3)" and int(params) < 200_000


def test_the_page_of_the_librarys_names_is_that_of_its_docstrings():
    make_api = runpy.run_path(ROOT / "docs" / "make_api.py")
    assert make_api["make_page"]() == make_api["PAGE"].read_text(), "run docs/make_api.py"
