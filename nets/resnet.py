"""Residual networks for small images and for ImageNet.

He et al. 2016, "Deep Residual Learning for Image Recognition". Plain Keras functional models that
know nothing of pruning: a pruned network is the same network with smaller widths, so the builder
takes a width for every convolution. The ImageNet networks are v1.5, as in torchvision: the stride
of a bottleneck is on its 3x3 convolution, and padding is symmetric, so that torchvision's weights
give the same logits.
"""

import dataclasses

import keras
from keras import layers

BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5
EXPANSION = 4  # output filters of a bottleneck, divided by those of its 3x3 convolution


@dataclasses.dataclass(frozen=True)
class Spec:
    """Properties of a ResNet.

    Attributes:
        image_shape: (height, width, channels).
        blocks: number of blocks of each stage.
        filters: number of filters of the 3x3 convolutions of each stage; the stem has as many as
            the first stage.
        is_bottleneck: whether a block is 1x1, 3x3, 1x1; otherwise it is 3x3, 3x3.
        is_large: whether it is for ImageNet: a 7x7 stem with stride 2 and max pooling, and
            symmetric padding; otherwise a 3x3 stem and "same" padding.
    """

    image_shape: tuple[int, int, int]
    blocks: tuple[int, ...]
    filters: tuple[int, ...]
    is_bottleneck: bool
    is_large: bool

    def stages(self):
        """Yields (stage, block, stride, has a projection shortcut) per block, in network order."""
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                is_first = block == 0
                strides = 2 if stage and is_first else 1
                yield stage, block, strides, is_first and (stage > 0 or self.is_bottleneck)

    def block_convs(self, strides):
        """Returns [(name, kernel size, strides)] of the convolutions on a block's main branch."""
        if self.is_bottleneck:
            return [("conv0", 1, 1), ("conv1", 3, strides), ("conv2", 1, 1)]
        return [("conv1", 3, strides), ("conv2", 3, 1)]


SPECS = {
    **{
        f"ResNet-{depth}": Spec((32, 32, 3), ((depth - 2) // 6,) * 3, (16, 32, 64), False, False)
        for depth in (8, 20, 32, 44, 56, 110)
    },
    "ResNet-18": Spec((224, 224, 3), (2, 2, 2, 2), (64, 128, 256, 512), False, True),
    "ResNet-34": Spec((224, 224, 3), (3, 4, 6, 3), (64, 128, 256, 512), False, True),
    "ResNet-50": Spec((224, 224, 3), (3, 4, 6, 3), (64, 128, 256, 512), True, True),
}


def conv_widths(arch):
    """Returns {convolution: number of filters} of the unpruned network, in network order.

    Args:
        arch: name in SPECS.
    """
    spec = SPECS[arch]
    widths = {"conv": spec.filters[0]}
    for stage, block, strides, has_projection in spec.stages():
        inner = spec.filters[stage]
        outer = inner * (EXPANSION if spec.is_bottleneck else 1)
        for name, _, _ in spec.block_convs(strides):
            widths[f"BasicBlock{stage}.{block}-{name}"] = outer if name == "conv2" else inner
        if has_projection:
            widths[f"BasicBlock{stage}.{block}-conv3"] = outer
    return widths


def streams(arch):
    """Returns lists of convolutions that are added to the same stream and so have equal widths."""
    spec = SPECS[arch]
    by_stage = [[] for _ in spec.blocks]
    if not spec.is_bottleneck:
        by_stage[0].append("conv")
    for name in conv_widths(arch):
        if name.endswith(("conv2", "conv3")):
            by_stage[int(name[len("BasicBlock")])].append(name)
    return by_stage


def build(arch, num_classes, widths=None):
    """Returns a ResNet, a keras.Model from normalised images to logits.

    Its input is [batch, height, width, 3], its output [batch, num_classes].

    Args:
        arch: name in SPECS.
        num_classes: number of logits.
        widths: {convolution: number of filters} of a pruned network; None builds the unpruned one.
            Convolutions that are added to the same residual stream must have the same width.

    Raises:
        ValueError: arch is unknown, or widths does not name exactly the network's convolutions.
    """
    if arch not in SPECS:
        raise ValueError(f"arch must be one of {list(SPECS)}; received arch={arch!r}.")
    spec = SPECS[arch]
    expected = conv_widths(arch)
    widths = expected if widths is None else widths
    if set(widths) != set(expected):
        raise ValueError(
            f"widths must name the convolutions of {arch}; missing or surplus: "
            f"{sorted(set(widths) ^ set(expected))}."
        )
    inputs = keras.Input(spec.image_shape, name="images")
    x = _conv(inputs, "conv", widths, spec, 7 if spec.is_large else 3, 2 if spec.is_large else 1)
    x = layers.ReLU(name="relu")(_batch_norm(x, "bn"))
    if spec.is_large:
        # After a ReLU, padding with zeros gives the same maxima as padding with minus infinity.
        x = layers.ZeroPadding2D(1, name="pool0-pad")(x)
        x = layers.MaxPooling2D(3, 2, name="pool0")(x)
    for stage, block, strides, has_projection in spec.stages():
        x = _block(x, f"BasicBlock{stage}.{block}", widths, spec, strides, has_projection)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(num_classes, name="fc")(x)
    return keras.Model(inputs, logits, name=arch)


def _block(x, prefix, widths, spec, strides, has_projection):
    """Applies a residual block; its last gamma starts at 0, so the block starts as the identity."""
    shortcut = x
    convs = spec.block_convs(strides)
    for name, kernel_size, conv_strides in convs:
        is_last = name == convs[-1][0]
        number = name.removeprefix("conv")
        x = _conv(x, f"{prefix}-{name}", widths, spec, kernel_size, conv_strides)
        x = _batch_norm(x, f"{prefix}-bn{number}", gamma="zeros" if is_last else "ones")
        if not is_last:
            x = layers.ReLU(name=f"{prefix}-relu{number}")(x)
    if has_projection:
        shortcut = _conv(shortcut, f"{prefix}-conv3", widths, spec, 1, strides)
        shortcut = _batch_norm(shortcut, f"{prefix}-bn3")
    x = layers.Add(name=f"{prefix}-add")([x, shortcut])
    return layers.ReLU(name=f"{prefix}-relu")(x)


def _conv(x, name, widths, spec, kernel_size, strides):
    padding = "same"
    if spec.is_large and strides > 1 and kernel_size > 1:
        # "same" with stride 2 pads even sizes more at the end than at the beginning.
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}-pad")(x)
        padding = "valid"
    conv = layers.Conv2D(
        widths[name],
        kernel_size,
        strides,
        padding=padding,
        use_bias=False,
        name=name,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
    )
    return conv(x)


def _batch_norm(x, name, gamma="ones"):
    norm = layers.BatchNormalization(
        momentum=BN_MOMENTUM, epsilon=BN_EPSILON, gamma_initializer=gamma, name=name
    )
    return norm(x)
