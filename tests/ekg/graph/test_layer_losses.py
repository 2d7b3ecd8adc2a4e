"""What layers add to the loss counts in training as in Keras' own fit; its weights are the
oracle.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, regularizers

import ekg
from ekg.distil import losses
from ekg.graph import flow
from ekg.graph.heads import without_head
from ekg.graph.records import LayerRecord
from ekg.graph.registry import RECORDS
from ekg.train.step import StepOptions, Trainer
from tests.helpers.models import randomise_

RATE, EPOCHS = 0.05, 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Squares(layers.Layer):
    """Passes its input on and adds the mean of its squares to the loss."""

    def call(self, inputs):
        self.add_loss(0.2 * keras.ops.mean(inputs**2))
        return inputs


class Recorded(Squares):
    """The same, computed by a record that does not call it."""


@pytest.fixture
def recorded(monkeypatch):
    record = LayerRecord(flow.carry, run=lambda layer, variables, args, context: (args[0], []))
    monkeypatch.setitem(RECORDS, Recorded, record)


def examples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 4, 4, 4)).astype(np.float32), rng.integers(0, 3, 32)


def chain(*between, head=None):
    """Returns a network of these layers, of random weights, the same at each call."""
    inputs = keras.Input((4, 4, 4))
    x = inputs
    for layer in between:
        x = layer(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, (head or layers.Dense(3, name="fc"))(x), name="net"))


def shared():
    """A layer of two calls: its weights are regularized once and its activities twice."""
    conv = layers.Conv2D(
        4,
        3,
        padding="same",
        name="conv",
        kernel_regularizer=regularizers.L2(0.1),
        activity_regularizer=regularizers.L1(0.02),
    )
    return chain(conv, layers.ReLU(), conv)


def nested():
    inner_in = keras.Input((4, 4, 4))
    inner = keras.Model(
        inner_in,
        layers.Conv2D(
            5,
            3,
            kernel_regularizer=regularizers.L1L2(0.01, 0.1),
            name="conv",
            bias_regularizer=regularizers.L2(0.3),
        )(inner_in),
        name="inner",
    )
    return chain(inner)


def frozen():
    model = chain(
        layers.Conv2D(
            5,
            3,
            kernel_regularizer=regularizers.L2(0.1),
            name="still",
            activity_regularizer=regularizers.L2(0.1),
        ),
        layers.Conv2D(4, 1, name="conv"),
    )
    model.get_layer("still").trainable = False
    return model


NETWORKS = {
    "dense head": lambda: chain(
        head=layers.Dense(
            3,
            kernel_regularizer=regularizers.OrthogonalRegularizer(0.1),
            activity_regularizer=regularizers.L2(0.1),
            name="fc",
        )
    ),
    # Computed by records that do not call the layer: a batch norm, and strides over single pixels
    "records": lambda: chain(
        layers.Conv2D(
            5,
            1,
            2,
            name="conv",
            activation="relu",
            kernel_regularizer=regularizers.L2(0.1),
            activity_regularizer=regularizers.L1(0.05),
        ),
        layers.BatchNormalization(
            name="bn",
            gamma_regularizer=regularizers.L2(0.2),
            activity_regularizer=regularizers.L2(0.1),
        ),
    ),
    "add_loss": lambda: chain(layers.Conv2D(4, 3, name="conv"), Squares(name="squares")),
    "add_loss of a record": lambda: chain(
        layers.Conv2D(4, 3, name="conv"), Recorded(name="squares")
    ),
    "layer of losses": lambda: chain(
        layers.Conv2D(4, 3, name="conv"), layers.ActivityRegularization(0.1, 0.1)
    ),
    "lstm": lambda: chain(
        layers.Reshape((4, 16)),
        layers.LSTM(5, return_sequences=True, recurrent_regularizer=regularizers.L2(0.1)),
        layers.Reshape((4, 1, 5)),
    ),
    "shared": shared,
    "nested": nested,
    "frozen": frozen,
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_fine_tuning_ends_with_the_weights_of_keras_fit(name, recorded):
    tuned, fitted, (x, y) = NETWORKS[name](), NETWORKS[name](), examples()
    ekg.fine_tune(
        tuned,
        ekg.make_data(tuned, (x, y)),
        epochs=EPOCHS,
        weight_decay=0.0,
        learning_rate=RATE,
        decay_points=(),
        batch_size=len(x),
    )
    start = fitted.get_weights()
    fitted.compile(keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True), LOGITS)
    fitted.fit(x, y, batch_size=len(x), epochs=EPOCHS, shuffle=False, verbose=0)
    for before, variable, expected in zip(start, tuned.weights, fitted.weights):
        if variable.trainable:
            assert (
                np.abs(variable - expected).max() < 1e-4 * np.abs(expected - before).max() + 1e-6
            ), variable.path


def test_added_losses_move_the_weights(recorded):
    """Else the comparison with Keras would prove nothing."""
    x, _ = examples()
    for name, make in NETWORKS.items():
        model = make()
        model(x, training=True)
        assert sum(map(float, model.losses)) > 0.01, name


def test_the_activity_penalty_of_a_head_uses_its_probabilities():
    """The softmax is taken off for the training on logits, and with it what its regularizer saw."""
    (x, y), heads = (
        examples(),
        {
            "dense": lambda: layers.Dense(
                3, activation="softmax", activity_regularizer=regularizers.L2(2.0), name="fc"
            ),
            "layer": lambda: (
                lambda x: layers.Softmax(activity_regularizer=regularizers.L2(2.0), name="soft")(
                    layers.Dense(3, name="fc")(x)
                )
            ),
        },
    )
    for name, make in heads.items():
        model, fitted = chain(head=make()), chain(head=make())
        logits, head = without_head(model)
        ekg.fine_tune(
            logits,
            ekg.make_data(logits, (x, y)),
            epochs=EPOCHS,
            weight_decay=0.0,
            learning_rate=RATE,
            decay_points=(),
            batch_size=len(x),
        )
        fitted.compile(
            keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True),
            "sparse_categorical_crossentropy",
        )
        fitted.fit(x, y, batch_size=len(x), epochs=EPOCHS, shuffle=False, verbose=0)
        tuned = head.put_back(logits)
        for variable, expected in zip(tuned.weights, fitted.weights):
            np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        tuned(x, training=True)
        assert float(sum(tuned.losses)) == pytest.approx(
            2 * np.sum(tuned.predict(x, verbose=0) ** 2) / len(x), rel=1e-5
        )


def test_weight_decay_beside_regularizers_is_reported(caplog):
    (x, y), model = examples(), frozen()
    model.get_layer("still").trainable = True
    data = ekg.make_data(model, (x, y))
    for decay, number in ((0.0, 0), (0.01, 1)):
        caplog.clear()
        ekg.fine_tune(model, data, epochs=1, weight_decay=decay, batch_size=len(x))
        told = [
            record.getMessage()
            for record in caplog.records
            if "regularizers of the network" in record.getMessage()
        ]
        assert len(told) == number, told
    assert "`weight_decay` 0.01 is added to them" in told[0]


def test_the_epoch_before_the_search_minimises_the_same_loss_as_fit(recorded):
    """Its step has no views and leaves moving statistics alone."""
    (x, y), name = examples(), "add_loss of a record"
    tuned, fitted = NETWORKS[name](), NETWORKS[name]()
    trainer = Trainer(
        tf.distribute.get_strategy(),
        tuned,
        losses.plain(ekg.make_data(tuned, (x, y))),
        weight_decay=0.0,
        update_statistics=False,
    )
    trainer.step({"images": x, "labels": y}, RATE)
    fitted.compile(keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True), LOGITS)
    fitted.fit(x, y, batch_size=len(x), epochs=1, shuffle=False, verbose=0)
    for weight, expected in zip(tuned.get_weights(), fitted.get_weights()):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_cut_into_micro_batches_and_in_half_precision_they_count_once():
    """The regularizers' share of the loss is what Keras says, however the batch is computed."""
    x, y = examples()
    for options in (StepOptions(accum=4), StepOptions(dtype="bfloat16")):
        model = NETWORKS["records"]() if options.dtype == "bfloat16" else NETWORKS["dense head"]()
        data = ekg.make_data(model, (x, y))
        trainer = Trainer(
            tf.distribute.get_strategy(),
            model,
            losses.plain(data),
            weight_decay=0.0,
            options=options,
        )
        metrics = trainer.step({"images": x, "labels": y}, 0.0)
        model(x, training=True)
        assert float(metrics["regularization"]) == pytest.approx(float(sum(model.losses)), rel=2e-2)
