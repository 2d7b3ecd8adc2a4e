"""A layer that does something the graph does not show is found before a job begins."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ekg
from ekg.graph import checks, flow, records, registry
from ekg.graph.calls import Graph
from ekg.network import masked_check
from ekg.network.masked_check import check_promise
from tests.helpers.models import randomise_

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


class Turned(layers.Layer):
    """Turns the order of the channels round."""

    def call(self, x):
        return ops.flip(x, axis=-1)


class Noisy(layers.Layer):
    """Adds noise in inference, too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


def network(*inner, dtype="float32"):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="first", dtype=dtype)(inputs)
    for layer in inner:
        x = layer(x)
    x = layers.Conv2D(5, 3, activation="relu", name="last", dtype=dtype)(x)
    return randomise_(
        keras.Model(
            inputs, layers.Dense(3, dtype="float32")(layers.GlobalAveragePooling2D()(x)), name="own"
        )
    )


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_network_that_is_pruned_correctly_passes_at_any_scale(dtype):
    model = network(layers.BatchNormalization(), dtype=dtype)
    for scale in (1e-4, 1.0, 1e4):
        check_promise(ekg.Supernet(model), scale * IMAGES)


def test_a_wrong_record_is_found(monkeypatch):
    monkeypatch.setitem(registry.RECORDS, Turned, records.LayerRecord(flow.carry))
    message = (
        "`model` 'own' cannot be pruned correctly: on these data a network cut out of it and the "
        "masked one differ by"
    )
    with pytest.raises(ekg.EkgError, match=message):
        check_promise(ekg.Supernet(network(Turned())), IMAGES)
    images = np.random.default_rng(1).normal(size=(60, 8, 8, 3)).astype("float32")
    with pytest.raises(ekg.EkgError, match=message):
        ekg.prune(network(Turned()), (images, np.arange(60) % 3), epochs=None, verbose=False)


def test_a_mask_that_the_graph_does_not_show_would_be_found(monkeypatch):
    """Such networks are refused by name; this is what would meet the next thing of the kind."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    x = layers.Dense(8)(layers.Dense(16, activation="relu")(layers.MultiHeadAttention(2, 4)(x, x)))
    model = randomise_(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    monkeypatch.setattr(checks, "check_layers", lambda graph: None)
    with pytest.raises(
        ekg.EkgError, match="on these data the unpruned network and the masked one differ by"
    ):
        check_promise(
            ekg.Supernet(model), np.random.default_rng(0).integers(0, 4, (4, 6)).astype("int32")
        )


def test_outputs_that_are_random_or_not_finite_are_not_compared():
    check_promise(ekg.Supernet(network(Noisy())), IMAGES)
    check_promise(ekg.Supernet(network()), np.full((4, 8, 8, 3), np.inf, np.float32))
    for first, second, expected in (
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([0.0], [0.0], 0.0),
        ([1.0], [np.nan], np.inf),
        ([np.inf], [1.0], np.inf),
        ([0.0], [2.0], 1.0),
        ([4.0, 0.0], [4.0, 1.0], 0.25),
    ):
        assert masked_check._difference(np.array(first), np.array(second)) == expected


def test_a_network_that_this_device_cannot_run_is_not_compared(caplog):
    inputs = keras.Input((8, 8, 8, 3))
    x = layers.MaxPooling3D()(layers.Conv3D(6, 3, padding="same", activation="relu")(inputs))
    x = layers.Conv3D(5, 3, activation="relu")(x)
    model = keras.Model(
        inputs, layers.Dense(3, dtype="float32")(layers.GlobalAveragePooling3D()(x))
    )
    for layer in model.layers[1:-1]:
        layer.dtype_policy = "mixed_float16"
    check_promise(ekg.Supernet(model), np.zeros((2, 8, 8, 8, 3), np.float32))
    told = [
        message for message in caplog.messages if "is not compared with the masked one" in message
    ]
    assert len(told) == (not tf.config.list_physical_devices("GPU"))


def test_large_examples_are_compared_one_by_one():
    assert masked_check.num_examples(Graph(network())) == 4
    inputs = keras.Input((1024, 1024, 3))
    assert masked_check.num_examples(Graph(keras.Model(inputs, layers.Conv2D(60, 3)(inputs)))) == 1
    inputs = keras.Input(batch_shape=(7, 8, 8, 3))
    assert masked_check.num_examples(Graph(keras.Model(inputs, layers.Conv2D(60, 3)(inputs)))) == 7
