"""What a network was compiled with says what its labels are, held against Keras' own evaluate."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg import tasks
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.graph.heads import without_head
from ekg.pruning import understand
from ekg.tasks.choice import choose_task

RNG = np.random.default_rng(0)
K = keras.losses
IMAGES = RNG.random((20, 4, 4, 2)).astype(np.float32)
SHARES = RNG.dirichlet(np.ones(3), 20).astype(np.float32)
FLOATS = (np.arange(20) % 2).astype(np.float32)


RNN = layers.SimpleRNN(1, activation="sigmoid")  # in every step, so it is no head


def model(units=3, activation=None, loss=None, maps=False, metrics=()):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(5, 1, activation="relu")(inputs)
    if maps:
        output = layers.Conv2D(units, 1, activation=activation)(x)
    else:
        output = layers.Dense(units, activation=activation)(layers.Flatten()(x))
    made = keras.Model(inputs, output)
    if loss is not None:
        made.compile("sgd", loss, metrics=list(metrics))
    return made


def binary(**options):
    return K.BinaryCrossentropy(from_logits=True, **options)


MAPS = RNG.integers(0, 2, (20, 4, 4, 1)).astype(np.float32)
DENSE_SHARES = RNG.dirichlet(np.ones(3), (20, 4, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("own", "labels", "expected"),
    [
        (model(1, loss=binary()), FLOATS, tasks.MultiLabel),
        (model(1, loss=binary(), maps=True), MAPS, tasks.DenseMultiLabel),
        (
            model(1, "sigmoid", K.BinaryFocalCrossentropy(), maps=True),
            MAPS[..., 0],
            tasks.DenseMultiLabel,
        ),
        (model(3, loss=binary()), np.eye(3)[np.arange(20) % 3], tasks.MultiLabel),
        (model(2, "softmax", "sparse_categorical_crossentropy"), FLOATS > 0, tasks.Classification),
        (model(1, loss="mse"), FLOATS, tasks.Regression),
        (model(1, loss="huber"), FLOATS.astype(int), tasks.Regression),
        (model(1, "sigmoid", "mse"), FLOATS, tasks.Regression),
        (model(3, loss=K.MeanSquaredError()), SHARES, tasks.Regression),
        (model(3, "softmax", "mse"), SHARES, tasks.Regression),
        (model(3, loss=K.CategoricalCrossentropy(from_logits=True)), SHARES, tasks.Classification),
        (model(3, "softmax", "kl_divergence"), SHARES, tasks.Classification),
        (
            model(3, loss=K.CategoricalCrossentropy(from_logits=True), maps=True),
            DENSE_SHARES,
            tasks.DenseClassification,
        ),
        (model(3, "softmax", [K.categorical_crossentropy]), SHARES, tasks.Classification),
        (model(3, "softmax"), SHARES, tasks.Classification),
        (model(1, "sigmoid", maps=True), MAPS, tasks.DenseMultiLabel),
        (model(1, maps=True), MAPS.astype(int), tasks.DenseMultiLabel),
    ],
)
def test_the_compiled_loss_decides_and_then_output_and_labels(own, labels, expected):
    assert type(choose_task("auto", Graph(own), labels)) is expected


def test_the_loss_of_a_loaded_network_decides(tmp_path):
    model(1, loss=binary()).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(choose_task("auto", Graph(loaded), FLOATS)) is tasks.MultiLabel


class Doubled(K.BinaryCrossentropy):
    def call(self, y_true, y_pred):
        return 2 * super().call(y_true, y_pred)


def own_loss(labels, outputs):
    return keras.ops.abs(labels - outputs)


@pytest.mark.parametrize(
    ("own", "labels", "message"),
    [
        (model(1, loss=Doubled(from_logits=True)), FLOATS, "changed by a class of your own"),
        (model(1, loss=own_loss), FLOATS.astype(int), "with the loss 'own_loss', which is unknown"),
        (model(1, "tanh", "hinge"), 2 * FLOATS - 1, "with the loss 'hinge', which is unknown"),
        (model(1, "sigmoid", K.Dice(), maps=True), MAPS, "with the loss 'dice', which is unknown"),
    ],
)
def test_a_loss_that_training_does_not_use_is_named(own, labels, message, caplog):
    choose_task("auto", Graph(own), labels)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert message in record.getMessage() and "use the loss of a" in record.getMessage()


class Subclassed(keras.Model):
    """Has a call() and a train_step() of its own."""

    def __init__(self, units=1):
        super().__init__()
        self.conv = layers.Conv2D(5, 1, activation="relu")
        self.flat = layers.Flatten()
        self.fc = layers.Dense(units)

    def call(self, inputs):
        return self.fc(self.flat(self.conv(inputs)))

    def train_step(self, data):
        return super().train_step(data)


@pytest.mark.parametrize(
    ("loss", "labels", "units"),
    [
        (binary(), FLOATS, 1),
        (K.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0), np.arange(20) % 3, 3),
    ],
)
def test_the_loss_of_a_subclassed_network_decides_and_stays(loss, labels, units, caplog):
    own = Subclassed(units)
    own(IMAGES)
    own.compile("sgd", loss)
    data, logits, *_ = understand(
        own, (IMAGES, labels), {"task": "auto", "may_lose": ()}, {}, {}, True
    )
    mean = float(tf.reduce_mean(data.task.loss(data.train.labels, own(IMAGES))))
    assert mean == pytest.approx(own.evaluate(IMAGES, labels, batch_size=20, verbose=0), rel=1e-4)
    supernet = ekg.Supernet(logits)
    assert supernet.cut(supernet.smallest()).compiled
    assert "has a train_step() of its own" in caplog.text


TWO = "independent yes-or-no labels .`task`=.multi_label..* or numbers .`task`=.regression.."


@pytest.mark.parametrize(
    ("own", "labels", "message"),
    [
        (model(1), FLOATS, TWO),
        (model(1), FLOATS[:, None], TWO),
        (model(1), 0.05 + 0.9 * FLOATS, TWO),
        (model(1, loss=lambda y, z: (y - z) ** 2), FLOATS, TWO),  # a function of a user's own
        (model(3, "sigmoid"), SHARES, TWO),
        (model(3), SHARES, "class probabilities .`task`=.classification..* or numbers"),
        (
            model(3, maps=True),
            DENSE_SHARES,
            "class probabilities at each position .*dense_classification.* or numbers",
        ),
        (
            model(1, maps=True),
            MAPS,
            "yes-or-no labels at each position .`task`=.dense_multi_label..* or numbers",
        ),
        (
            model(1, "sigmoid", maps=True),
            0.3 * MAPS,
            "yes-or-no labels at each position .* or numbers",
        ),
        (
            model(
                4, loss=K.CategoricalCrossentropy(from_logits=True, axis=1), maps=True
            ),  # of 4 x 4 places
            np.moveaxis(np.eye(4)[np.zeros((20, 4, 4), int)], -1, 1),
            "of axis 1, and a search needs the classes along the last axis",
        ),
        (
            model(3, "sigmoid", "categorical_crossentropy"),
            SHARES,
            "ends with a sigmoid and was compiled with cat",
        ),
        (
            keras.Sequential([model(3, "softmax"), layers.Activation("linear")]),
            np.arange(20) % 3,
            "holds probabilities of classes, and its last layer is no softmax",
        ),
        (
            keras.Sequential([model(3, "softmax", maps=True), layers.Reshape((16, 3))]),
            np.zeros((20, 16), int),
            "holds probabilities of classes, and its last layer is no softmax",
        ),
        (
            model(3, "softmax", "sparse_categorical_crossentropy"),
            np.where(np.arange(20) == 7, np.nan, 1.0),
            "labels of `data` are not finite, NaN or infinite, the first in example 7 of 20",
        ),
        (
            model(1, loss=binary(), maps=True),
            np.where(MAPS == MAPS[9, 0, 0, 0], np.nan, MAPS),
            "labels of `data` are not finite",
        ),
        (
            model(2, "softmax", "binary_crossentropy"),
            np.eye(2)[np.arange(20) % 2],
            "softmax and was compiled with bi",
        ),
        (
            model(3, loss="sparse_categorical_crossentropy"),
            np.arange(20) % 3,
            "its last layer is no softmax",
        ),
        (model(1, "hard_sigmoid", "binary_crossentropy"), FLOATS, "its last layer is no sigmoid"),
        (
            model(3, loss=K.CategoricalCrossentropy(from_logits=True)),
            2 * SHARES,
            "class probabilities that sum to 1",
        ),
    ],
)
def test_ambiguous_or_unreadable_labels_are_refused(own, labels, message):
    with pytest.raises(EkgError, match=message) as error:
        ekg.make_data(own, (IMAGES, labels))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("own", "labels"),
    [
        (
            model(
                3,
                loss=K.CategoricalCrossentropy(from_logits=True),
                metrics=["categorical_accuracy"],
            ),
            SHARES,
        ),
        (model(3, "softmax", "categorical_crossentropy", metrics=["categorical_accuracy"]), SHARES),
        (model(1, loss=binary(), metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)]), FLOATS),
        (
            model(
                1, loss=binary(), maps=True, metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)]
            ),
            MAPS,
        ),
        (
            model(
                3,
                loss=K.CategoricalCrossentropy(from_logits=True),
                maps=True,
                metrics=["categorical_accuracy"],
            ),
            DENSE_SHARES,
        ),
        (model(3, "sigmoid", "mse", metrics=["mae"]), SHARES),
        (
            model(3, tf.nn.softmax, "categorical_crossentropy", metrics=["categorical_accuracy"]),
            SHARES,
        ),
        (
            model(1, lambda z: 1 / (1 + keras.ops.exp(-z)), "binary_crossentropy", metrics=["acc"]),
            FLOATS,
        ),
    ],
)
def test_loss_and_metric_equal_keras(own, labels):
    data = ekg.make_data(own, (IMAGES, labels))
    task = data.task
    network = without_head(own)[0] if task.takes_logits else own
    outputs = network(IMAGES)
    loss, metric = own.evaluate(IMAGES, labels, batch_size=20, verbose=0)
    assert float(tf.reduce_mean(task.loss(data.train.labels, outputs))) == pytest.approx(
        loss, rel=1e-4
    )
    measured = task.measure(data.train.labels, outputs)[task.metrics[0]]
    assert float(tf.reduce_mean(measured)) == pytest.approx(metric, rel=1e-5)


def test_smoothed_labels_equal_keras():
    outputs = RNG.normal(size=(20, 3)).astype(np.float32)
    expected = K.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(SHARES, outputs)
    made = tasks.Classification().loss(SHARES, tf.constant(outputs), 0.2)
    assert float(tf.reduce_mean(made)) == pytest.approx(float(expected), rel=1e-5)


def test_a_regression_keeps_its_sigmoid_and_its_table_is_keras_own():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(layers.Dense(12, activation="relu")(inputs))
    own = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    own.compile("adam", "mse", metrics=["mae"])
    table = RNG.normal(size=(60, 6)).astype(np.float32)
    goal = 1 / (1 + np.exp(-table[:, 0]))
    own.fit(table, goal, epochs=3, verbose=0)
    result = ekg.prune(
        own,
        (table, goal),
        validation_data=(table, goal),
        target_rate=0.7,
        epochs=None,
        verbose=False,
        search={"search_step": 1.0},
    )
    loss, mae = own.evaluate(table, goal, verbose=0)
    assert result.table[0].loss == pytest.approx(loss, rel=1e-4)
    assert result.table[0].metrics["mae"] == pytest.approx(mae, rel=1e-4)
    smaller = result.model.predict(table, verbose=0)[:, 0]
    assert result.table[1].loss == pytest.approx(np.mean((smaller - goal) ** 2), rel=1e-4)
