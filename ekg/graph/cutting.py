"""Cuts a sub-network out of a model as a dense network."""

import keras
import numpy as np
import tensorflow as tf

from ekg.graph import layers
from ekg.graph.calls import finish_layers_


def cut(graph, layout, mask):
    """Returns a new keras.Model without the masked channels.

    Layer names stay. The kernel of the layer that writes class logits is rescaled to the Frobenius norm it had; all
    other weights are slices of the model's.

    Args:
        graph: Graph of the model.
        layout: groups.Layout of the graph.
        mask: bool array [num_channels + 1], the channels to keep.
    """
    kept = {tensor: np.flatnonzero(mask[index]) for tensor, index in layout.index.items()}
    source = graph.model.inputs[0]
    tensors = {0: keras.Input(source.shape[1:], name=source.name, dtype=source.dtype)}
    clones, values, classifier = {}, {}, layers.classifier_of(graph)
    for call in graph.calls:
        args, kwargs = call.arguments(tensors)
        layer = call.layer
        if isinstance(layer, keras.layers.Layer):
            if layer.name not in clones:
                clones[layer.name] = _clone(layer, len(kept[call.output]))
                values[layer.name] = _slice(layer, kept[call.inputs[0]], kept[call.output])
            layer = clones[layer.name]
        tensors[call.output] = layer(*args, **kwargs)
        if call is classifier:
            _restore_norm_(values[layer.name], call.layer, mask[layout.index[call.inputs[0]]])
    model = keras.Model(tensors[0], tensors[graph.output], name=graph.model.name)
    for name, arrays in values.items():
        clones[name].set_weights(arrays)
    finish_layers_(model)
    return model


def norm_factor(kernel, row_mask):
    """Returns ‖W‖ / ‖W⊙m‖, scalar float32, for a kernel W [..., c_in, c_out] and a mask m [c_in] of its input rows.

    The factor carries no gradient: the importance of a channel is measured at its activation alone.
    """
    kept = kernel * row_mask[:, None]
    return tf.stop_gradient(tf.math.divide_no_nan(tf.norm(kernel), tf.norm(kept)))


def _clone(layer, num_channels):
    """Returns a layer of the same configuration that writes so many channels."""
    config, record = layer.get_config(), layers.record_of(layer)
    if record is not None and record.resize is not None:
        config |= record.resize(config, num_channels)
    return type(layer).from_config(config)


def _slice(layer, kept_in, kept_out):
    """Returns the layer's weights without the removed channels, as layer.get_weights() orders them."""
    record, kept = layers.record_of(layer), {layers.IN: kept_in, layers.OUT: kept_out}
    if record is None:
        return layer.get_weights()  # the layer's channels are never pruned
    arrays = []
    for variable, array in zip(layer.weights, layer.get_weights()):
        for axis, channels in enumerate(record.weights[variable.name].axes):
            if channels is not None and len(kept[channels]) != array.shape[axis]:
                array = np.take(array, kept[channels], axis)
        arrays.append(array)
    return arrays


def _restore_norm_(arrays, layer, row_mask):
    """Rescales, in place of the list's entry, the classifier's sliced kernel to the norm of the whole one."""
    place = [variable.name for variable in layer.weights].index(layers.record_of(layer).kernel)
    factor = norm_factor(layer.weights[place].value, tf.constant(row_mask, tf.float32)).numpy()
    arrays[place] = arrays[place] * factor
