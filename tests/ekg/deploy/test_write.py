"""Exports, each read back by its own runtime."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.deploy import format, packages
from ekg.errors import EkgError
from tests.helpers.models import make_tiny_resnet, randomise_

EXAMPLES = np.random.default_rng(0).normal(size=(128, 8, 8, 3)).astype(np.float32)
FILES = {"keras": "a.keras", "saved_model": "model", "litert": "a.tflite", "onnx": "a.onnx"}


def make_two_outputs():
    entry, beside = keras.Input((8, 8, 3), name="picture"), keras.Input((4,), name="beside")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(entry)))
    joined = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), beside])
    return randomise_(
        keras.Model(
            [beside, entry], {"which": layers.Dense(5)(joined), "map": layers.Conv2D(2, 1)(x)}
        )
    )


@pytest.fixture(scope="module")
def pruned():
    supernet = ekg.Supernet(make_tiny_resnet())
    return supernet.cut(
        supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    )


@pytest.mark.parametrize("form", FILES)
def test_every_format_computes_the_same_outputs_as_the_network(pruned, tmp_path, form):
    result = ekg.export(pruned, tmp_path / "new" / FILES[form], examples=EXAMPLES)
    assert (
        result.format == form
        and result.path == tmp_path / "new" / FILES[form]
        and result.path.exists()
    )
    assert (
        result.examples == 128
        and result.difference < 1e-5
        and result.agreement == 1
        and result.batch == "any"
    )
    assert result.inputs == [pruned.inputs[0]._keras_history.operation.name] and result.outputs == [
        "output_0"
    ]
    assert result.size > 1000 and f"{result.size:,} bytes" in str(result)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILES[form]]
    expected = np.asarray(pruned(EXAMPLES[:5], training=False))
    np.testing.assert_allclose(result.reader.run([EXAMPLES[:5]])[0], expected, atol=1e-5)


@pytest.mark.parametrize("form", FILES)
def test_inputs_and_outputs_keep_their_names_and_places(tmp_path, form):
    model = make_two_outputs()
    result = ekg.export(model, tmp_path / FILES[form])
    assert result.inputs == ["beside", "picture"] and result.outputs == ["map", "which"]
    assert result.difference < 1e-5
    arrays = [np.ones((2, 4), np.float32), EXAMPLES[:2]]
    expected = model(arrays, training=False)
    for name, value in zip(result.outputs, result.reader.run(arrays)):
        np.testing.assert_allclose(value, np.asarray(expected[name]), atol=1e-5)


@pytest.mark.parametrize(
    ("quantize", "share"), [("float16", 0.01), ("dynamic", 0.1), ("int8", 0.1)]
)
def test_quantised_files_are_close(pruned, tmp_path, quantize, share):
    result = ekg.export(pruned, tmp_path / "a.tflite", quantize=quantize, examples=EXAMPLES)
    assert result.quantize == quantize and 0 < result.difference < share * result.largest
    if quantize == "int8":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(tmp_path / "a.tflite"))
        entries = [*interpreter.get_input_details(), *interpreter.get_output_details()]
        assert {entry["dtype"] for entry in entries} == {np.int8} and result.examples == 64


def test_a_litert_file_holds_no_tensorflow_operators(tmp_path):
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, keras.ops.erfinv(0.1 * layers.Conv2D(2, 3)(entry)))
    for ask in (
        lambda: ekg.export(model, tmp_path / "a.tflite"),
        lambda: ekg.measure_latency({"a": model}, "litert"),
    ):
        with pytest.raises(
            EkgError, match=r"LiteRT cannot take it \(it has no operator for Erfinv\)"
        ):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["saved_model", "litert", "onnx"])
def test_a_file_that_computes_something_else_is_not_kept(pruned, tmp_path, monkeypatch, form):
    """The format writes another network; the earlier file stays."""
    path = tmp_path / FILES[form]
    ekg.export(pruned, path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    real = format.fold_batch_norms
    monkeypatch.setattr(
        format, "fold_batch_norms", lambda model, shape: randomise_(real(model, shape), seed=5)
    )
    with pytest.raises(
        EkgError, match="differs by .* of it is allowed .`tolerance`.. The file is not kept"
    ):
        ekg.export(pruned, path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.pb",
            {},
            r"`path` .*a.pb: unknown ending; known are .keras \(keras\), no ending "
            r"\(saved_model\), .tflite",
        ),
        (
            "a.keras",
            {"format": "tflite"},
            r"`format` must be one of \['keras', 'saved_model', 'litert', 'onnx'\]",
        ),
        ("a.keras", {"format": "onnx"}, "a file of the format onnx ends with .onnx"),
        (
            "a.onnx",
            {"quantize": "int8", "examples": EXAMPLES},
            "`quantize` int8 has no effect here: the format onnx",
        ),
        ("a.tflite", {"quantize": "int4"}, "`quantize` must be one of"),
        ("a.tflite", {"quantize": "int8"}, "`examples` are needed for `quantize` int8"),
        (
            "a.tflite",
            {"quantize": "int8", "examples": EXAMPLES[:100]},
            "100 are too few; at least 128 are needed",
        ),
        ("a.tflite", {"examples": EXAMPLES[:10]}, "10 are too few; at least 64 are needed"),
        (
            "a.tflite",
            {"examples": EXAMPLES[..., :2]},
            r"`examples` have the shape .*, and the network takes \(None, 8, 8, 3\)",
        ),
        (
            "a.tflite",
            {"examples": [EXAMPLES, EXAMPLES]},
            "`examples` has 2 inputs per example, and the network takes one",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_files(pruned, tmp_path, name, options, message):
    with pytest.raises(EkgError, match=message):
        ekg.export(pruned, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_number_is_no_path(pruned):
    with pytest.raises(EkgError, match="`path` must be a path; received 3"):
        ekg.export(pruned, 3)


def test_a_folder_of_something_else_is_left_alone(pruned, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EkgError, match="is a folder with other files; name another"):
        ekg.export(pruned, tmp_path)
    with pytest.raises(EkgError, match="is a file, and a SavedModel is a folder"):
        ekg.export(pruned, tmp_path / "thesis.txt", format="saved_model")
    assert (tmp_path / "thesis.txt").read_text() == "years of work" and len(
        list(tmp_path.iterdir())
    ) == 1


@pytest.mark.parametrize("package", ["ai-edge-litert", "tf2onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(pruned, tmp_path, monkeypatch, package):
    monkeypatch.setitem(packages.MODULES, package, "a_package_that_nobody_has")
    path = tmp_path / FILES["litert" if package == "ai-edge-litert" else "onnx"]
    with pytest.raises(
        EkgError,
        match=f"{package} is not installed; install the packages for exports with: pip install "
        "'ekg",
    ):
        ekg.export(pruned, path)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_weights_are_refused_where_the_format_takes_none(tmp_path):
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, layers.Conv2D(2, 3, dtype="bfloat16", name="half")(entry))
    for name in ("a.tflite", "a.onnx"):
        with pytest.raises(
            EkgError, match="layer 'half' computes in bfloat16, and .* takes float32 alone"
        ):
            ekg.export(model, tmp_path / name)


def test_a_keras_file_can_be_trained_again(pruned, tmp_path):
    ekg.export(pruned, tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert [layer.name for layer in again.layers] == [layer.name for layer in pruned.layers]
    assert len(again.trainable_weights) == len(pruned.trainable_weights)


def test_a_layer_that_another_program_does_not_know_is_reported(tmp_path):
    class Mine(layers.Layer):
        def call(self, x):
            return 2 * x

    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, Mine()(layers.Conv2D(2, 3)(entry)))
    with pytest.raises(EkgError, match="a Python process with TensorFlow only cannot read it"):
        ekg.export(model, tmp_path / "a.keras")
    assert ekg.export(model, tmp_path / "model").difference < 1e-5  # a graph needs no class
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_saved_model_serves_in_a_process_of_its_own(pruned, tmp_path):
    ekg.export(pruned, tmp_path / "model")
    program = (
        "import sys, json, numpy as np, tensorflow as tf; m = "
        "tf.saved_model.load(sys.argv[1]);print(json.dumps(m.serve(np.ones((2, 8, 8, 3), "
        "np.float32)).numpy().tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = np.asarray(pruned(np.ones((2, 8, 8, 3), np.float32), training=False))
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_a_network_of_any_size_is_compared_at_the_size_of_the_examples(tmp_path, name):
    entry = keras.Input((None, None, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3)(entry))
    model = randomise_(keras.Model(entry, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))))
    with pytest.raises(
        EkgError, match="`examples` are needed: `model` .* takes inputs of any size"
    ):
        ekg.export(model, tmp_path / name)
    result = ekg.export(model, tmp_path / name, examples=EXAMPLES)
    larger = np.random.default_rng(1).normal(size=(2, 12, 10, 3)).astype(np.float32)
    np.testing.assert_allclose(
        result.reader.run([larger])[0], np.asarray(model(larger, training=False)), atol=1e-5
    )
