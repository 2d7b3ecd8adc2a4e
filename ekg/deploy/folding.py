"""Batch norms folded into the layers before them: the same function with fewer operations.

With moving statistics, a batch norm that follows a convolution or dense layer without an activation
of its own is a factor and an offset per channel: γ/√(σ² + ε) goes into the kernel, and β −
μγ/√(σ² + ε) into the bias (Jacob et al. 2018, section 3).
"""

import keras
import numpy as np

from ekg.graph import cutting, groups
from ekg.graph.calls import Graph
from ekg.graph.constants import Constant
from ekg.graph.copying import copy_operation
from ekg.graph.neighbours import sole_readers
from ekg.graph.registry import fitted_of, takes_norm


def fold_batch_norms(model, input_shape=None):
    """Returns a copy of a model, for inference alone, whose kernels hold the batch norms that
    follow them.

    An adapted Normalization becomes a factor and an offset, too.

    Args:
        model: functional or sequential keras.Model.
        input_shape: shape of an example, where the model takes any size.
    """
    graph = Graph(model, input_shape)
    replacements = {}
    for call, norm_call in sole_readers(graph).items():
        if _is_foldable(call.layer, norm_call.layer, len(graph.shapes[call.output])):
            folded, offset = _fold(call.layer, norm_call.layer, graph.shapes[call.inputs[0]])
            replacements[id(call.layer)] = folded
            replacements[id(norm_call.layer)] = _offset_layer(norm_call.layer, offset, graph, call)
        elif _is_norm_of_constant(call.layer, norm_call.layer, len(graph.shapes[call.output])):
            replacements[id(call.layer)] = _normalised(call.layer, norm_call.layer)
            replacements[id(norm_call.layer)] = _offset_layer(norm_call.layer, None, graph, call)
    for layer in graph.layers.values():
        if type(layer) is keras.layers.Normalization and not layer.invert:
            replacements[id(layer)] = _as_factor(layer)
    layout = groups.find(graph)
    return cutting.cut(
        graph, layout, np.ones(layout.num_channels + 1, bool), replacements=replacements
    )


def _as_factor(norm):
    """Returns a layer that computes what an adapted Normalization does, without constants that
    converters overlook.
    """
    mean, variance = (np.asarray(value, np.float64) for value in (norm.mean, norm.variance))
    scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
    return keras.layers.Rescaling(
        scale.astype(np.float32),
        (-mean * scale).astype(np.float32),
        name=norm.name,
        dtype=norm.dtype_policy,
    )


def _is_foldable(layer, norm, rank):
    if type(norm) is not keras.layers.BatchNormalization or not takes_norm(layer):
        return False
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1
    return norm.axis % rank == axis


def _is_norm_of_constant(constant, norm, rank):
    """Returns whether what a batch norm reads is the same for every example."""
    return (
        type(constant) is Constant
        and type(norm) is keras.layers.BatchNormalization
        and norm.axis % rank == constant.axis
    )


def _normalised(constant, norm):
    """Returns the Constant that a batch norm makes of a Constant."""
    size = constant.shape[constant.axis - 1]
    values = constant.bias if constant.use_bias else keras.ops.zeros((size,))
    mean, scale, beta = _in_inference(norm)
    values = np.asarray(constant.activation(values), np.float64) * scale + (beta - mean * scale)
    folded = Constant(
        constant.shape, constant.axis, name=constant.name, dtype=constant.dtype_policy
    )
    folded.build((None,))
    folded.bias.assign(values.astype(np.float32))
    return folded


def _in_inference(norm):
    """Returns (mean, scale, beta), float64, of a batch norm, which computes
    (x - mean)·scale + beta in inference.
    """
    mean, variance = (
        np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance)
    )
    scale = (np.asarray(norm.gamma, np.float64) if norm.scale else 1.0) / np.sqrt(
        variance + norm.epsilon
    )
    beta = np.asarray(norm.beta, np.float64) if norm.center else 0.0
    return mean, scale, beta


def _fold(layer, norm, shape):
    """Returns (a layer like this one that also computes a norm, the offset that it leaves to
    another layer).

    The offset is None where the layer has a bias, or can have one, which takes it in.

    Args:
        layer: layer that takes_norm().
        norm: keras.layers.BatchNormalization that follows it.
        shape: shape of what the layer reads.
    """
    kernel, weight = fitted_of(layer)
    bias = _bias_of(layer, kernel)
    mean, scale, beta = _in_inference(norm)
    offset = 0.0 if bias is None else np.asarray(bias, np.float64)
    offset = beta + (offset - mean) * scale
    sizes = [size if axis in weight.filter_axes else 1 for axis, size in enumerate(kernel.shape)]
    values = (np.asarray(kernel, np.float64) * scale.reshape(sizes)).astype(np.float32)
    offset = offset.astype(np.float32)
    if bias is not None:
        arrays = {id(kernel): values, id(bias): offset.reshape(bias.shape)}
        return copy_operation(layer, arrays), None
    config = layer.get_config()
    if "use_bias" not in config:
        return copy_operation(layer, {id(kernel): values}), offset
    folded = type(layer).from_config({**config, "use_bias": True})
    folded.build(shape)
    new_kernel, _ = fitted_of(folded)
    new_kernel.assign(values)
    _bias_of(folded, new_kernel).assign(offset)
    return folded, None


def _bias_of(layer, kernel):
    return next((variable for variable in layer.weights if variable is not kernel), None)


def _offset_layer(norm, offset, graph, call):
    """Returns the layer that takes the place of a folded norm: nothing, or what is left of it."""
    options = {"name": norm.name, "dtype": norm.dtype_policy}
    if offset is None:
        return keras.layers.Identity(**options)
    rank = len(graph.shapes[call.output])
    shape = (-1, *[1] * (rank - 1 - norm.axis % rank))
    return keras.layers.Rescaling(1.0, offset.reshape(shape), **options)
