"""Small networks and data that the tests share."""

import keras
import numpy as np
from keras import layers

from ekg.data.dataset import Dataset, Split
from ekg.graph.calls import finish_layers_


def randomise_(model, seed=0):
    """Gives every weight of a model random values, batch norms included, so that no test passes by
    symmetry.
    """
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance", "variance", "scale"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        else:
            variable.assign(
                rng.normal(0, 1 / np.sqrt(np.prod(variable.shape[:-1])), variable.shape).astype(
                    variable.dtype
                )
            )
    finish_layers_(model)
    return model


def conv_bn(x, filters, name, size=3, strides=1, relu=True):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def make_tiny_resnet(num_classes=3):
    """Stem, an identity block and a block with a projection: 4 channel groups of 6, 4, 5 and 8
    channels.
    """
    inputs = keras.Input((8, 8, 3))
    stem = conv_bn(inputs, 6, "stem")
    x = conv_bn(conv_bn(stem, 4, "a1"), 6, "a2", relu=False)
    stage = layers.ReLU(name="a_out")(layers.Add(name="a_add")([x, stem]))
    x = conv_bn(conv_bn(stage, 5, "b1", strides=2), 8, "b2", relu=False)
    shortcut = conv_bn(stage, 8, "b3", size=1, strides=2, relu=False)
    x = layers.ReLU(name="b_out")(layers.Add(name="b_add")([x, shortcut]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(num_classes, name="fc")(x), name="tiny"))


def make_data(num_train=96, num_test=22, num_classes=3, size=8, seed=0):
    """Images whose class is the channel that is brightest."""
    rng = np.random.default_rng(seed)

    def split(count):
        labels = np.arange(count, dtype=np.int32) % num_classes
        images = rng.integers(0, 160, (count, size, size, 3))
        images[np.arange(count), ..., labels % 3] += 60
        return Split(images.astype(np.uint8), labels)

    return Dataset(
        "TINY", num_classes, split(num_train), split(num_test), (100.0,) * 3, (50.0,) * 3
    )
