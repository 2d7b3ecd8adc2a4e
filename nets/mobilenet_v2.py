"""MobileNet-v2 for images of 32x32 pixels.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks". A plain Keras
functional model of standard layers. The stem and the first two stages that downsample ImageNet
images have stride 1 here, so images are downsampled only twice. A pruned network is the same
network with smaller widths; a depthwise convolution has the width of the convolution before it.
"""

import dataclasses

import keras
from keras import layers

from nets.resnet import BN_EPSILON, BN_MOMENTUM

STEM_FILTERS = 32
HEAD_FILTERS = 1280
# (expansion, filters, blocks, stride of the first block) of each stage
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 1),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Properties of a MobileNet-v2.

    Attributes:
        image_shape: (height, width, channels).
    """

    image_shape: tuple[int, int, int]


SPECS = {"MobileNet-v2": Spec((32, 32, 3))}


def _blocks():
    """Yields (name, expanded filters or None, output filters, stride, has a shortcut) per block."""
    channels = STEM_FILTERS
    for stage, (expansion, filters, blocks, stage_strides) in enumerate(STAGES):
        for block in range(blocks):
            name = f"InvertedResidual{stage}.{block}"
            expanded = expansion * channels if expansion > 1 else None
            strides = stage_strides if block == 0 else 1
            yield name, expanded, filters, strides, block > 0
            channels = filters


def conv_widths(arch):
    """Returns {convolution: number of filters} of the unpruned network, without depthwise ones.

    Args:
        arch: name in SPECS.
    """
    widths = {"conv": STEM_FILTERS}
    for name, expanded, filters, _, _ in _blocks():
        if expanded is not None:
            widths[f"{name}-conv0"] = expanded
        widths[f"{name}-conv2"] = filters
    return widths | {"conv_last": HEAD_FILTERS}


def streams(arch):
    """Returns lists of convolutions that are added to the same stream and so have equal widths."""
    by_stage = {}
    for name, *_ in _blocks():
        by_stage.setdefault(name.split(".")[0], []).append(f"{name}-conv2")
    return list(by_stage.values())


def build(arch, num_classes, widths=None):
    """Returns a MobileNet-v2, a keras.Model from normalised images to logits.

    Its input is [batch, 32, 32, 3], its output [batch, num_classes].

    Args:
        arch: name in SPECS.
        num_classes: number of logits.
        widths: {convolution: number of filters} of a pruned network; None builds the unpruned one.

    Raises:
        ValueError: arch is unknown, or widths does not name exactly the network's convolutions.
    """
    if arch not in SPECS:
        raise ValueError(f"arch must be one of {list(SPECS)}; received arch={arch!r}.")
    expected = conv_widths(arch)
    widths = expected if widths is None else widths
    if set(widths) != set(expected):
        raise ValueError(
            f"widths must name the convolutions of {arch}; missing or surplus: "
            f"{sorted(set(widths) ^ set(expected))}."
        )
    inputs = keras.Input(SPECS[arch].image_shape, name="images")
    x = _conv(inputs, "conv", widths["conv"], 3)
    for name, expanded, _, strides, has_shortcut in _blocks():
        shortcut = x
        if expanded is not None:
            x = _conv(x, f"{name}-conv0", widths[f"{name}-conv0"], 1)
        depthwise = layers.DepthwiseConv2D(
            3,
            strides,
            padding="same",
            use_bias=False,
            name=f"{name}-conv1",
            depthwise_initializer=_initializer(),
        )
        x = _norm(depthwise(x), f"{name}-conv1")
        x = _conv(x, f"{name}-conv2", widths[f"{name}-conv2"], 1, is_linear=True)
        if has_shortcut:
            x = layers.Add(name=f"{name}-add")([x, shortcut])
    x = _conv(x, "conv_last", widths["conv_last"], 1)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="fc")(x), name=arch)


def _conv(x, name, filters, size, is_linear=False):
    conv = layers.Conv2D(
        filters, size, padding="same", use_bias=False, name=name, kernel_initializer=_initializer()
    )
    return _norm(conv(x), name, is_linear)


def _norm(x, conv, is_linear=False):
    """Applies batch norm and ReLU6, whose names have "bn" and "relu" instead of "conv"."""
    before, after = conv.rsplit("conv", 1)
    norm = layers.BatchNormalization(
        momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"{before}bn{after}"
    )
    x = norm(x)
    return x if is_linear else layers.ReLU(6.0, name=f"{before}relu{after}")(x)


def _initializer():
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
