"""Networks of well-known kinds, whole ones and small ones written with plain layers, and their
FLOPs counted by hand.
"""

import contextlib
import functools
import math
import os
import sys
from unittest import mock

import keras
import numpy as np
from keras import layers, ops

from ekg.testing import check_prunable
from tests.helpers.models import conv_bn, randomise_

SIZE, CLASSES = 96, 10

# ---------------------------------------------------------------- FLOPs by hand


def flops_by_hand(model):
    """Returns the multiply-accumulates of one image from the shapes that Keras itself knows, layer
    by layer.

    Every layer must be called once.
    """
    return sum(
        flops_by_hand(layer) if isinstance(layer, keras.Model) else _layer_flops(layer)
        for layer in model.layers
    )


def _layer_flops(layer):
    if not layer.weights or isinstance(
        layer, layers.Normalization
    ):  # that of the input is not counted, which is said
        return 0
    *positions, channels = layer.output.shape[1:]
    area, read = math.prod(positions), layer.input.shape[-1]
    if isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
        between = read * layer.depth_multiplier
        return area * (math.prod(layer.kernel_size) * between + between * channels)
    if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        return area * math.prod(layer.kernel_size) * channels
    if isinstance(layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)):
        return math.prod(layer.input.shape[1:-1]) * math.prod(layer.kernel_size) * read * channels
    if isinstance(layer, (layers.Conv1D, layers.Conv2D, layers.Conv3D)):
        return area * math.prod(layer.kernel_size) * read * channels // layer.groups
    if isinstance(layer, layers.Dense):
        return area * read * channels
    if isinstance(layer, layers.BatchNormalization):
        return 2 * area * channels
    scales = (
        layers.LayerNormalization,
        layers.RMSNormalization,
        layers.GroupNormalization,
        layers.PReLU,
    )
    if isinstance(layer, scales) or type(layer).__name__ == "LayerScale":
        return area * channels * len(layer.weights)
    raise NotImplementedError(f"{layer.name} ({type(layer).__name__})")


# ---------------------------------------------------------------- keras.applications


# Blocks that repeat an earlier one take most of the time of a deep network and are pruned alike;
# with this variable set, the networks have all of them.
WHOLE = "EKG_WHOLE_APPLICATIONS"
FEW = 2
HALF_DEPTH = 0.5  # the depth coefficient with which the longest stages have FEW blocks or three


@contextlib.contextmanager
def few_blocks():
    """Lets keras.applications repeat a block FEW times at most; every kind of block is there."""

    def fewer(place):
        def stack(original, *arguments, **options):
            arguments = list(arguments)
            arguments[place] = min(arguments[place], FEW)
            return original(*arguments, **options)

        return stack

    def inception_block(original, x, *, block_idx, activation="relu", **options):
        is_last = activation is None
        if block_idx > FEW and not is_last:
            return x
        return original(x, block_idx=block_idx, activation=activation, **options)

    def convnext(original, depths, *arguments, **options):
        return original([min(depth, FEW) for depth in depths], *arguments, **options)

    def efficientnet(original, width, _, *arguments, **options):
        return original(width, HALF_DEPTH, *arguments, **options)

    def efficientnet_v2(original, **options):
        return original(**options | {"depth_coefficient": HALF_DEPTH})

    def cells(original, *arguments, **options):
        return original(*arguments, **options | {"num_blocks": FEW})

    replaced = (
        ("ResNet50", "stack_residual_blocks_v1", fewer(2)),
        ("ResNet50V2", "stack_residual_blocks_v2", fewer(2)),
        ("DenseNet121", "dense_block", fewer(1)),
        ("InceptionResNetV2", "inception_resnet_block", inception_block),
        ("NASNetMobile", "NASNet", cells),
        ("ConvNeXtTiny", "ConvNeXt", convnext),
        ("EfficientNetB0", "EfficientNet", efficientnet),
        ("EfficientNetV2B0", "EfficientNetV2", efficientnet_v2),
    )
    with contextlib.ExitStack() as stack:
        for network, function, replacement in replaced:
            module = sys.modules[getattr(keras.applications, network).__module__]
            if function.startswith("stack_"):  # ResNet50V2 takes them from the module of ResNet50
                module = sys.modules[keras.applications.ResNet50.__module__]
            original = getattr(module, function)
            stack.enter_context(
                mock.patch.object(module, function, functools.partial(replacement, original))
            )
        yield


def application(name, **options):
    """Returns a network of keras.applications for small images, with random weights."""
    make = getattr(keras.applications, name)
    with contextlib.nullcontext() if WHOLE in os.environ else few_blocks():
        model = make(
            input_shape=(SIZE, SIZE, 3),
            weights=None,
            classes=CLASSES,
            classifier_activation=None,
            **options,
        )
    return randomise_(model)


def check_network(model, least, **options):
    """Checks the promise, the count by hand, and that the smallest sub-network has this share of
    the FLOPs; the Supernet.
    """
    supernet = check_prunable(model, subnetworks=1, **options)
    smallest = flops_by_hand(supernet.cut(supernet.smallest()))
    whole = flops_by_hand(model)
    assert smallest == supernet.complexity(supernet.smallest()).flops
    assert whole == supernet.complexity(supernet.whole()).flops
    assert supernet.rate(supernet.smallest()) == smallest / whole <= least
    return supernet


def check_application(name, least=0.01, model=None, **options):
    """Checks a network of keras.applications: all of it but its output can be pruned. Returns the
    Supernet.

    Args:
        name: of the network.
        least: share of the FLOPs that its smallest sub-network must reach.
        model: arguments of the network.
        options: arguments of check_prunable().
    """
    supernet = check_network(application(name, **(model or {})), least, **options)
    assert list(supernet.layout.closed.values()) == ["output of the network"]
    return supernet


def smooth_images(number=12, seed=0):
    """Returns images that differ more from one another than noise does, which keeps norms of a
    batch well conditioned.
    """
    coarse = np.random.default_rng(seed).normal(size=(number, 4, 4, 3))
    return ops.convert_to_numpy(
        ops.image.resize(coarse.astype(np.float32), (SIZE, SIZE), "bicubic")
    )


# ---------------------------------------------------------------- small ones


def resnet(widths=(16, 32, 64), size=32):
    """Residual blocks by `+` and functions of keras.ops, without a layer Add or ReLU."""
    inputs = keras.Input((size, size, 3))
    x = ops.relu(conv_bn(inputs, widths[0], "stem", relu=False))
    for stage, width in enumerate(widths):
        for block in range(2):
            name, strides = f"s{stage}b{block}", 2 if stage and not block else 1
            y = ops.relu(conv_bn(x, width, f"{name}_1", strides=strides, relu=False))
            y = conv_bn(y, width, f"{name}_2", relu=False)
            if strides > 1:
                x = conv_bn(x, width, f"{name}_0", size=1, strides=strides, relu=False)
            x = ops.relu(y + x)
    x = ops.mean(x, axis=(1, 2))
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="resnet"))


def regnet(widths=(32, 64), group_width=16, squeeze=True, size=32):
    """Bottlenecks of grouped convolutions, with or without squeeze and excite."""
    inputs = keras.Input((size, size, 3))
    x = conv_bn(inputs, 32, "stem")
    for stage, width in enumerate(widths):
        for block in range(2):
            name, strides = f"s{stage}b{block}", 1 if block else 2
            y = conv_bn(x, width, f"{name}_1", size=1)
            y = layers.Conv2D(
                width,
                3,
                strides,
                padding="same",
                groups=width // group_width,
                use_bias=False,
                name=f"{name}_2",
            )(y)
            y = layers.ReLU(name=f"{name}_2_relu")(
                layers.BatchNormalization(name=f"{name}_2_bn")(y)
            )
            if squeeze:
                s = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(y)
                s = layers.Conv2D(width // 4, 1, activation="relu", name=f"{name}_reduce")(s)
                s = layers.Conv2D(width, 1, activation="sigmoid", name=f"{name}_expand")(s)
                y = layers.Multiply(name=f"{name}_scale")([y, s])
            y = conv_bn(y, width, f"{name}_3", size=1, relu=False)
            if not block:
                x = conv_bn(x, width, f"{name}_0", size=1, strides=2, relu=False)
            x = layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="regnet"))


def shufflenet(split="split", size=32):
    """Units of ShuffleNetV2: half of the channels go through a branch, then those of both halves
    are dealt in turn.

    Args:
        split: how the channels are halved, "split" by keras.ops.split or "slice" by indices.
    """

    def unit(x, name):
        half = x.shape[-1] // 2
        left, right = (
            ops.split(x, 2, axis=-1) if split == "split" else (x[..., :half], x[..., half:])
        )
        return shuffled(left, branch(right, half, name, 1), name)

    def down(x, width, name):
        left = layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False, name=f"{name}_dw0")(x)
        left = conv_bn(
            layers.BatchNormalization(name=f"{name}_dw0_bn")(left), width // 2, f"{name}_0", size=1
        )
        return shuffled(left, branch(x, width // 2, name, 2), name)

    def branch(x, width, name, strides):
        x = conv_bn(x, width, f"{name}_1", size=1)
        x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, name=f"{name}_dw")(x)
        return conv_bn(
            layers.BatchNormalization(name=f"{name}_dw_bn")(x), width, f"{name}_2", size=1
        )

    def shuffled(left, right, name):
        x = layers.Concatenate(name=f"{name}_cat")([left, right])
        height, width, channels = x.shape[1:]
        x = layers.Reshape((height, width, 2, channels // 2), name=f"{name}_shuffle")(x)
        return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, height, width, channels))

    inputs = keras.Input((size, size, 3))
    x = conv_bn(inputs, 8, "stem", strides=2)
    for stage, width in enumerate((16, 32)):
        x = unit(down(x, width, f"down{stage}"), f"unit{stage}")
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(x, 32, "last", size=1))
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="shufflenet"))


def unet(size=32, widths=(8, 16, 32)):
    """A U-Net: a map of two channels from maps of three sizes, put up again by a transposed
    convolution and by repeating.
    """

    def double(x, width, name):
        return conv_bn(conv_bn(x, width, f"{name}_1"), width, f"{name}_2")

    inputs = keras.Input((size, size, 3))
    x, skips = inputs, []
    for i, width in enumerate(widths[:-1]):
        x = double(x, width, f"down{i}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
    x = double(x, widths[-1], "middle")
    for i, width in reversed(list(enumerate(widths[:-1]))):
        if i % 2:
            x = layers.Conv2DTranspose(width, 2, 2, name=f"up{i}")(x)
        else:
            x = layers.UpSampling2D(interpolation="bilinear", name=f"up{i}")(x)
        x = double(layers.Concatenate(name=f"skip{i}")([skips[i], x]), width, f"join{i}")
    return randomise_(keras.Model(inputs, layers.Conv2D(2, 1, name="maps")(x), name="unet"))
