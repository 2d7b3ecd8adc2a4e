"""Exported networks work as in inference and in float32, for any behaviour in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.deploy.inference import in_float32
from ekg.errors import EkgError
from tests.conftest import randomise_

IMAGES = np.random.default_rng(0).random((64, 8, 8, 3)).astype(np.float32)


def network(*, dtype="float32", is_random=False):
    """Returns a network with random layers, and layers called as in training, or the same one
    without."""
    entry = keras.Input((8, 8, 3))
    x = entry
    if is_random:
        x = layers.GaussianNoise(0.5)(layers.RandomRotation(0.2)(layers.RandomFlip()(x)))
    x = layers.BatchNormalization(name="norm", dtype=dtype)(
        layers.Conv2D(6, 3, name="conv", dtype=dtype)(x)
    )
    x = layers.ReLU(dtype=dtype)(x)
    if is_random:
        x = layers.Dropout(0.5, dtype=dtype)(x, training=True)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x) * 2
    return keras.Model(entry, layers.Dense(4, name="fc")(x))


def with_weights(model, plain):
    """Gives a network the weights of another, layer by layer."""
    for name in ("conv", "norm", "fc"):
        model.get_layer(name).set_weights(plain.get_layer(name).get_weights())
    return model


@pytest.fixture(scope="module")
def plain():
    return randomise_(network())


@pytest.mark.parametrize("name", ["model", "a.onnx", "a.tflite"])
def test_random_layers_work_as_in_inference(plain, tmp_path, name):
    result = ekg.export(
        with_weights(network(is_random=True), plain), tmp_path / name, examples=IMAGES
    )
    np.testing.assert_allclose(
        result.reader.run([IMAGES])[0], plain.predict(IMAGES, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_policies_are_exported_as_float32(plain, tmp_path, name, policy):
    model = with_weights(network(dtype=policy, is_random=True), plain)
    result = ekg.export(model, tmp_path / name, examples=IMAGES)
    np.testing.assert_allclose(
        result.reader.run([IMAGES])[0], plain.predict(IMAGES, verbose=0), atol=1e-5
    )
    assert model.get_layer("conv").compute_dtype == policy.removeprefix(
        "mixed_"
    )  # the network itself stays


def test_a_float32_network_is_not_copied(plain):
    assert in_float32(plain) is plain


class AlwaysRandom(layers.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x), seed=1)


def test_a_network_that_is_random_in_inference_is_refused_with_the_cause(tmp_path):
    entry = keras.Input((4,))
    model = keras.Model(entry, layers.Dense(3)(AlwaysRandom()(entry)))
    with pytest.raises(
        EkgError, match="is random in inference, too: two passes over the same examples differ"
    ):
        ekg.export(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
