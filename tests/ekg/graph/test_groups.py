import logging

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from tests.helpers.comparisons import check_masked_is_cut, random_subnetwork
from tests.helpers.models import conv_bn, randomise_


def groups_of(model):
    return {group.name: group for group in ekg.Supernet(model).groups}


def test_groups_of_a_residual_network(tiny_resnet):
    groups = groups_of(tiny_resnet)
    assert {name: (group.size, group.writers) for name, group in groups.items()} == {
        "stem": (6, ("stem", "a2")),
        "a1": (4, ("a1",)),
        "b1": (5, ("b1",)),
        "b2": (8, ("b2", "b3")),
    }
    assert groups["stem"].sites == (
        "stem_relu",
        "a_out",
    )  # after each ReLU, not on the branch before the add
    assert groups["b2"].sites == ("b_out",)  # before the pooling


def depthwise():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 6, "expand")
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="dw")(x)
    x = layers.ReLU(6.0, name="dw_relu")(layers.BatchNormalization(name="dw_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(x, 5, "project"))
    return keras.Model(inputs, layers.Dense(3, name="fc")(x))


def dense_concat():
    inputs = keras.Input((8, 8, 3))
    first = conv_bn(inputs, 4, "one")
    second = conv_bn(first, 3, "two")
    x = layers.Concatenate(name="cat")([first, second])
    x = layers.AveragePooling2D(2, name="pool")(conv_bn(x, 5, "three", size=1))
    x = layers.Dense(6, activation="relu", name="hidden")(layers.Flatten(name="flat")(x))
    return keras.Model(inputs, layers.Dense(3, name="fc")(layers.Dropout(0.0, name="drop")(x)))


def squeeze_excite():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 6, "conv")
    s = layers.Reshape((1, 1, 6), name="shape")(layers.GlobalAveragePooling2D(name="squeeze")(x))
    s = layers.Conv2D(2, 1, activation="relu", name="reduce")(s)
    s = layers.Conv2D(6, 1, activation="sigmoid", name="excite")(s)
    x = layers.ZeroPadding2D(1, name="pad")(layers.Multiply(name="scale")([x, s]))
    x = layers.GlobalMaxPooling2D(name="pool")(conv_bn(x, 4, "next"))
    return keras.Model(inputs, layers.Dense(3, name="fc")(x))


def partly_added():
    """An added tensor is stacked from two convolutions, each of which keeps a channel."""
    inputs = keras.Input((8, 8, 3))
    stacked = layers.Concatenate(name="cat")(
        [conv_bn(inputs, 4, "left"), conv_bn(inputs, 3, "right")]
    )
    x = layers.Add(name="add")([stacked, conv_bn(inputs, 7, "both")])
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(x, 4, "next"))
    return keras.Model(inputs, layers.Dense(3, name="fc")(x))


def shared():
    inputs = keras.Input((8, 8, 3))
    conv = layers.Conv2D(4, 3, padding="same", use_bias=False, name="shared")
    x = conv_bn(inputs, 4, "stem")
    x = conv(layers.ReLU(name="r1")(conv(x)))
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(x, 5, "next"))
    return keras.Model(inputs, layers.Dense(3, name="fc")(x))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            depthwise,
            {
                "expand": (6, ("expand",), ("dw_relu",)),
                "project": (5, ("project",), ("project_relu",)),
            },
        ),
        (
            dense_concat,
            {
                "one": (4, ("one",), ("one_relu", "cat")),
                "two": (3, ("two",), ("cat",)),
                "three": (5, ("three",), ("three_relu",)),
                "hidden": (6, ("hidden",), ("hidden",)),
            },
        ),
        (
            squeeze_excite,
            {
                "conv": (6, ("conv", "excite"), ("conv_relu", "scale")),
                "reduce": (2, ("reduce",), ("reduce",)),
                "next": (4, ("next",), ("next_relu",)),
            },
        ),
        (
            partly_added,
            {
                "left": (4, ("left", "both"), ("add",)),
                "right": (3, ("right", "both"), ("add",)),
                "next": (4, ("next",), ("next_relu",)),
            },
        ),
        (
            shared,
            {
                "stem": (4, ("stem", "shared"), ("stem_relu", "r1", "shared")),
                "next": (5, ("next",), ("next_relu",)),
            },
        ),
    ],
)
def test_any_functional_model_can_be_pruned(make, expected):
    """Groups are the expected ones, and masked and cut networks agree in both modes, in logits and
    complexity.
    """
    supernet = ekg.Supernet(randomise_(make()))
    assert {
        group.name: (group.size, group.writers, group.sites) for group in supernet.groups
    } == expected
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    for seed in range(3):
        check_masked_is_cut(supernet, random_subnetwork(supernet, seed), images)


def classified(inputs, x):
    """Returns the model that classifies by the mean of each channel."""
    return keras.Model(
        inputs, layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x))
    )


def test_an_unknown_layer_closes_its_group_and_is_named(caplog):
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 4, "free"), 5, "closed")
    with caplog.at_level(logging.WARNING):
        groups = groups_of(
            classified(inputs, layers.LayerNormalization(axis=(1, 2, 3), name="mixer")(x))
        )
    assert set(groups) == {"free"}
    assert "'mixer' (LayerNormalization)" in caplog.text


def test_an_operation_of_unknown_effect_closes_its_group(caplog, images):
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 4, "free"), 5, "closed")
    with caplog.at_level(logging.WARNING):
        supernet = ekg.Supernet(
            randomise_(classified(inputs, keras.ops.cumsum(2 * x + 1, axis=-1)))
        )
    assert [group.name for group in supernet.groups] == ["free"]
    assert "(Cumsum): its effect on channels is unknown" in caplog.text
    check_masked_is_cut(supernet, supernet.smallest(), images)


def test_a_softmax_closes_its_group():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, activation="softmax", name="soft")(conv_bn(inputs, 4, "free"))
    assert set(groups_of(classified(inputs, conv_bn(x, 4, "next")))) == {"free", "next"}


def test_an_unknown_activation_closes_its_group():
    inputs = keras.Input((8, 8, 3))

    def centred(x):
        return x - keras.ops.mean(x, axis=-1, keepdims=True)

    x = layers.Conv2D(4, 1, activation=centred, name="centred")(conv_bn(inputs, 4, "free"))
    assert set(groups_of(classified(inputs, conv_bn(x, 5, "next")))) == {"free", "next"}
