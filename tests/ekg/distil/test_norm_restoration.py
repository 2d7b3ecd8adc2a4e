"""Kernels at the norm they had before a cut: what stays, exactly or within a bound."""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.distil import slim as slimming
from ekg.graph.calls import Graph
from tests.helpers.comparisons import random_subnetwork, relative_difference
from tests.helpers.models import conv_bn, make_tiny_resnet, randomise_


def with_depthwise(epsilon=1e-5):
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 8, "expand")
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(epsilon=epsilon, name="depthwise_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(x, 5, "project"))
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x)))


def norm_of(model, name):
    return np.linalg.norm(model.get_layer(name).kernel.numpy())


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (with_depthwise, ("expand", "depthwise", "project")),
        (make_tiny_resnet, ("stem", "a1", "a2", "b1", "b2", "b3")),
    ],
)
def test_every_convolution_has_its_former_norm_and_the_function_is_unchanged(make, names, images):
    model = make()
    supernet = ekg.Supernet(model)
    cut = supernet.cut(random_subnetwork(supernet, 1))
    before = cut(images).numpy()
    assert any(norm_of(cut, name) < 0.95 * norm_of(model, name) for name in names)
    slimming.restore_norms_(cut, Graph(model))
    for name in names:
        assert norm_of(cut, name) == pytest.approx(norm_of(model, name), rel=1e-5)
    assert relative_difference(cut(images), before) < 1e-5


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        (layers.Conv1D, 1),
        (layers.Conv3D, 3),
        (layers.Conv1DTranspose, 1),
        (layers.Conv2DTranspose, 2),
        (layers.Conv3DTranspose, 3),
    ],
)
def test_convolutions_of_other_kinds_have_their_former_norm_too(kind, rank):
    """With a bias, which takes part in what the norm makes up for."""
    x = inputs = keras.Input((*[4] * rank, 3))
    for name in ("one", "two"):
        x = layers.BatchNormalization(epsilon=1e-5)(kind(6, 3, padding="same", name=name)(x))
    x = layers.Flatten()(layers.ReLU()(x))
    model = randomise_(keras.Model(inputs, layers.Dense(3)(x)))
    supernet = ekg.Supernet(model)
    cut = supernet.cut(supernet.whole().with_widths({"one": 0.5, "two": 0.5}))
    examples = np.random.default_rng(1).normal(size=(5, *inputs.shape[1:])).astype(np.float32)
    before = cut(examples).numpy()
    assert all(norm_of(cut, name) < 0.95 * norm_of(model, name) for name in ("one", "two"))
    slimming.restore_norms_(cut, Graph(model))
    for name in ("one", "two"):
        assert norm_of(cut, name) == pytest.approx(norm_of(model, name), rel=1e-5)
    assert relative_difference(cut(examples), before) < 1e-5


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.1])
def test_the_function_is_unchanged_where_variances_are_near_epsilon(images, epsilon):
    """At moving statistics to rounding; with those of a batch within the bound, or the convolution
    is left alone.
    """
    model = with_depthwise(epsilon)
    supernet = ekg.Supernet(model)
    cut = supernet.cut(random_subnetwork(supernet, 1))
    norm = cut.get_layer("depthwise_bn")
    norm.moving_variance.assign(epsilon * np.linspace(0.5, 2.0, norm.moving_variance.shape[0]))
    before = cut(images).numpy()
    size = norm_of(cut, "depthwise")
    slimming.restore_norms_(cut, Graph(model))
    assert norm_of(cut, "depthwise") == size  # near epsilon its factor would show
    assert relative_difference(cut(images), before) < 1e-5


def test_with_batch_statistics_the_change_is_within_its_bound(images):
    model = make_tiny_resnet()
    supernet = ekg.Supernet(model)
    cut = supernet.cut(random_subnetwork(supernet, 1))
    read = keras.Model(
        cut.input, [layer.output for layer in cut.layers if layer.name.endswith("_bn")]
    )
    scales = [np.abs(layer.gamma.numpy()) for layer in cut.layers if layer.name.endswith("_bn")]

    def outputs():
        return read.stateless_call(
            read.trainable_variables, read.non_trainable_variables, images, training=True
        )[0]

    before = [np.asarray(value) for value in outputs()]
    slimming.restore_norms_(cut, Graph(model))
    for value, old, scale in zip(outputs(), before, scales):
        assert np.abs(np.asarray(value) - old).max() <= 10 * slimming.MAX_CHANGE * scale.max()
