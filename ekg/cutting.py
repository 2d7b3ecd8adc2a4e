"""Cuts a sub-network out of a model as a dense network, and keeps the norms of its kernels where the method says so."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from ekg import graph as graphs
from ekg import groups


def norm_factor(kernel, row_mask):
    """Returns ‖W‖ / ‖W⊙m‖, scalar float32, for a kernel [..., c_in, c_out] and a mask [c_in] of its input rows.

    The factor carries no gradient: the importance of a channel is measured at its activation alone.
    """
    kept = kernel * row_mask[:, None]
    return tf.stop_gradient(tf.math.divide_no_nan(tf.norm(kernel), tf.norm(kept)))


def cut(graph, layout, mask):
    """Returns a new keras.Model without the masked channels.

    Layer names stay. The kernel of the layer that writes the logits is rescaled to the Frobenius norm it had; all
    other weights are slices of the model's.

    Args:
        graph: graph.Graph of the model.
        layout: groups.Layout of the graph.
        mask: bool array [num_channels + 1], the channels to keep.
    """
    kept = {tensor: np.flatnonzero(mask[index]) for tensor, index in layout.index.items()}
    source = graph.model.inputs[0]
    tensors = {0: keras.Input(source.shape[1:], name=source.name, dtype=source.dtype)}
    clones, weights = {}, {}
    for call in graph.calls:
        args, kwargs = call.arguments(tensors)
        layer = call.layer
        if isinstance(layer, layers.Layer):
            if layer.name not in clones:
                clones[layer.name] = _clone(layer, len(kept[call.output]))
                weights[layer.name] = _slice(layer, kept[call.inputs[0]], kept[call.output])
            layer = clones[layer.name]
        tensors[call.output] = layer(*args, **kwargs)
        if call.output == graph.output and groups.is_mixing(call.layer):
            rows = tf.constant(mask[layout.index[call.inputs[0]]], tf.float32)
            kernel, *others = weights[layer.name]
            factor = norm_factor(call.layer.kernel, rows).numpy()
            weights[layer.name] = [kernel * factor, *others]
    model = keras.Model(tensors[0], tensors[graph.output], name=graph.model.name)
    for name, values in weights.items():
        clones[name].set_weights(values)
    return model


def _clone(layer, num_channels):
    config = layer.get_config()
    if type(layer) is layers.Conv2D:
        config["filters"] = num_channels
    elif type(layer) is layers.Dense:
        config["units"] = num_channels
    elif type(layer) is layers.Reshape:
        config["target_shape"] = (*config["target_shape"][:-1], num_channels)
    return type(layer).from_config(config)


def _slice(layer, kept_in, kept_out):
    """Returns the layer's weights without the removed channels, as layer.get_weights() orders them."""
    weights = layer.get_weights()
    if groups.is_mixing(layer):
        return [weights[0][..., kept_in, :][..., kept_out], *(bias[kept_out] for bias in weights[1:])]
    if type(layer) is layers.DepthwiseConv2D:
        return [weights[0][..., kept_in, :], *(bias[kept_out] for bias in weights[1:])]
    if type(layer) is layers.BatchNormalization:
        return [weight[kept_out] for weight in weights]
    return weights  # the layer's channels are never pruned


def restore_norms_(model, original):
    """Rescales, in place, every convolution of a cut model to the norm it had in the original.

    The batch norm behind cancels the factor f, if its moving mean is multiplied by f and its moving variance by f², so
    the function stays and the effective learning rate is the original's. Convolutions without a batch norm
    behind them stay as they are.

    Args:
        model: the cut keras.Model.
        original: the keras.Model it was cut from; layers match by name.
    """
    graph = graphs.Graph(model)
    readers = {}
    names = [call.layer.name for call in graph.calls]
    for call in graph.calls:
        for tensor in call.inputs:
            readers.setdefault(tensor, []).append(call)
    for call in graph.calls:
        behind = readers.get(call.output, [])
        if type(call.layer) is not layers.Conv2D or len(behind) != 1 or names.count(call.layer.name) != 1:
            continue
        norm = behind[0].layer
        if type(norm) is not layers.BatchNormalization or call.layer.activation is not keras.activations.linear:
            continue
        size = np.linalg.norm(call.layer.kernel.numpy())
        if size == 0:
            continue
        factor = np.linalg.norm(original.get_layer(call.layer.name).kernel.numpy()) / size
        for weight in call.layer.weights:
            weight.assign(weight * factor)
        norm.moving_mean.assign(norm.moving_mean * factor)
        norm.moving_variance.assign(norm.moving_variance * factor**2)
