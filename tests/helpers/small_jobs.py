"""The jobs of the training scripts on a small network and small data, so that they take seconds."""

import keras
from keras import layers

import op_utils
import utils
from tests.helpers.models import conv_bn, make_data

CONVOLUTIONS = ("one", "two")


def build(_, num_classes, widths=(6, 8)):
    """Returns a network of two convolutions for images of 8x8."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, widths[0], "one"), widths[1], "two", strides=2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="fc")(x), name="small")


def from_params(arch, params, num_classes, source):
    """Returns the network whose widths the parameters tell."""
    model = build(
        arch, num_classes, [params[f"{name}/kernel:0"].shape[-1] for name in CONVOLUTIONS]
    )
    utils.assign_params_(model, params, source)
    return model


def make_large_data():
    """Returns small images, as many of each class as the scripts' defaults need."""
    return make_data(num_train=840, num_test=40)


def run(script, data, *argv):
    """Runs the job of a training script with these arguments, but with this data and small
    networks.
    """
    args = script.parse_args([*map(str, argv), "--no-preflight"])
    return op_utils.prune(args, script.BASELINE, lambda: data, build, from_params)
