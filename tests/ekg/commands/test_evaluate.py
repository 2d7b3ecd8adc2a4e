"""`ekg evaluate`: figures of a network on a user's own data."""

import keras
import numpy as np
import pytest
from keras import layers

from ekg.commands import console, evaluate
from ekg.errors import EkgError
from ekg.graph.complexity import model_complexity
from ekg.run.folder import RunFolder
from tests.helpers.digits import as_folder, digits, network, softmax


def run(*argv):
    return evaluate.main(console.parse_args("evaluate", list(map(str, argv))))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with a network of digits, and an .npz and a folder of images for it."""
    folder = tmp_path_factory.mktemp("own")
    model = network(softmax)
    model.save(folder / "my.keras")
    images, labels = digits(70)
    images = np.round(images * 255)
    as_folder(folder / "images", images / 255, labels)
    np.savez(folder / "digits.npz", x=images.astype(np.uint8), y=labels)
    return folder


@pytest.mark.parametrize("data", ["digits.npz", "images"])
@pytest.mark.parametrize("devices", [(), ("--virtual_devices", 2)])
def test_figures_agree_with_keras(place, data, devices, capsys):
    flags = ["--rescale", -1, 1, "--val_batch_size", 32, "--runtimes"]
    row = run(place / "my.keras", "--data_path", place / data, *flags, *devices)
    model = keras.models.load_model(place / "my.keras")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    with np.load(place / "digits.npz") as arrays:
        images = arrays["x"].astype(np.float32) * (2 / 255) - 1
        loss, accuracy = model.evaluate(images, arrays["y"], verbose=0)
    assert row.loss == pytest.approx(loss, rel=1e-4)
    assert row.metrics["top1"] == pytest.approx(accuracy)
    assert row.params == model.count_params() and row.flops == model_complexity(model).flops
    assert row.file_size == (place / "my.keras").stat().st_size and row.examples == 70
    out = capsys.readouterr().out
    assert "|      my |" in out and f"{100 * accuracy:.2f} ±" in out and "on 70 examples" in out


def test_latency_is_measured_as_the_file_is_served(place, capsys):
    pytest.importorskip("ai_edge_litert")
    row = run(
        place / "my.keras", "--data_path", place / "digits.npz", "--runtimes", "litert", "--quiet"
    )
    (timing,) = row.latencies.values()
    assert timing["milliseconds"] > 0 and "ms, litert, batch 1, 1 thread" in capsys.readouterr().out


def test_a_run_folder_is_named_after_itself(place, tmp_path):
    folder = RunFolder.create(tmp_path / "rate_0.5", {"arch": "own", "dataset": "arrays"})
    network(softmax).save(folder / "slimmed_param.keras")
    row = run(folder.path, "--data_path", place / "digits.npz", "--runtimes")
    assert row.name == "rate_0.5" and row.examples == 70


def test_a_size_of_images_is_asked_for_where_the_network_leaves_it_open(place, tmp_path):
    entry = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(entry))
    keras.Model(entry, layers.Dense(10)(x)).save(tmp_path / "open.keras")
    arguments = [tmp_path / "open.keras", "--data_path", place / "images", "--runtimes"]
    with pytest.raises(EkgError, match="leaves the size of its images open; .* `image_size`"):
        run(*arguments)
    row = run(*arguments, "--image_size", 6, 5)
    assert row.flops == 4 * 3 * 9 * 4 + 4 * 10
    with pytest.raises(EkgError, match="`image_size` 9 9: the network takes images of 8 x 8"):
        run(place / "my.keras", "--data_path", place / "images", "--image_size", 9, 9)
