import os

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from keras import layers

from ekg.deploy.folding import fold_batch_norms
from tests.helpers import networks as known
from tests.helpers.models import make_tiny_resnet, randomise_
from tests.programs.random_graphs import networks


def count(model, kind):
    return sum(type(layer) is kind for layer in model._flatten_layers())


def random_inputs(model, seed=0):
    generator = np.random.default_rng(seed)
    return [
        generator.normal(size=(3, *symbol.shape[1:])).astype(np.float32) for symbol in model.inputs
    ]


def check_same(model, folded, tolerance=1e-4):
    inputs = random_inputs(model)
    ours, theirs = (
        [
            np.asarray(value)
            for value in keras.tree.flatten(
                one(inputs if len(inputs) > 1 else inputs[0], training=False)
            )
        ]
        for one in (model, folded)
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other, mine, atol=tolerance * max(np.abs(mine).max(), 1e-3))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (make_tiny_resnet, 0),
        (known.regnet, 0),
        (known.shufflenet, 0),
        (known.unet, 0),
        (lambda: known.application("MobileNetV2", alpha=0.35), 0),
        # It norms before its convolutions: half of the norms stay.
        (lambda: known.application("DenseNet121"), 62 if known.WHOLE in os.environ else 12),
    ],
)
def test_a_folded_network_computes_the_same_without_its_batch_norms(make, left):
    model = make()
    before, weights = (
        count(model, layers.BatchNormalization),
        [np.array(value) for value in model.get_weights()],
    )
    folded = fold_batch_norms(model)
    assert before > count(folded, layers.BatchNormalization) == left
    check_same(model, folded)
    assert all((old == new).all() for old, new in zip(weights, model.get_weights()))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks())
def test_folded_random_networks_compute_the_same(model):
    randomise_(model)
    check_same(model, fold_batch_norms(model), 1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
        lambda x: layers.Conv2DTranspose(5, 3)(x),
        lambda x: layers.Dense(7)(x),
        lambda x: layers.Conv2D(6, 3, groups=3)(x),
        lambda x: layers.Conv2D(6, 3, use_bias=False)(x),
    ],
)
def test_a_norm_is_folded_into_every_kind_of_kernel(make):
    entry = keras.Input((6, 6, 3))
    model = keras.Model(entry, layers.BatchNormalization(epsilon=0.01)(make(entry)))
    folded = fold_batch_norms(randomise_(model))
    assert count(folded, layers.BatchNormalization) == 0
    check_same(model, folded)


def test_a_norm_without_scale_or_offset_is_folded():
    entry = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(scale=False)(layers.Conv2D(4, 3)(entry))
    model = randomise_(
        keras.Model(entry, layers.BatchNormalization(center=False)(layers.Conv2D(4, 1)(x)))
    )
    folded = fold_batch_norms(model)
    assert count(folded, layers.BatchNormalization) == 0
    check_same(model, folded)


def shared_conv(entry):
    conv = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(conv(layers.BatchNormalization()(conv(entry))))


def read_twice(entry):
    x = layers.Conv2D(3, 3, padding="same")(entry)
    return layers.Add()([x, layers.BatchNormalization()(x)])


@pytest.mark.parametrize(
    "make",
    [
        shared_conv,
        read_twice,
        lambda x: layers.BatchNormalization()(layers.Conv2D(3, 3, activation="relu")(x)),
        lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(3, 3)(x)),
        lambda x: layers.BatchNormalization()(x),
    ],
)
def test_norms_that_cannot_be_folded_stay(make):
    entry = keras.Input((6, 6, 3))
    model = randomise_(keras.Model(entry, make(entry)))
    folded = fold_batch_norms(model)
    assert count(folded, layers.BatchNormalization) == count(model, layers.BatchNormalization)
    check_same(model, folded)


def test_an_adapted_normalization_becomes_a_factor():
    entry = keras.Input((6, 6, 3))
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3, 2, (50, 6, 6, 3)))
    model = keras.Model(entry, layers.Conv2D(4, 3)(norm(entry)))
    folded = fold_batch_norms(model)
    assert count(folded, layers.Normalization) == 0
    check_same(model, folded)
