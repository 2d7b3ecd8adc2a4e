"""`ekg evaluate`: figures of a network on a user's own data."""

import keras
import numpy as np
import pytest
from keras import layers

from ekg.commands import console, evaluate
from ekg.errors import EkgError
from ekg.graph.complexity import model_complexity
from ekg.run.folder import RunFolder
from tests.helpers.digits import as_folder, digits, network, softmax, two_inputs, with_numbers


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


def test_the_row_of_a_run_folder_has_the_folders_name(place, tmp_path):
    folder = RunFolder.create(tmp_path / "rate_0.5", {"arch": "own", "dataset": "arrays"})
    network(softmax).save(folder / "slimmed_param.keras")
    row = run(folder.path, "--data_path", place / "digits.npz", "--runtimes")
    assert row.name == "rate_0.5" and row.examples == 70


def test_an_image_size_is_required_if_the_network_leaves_it_open(place, tmp_path):
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


# ---------------------------------------------------------------- several inputs


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Folder with a network of two inputs, and an .npz with an array per input and the labels."""
    folder = tmp_path_factory.mktemp("several")
    two_inputs().save(folder / "two.keras")
    inputs, labels = with_numbers(70)
    grey_levels = np.round(inputs["image"] * 255).astype(np.uint8)
    np.savez(folder / "digits.npz", **inputs | {"image": grey_levels}, y=labels)
    return folder


def test_named_arrays_are_evaluated_as_keras_does(several, capsys):
    """--rescale is of the images alone; two devices share every batch."""
    flags = ["--rescale", 0, 1, "--val_batch_size", 32, "--virtual_devices", 2]
    path = several / "two.keras"
    row = run(path, "--data_path", several / "digits.npz", *flags)
    model = keras.models.load_model(path)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    with np.load(several / "digits.npz") as arrays:
        images = arrays["image"].astype(np.float32) / 255
        given = {"columns": arrays["columns"], "image": images}
        loss, accuracy = model.evaluate(given, arrays["y"], verbose=0)
    assert row.loss == pytest.approx(loss, rel=1e-4)
    assert row.metrics["top1"] == pytest.approx(accuracy) and row.flops == 33_084
    assert len(row.latencies) == 2 and "on 70 examples" in capsys.readouterr().out


def test_missing_arrays_are_named_in_one_line(several, place, tmp_path):
    path = several / "two.keras"
    with pytest.raises(
        EkgError, match=r"holds \['x', 'y'\]; it needs the arrays columns, image, the network's inp"
    ):
        run(path, "--data_path", place / "digits.npz")
    with pytest.raises(EkgError, match="is no .npz file; it needs one with the arrays columns"):
        run(path, "--data_path", place / "images")
    with pytest.raises(EkgError, match="there is no plain file of that name"):
        run(path, "--data_path", tmp_path / "none.npz")
    with pytest.raises(EkgError, match="`image_size` 9 9: the network takes images of 8 x 8"):
        run(path, "--data_path", several / "digits.npz", "--image_size", 9, 9)
    x, y = keras.Input((8,), name="x"), keras.Input((8,), name="y")
    keras.Model([x, y], layers.Dense(10)(layers.Add()([x, y]))).save(tmp_path / "y.keras")
    with pytest.raises(EkgError, match="needs the arrays x, x_y, the network's inputs, and y, l"):
        run(tmp_path / "y.keras", "--data_path", several / "digits.npz")


def test_an_input_may_have_the_name_of_labels(tmp_path):
    x, y = keras.Input((8,), name="x"), keras.Input((8,), name="y")
    keras.Model([x, y], layers.Dense(10)(layers.Subtract()([x, y]))).save(tmp_path / "y.keras")
    model = keras.models.load_model(tmp_path / "y.keras")
    first, second, labels = np.eye(8), np.ones((8, 8)), np.arange(8)
    np.savez(tmp_path / "y.npz", x=first, x_y=second, y=labels)
    row = run(tmp_path / "y.keras", "--data_path", tmp_path / "y.npz", "--runtimes")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert row.loss == pytest.approx(float(loss(labels, model([first, second]))), rel=1e-5)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Folder with a network of two outputs, and arrays for it."""
    folder = tmp_path_factory.mktemp("outputs")
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Dense(8, activation="relu")(layers.Flatten()(image))
    heads = [layers.Dense(10, name="digit")(x), layers.Dense(1, name="mean")(x)]
    keras.Model(image, heads).save(folder / "two.keras")
    images, labels = digits(70)
    return folder, {"x": images, "y_digit": labels, "y_mean": images.mean((1, 2, 3))}


def test_every_output_has_its_labels(outputs):
    folder, arrays = outputs
    np.savez(folder / "both.npz", **arrays)
    row = run(folder / "two.keras", "--data_path", folder / "both.npz", "--runtimes")
    model = keras.models.load_model(folder / "two.keras")
    logits, mean = model(arrays["x"])
    right = np.argmax(logits, axis=1) == arrays["y_digit"]
    error = np.abs(mean[:, 0] - arrays["y_mean"])
    assert row.metrics["digit/top1"] == pytest.approx(right.mean())
    assert row.metrics["mean/mae"] == pytest.approx(error.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"y_digit": None, "y_mean": None},
            "arrays x, images, and y, labels, or one or more of y_d",
        ),
        ({"y_wrong": np.zeros(70)}, "the network has no output for y_wrong, but digit, mean.$"),
        ({"y": np.zeros(70)}, "y and y_digit exclude each other.$"),
    ],
)
def test_labels_that_fit_no_output_are_refused(outputs, tmp_path, change, message):
    folder, arrays = outputs
    arrays = {key: array for key, array in (arrays | change).items() if array is not None}
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(EkgError, match=message) as caught:
        run(folder / "two.keras", "--data_path", tmp_path / "wrong.npz")
    assert "\n" not in str(caught.value)


def test_networks_of_several_inputs_are_inspected_pruned_and_exported(several, tmp_path, capsys):
    path, data = several / "two.keras", several / "digits.npz"
    console.run("inspect", [str(path), "--data_path", str(data)])
    assert "Loss on 70 examples" in capsys.readouterr().out
    arguments = [path, "--data_path", data, "--search_only", "--train_path", tmp_path / "run"]
    arguments += ["--target_rate", 0.7, "--val_per_class", 2, "--subset_per_class", 2, "--quiet"]
    console.run("prune", list(map(str, [*arguments, "--runtimes"])))
    out = tmp_path / "pruned.keras"
    arguments = [tmp_path / "run", "--out", out, "--data_path", data]
    console.run("export", list(map(str, arguments)))
    printed = capsys.readouterr().out
    assert "columns, image -> output_0" in printed and "70 training examples" in printed
    assert keras.models.load_model(out).count_params() < two_inputs().count_params()
