"""Batch norms folded into the layers before them: the same function with fewer operations.

A batch norm that follows a convolution or dense layer without an activation of its own is, with
moving statistics, a factor and a summand for each channel: γ/√(σ² + ε) goes into the kernel, β −
μγ/√(σ² + ε) into the bias (Jacob et al. 2018, section 3).
"""

import keras
import numpy as np

from ekg.graph import cutting, groups, norms
from ekg.graph.calls import Graph
from ekg.graph.readers import sole_readers

KINDS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def fold_batch_norms(model, input_shape=None):
    """Returns a copy of a model in which batch norms stand in the kernels before them wherever that
    is possible.

    An adapted Normalization becomes a factor and a summand, too.

    The copy is for inference alone: what is folded is not there to train.

    Args:
        model: functional or sequential keras.Model.
        input_shape: of an example, where the model takes any size.
    """
    graph = Graph(model, input_shape)
    replacements = {}
    for call, norm in _pairs(graph):
        replacements[id(call.layer)] = _folded(call.layer, norm.layer, graph.shapes[call.inputs[0]])
        replacements[id(norm.layer)] = keras.layers.Identity(
            name=norm.layer.name, dtype=norm.layer.dtype_policy
        )
    for layer in graph.layers.values():
        if type(layer) is keras.layers.Normalization and not layer.invert:
            replacements[id(layer)] = _as_factor(layer)
    layout = groups.find(graph)
    return cutting.cut(
        graph, layout, np.ones(layout.num_channels + 1, bool), replacements=replacements
    )


def _as_factor(norm):
    """Returns a layer that does what an adapted Normalization does, without constants that
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


def _pairs(graph):
    """Returns a list of (Call of a layer, Call of the batch norm that alone reads what it
    writes).
    """
    return [
        (call, norm)
        for call, norm in sole_readers(graph).items()
        if type(call.layer) in KINDS
        and _is_foldable(call.layer, norm.layer, len(graph.shapes[call.output]))
    ]


def _is_foldable(layer, norm, rank):
    if not (norms.uses_batch_statistics(norm) and type(norm) is keras.layers.BatchNormalization):
        return False
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1
    return (
        layer.activation in (None, keras.activations.linear)
        and norm.axis % rank == axis
        and (
            getattr(layer, "lora_rank", None) is None
            and getattr(layer, "quantization_mode", None) is None
        )
    )


def _folded(layer, norm, shape):
    """Returns a layer like this one that does what the norm does, too."""
    mean, variance = (
        np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance)
    )
    scale = (np.asarray(norm.gamma, np.float64) if norm.scale else 1.0) / np.sqrt(
        variance + norm.epsilon
    )
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else 0.0
    shift = (np.asarray(norm.beta, np.float64) if norm.center else 0.0) + (bias - mean) * scale
    kernel = next(
        variable for variable in layer.weights if variable is not getattr(layer, "bias", None)
    )
    channels = {
        "DepthwiseConv": kernel.shape[-2:],
        "Transpose": (kernel.shape[-2], 1),
    }  # of the last two axes
    last = next(
        (sizes for name, sizes in channels.items() if name in type(layer).__name__),
        (1, kernel.shape[-1]),
    )
    sizes = (*[1] * (len(kernel.shape) - 2), *last)
    new = type(layer).from_config({**layer.get_config(), "use_bias": True})
    new.build(shape)
    values = {len(kernel.shape): np.asarray(kernel, np.float64) * scale.reshape(sizes), 1: shift}
    for variable in new.weights:
        variable.assign(values[len(variable.shape)])
    return new
