"""Heads: the softmax or sigmoid at the end of a network, taken off for the search and put back
after it.
"""

import keras

from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.graph.calls import Graph
from ekg.graph.copying import copy_operation
from ekg.tasks.logits import squashes


class Head:
    """A softmax or sigmoid that was at the end of a network.

    Attributes:
        name: of the layer, or of the function.
        squash: "softmax" or "sigmoid".
    """

    def __init__(self, name, squash, put_back):
        self.name, self.squash, self.put_back = name, squash, put_back


def without_heads(model, outputs, input_shape=None):
    """Returns (a copy of a network without the heads of some outputs, one Head for all or None).

    Args:
        model: keras.Model; it stays as it is.
        outputs: numbers of these outputs.
        input_shape: of an example, where the network takes any size.

    Raises:
        EkgError: a head cannot be taken off.
    """
    heads = []
    for output in outputs:
        model, head = without_head(model, output, input_shape)
        heads += [] if head is None else [head]
    if not outputs:
        model = cutting.copy(model, input_shape)

    def put_back(cut):
        for head in reversed(heads):
            cut = head.put_back(cut)
        return cut

    if len(heads) < 2:
        return model, heads[0] if heads else None
    names = ", ".join(head.name for head in heads)
    return model, Head(names, ", ".join(head.squash for head in heads), put_back)


def without_head(model, output=0, input_shape=None):
    """Returns (a copy of a network that returns logits, its Head), or (a copy, None) where it has
    none.

    Args:
        model: keras.Model; it stays as it is.
        output: number of the output.
        input_shape: of an example, where the network takes any size.

    Raises:
        EkgError: the head cannot be taken off.
    """
    graph = Graph(model, input_shape)
    number = graph.outputs[output]
    last = next((call.layer for call in graph.calls if number in call.outputs), None)
    if last is None or not squashes(last):
        return cutting.copy(model, input_shape), None
    calls = [call for call in graph.calls if call.layer is last]
    if any(number in call.inputs for call in graph.calls) or len(calls) > 1:
        raise _refusal(model, last, "whose result other layers read")
    if getattr(last, "activation", None) is not None:
        return _without_activation(cutting.copy(model, input_shape), calls[0].key)
    if len(calls[0].inputs) > 1 or getattr(last, "axis", -1) not in (
        -1,
        len(graph.shapes[number]) - 1,
    ):
        raise _refusal(model, last, "which reads a mask or works along another axis than the last")
    return _without_operation(graph, calls[0], input_shape)


def _refusal(model, last, where):
    return EkgError(
        f"`model` {model.name!r} ends with {last.name!r} ({type(last).__name__}), {where}; take "
        "the network without it, which returns logits."
    )


def _without_activation(copy, key):
    """Takes the activation out of a layer such as Dense(10, activation="softmax") or
    Activation("softmax").
    """
    layer = Graph(copy).layers[key]
    activation, layer.activation = layer.activation, keras.activations.linear
    regularizer = layer.activity_regularizer
    layer.activity_regularizer = _before(activation, regularizer)

    def put_back(cut):
        layer = Graph(cut).layers[key]
        layer.activation, layer.activity_regularizer = activation, regularizer
        return cut

    return copy, Head(layer.name, getattr(activation, "__name__", "activation"), put_back)


def _without_operation(graph, call, input_shape):
    """Puts a linear activation in the place of the last operation, a Softmax() or a
    keras.ops.softmax.
    """
    last, key = call.layer, call.key
    is_layer = isinstance(last, keras.layers.Layer)
    linear = keras.layers.Activation(
        "linear", name=last.name, dtype=last.dtype_policy if is_layer else graph.dtype(call.output)
    )
    linear.activity_regularizer = _before(last, getattr(last, "activity_regularizer", None))
    copy = cutting.copy(graph.model, input_shape, {id(last): linear})

    def put_back(cut):
        return cutting.copy(
            cut, input_shape, {id(Graph(cut, input_shape).layers[key]): copy_operation(last)}
        )

    return copy, Head(last.name, type(last).__name__.lower(), put_back)


def _before(squash, regularizer):
    """Returns a regularizer of logits that does what this one does to their probabilities; None for
    None.
    """
    return None if regularizer is None else lambda outputs: regularizer(squash(outputs))
