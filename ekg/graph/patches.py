"""The linear part of a layer for least squares: patches of its input, and its kernel as a matrix.

A function named of_... can be the `patches` of a layer record. It takes a layer and the tensor that
it reads, and returns patches [batch, positions..., blocks, rows]. With the kernel from
kernel_matrix(), [blocks, rows, columns], the layer computes patches · kernel + bias before its
activation, block by block: one block for a layer in which every channel depends on all others, one
per group for a layer that works in groups, one per channel for a depthwise one.
"""

import math

import keras
import numpy as np


def of_dense(_layer, x):
    """Returns the patches of a dense layer: what it reads, as one block."""
    return x[..., None, :]


def of_convolution(layer, x):
    """Returns the patches of a convolution, with one block per group."""
    x = _channels_last(layer, x)
    padding = layer.padding
    if padding == "causal":
        x = keras.ops.pad(
            x, [(0, 0), (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0), (0, 0)]
        )
        padding = "valid"
    return _windows(x, layer.kernel_size, layer.strides, padding, layer.dilation_rate, layer.groups)


def of_depthwise(layer, x):
    """Returns the patches of a depthwise convolution, with one block per channel."""
    x = _channels_last(layer, x)
    return _windows(
        x, layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate, x.shape[-1]
    )


def of_separable(layer, x):
    """Returns the patches of the pointwise half of a separable convolution: what its depthwise half
    writes.
    """
    y = keras.ops.depthwise_conv(
        x,
        layer.depthwise_kernel,
        layer.strides,
        layer.padding,
        layer.data_format,
        layer.dilation_rate,
    )
    return _channels_last(layer, y)[..., None, :]


def of_transposed(layer, x):
    """Returns the patches of a transposed convolution: what it would write with a filter for each
    row of its kernel.
    """
    x, count = _channels_last(layer, x), math.prod(layer.kernel_size)
    rows = count * x.shape[-1]
    identity = np.eye(rows, dtype="float32").reshape(rows, *layer.kernel_size, x.shape[-1])
    y = keras.ops.conv_transpose(
        x,
        np.moveaxis(identity, 0, -2),
        layer.strides,
        layer.padding,
        layer.output_padding,
        "channels_last",
        layer.dilation_rate,
    )
    return y[..., None, :]


def _channels_last(layer, x):
    return keras.ops.moveaxis(x, 1, -1) if layer.data_format == "channels_first" else x


def _windows(x, size, strides, padding, dilation, blocks):
    """Returns [batch, positions..., blocks, rows], with the rows in the order (offset in the
    window, channel).
    """
    channels, count = x.shape[-1], math.prod(size)
    if count == 1:
        y = x[(slice(None), *(slice(None, None, step) for step in strides))]
    elif len(size) == 2:
        y = keras.ops.image.extract_patches(x, size, strides, dilation, padding)
    else:
        rows = count * channels
        identity = np.eye(rows, dtype="float32").reshape(*size, channels, rows)
        y = keras.ops.conv(x, identity, strides, padding, "channels_last", dilation)
    positions = y.shape[:-1]
    y = keras.ops.reshape(y, (*positions, count, blocks, channels // blocks))
    return keras.ops.reshape(keras.ops.swapaxes(y, -3, -2), (*positions, blocks, -1))


def kernel_matrix(kernel, weight, blocks):
    """Returns a kernel as a matrix per block, [blocks, rows, columns].

    Args:
        kernel: array of a kernel.
        weight: its records.Weight, whose filter axes become the columns.
        blocks: number of blocks.
    """
    order = _order(weight, kernel.ndim)
    columns = math.prod(kernel.shape[axis] for axis in weight.filter_axes)
    return np.transpose(kernel, order).reshape(-1, blocks, columns // blocks).transpose(1, 0, 2)


def kernel_from_matrix(matrix, weight, shape):
    """Returns the kernel of this shape that kernel_matrix() takes for this matrix [blocks, rows,
    columns].
    """
    order = _order(weight, len(shape))
    moved = matrix.transpose(1, 0, 2).reshape([shape[axis] for axis in order])
    return np.transpose(moved, np.argsort(order))


def _order(weight, rank):
    """Returns the axes of a kernel in the order (rows, columns)."""
    return [*(axis for axis in range(rank) if axis not in weight.filter_axes), *weight.filter_axes]
