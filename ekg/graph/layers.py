"""The records of Keras' own layers."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from ekg.graph import attention, flow, norms, patches
from ekg.graph.operations import reshaped_rows, slice_constants, stacked_rows
from ekg.graph.records import IN, OUT, LayerRecord, Weight, spatial_size

_VECTOR = Weight((OUT,))

# ---------------------------------------------------------------- convolutions


def _run_convolution(layer, variables, args, context):
    """Computes a convolution in another dtype than its weights', or a strided one of single pixels.

    A 1x1 convolution with strides first takes every stride-th pixel: for the strided operation
    itself some of TensorFlow's CPU kernels give a wrong gradient of the kernel where it reads fewer
    than eight channels.
    """
    options = context.options
    is_strided_pointwise = (
        tuple(layer.kernel_size) == (1, 1)
        and max(layer.strides) > 1
        and layer.groups == 1
        and (layer.data_format == "channels_last")
    )
    # A mixed policy computes in its own dtype.
    is_plain = options.dtype == "float32" or layer.compute_dtype != "float32"
    if is_plain and not is_strided_pointwise:
        return None
    dtype = layer.compute_dtype if is_plain else options.dtype
    x, *values = (keras.ops.cast(value, dtype) for value in (args[0], *variables))
    strides = layer.strides
    if is_strided_pointwise:
        x, strides = _every(x, strides), (1, 1)
    y = keras.ops.conv(x, values[0], strides, layer.padding, layer.data_format, layer.dilation_rate)
    if layer.use_bias:
        is_last = layer.data_format == "channels_last"
        y = y + (values[1] if is_last else keras.ops.reshape(values[1], (-1, *[1] * layer.rank)))
    return layer.activation(y) if layer.activation is not None else y, []


def _every(x, strides):
    """Returns x[:, ::rows, ::columns] for strides (rows, columns) of x [batch, height, width,
    channels].

    Where they divide the size, as the first part of longer pixels: on CPUs a slice without strides
    is three times as fast.
    """
    (rows, columns), (height, width, channels) = strides, x.shape[1:]
    if None in (height, width) or height % rows or width % columns:
        return x[:, ::rows, ::columns]
    tiles = tf.reshape(x, [-1, height // rows, rows, width // columns, columns * channels])
    return tiles[:, :, 0, :, :channels]


def _input_positions(_layer, shape, _written, axis):
    """Returns the positions of a transposed convolution: those that it reads."""
    return spatial_size(shape, axis)


def _conv(rank):
    """Returns the record of a convolution over this number of axes, as a function of the layer."""
    kernel = Weight((*[None] * rank, IN, OUT), (rank + 1,))
    run = _run_convolution if rank == 2 else None
    plain = LayerRecord(
        flow.mix,
        {"kernel": kernel, "bias": _VECTOR},
        ("kernel",),
        run=run,
        mixes=True,
        silent=True,
        patches=patches.of_convolution,
        resize=lambda _, kept: {"filters": len(kept.output)},
        fuses_with_norm=True,
        keeps_norm=True,
    )
    grouped = dataclasses.replace(plain, flow=flow.mix_groups)
    # As many groups as channels: a depthwise convolution, each of whose filters has one channel.
    depthwise = LayerRecord(
        flow.multiply_channels,
        {"kernel": Weight((*[None] * (rank + 1), OUT), (rank + 1,)), "bias": _VECTOR},
        ("kernel",),
        run=run,
        patches=patches.of_convolution,
        resize=lambda _, kept: {"filters": len(kept.output), "groups": len(kept.input)},
        fuses_with_norm=True,
        keeps_norm=True,
    )

    def record(layer):
        if layer.groups == 1:
            return plain
        return depthwise if layer.built and layer.kernel.shape[-2] == 1 else grouped

    return record


def _conv_transpose(rank):
    return LayerRecord(
        flow.mix,
        {"kernel": Weight((*[None] * rank, OUT, IN), (rank,)), "bias": _VECTOR},
        ("kernel",),
        positions=_input_positions,
        mixes=True,
        silent=True,
        patches=patches.of_transposed,
        resize=lambda _, kept: {"filters": len(kept.output)},
        fuses_with_norm=True,
        keeps_norm=True,
    )


def _depthwise(rank):
    return LayerRecord(
        flow.multiply_channels,
        {"kernel": Weight((*[None] * rank, IN, None), (rank, rank + 1)), "bias": _VECTOR},
        ("kernel",),
        patches=patches.of_depthwise,
        fuses_with_norm=True,
        keeps_norm=True,
    )


def _separable(rank):
    weights = {
        "depthwise_kernel": Weight((*[None] * rank, IN, None), (rank, rank + 1)),
        "pointwise_kernel": Weight((*[None] * rank, IN, OUT), (rank + 1,)),
        "bias": _VECTOR,
    }
    return LayerRecord(
        flow.mix,
        weights,
        ("depthwise_kernel", "pointwise_kernel"),
        mixes=True,
        silent=True,
        patches=patches.of_separable,
        resize=lambda _, kept: {"filters": len(kept.output)},
    )


# ---------------------------------------------------------------- dense layers

_DENSE = LayerRecord(
    flow.mix,
    {"kernel": Weight((IN, OUT), (1,)), "bias": Weight((OUT,), file_name="biases", file_rank=2)},
    ("kernel",),
    mixes=True,
    silent=True,
    patches=patches.of_dense,
    resize=lambda _, kept: {"units": len(kept.output)},
    fuses_with_norm=True,
)


def _einsum_axes(layer):
    """Returns the axes of an EinsumDense's kernel, or None if its last axes are not channels that
    it mixes.
    """
    reads, rest = layer.equation.replace(" ", "").split(",")
    kernel, writes = rest.split("->")
    read, written = reads[-1:], writes[-1:]
    if (
        "." in (read, written)
        or read not in kernel
        or read in writes
        or written not in kernel
        or written in reads
    ):
        return None
    return tuple(IN if label == read else OUT if label == written else None for label in kernel)


def _einsum_positions(layer, read, written, _axis):
    """Returns the number of uses of a kernel entry: once per index that is read or written and not
    the kernel's.
    """
    reads, rest = layer.equation.replace(" ", "").split(",")
    kernel, writes = rest.split("->")
    sizes = {}
    for labels, shape in ((reads, read), (writes, written)):
        before, _, after = labels.partition("...")
        named = [*zip(before, shape), *zip(after[::-1], shape[::-1])]
        between = shape[len(before) : len(shape) - len(after)]
        sizes |= dict(named) | {
            f"...{i}": size for i, size in enumerate(between if "..." in labels else ())
        }
    first = reads[0] if not reads.startswith("...") else "...0"
    return int(
        np.prod(
            [size for label, size in sizes.items() if label not in kernel and label != first] or [1]
        )
    )


def _einsum(layer):
    axes = _einsum_axes(layer)
    if axes is None:
        return None
    writes, named = layer.equation.replace(" ", "").split("->")[1], layer.bias_axes or ""
    if len(named) == 1 and named != writes[-1]:
        # Keras reads a bias that is long along one axis as the channels' if the lengths agree.
        return None
    first = min([writes.find(label) for label in named], default=len(writes) - 1)
    bias = Weight(
        tuple(
            OUT if i == len(writes) - 1 and label in named else None
            for i, label in enumerate(writes)
            if i >= first
        )
    )
    return LayerRecord(
        flow.mix,
        {"kernel": Weight(axes, (axes.index(OUT),)), "bias": bias},
        ("kernel",),
        mixes=True,
        silent=True,
        positions=_einsum_positions,
        resize=_resize_einsum,
    )


def _resize_einsum(layer, kept):
    count = len(kept.output)
    shape = layer.partial_output_shape
    changes = {
        "partial_output_shape": (*shape[:-1], count) if isinstance(shape, (tuple, list)) else count
    }
    if hasattr(layer, "full_output_shape"):
        changes["full_output_shape"] = (*layer.full_output_shape[:-1], count)
    return changes


# ---------------------------------------------------------------- normalisations and scales


def _batch_centred(layer, x, training):
    axes = tuple(axis for axis in range(x.ndim) if axis != layer.axis % x.ndim)
    return (x, axes) if training else None


def _layer_centred(layer, x, _training):
    return x, tuple(axis % x.ndim for axis in np.atleast_1d(layer.axis).tolist())


def _group_centred(layer, x, _training):
    x = np.moveaxis(x, layer.axis, -1)
    groups = x.shape[-1] if layer.groups == -1 else layer.groups
    x = x.reshape(*x.shape[:-1], groups, -1)
    return x, tuple(axis for axis in range(1, x.ndim) if axis != x.ndim - 2)


# A batch norm costs 2·H·W·C, whether it has a scale and an offset or not.
_BATCH_NORM = LayerRecord(
    flow.carry_along_axis,
    dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), Weight((OUT,), file_rank=4)),
    ("moving_mean", "moving_variance"),
    joins_previous=True,
    centred=_batch_centred,
    run=lambda layer, variables, args, context: norms.batch_norm(
        layer, variables, args[0], context.training, context.options
    ),
)
_LAYER_NORM = LayerRecord(
    flow.normalise,
    {"gamma": _VECTOR, "beta": _VECTOR},
    ("gamma", "beta"),
    run=norms.masked_layer_norm,
    asks_mask=True,
    centred=_layer_centred,
)
_RMS_NORM = LayerRecord(
    flow.normalise, {"scale": _VECTOR}, ("scale",), run=norms.masked_rms_norm, asks_mask=True
)
_UNIT_NORM = LayerRecord(
    flow.normalise, run=norms.masked_unit_norm, asks_mask=True, keeps_zeros=True
)
_GROUP_NORM = LayerRecord(
    flow.carry_groups,
    {"gamma": _VECTOR, "beta": _VECTOR},
    ("gamma", "beta"),
    resize=lambda layer, kept: {"groups": layer.groups * len(kept.output) // kept.sizes[1]},
    centred=_group_centred,
)


def _over_one_axis(layer, record):
    """Returns the record of a norm over one axis, or None: over several, every channel depends on
    all positions.
    """
    return record if isinstance(layer.axis, int) or len(layer.axis) == 1 else None


def _prelu(layer):
    """Returns the record of slopes per channel of channels_last, or shared; shared axes have length
    1.
    """
    if not layer.built:
        return None
    *rest, last = layer.alpha.shape
    axes = (*[None] * len(rest), OUT if last != 1 else None)
    alpha = Weight(axes, each_channel=last == 1)
    return LayerRecord(
        _carry_slopes,
        {"alpha": alpha},
        ("alpha",),
        keeps_zeros=True,
        positions=lambda _, __, written, axis: spatial_size(written, axis) // math.prod(rest),
    )


def _carry_slopes(channel_flow, call):
    """Carries channels if the slopes are the last axis', or shared along the channels' axis."""
    channels, alpha = channel_flow.channels[call.inputs[0]], call.layer.alpha
    fits = channels.axis is not None and (
        channels.axis == len(alpha.shape) or alpha.shape[channels.axis - 1] == 1
    )
    return flow.carry(channel_flow, call) if fits else flow.close(channel_flow, call)


def _resize_rescaling(layer, kept):
    """Returns scale and offset without the entries of removed channels."""
    changes = {}
    for name in ("scale", "offset"):
        value = np.asarray(getattr(layer, name))
        if value.ndim and value.shape[-1] == kept.sizes[1] and len(kept.output) != kept.sizes[1]:
            changes[name] = value[..., kept.output].tolist()
    return changes


def _rescaling(layer):
    is_vector = any(np.ndim(value) for value in (layer.scale, layer.offset))
    return LayerRecord(_carry_last if is_vector else flow.carry, resize=_resize_rescaling)


def _carry_last(channel_flow, call):
    """Carries channels along the last axis, and closes others."""
    number = call.inputs[0]
    is_last = channel_flow.channels[number].axis == len(channel_flow.shapes[number]) - 1
    return flow.carry(channel_flow, call) if is_last else flow.close(channel_flow, call)


# ---------------------------------------------------------------- embeddings

_EMBEDDING = LayerRecord(
    flow.hold,
    {"embeddings": Weight((None, OUT))},
    resize=lambda _, kept: {"output_dim": len(kept.output)},
    begins=True,
)


def _is_reversed(shapes_read, written):
    return len(shapes_read[0]) == len(written)


def _hold_or_close(channel_flow, call):
    """Holds the channels of embeddings, which stay where another call multiplies by them."""
    read, written = (channel_flow.shapes[n] for n in (call.inputs[0], call.output))
    if not _is_reversed([read], written):
        return flow.hold(channel_flow, call)
    held = channel_flow.held(call.key, call.layer.output_dim)
    channel_flow.close(held, f"{flow.describe(call)} is called in reverse")
    return flow.close(channel_flow, call)


def _reversed_products(layer, read, written):
    """Products of the embeddings with what a call in reverse reads."""
    return math.prod(written[1:]) * layer.output_dim if _is_reversed(read, written) else 0


_REVERSIBLE_EMBEDDING = dataclasses.replace(
    _EMBEDDING,
    flow=_hold_or_close,
    weights={**_EMBEDDING.weights, "reverse_embeddings": Weight((OUT, None))},
    products=_reversed_products,
)

# ---------------------------------------------------------------- kinds without weights


def _resize_reshape(layer, kept):
    shape = list(layer.target_shape)
    if kept.axis is not None and shape[kept.axis - 1] != -1:
        shape[kept.axis - 1] = len(kept.output)
    return {"target_shape": tuple(shape)} if tuple(shape) != tuple(layer.target_shape) else {}


_CARRY, _MERGE = LayerRecord(flow.carry), LayerRecord(flow.merge, arguments=slice_constants)
_CARRY_ZEROS = LayerRecord(flow.carry, keeps_zeros=True)
_ACTIVATION = LayerRecord(flow.carry, joins_previous=True)

LAYERS = {
    layers.Conv1D: _conv(1),
    layers.Conv2D: _conv(2),
    layers.Conv3D: _conv(3),
    layers.Conv1DTranspose: _conv_transpose(1),
    layers.Conv2DTranspose: _conv_transpose(2),
    layers.Conv3DTranspose: _conv_transpose(3),
    layers.DepthwiseConv1D: _depthwise(1),
    layers.DepthwiseConv2D: _depthwise(2),
    layers.SeparableConv1D: _separable(1),
    layers.SeparableConv2D: _separable(2),
    layers.Dense: _DENSE,
    layers.EinsumDense: _einsum,
    layers.BatchNormalization: _BATCH_NORM,
    layers.LayerNormalization: lambda layer: _over_one_axis(
        layer, None if layer.rms_scaling else _LAYER_NORM
    ),
    layers.RMSNormalization: lambda layer: _over_one_axis(layer, _RMS_NORM),
    layers.UnitNormalization: lambda layer: _over_one_axis(layer, _UNIT_NORM),
    layers.GroupNormalization: _GROUP_NORM,
    layers.PReLU: _prelu,
    layers.Rescaling: _rescaling,
    **dict.fromkeys((layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU), _ACTIVATION),
    **dict.fromkeys((layers.GaussianNoise, layers.AlphaDropout), _CARRY),
    layers.Softmax: LayerRecord(flow.carry_beside_axis, joins_previous=True),
    **dict.fromkeys(
        (
            layers.Add,
            layers.Subtract,
            layers.Multiply,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
        ),
        _MERGE,
    ),
    layers.Concatenate: LayerRecord(flow.stack, rows=stacked_rows),
    **dict.fromkeys(
        (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
        LayerRecord(flow.carry, keeps_zeros=True, joins_next=True),
    ),
    **dict.fromkeys(
        (
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Cropping3D,
            layers.UpSampling1D,
            layers.UpSampling2D,
            layers.UpSampling3D,
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
            layers.GlobalMaxPooling1D,
            layers.GlobalMaxPooling2D,
            layers.GlobalMaxPooling3D,
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
            layers.GaussianDropout,
            layers.CenterCrop,
            layers.ActivityRegularization,
        ),
        _CARRY_ZEROS,
    ),
    layers.Identity: LayerRecord(flow.carry, keeps_zeros=True, is_free=True),
    **dict.fromkeys(
        (layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
        LayerRecord(flow.carry, keeps_zeros=True, joins_previous=True),
    ),
    layers.Dropout: LayerRecord(
        flow.carry_noise, keeps_zeros=True, joins_previous=True, is_free=True
    ),
    layers.Resizing: lambda layer: (
        _CARRY if layer.pad_to_aspect_ratio and layer.fill_value else _CARRY_ZEROS
    ),
    layers.Flatten: LayerRecord(flow.tile, keeps_zeros=True),
    layers.Reshape: LayerRecord(
        flow.tile, keeps_zeros=True, resize=_resize_reshape, rows=reshaped_rows
    ),
    layers.Permute: LayerRecord(flow.permute, keeps_zeros=True),
    layers.Embedding: _EMBEDDING,
    **{
        kind: _REVERSIBLE_EMBEDDING
        for kind in (
            getattr(layers, "ReversibleEmbedding", None),  # not in all versions of Keras
            "keras_hub.src.layers.modeling.reversible_embedding.ReversibleEmbedding",
        )
        if kind is not None
    },
    layers.Normalization: LayerRecord(flow.close, flops=lambda *_: 0),
    **dict.fromkeys(
        (layers.MultiHeadAttention, layers.GroupQueryAttention),
        LayerRecord(flow.close, flops=attention.flops, parts=attention.parts),
    ),
    # layers that only networks of KerasHub have: they drop whole examples of a branch
    **dict.fromkeys(
        (
            "keras_hub.src.models.mit.mit_layers.DropPath",
            "keras_hub.src.models.swin_transformer.swin_transformer_layers.DropPath",
            "keras_hub.src.models.dinov2.dinov2_layers.DINOV2DropPath",
        ),
        LayerRecord(flow.carry, keeps_zeros=True, joins_previous=True, is_free=True),
    ),
    # layers that only networks of keras.applications have
    "keras.src.applications.convnext.LayerScale": LayerRecord(
        flow.carry,
        {"gamma": _VECTOR},
        ("gamma",),
        keeps_zeros=True,
        resize=lambda _, kept: {"projection_dim": len(kept.output)},
    ),
    "keras.src.applications.inception_resnet_v2.CustomScaleLayer": _MERGE,
}
