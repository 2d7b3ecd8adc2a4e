"""The programs that the documents show run as they stand."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
JOURNEY = """
import keras

import ekg

data = keras.utils.image_dataset_from_directory(
    "images", image_size=(96, 96), batch_size=8, shuffle=False)
base = keras.applications.MobileNet((96, 96, 3), alpha=0.25, weights=None, classes=3)
inputs = keras.Input((96, 96, 3))
model = keras.Model(inputs, base(keras.layers.Rescaling(1 / 127.5, -1)(inputs)))
result = ekg.prune(model, data, target_rate=0.5, epochs=1,
                   search={"search_step": 1.0}, bank={"num_teacher": 2},
                   run={"runtimes": ()})
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


def split_row(line):
    return [cell.strip() for cell in line.split("|")]


def count_lines(program):
    return len([line for line in program.splitlines() if line.strip()])


def test_the_readmes_program_prunes_a_network_of_digits_and_prints_the_table_beside_it(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (program,) = programs("README.md")
    assert count_lines(program) <= 25
    rows = [
        line.split("|") for line in run(program, tmp_path).splitlines() if line.startswith("|")
    ][2:]
    accuracy = {row[1].strip(): float(row[3].split()[0]) for row in rows}
    shown = {cells[1]: cells for cells in map(split_row, README.splitlines()) if len(cells) > 6}
    assert (
        list(accuracy) == ["baseline", "slimmed", "fine-tuned"] and accuracy.keys() <= shown.keys()
    )
    assert all(abs(accuracy[name] - float(shown[name][2].split()[0])) < 3 for name in accuracy)
    assert accuracy["baseline"] > 96 and accuracy["fine-tuned"] > 96 and float(rows[2][7]) <= 0.5
    assert (tmp_path / "pruned.keras").exists() and (tmp_path / "pruned.tflite").exists()


def test_the_readme_is_a_front_page_whose_links_lead_somewhere():
    assert len(README.splitlines()) <= 160
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert len(targets) > 20 and [name for name in targets if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_to_files_and_headings(page):
    text = (ROOT / "docs" / page).read_text()
    for name, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        target = (ROOT / "docs" / (name or page)).resolve()
        assert target.exists(), f"{page} links to {name}"
        assert not heading or heading in headings(target), f"{page} links to {name}#{heading}"


def headings(path):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return anchors | set(re.findall(r'<a id="([^"]+)">', path.read_text()))


def test_the_library_page_runs_from_top_to_bottom(tmp_path):
    first, *others = programs("docs/library.md")
    assert others and count_lines(first) <= 20
    output = run("".join([first, *others]), tmp_path)
    assert "conv1" in output and (tmp_path / "smaller.keras").exists()
    pruned, unpruned = map(int, output.splitlines()[-1].split())
    assert 0 < pruned < unpruned


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


@pytest.mark.parametrize("program", ["make_api", "make_flags"])
def test_generated_pages_are_up_to_date(program):
    generated = runpy.run_path(ROOT / "docs" / f"{program}.py")
    assert generated["make_page"]() == generated["PAGE"].read_text(), f"run docs/{program}.py"
