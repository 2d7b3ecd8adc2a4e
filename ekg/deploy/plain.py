"""Networks of Keras' own layers alone, in place of what a cut leaves of vanished branches."""

import keras
from keras import layers, ops

from ekg.graph import cutting
from ekg.graph.activations import is_linear
from ekg.graph.calls import Graph
from ekg.graph.constants import Constant


def plain(model, input_shape=None):
    """Returns a network that computes the same, and can be loaded and trained without this package:
    the model itself, or a copy in which nested models take the place of constants.

    Args:
        model: functional or sequential keras.Model.
        input_shape: shape of an example, where the model takes any size.
    """
    graph = Graph(model, input_shape)
    replacements = {
        id(call.layer): _spelt_out(call.layer, graph, call.inputs[0])
        for call in graph.calls
        if type(call.layer) is Constant
    }
    return cutting.copy(model, input_shape, replacements) if replacements else model


def _spelt_out(constant, graph, number):
    """Returns a functional model that does what a Constant does that reads this tensor."""
    inputs = keras.Input(batch_shape=(None, *graph.shapes[number][1:]), dtype=graph.dtype(number))
    x = inputs[(slice(None), *[0] * (len(inputs.shape) - 1))]  # a number per row of the batch
    rank, options = len(constant.shape), {"dtype": constant.dtype_policy}
    if constant.use_bias:
        size, repeats = constant.shape[constant.axis - 1], list(constant.shape)
        # a table of one row, which is trained as the bias is
        table = layers.Embedding(
            1,
            size,
            embeddings_regularizer=constant.bias_regularizer,
            embeddings_constraint=constant.bias_constraint,
            name="bias",
            trainable=constant.trainable,
            **options,
        )
        x = table(ops.zeros_like(x, dtype="int32"))
        table.embeddings.assign(ops.reshape(constant.bias, (1, size)))
        repeats[constant.axis - 1] = 1
    else:
        x = ops.zeros_like(x, dtype=constant.compute_dtype)
        size, repeats = 1, constant.shape
    along = [1] * rank
    along[constant.axis - 1] = size
    x = ops.tile(layers.Reshape(along, name="along", **options)(x), (1, *repeats))
    activation = layers.Activation(constant.activation, name="activation", **options)
    outputs = x if is_linear(activation) else activation(x)
    return keras.Model(inputs, outputs, name=constant.name)
