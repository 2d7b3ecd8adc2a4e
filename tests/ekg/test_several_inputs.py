"""A network of several inputs in every phase, against Keras' own fit, evaluate and predict."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.data.inputs import rows_of
from ekg.errors import EkgError
from ekg.train.evaluate import evaluate
from tests.helpers.digits import QUICK, two_inputs, with_numbers
from tests.helpers.models import randomise_

INPUTS, LABELS = with_numbers()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, optimizer="sgd"):
    model.compile(optimizer, LOSS, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def network():
    return two_inputs()


@pytest.fixture(scope="module")
def data(network):
    return ekg.make_data(network, (INPUTS, LABELS))


def test_an_evaluation_equals_keras_evaluate(network, data):
    loss, accuracy = compiled(network).evaluate(INPUTS, LABELS, verbose=0)
    found = evaluate(network, data.batches(data.train, 50))
    assert found.loss == pytest.approx(loss, rel=1e-4) and found.top1 == pytest.approx(accuracy)


@pytest.mark.parametrize("as_dict", [True, False])
def test_a_step_of_fine_tuning_is_a_step_of_fit(as_dict):
    """All examples are one batch, whose order does not count."""
    model, expected = two_inputs(as_dict), two_inputs(as_dict)
    given = INPUTS if as_dict else [INPUTS["image"], INPUTS["columns"]]
    keras.utils.set_random_seed(0)
    compiled(expected, keras.optimizers.SGD(0.1)).fit(
        given, LABELS, batch_size=120, epochs=2, verbose=0
    )
    ekg.fine_tune(
        model,
        ekg.make_data(model, (INPUTS, LABELS)),
        epochs=2,
        batch_size=120,
        optimizer=keras.optimizers.SGD(0.1),
        schedule=lambda epoch: 0.1,
    )
    for mine, other in zip(model.trainable_weights, expected.trainable_weights, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=1e-5, err_msg=mine.path)


def test_the_search_and_the_bank_use_the_networks_own_outputs(network, data, tmp_path):
    """Batch norms use the statistics of a batch, as in a training pass."""
    supernet = ekg.Supernet(network)
    result = ekg.search(supernet, data, target_rate=0.7, val_per_class=4, search_step=0.5)
    val = data.last_of_each_class(4, 0)
    outputs = two_inputs()(val.read(np.arange(len(val))), training=True)
    assert result.history[0].loss == pytest.approx(float(LOSS(val.labels, outputs)), rel=1e-4)
    assert supernet.rate(result.subnetwork) == result.history[-1].rate <= 0.7

    bank = ekg.build_bank(
        tmp_path / "bank", supernet, result.history[:1], data, num_teacher=1, search_batch_size=120
    )
    expected = two_inputs()(INPUTS, training=True)
    np.testing.assert_allclose(bank.rows(np.arange(120))[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_masked_cut_and_repaired_networks_agree(network):
    supernet = ekg.Supernet(network)
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    cut = supernet.cut(half)
    expected = supernet.logits(INPUTS, half, training=False)
    np.testing.assert_allclose(cut.predict(INPUTS, verbose=0), expected, rtol=1e-4, atol=1e-5)

    def distance(model):
        return np.mean((model(INPUTS, training=True) - two_inputs()(INPUTS, training=True)) ** 2)

    repaired = [
        ekg.repair(supernet, half, given)
        for given in (INPUTS, (INPUTS["columns"], INPUTS["image"]))
    ]
    assert distance(repaired[0]) < distance(cut)
    for mine, other in zip(*(model.get_weights() for model in repaired), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(EkgError, match="`images` has .120, 60. examples in the inputs .'columns'"):
        ekg.repair(supernet, half, {"columns": INPUTS["columns"], "image": INPUTS["image"][:60]})


@pytest.mark.rehearsed
def test_the_whole_job_resumes_reports_and_exports(tmp_path):
    model = two_inputs()
    softmax = keras.Model(model.input, layers.Softmax(name="shares")(model.output), name="shares")
    options = {"target_rate": 0.6, "epochs": 1, "augment": "flip", "run_dir": tmp_path / "run"}
    run = {"runtimes": ("litert",), "exports": ("int8",)}
    options |= QUICK | {"bank": {"num_teacher": 2}, "run": run}
    given = INPUTS, LABELS
    result = ekg.prune(softmax, given, validation_data=given, **options)
    loss, accuracy = _with_shares(result.model).evaluate(*given, verbose=0)
    assert result.table[-1].loss == pytest.approx(loss, rel=1e-3)
    assert result.table[-1].top1 == pytest.approx(accuracy) and result.rate <= 0.6
    assert all(timing["milliseconds"] > 0 for timing in result.table[-1].latencies.values())

    again = ekg.prune(softmax, given, validation_data=given, **options)
    assert again.table == result.table
    with pytest.raises(EkgError, match="\n  data: .*'sample'"):
        other = INPUTS | {"columns": INPUTS["columns"] + 1}
        ekg.prune(softmax, (other, LABELS), validation_data=given, **options)

    for name in ("pruned.tflite", "pruned.onnx"):
        export = result.export(tmp_path / name)
        assert export.inputs == ["columns", "image"] and export.share < 1e-4
        assert export.agreement == 1 and export.examples == 256
    outputs = export.reader.run([INPUTS["columns"], INPUTS["image"]])
    np.testing.assert_allclose(outputs[0], result.model.predict(INPUTS, verbose=0), atol=1e-5)


def _with_shares(model):
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_the_inspection_of_the_data_narrows_each_group(network):
    found = ekg.inspect(network, (INPUTS, LABELS), search={"val_per_class": 4})
    assert [group.name for group in found.groups] == ["one", "two", "dense"]
    assert "Loss on 40 examples" in str(found)


# ---------------------------------------------------------------- views

DRAWS = np.full((120, 1, 6), 0.5, np.float32)
FLIPS = np.arange(120) % 3 == 0
DRAWS[:, 0, 3] = np.where(FLIPS, 0.9, 0.1)


def seen_by(model, augment, inputs=INPUTS):
    data = ekg.make_data(model, (inputs, LABELS), augment=augment)
    batch = {"images": inputs, "labels": LABELS, "draws": tf.constant(DRAWS)}
    return data.fine_tune_view(batch, 0)


@pytest.mark.parametrize("augment", ["flip", {"image": "flip"}])
def test_a_view_moves_the_image_and_leaves_the_numbers(network, augment):
    seen = seen_by(network, augment)
    flipped = np.where(FLIPS[:, None, None, None], INPUTS["image"][:, :, ::-1], INPUTS["image"])
    np.testing.assert_array_equal(seen["image"], flipped)
    np.testing.assert_array_equal(seen["columns"], INPUTS["columns"])


def test_all_images_move_alike_unless_some_are_named():
    left, right = keras.Input((8, 8, 1), name="left"), keras.Input((8, 8, 1), name="right")
    x = layers.Conv2D(4, 3, activation="relu")(layers.Concatenate()([left, right]))
    model = keras.Model([left, right], layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    images = INPUTS["image"]
    given = [images, images + 1]
    both, one = seen_by(model, "flip", given), seen_by(model, {"right": "flip"}, given)
    np.testing.assert_allclose(both[0] + 1, both[1], rtol=1e-6)
    assert not np.array_equal(both[0], images)
    np.testing.assert_array_equal(one[0], images)
    np.testing.assert_array_equal(one[1], both[1])


def noisy(inputs, seed):
    noise = tf.random.stateless_normal(tf.shape(inputs["columns"]), seed)
    return {"image": inputs["image"], "columns": inputs["columns"] + noise}


def test_a_function_gets_and_returns_the_structure(network):
    seen = seen_by(network, noisy)
    seed = tf.bitcast(tf.constant(DRAWS[0, 0, :2]), tf.int32)
    noise = tf.random.stateless_normal((120, 8), seed)
    np.testing.assert_allclose(seen["columns"], INPUTS["columns"] + noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen["image"], INPUTS["image"])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"rows": "flip"}, "`augment` names the inputs .'rows'., and the network takes .'columns'"),
        ({}, "`augment` names the inputs .., and the network takes"),
        ({"columns": "flip"}, "and input 'columns' has the shape .8,.; name others"),
        ({"image": "turn"}, "`augment` must give all inputs that it names the same one of"),
        (
            lambda inputs, seed: noisy(inputs, seed)["image"],
            "must return all of them in this struc",
        ),
        (lambda inputs, seed: inputs, "`augment` makes the same view for every seed"),
        (
            lambda inputs, seed: noisy(inputs, seed) | {"image": inputs["image"][:, :4]},
            "`augment` makes .8, 4, 8, 1. of images of shape .8, 8, 8, 1.",
        ),
    ],
)
def test_views_that_do_not_fit_are_refused(network, augment, message):
    with pytest.raises(EkgError, match=message) as error:
        ekg.make_data(network, (INPUTS, LABELS), augment=augment)
    assert "\n" not in str(error.value)


def test_a_view_of_a_network_without_images_is_refused():
    inputs = [keras.Input((8,), name="a"), keras.Input((8,), name="b")]
    x = layers.Dense(6, activation="relu")(layers.Concatenate()(inputs))
    model = keras.Model(inputs, layers.Dense(10)(x))
    given = [INPUTS["columns"], INPUTS["columns"]]
    with pytest.raises(
        EkgError, match="moves images and volumes, and the network takes ..8,., .8,"
    ):
        ekg.make_data(model, (given, LABELS), augment="flip")


# ---------------------------------------------------------------- texts, subclassed networks


@pytest.mark.rehearsed
def test_networks_of_texts_are_pruned_on_raw_strings(tmp_path):
    """The network makes numbers of them, which a SavedModel of it does, too."""
    words = np.array(["zero", "one", "two", "few", "many"])
    texts = np.array([" ".join(words[[label % 5, label // 5]]) for label in LABELS])
    vectors = layers.TextVectorization(output_sequence_length=3)
    vectors.adapt(texts)
    text, columns = keras.Input((), dtype="string", name="text"), keras.Input((8,), name="columns")
    x = layers.Conv1D(6, 2, activation="relu")(layers.Embedding(9, 5)(vectors(text)))
    x = layers.Concatenate()([layers.GlobalMaxPooling1D()(x), columns])
    model = randomise_(keras.Model([text, columns], layers.Dense(10, name="fc")(x), name="texts"))
    given = [texts, INPUTS["columns"]]
    batched = tf.data.Dataset.from_tensor_slices((tuple(given), LABELS)).batch(32)
    options = QUICK | {"target_rate": 0.6, "epochs": None, "run": {"runtimes": ()}}
    result = ekg.prune(model, batched, validation_data=(given, LABELS), **options)
    tensors = list(map(tf.constant, given))
    loss, _ = compiled(result.model).evaluate(tensors, LABELS, verbose=0)
    assert result.table[-1].loss == pytest.approx(loss, rel=1e-3) and result.rate <= 0.6
    export = result.export(tmp_path / "texts")
    assert export.share < 1e-4 and export.inputs == ["text", "columns"]


class Both(keras.Model):
    """A subclassed network of a dict of inputs."""

    def __init__(self):
        super().__init__(name="both")
        self.convolution = layers.Conv2D(6, 3, activation="relu")
        self.pool, self.dense = layers.GlobalAveragePooling2D(), layers.Dense(6, activation="relu")
        self.join, self.head = layers.Concatenate(), layers.Dense(10)

    def call(self, inputs):
        image = self.pool(self.convolution(inputs["image"]))
        return self.head(self.join([image, self.dense(inputs["columns"])]))


def test_a_subclassed_network_takes_its_own_structure():
    model = Both()
    expected = model(rows_of(INPUTS, slice(8)))
    options = QUICK | {"target_rate": 0.6, "epochs": None, "run": {"runtimes": ()}}
    result = ekg.prune(model, (INPUTS, LABELS), **options)
    assert sorted(result.model.input) == ["columns", "image"] and result.rate <= 0.6
    np.testing.assert_array_equal(model(rows_of(INPUTS, slice(8))), expected)
    found = ekg.inspect(model, (INPUTS, LABELS), search={"val_per_class": 4})
    assert [group.name for group in found.groups] == [
        group.name for group in found.sensitivity.groups
    ]
