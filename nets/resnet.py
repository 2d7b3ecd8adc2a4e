"""Residual networks for small images (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2).

Plain Keras functional models: nothing here knows that a network may be pruned. A pruned network is the same
network with other widths, so the builder takes a width for every convolution.
"""

import keras
from keras import layers

DEPTHS = (20, 32, 44, 56, 110)
NUM_STAGES = 3
STEM_FILTERS = 16
IMAGE_SHAPE = (32, 32, 3)
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5


def _he_fan_out():
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def _conv(x, name, filters, kernel_size, strides=1):
    conv = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False,
                         kernel_initializer=_he_fan_out(), name=name)
    return conv(x)


def _batch_norm(x, name, gamma="ones"):
    norm = layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, gamma_initializer=gamma, name=name)
    return norm(x)


def _basic_block(x, prefix, widths, strides, use_projection):
    """Two 3x3 convolutions and a shortcut; the second batch norm starts at gamma = 0, so the block starts as identity."""
    shortcut = x
    x = _conv(x, f"{prefix}-conv1", widths[f"{prefix}-conv1"], 3, strides)
    x = layers.ReLU(name=f"{prefix}-relu1")(_batch_norm(x, f"{prefix}-bn1"))
    x = _conv(x, f"{prefix}-conv2", widths[f"{prefix}-conv2"], 3)
    x = _batch_norm(x, f"{prefix}-bn2", gamma="zeros")
    if use_projection:
        shortcut = _conv(shortcut, f"{prefix}-conv3", widths[f"{prefix}-conv3"], 1, strides)
        shortcut = _batch_norm(shortcut, f"{prefix}-bn3")
    x = layers.Add(name=f"{prefix}-add")([x, shortcut])
    return layers.ReLU(name=f"{prefix}-relu2")(x)


def conv_widths(depth):
    """Returns {convolution name: number of filters} of the unpruned network, in network order.

    Args:
        depth: number of weighted layers, 6n + 2 with n blocks a stage.
    """
    widths = {"conv": STEM_FILTERS}
    for stage in range(NUM_STAGES):
        filters = STEM_FILTERS * 2**stage
        for block in range((depth - 2) // (2 * NUM_STAGES)):
            convs = ("conv1", "conv2", "conv3") if stage and not block else ("conv1", "conv2")
            widths |= {f"BasicBlock{stage}.{block}-{conv}": filters for conv in convs}
    return widths


def streams(widths):
    """Returns lists of the convolutions that are added into one residual stream and so must have one width.

    Args:
        widths: {convolution name: filters}, as conv_widths gives.
    """
    by_stage = [["conv"], [], []]
    for name in widths:
        if name.endswith(("conv2", "conv3")):
            by_stage[int(name[len("BasicBlock")])].append(name)
    return by_stage


def build_cifar(depth, num_classes, widths=None):
    """Returns a CIFAR ResNet: keras.Model from normalised images [batch, 32, 32, 3] to logits [batch, num_classes].

    Args:
        depth: 20, 32, 44, 56 or 110.
        num_classes: number of logits.
        widths: {convolution name: filters} of a pruned network; None builds the unpruned one. Convolutions that are
            added into one residual stream must have the same width.

    Raises:
        ValueError: depth is not one of DEPTHS, or widths does not name exactly the network's convolutions.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth of a CIFAR ResNet must be one of {DEPTHS}; received depth={depth}.")
    expected = conv_widths(depth)
    widths = expected if widths is None else widths
    if set(widths) != set(expected):
        raise ValueError(f"widths must name the convolutions of ResNet-{depth}; "
                         f"missing or surplus: {sorted(set(widths) ^ set(expected))}.")
    inputs = keras.Input(IMAGE_SHAPE, name="images")
    x = _conv(inputs, "conv", widths["conv"], 3)
    x = layers.ReLU(name="relu")(_batch_norm(x, "bn"))
    for stage in range(NUM_STAGES):
        for block in range((depth - 2) // (2 * NUM_STAGES)):
            changes_shape = stage > 0 and block == 0
            x = _basic_block(x, f"BasicBlock{stage}.{block}", widths, 2 if changes_shape else 1, changes_shape)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(num_classes, name="fc")(x)
    return keras.Model(inputs, logits, name=f"ResNet-{depth}")
