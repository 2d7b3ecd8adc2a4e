"""Labels of a large scale train at the usual learning rates, and messages name the setting that
acts.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.errors import EkgError
from ekg.run.folder import RunFolder
from ekg.tasks.kinds import Classification, Regression
from ekg.train.loop import EpochMeter
from tests.helpers.models import randomise_

SQUARES = keras.losses.MeanSquaredError()


class Absolute(Regression):
    """Another loss, whose gradient does not grow with the labels."""

    def loss(self, labels, outputs, smoothing=0.0):
        return abs(labels - outputs)[:, 0]


def examples(factor, offset):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(32, 4, 4, 3)).astype(np.float32)
    return images, (offset + factor * images.sum((1, 2, 3))).astype(np.float32)


def make(factor, offset):
    """Returns a network whose last layer writes numbers of this scale, small weights or not."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    x = layers.Dense(1, name="fc")(
        layers.Dense(4, activation="relu", name="hidden")(layers.Flatten()(x))
    )
    return randomise_(keras.Model(inputs, layers.Rescaling(factor, offset)(x), name="net"))


def test_training_minimises_the_loss_over_the_variance_of_the_labels():
    """Keras' fit on labels and outputs of unit scale gives the same weights."""
    factor, offset = 1e5, 2.5e5
    x, y = examples(factor, offset)
    tuned, fitted, spread = make(factor, offset), make(1.0, 0.0), y.astype(np.float64).std()
    ekg.fine_tune(
        tuned,
        ekg.make_data(tuned, (x, y)),
        epochs=3,
        batch_size=32,
        weight_decay=0.0,
        learning_rate=0.01,
        decay_points=(),
    )
    # (factor·a − factor·b)² / variance = (a − b)² · factor²/variance
    fitted.compile(
        keras.optimizers.SGD(0.01 * (factor / spread) ** 2, momentum=0.9, nesterov=True), SQUARES
    )
    fitted.fit(
        x,
        ((y.astype(np.float64) - offset) / factor).astype(np.float32),
        batch_size=32,
        epochs=3,
        shuffle=False,
        verbose=0,
    )
    for weight, expected in zip(tuned.trainable_weights, fitted.trainable_weights):
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-4)


def test_the_scale_is_the_variance_of_large_labels_alone():
    labels = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    assert Regression().scale(100 * labels) == pytest.approx(
        1e4 * labels.var(axis=0).mean(), rel=1e-5
    )
    assert Regression().scale(0.1 * labels) == 1 and Absolute().scale(100 * labels) == 1
    assert Regression().scale(labels * 0 + 7) == 1 and Classification().scale(np.arange(500)) == 1


def test_prices_are_pruned_and_a_diverging_first_epoch_names_its_setting(tmp_path):
    """The table keeps the labels' own unit; the rate before the search is a setting."""
    factor, offset = 3e4, 2e5
    (x, y), model = examples(factor, offset), make(factor, offset)
    options = {"target_rate": 0.7, "epochs": None, "verbose": False, "run_dir": tmp_path / "run"}
    search = {"search_step": 1.0, "val_per_class": 1, "subset_per_class": 3}
    result = ekg.prune(model, (x, y), search=search, **options)
    fitted = result.model.predict(x, verbose=0)[:, 0].astype(np.float64)
    assert result.table[1].loss > 1e6 and np.isfinite(fitted).all()
    assert RunFolder(tmp_path / "run").arguments()["subset_learning_rate"] == 1e-3
    with pytest.raises(EkgError, match="\n  subset_learning_rate: 0.001 there, 1e-05 here"):
        ekg.prune(model, (x, y), search=search | {"subset_learning_rate": 1e-5}, **options)
    with pytest.raises(FloatingPointError, match="`subset_learning_rate`"):
        ekg.prune(
            model,
            (x, y),
            search=search | {"subset_learning_rate": 1e30},
            **options | {"run_dir": None},
        )


@pytest.mark.parametrize(
    ("setting", "advice"), [(None, "lower the learning rate."), ("schedule", "lower `schedule`.")]
)
def test_a_training_that_diverges_names_the_setting_that_acts(setting, advice):
    class Bar:
        def update(self, count):
            """Shows nothing."""

    meter = EpochMeter(0, 2, 1, Bar(), done=1, totals={"loss": float("nan")}, setting=setting)
    with pytest.raises(FloatingPointError, match=advice):
        meter.add({"loss": tf.constant(1.0)}, 8)
