"""Weights of examples, classes and places, and classes left out, held against Keras' own losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg import tasks
from ekg.distil import losses
from ekg.errors import EkgError
from ekg.graph.execute import pure_forward, read_variables
from ekg.tasks.weighted import Weighted
from tests.ekg.tasks.test_compiled_loss import (
    DENSE_SHARES,
    FLOATS,
    IMAGES,
    MAPS,
    SHARES,
    K,
    binary,
    model,
)

RNG = np.random.default_rng(1)
NUMBERS = np.arange(20) % 3
VOID = np.where(RNG.random((20, 4, 4)) < 0.3, 255, RNG.integers(0, 3, (20, 4, 4)))
WEIGHTS = RNG.uniform(0, 3, 20).astype(np.float32)
AT_PLACES = RNG.uniform(0, 3, (20, 4, 4)).astype(np.float32)


def sparse(**options):
    return K.SparseCategoricalCrossentropy(from_logits=True, **options)


def categorical():
    return K.CategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("own", "labels", "weights"),
    [
        (model(3, loss=sparse()), NUMBERS, WEIGHTS),
        (model(3, loss=categorical()), SHARES, WEIGHTS[:, None]),
        (model(1, loss=binary()), FLOATS, WEIGHTS),
        (model(3, loss="mse"), SHARES, WEIGHTS),
        (model(3, loss=sparse(), maps=True), VOID % 3, WEIGHTS),
        (model(3, loss=sparse(), maps=True), VOID % 3, AT_PLACES),
        (model(3, loss=categorical(), maps=True), DENSE_SHARES, AT_PLACES),
        (model(1, loss=binary(), maps=True), MAPS, AT_PLACES),
        (model(2, loss="mse", maps=True), MAPS.repeat(2, -1), AT_PLACES),
        (model(3, loss=sparse(ignore_class=255), maps=True), VOID, None),
        (model(3, loss=sparse(ignore_class=0), maps=True), VOID % 3, AT_PLACES),
        (model(3, loss=sparse(ignore_class=-1)), np.where(NUMBERS == 2, -1, NUMBERS), WEIGHTS),
    ],
)
def test_the_loss_equals_keras_evaluate(own, labels, weights):
    data = ekg.make_data(own, (IMAGES, labels, weights))
    assert isinstance(data.task, Weighted)
    function = ekg.Data(labels, IMAGES.__getitem__, weights=weights)
    np.testing.assert_array_equal(ekg.make_data(own, function).train.labels, data.train.labels)
    if weights is not None:  # Keras spreads none over places
        weights = np.broadcast_to(
            weights.reshape(
                20, *weights.shape[1:] if weights.ndim > 2 else (1,) * (len(own.output_shape) - 2)
            ),
            (20, *own.output_shape[1:-1]),
        )
    expected = own.evaluate(IMAGES, labels, sample_weight=weights, batch_size=20, verbose=0)
    made = data.task.loss(tf.constant(data.train.labels), own(IMAGES))
    assert float(tf.reduce_mean(made)) == pytest.approx(np.ravel(expected)[0], rel=1e-4)
    data.task.check_labels(data.train.labels, own.output_shape[1:])


@pytest.mark.parametrize(
    ("own", "labels", "classes"),
    [
        (model(3, loss=sparse()), NUMBERS, NUMBERS),
        (model(3, loss=categorical()), np.eye(3)[NUMBERS], NUMBERS),
        (model(1, loss=binary()), FLOATS, FLOATS),
        (model(3, loss=sparse(), maps=True), VOID % 3, VOID % 3),
    ],
)
def test_the_gradient_with_class_weights_equals_keras(own, labels, classes):
    """In the step before the search and in fine-tuning by labels alone."""
    given = {0: 0.5, 1: 4.0}
    data = ekg.make_data(own, (IMAGES, labels), class_weight=given)
    by_hand = np.vectorize(lambda name: given.get(int(name), 1.0))(classes).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = own.compute_loss(IMAGES, tf.constant(labels), own(IMAGES), tf.constant(by_hand))
    expected = tape.gradient(loss, own.trainable_variables)
    forward, (trainable, rest) = pure_forward(own), read_variables(own)
    batch = {"images": IMAGES, "labels": data.train.labels}
    for loss_fn in (losses.plain(data), losses.fine_tuning(data, "none", 4.0)):
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            made, _ = loss_fn(lambda images: forward(trainable, rest, images, False)[0], batch, ())
        for gradient, other in zip(tape.gradient(made, trainable), expected):
            np.testing.assert_allclose(gradient, other, rtol=1e-3, atol=1e-6)


def test_metrics_ignore_weights_and_leave_out_the_void_class():
    own = model(3, loss=sparse(ignore_class=255), maps=True)
    data = ekg.make_data(own, (IMAGES, VOID, WEIGHTS))
    right = np.asarray(own(IMAGES)).argmax(-1) == VOID
    measured = data.task.measure(tf.constant(data.train.labels), own(IMAGES))["pixel_accuracy"]
    assert float(tf.reduce_mean(measured)) == pytest.approx(right[VOID != 255].mean(), rel=1e-5)
    assert data.task.places((4, 4, 3)) == (4, 4) and data.task.name == "dense classification"


def test_weights_come_in_batches_and_move_with_their_maps():
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, VOID % 3, AT_PLACES)).batch(8)
    own = model(3, loss=sparse(), maps=True)
    data = ekg.make_data(own, batches, augment="flip")
    np.testing.assert_array_equal(data.train.labels[..., 1], AT_PLACES)
    draws = np.full((20, 1, 6), 0.9, np.float32)
    moved = data.fine_tune_labels(
        {"images": IMAGES, "labels": data.train.labels, "draws": tf.constant(draws)}, 0
    )
    np.testing.assert_array_equal(moved[..., 1], AT_PLACES[:, :, ::-1])


def test_a_whole_job_with_weights_has_a_table_of_keras_figures():
    keras.utils.set_random_seed(0)
    own = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, activation="relu"),
            layers.Dense(8, activation="relu"),
            layers.Dense(3),
        ]
    )
    own.compile("adam", sparse(), metrics=["accuracy"])
    table, labels = RNG.normal(size=(90, 6)).astype(np.float32), np.arange(90) % 3
    weights = np.where(labels == 2, 0, 2.0)
    result = ekg.prune(
        own,
        (table, labels, weights),
        validation_data=(table, labels, weights),
        target_rate=0.8,
        epochs=None,
        verbose=False,
        search={"search_step": 1.0},
    )
    loss, accuracy = own.evaluate(table, labels, sample_weight=weights, batch_size=90, verbose=0)
    assert result.table[0].loss == pytest.approx(loss, rel=1e-4)
    assert result.table[0].metrics["top1"] == pytest.approx(accuracy, rel=1e-5)
    result.model.compile("sgd", sparse(), metrics=["accuracy"])
    loss, accuracy = result.model.evaluate(
        table, labels, sample_weight=weights, batch_size=90, verbose=0
    )
    assert result.table[1].loss == pytest.approx(loss, rel=1e-4)
    assert result.table[1].metrics["top1"] == pytest.approx(accuracy, rel=1e-5)


def test_examples_of_an_ignored_class_are_no_examples_of_another():
    own = model(3, loss=sparse(ignore_class=-1))
    labels = np.where(np.arange(20) < 8, -1, NUMBERS)
    strata = ekg.make_data(own, (IMAGES, labels)).strata
    np.testing.assert_array_equal(strata, np.where(labels == -1, 3, labels))


def test_fine_tuning_by_a_function_with_weights_is_keras_fit():
    """A batch is all of the data, so that its order does not matter."""
    tuned, fitted = (model(3, loss=sparse()) for _ in range(2))
    data = ekg.make_data(tuned, ekg.Data(NUMBERS, IMAGES.__getitem__, weights=WEIGHTS))
    options = {"learning_rate": 0.1, "decay_points": (), "weight_decay": 0.0}
    ekg.fine_tune(tuned, data, epochs=3, batch_size=20, **options)
    fitted.compile(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), sparse())
    fitted.fit(IMAGES, NUMBERS, sample_weight=WEIGHTS, batch_size=20, epochs=3, verbose=0)
    for weight, expected in zip(tuned.weights, fitted.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(tuned.weights[0], model(3).weights[0], atol=1e-3)


def two_outputs():
    """A compiled network of two classifications, and labels for both."""
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 2))
    x = layers.Flatten()(image)
    own = keras.Model(image, [layers.Dense(3, name="a")(x), layers.Dense(4, name="b")(x)])
    own.compile("sgd", [sparse(), sparse()])
    return own, [NUMBERS, np.arange(20) % 4]


@pytest.mark.parametrize("form", [list, dict, "batches", "function"])
def test_each_output_may_have_weights_of_its_own(form):
    own, labels = two_outputs()
    weights = [WEIGHTS, WEIGHTS[::-1] ** 2]
    expected = own.evaluate(IMAGES, labels, sample_weight=weights, batch_size=20, verbose=0)
    if form is dict:
        weights, labels = (dict(zip("ba", values[::-1])) for values in (weights, labels))
    data = (IMAGES, labels, weights)
    if form == "batches":
        slices = (IMAGES, tuple(labels), tuple(weights))
        data = tf.data.Dataset.from_tensor_slices(slices).batch(8)
    elif form == "function":
        data = ekg.Data(labels, IMAGES.__getitem__, weights=weights)
    made = ekg.make_data(own, data)
    outputs = made.task.of([tf.convert_to_tensor(output) for output in own(IMAGES)])
    losses_of_each = made.task.loss(tf.constant(made.train.labels), outputs)
    assert float(tf.reduce_mean(losses_of_each)) == pytest.approx(np.ravel(expected)[0], rel=1e-4)


def test_an_output_without_weights_counts_as_it_is():
    own, labels = two_outputs()
    made = ekg.make_data(own, (IMAGES, labels, [None, WEIGHTS]))
    ones = np.ones(20, np.float32)
    weights = [ones, WEIGHTS]
    expected = own.evaluate(IMAGES, labels, sample_weight=weights, batch_size=20, verbose=0)
    losses_of_each = made.task.loss(tf.constant(made.train.labels), made.task.of(own(IMAGES)))
    assert float(tf.reduce_mean(losses_of_each)) == pytest.approx(np.ravel(expected)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ([NUMBERS, NUMBERS], {"c": WEIGHTS}, "`weights`: .* has no output 'c'; it has"),
        ([NUMBERS, NUMBERS], [WEIGHTS], "`weights` has 1 entries, and .* has 2 outputs"),
        ([NUMBERS, None], [None, WEIGHTS], "of `data`: output 'b' has no labels; leave its"),
        ([NUMBERS, NUMBERS], {"a": WEIGHTS[:7]}, "has weights of shape .7,. and 20 labels"),
        (None, WEIGHTS, "weights belong to labels, and there are no labels"),
    ],
)
def test_weights_that_fit_no_labels_are_refused(labels, weights, message):
    data = ekg.Data(labels, IMAGES.__getitem__, count=20, weights=weights)
    with pytest.raises(EkgError, match=message) as error:
        ekg.make_data(two_outputs()[0], data)
    assert "\n" not in str(error.value)


class Own(tasks.Classification):
    """A task of a user's own."""


@pytest.mark.parametrize(
    ("own", "labels", "weights", "options", "message"),
    [
        (model(3), NUMBERS, -WEIGHTS, {}, "must be finite numbers from 0 on"),
        (model(3), NUMBERS, 0 * WEIGHTS, {}, "are all 0"),
        (model(3), NUMBERS, WEIGHTS[:7], {}, "has weights of shape .7,. and 20 labels"),
        (model(3), NUMBERS, AT_PLACES, {}, "have shape .20, 4, 4., and .20,. or .20,. is needed"),
        (model(3), NUMBERS, WEIGHTS, {"class_weight": {0: 2.0}}, "exclude each other"),
        (
            model(3),
            NUMBERS,
            None,
            {"class_weight": [1, 2, 3]},
            "must be a dict .class number: weight.",
        ),
        (
            model(3),
            NUMBERS,
            None,
            {"class_weight": {0: -1.0}},
            "must be a dict .class number: weight.",
        ),
        (
            model(3),
            NUMBERS,
            None,
            {"class_weight": {1: 1.0, 3: 2.0}},
            "names the class 3, and there are 3, from 0 to 2",
        ),
        (
            model(1, "sigmoid"),
            FLOATS.astype(int),
            None,
            {"class_weight": {2: 2.0}},
            "names the class 2, and there are 2",
        ),
        (
            model(3),
            NUMBERS,
            None,
            {"class_weight": dict.fromkeys(range(3), 0.0)},
            "all have a weight of 0",
        ),
        (
            model(3, loss="mse"),
            SHARES,
            None,
            {"class_weight": {0: 2.0}},
            "`class_weight` is for classes",
        ),
        (
            model(3),
            NUMBERS,
            WEIGHTS,
            {"task": Own()},
            "a classification of your own weighs its labels itself",
        ),
        (
            model(3, loss=sparse(ignore_class=255), maps=True),
            np.full((20, 4, 4), 255),
            None,
            {},
            "all are of the class 255",
        ),
        (
            model(3),
            NUMBERS,
            WEIGHTS,
            {"augment": lambda images, labels, seed: (images, labels)},
            "carry weights",
        ),
    ],
)
def test_meaningless_weights_are_refused(own, labels, weights, options, message):
    with pytest.raises(EkgError, match=message) as error:
        ekg.make_data(own, (IMAGES, labels, weights), **options)
    assert "\n" not in str(error.value)
