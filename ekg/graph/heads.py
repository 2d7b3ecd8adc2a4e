"""The end of a network: what turns logits into probabilities is taken off for the search, and put back behind it."""

import keras

from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.graph.calls import Graph, functional
from ekg.graph.copying import copy_operation
from ekg.logits import squashes


class Head:
    """A softmax or sigmoid at the end of a network.

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
    """Returns (a copy of a network that returns logits, its Head), or (a copy, None) where it has none.

    Args:
        model: keras.Model; it stays as it is.
        output: number of the output that is meant.
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
    symbol = keras.tree.flatten(functional(model).outputs)[output]
    if symbol._keras_history.operation is not last:
        raise _refusal(model, last, "inside a nested network")
    return _without_last(model, output, last, input_shape)


def _refusal(model, last, where):
    return EkgError(f"`model` {model.name!r} ends with {last.name!r} ({type(last).__name__}), {where}; take the network "
                    "without it, which returns logits.")


def _without_activation(copy, key):
    """Takes an activation out of a layer, that of a Dense(10, activation="softmax") or of an Activation("softmax")."""
    layer = Graph(copy).layers[key]
    activation, layer.activation = layer.activation, keras.activations.linear

    def put_back(cut):
        Graph(cut).layers[key].activation = activation
        return cut
    return copy, Head(layer.name, getattr(activation, "__name__", "activation"), put_back)


def _without_last(model, output, last, input_shape):
    """Takes the last operation off, a Softmax() or a keras.ops.softmax."""
    whole = functional(model)
    place = keras.tree.flatten(whole.outputs)[output]._keras_history
    shorter = _with_output(model, output, last._inbound_nodes[place.node_index].input_tensors[0])
    copy = cutting.copy(shorter, input_shape)
    return copy, Head(last.name, type(last).__name__.lower(),
                      lambda cut: _with_output(cut, output, copy_operation(last)(keras.tree.flatten(cut.outputs)[output])))


def _with_output(model, output, tensor):
    """Returns a functional model with another tensor as one of its outputs; their structure stays."""
    whole = functional(model)
    outputs = keras.tree.flatten(whole.outputs)
    outputs[output] = tensor
    return keras.Model(whole._inputs_struct, keras.tree.pack_sequence_as(whole._outputs_struct, outputs), name=model.name)
