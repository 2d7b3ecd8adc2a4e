"""TimeDistributed: pruned and counted as its inner layer over one more axis."""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from tests.conftest import randomise_

STEPS = layers.TimeDistributed


def convolutions():
    """Convolutions of every kind over 3 steps, and what they cost."""
    entry = keras.Input((3, 6, 6, 2))
    x = STEPS(layers.Conv2D(6, 3, padding="same", activation="relu"), name="conv")(entry)
    x = layers.BatchNormalization(name="norm")(STEPS(layers.MaxPooling2D())(x))
    x = STEPS(layers.SeparableConv2D(5, 3, padding="same"), name="separable")(x)
    x = STEPS(layers.Conv2D(7, 1, strides=2), name="strided")(
        STEPS(layers.DepthwiseConv2D(2), name="depthwise")(x)
    )
    x = STEPS(layers.Flatten())(STEPS(layers.ReLU())(x))
    model = keras.Model(entry, layers.Dense(4, name="fc")(layers.GlobalAveragePooling1D()(x)))
    flops = 3 * (36 * 9 * 2 * 6 + 2 * 9 * 6 + 9 * (9 * 6 + 6 * 5) + 4 * 4 * 5 + 5 * 7) + 7 * 4
    return model, flops, {"conv": 6, "separable": 5, "strided": 7}


def dense_layers():
    """Dense layers in a wrapper within a wrapper, beside the one that Keras applies to all
    steps."""
    entry = keras.Input((2, 3, 4))
    x = STEPS(STEPS(layers.Dense(6, activation="relu")), name="inner")(entry)
    x = STEPS(layers.LayerNormalization(), name="norm")(x)
    x = layers.Dense(5, name="plain")(STEPS(STEPS(layers.Activation("gelu")))(x))
    x = STEPS(layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d"), name="einsum")(
        layers.ReLU()(x)
    )
    model = keras.Model(entry, layers.Dense(2, name="fc")(layers.GlobalAveragePooling2D()(x)))
    return model, 6 * (4 * 6 + 2 * 6 + 6 * 5 + 5 * 4) + 4 * 2, {"inner": 6, "plain": 5, "einsum": 4}


@pytest.mark.parametrize("make", [convolutions, dense_layers])
def test_masked_cut_saved_and_counted_agree(make):
    model, flops, groups = make()
    supernet = ekg.testing.check_prunable(randomise_(model), subnetworks=1)
    assert supernet.complexity(supernet.whole()) == ekg.Complexity(model.count_params(), flops)
    assert {group.name: group.size for group in supernet.groups} == groups


def test_a_convolution_at_each_step_is_one_over_three_axes_that_is_one_step_deep():
    """An independent oracle: Conv3D with kernels of (1, 3, 3) and the same weights."""
    entry = keras.Input((3, 6, 6, 2))

    def network(first, second):
        x = layers.GlobalAveragePooling3D()(second(first(entry)))
        return keras.Model(entry, layers.Dense(4, name="fc")(x))

    ours = randomise_(
        network(
            STEPS(layers.Conv2D(6, 3, activation="relu"), name="one"),
            STEPS(layers.Conv2D(8, 3, activation="relu"), name="two"),
        )
    )
    theirs = network(
        layers.Conv3D(6, (1, 3, 3), activation="relu", name="one"),
        layers.Conv3D(8, (1, 3, 3), activation="relu", name="two"),
    )
    theirs.set_weights([value[None] if value.ndim == 4 else value for value in ours.get_weights()])
    images = np.random.default_rng(0).normal(size=(4, 3, 6, 6, 2)).astype(np.float32)
    supernets = [ekg.Supernet(model) for model in (ours, theirs)]
    subnetworks = [
        supernet.whole().with_widths({"one": 0.5, "two": 0.25}) for supernet in supernets
    ]
    counts = [
        supernet.complexity(subnetwork) for supernet, subnetwork in zip(supernets, subnetworks)
    ]
    outputs = [
        supernet.cut(subnetwork)(images, training=False)
        for supernet, subnetwork in zip(supernets, subnetworks)
    ]
    assert counts[0] == counts[1] and supernets[0].rate(subnetworks[0]) == supernets[1].rate(
        subnetworks[1]
    )
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    np.testing.assert_allclose(
        supernets[0].logits(images, subnetworks[0], training=False), outputs[1], atol=1e-5
    )


def test_a_recurrent_layer_at_each_step_is_counted_and_pruned():
    """By hand: an LSTM of 4 units over 5 tokens of 7 numbers, at each of 3 steps."""
    entry = keras.Input((3, 5, 6))
    x = STEPS(layers.LSTM(4), name="lstm")(STEPS(layers.Dense(7), name="dense")(entry))
    model = keras.Model(entry, layers.Dense(2, name="fc")(layers.GlobalAveragePooling1D()(x)))
    report = ekg.inspect(model)
    assert report.complexity.flops == 3 * 5 * (6 * 7) + 3 * 5 * 4 * (7 * 4 + 4 * 4) + 4 * 2
    assert list(report.closed) == ["fc"] and report.uncounted == ()
    assert [group.size for group in ekg.testing.check_prunable(model, subnetworks=1).groups] == [
        7,
        4,
    ]


def test_channels_along_the_steps_are_never_pruned():
    entry = keras.Input((5, 4))
    x = layers.Permute((2, 1))(layers.Dense(6, name="dense")(entry))
    x = layers.Reshape((6, 5, 1))(x)
    x = STEPS(layers.Dense(2, name="inner"), name="wrapped")(x)
    report = ekg.inspect(
        keras.Model(entry, layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D()(x)))
    )
    assert report.closed["dense"] == "read by 'wrapped' (TimeDistributed)"


def test_a_frozen_layer_inside_keeps_its_channels():
    entry = keras.Input((5, 4))
    x = STEPS(layers.Dense(6, trainable=False), name="frozen")(entry)
    x = STEPS(layers.Dense(7, activation="relu"), name="free")(x)
    model = keras.Model(entry, layers.Dense(3, name="fc")(layers.GlobalAveragePooling1D()(x)))
    assert ekg.inspect(model).closed["frozen"] == "'frozen' is frozen"
    assert [group.name for group in ekg.Supernet(model, prune_frozen=True).groups] == [
        "frozen",
        "free",
    ]
