"""The layer graph of a functional Keras model as a flat list of calls.

Everything this package knows of Keras' own bookkeeping of a functional graph is in this file.
"""

import dataclasses

import keras

from ekg.errors import EkgError


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer in the graph.

    Attributes:
        layer: the Keras layer (or other operation) that is called.
        inputs: numbers of the tensors that it reads, in the order of its arguments.
        output: number of the tensor that it writes.
        node: Keras' record of the call, which holds its non-tensor arguments.
    """
    layer: keras.Operation
    inputs: tuple[int, ...]
    output: int
    node: object

    def arguments(self, tensors):
        """Returns (args, kwargs) of the call with tensor number t replaced by tensors[t]."""
        values = {id(symbol): tensors[number] for symbol, number in zip(self.node.arguments.keras_tensors, self.inputs)}
        return self.node.arguments.fill_in(values)


class Graph:
    """Calls of a functional model in an order in which each runs after all it needs.

    A block's main branch comes before its shortcut where the block adds [main, shortcut]. Tensors are numbered;
    number 0 is the input.

    Attributes:
        model: the keras.Model.
        calls: list of Call, without the input layer.
        shapes: {tensor number: shape tuple with None for the batch}.
        output: number of the tensor the model returns.

    Raises:
        EkgError: the model is not functional, does not have exactly one input and one output, or a layer in it
            returns several tensors.
    """

    def __init__(self, model):
        if not isinstance(model, keras.Function):
            raise EkgError(f"`model` must be a functional keras.Model; received {type(model).__name__} "
                           f"{getattr(model, 'name', model)!r}.")
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise EkgError(f"`model` must have one input and one output; {model.name!r} has {len(model.inputs)} and "
                           f"{len(model.outputs)}.")
        self.model = model
        self.calls = []
        self.shapes = {0: tuple(model.inputs[0].shape)}
        self._numbers = {id(model.inputs[0]): 0}
        for node in _sorted_nodes(model):
            self._add(node)
        self.output = self._numbers[id(model.outputs[0])]

    @property
    def num_outputs(self):
        """Size of the last axis of what the model returns: the number of classes."""
        return self.shapes[self.output][-1]

    def is_last(self, call):
        """Returns whether a call writes what the model returns."""
        return call.output == self.output

    def _add(self, node):
        if len(node.outputs) != 1:
            raise EkgError(f"layer {node.operation.name!r} returns {len(node.outputs)} tensors; only layers that return one "
                           "can be in a network that is pruned.")
        symbol = node.outputs[0]
        number = len(self._numbers)
        self._numbers[id(symbol)] = number
        self.shapes[number] = tuple(symbol.shape)
        inputs = tuple(self._numbers[id(tensor)] for tensor in node.arguments.keras_tensors)
        self.calls.append(Call(node.operation, inputs, number, node))


def layer_variables(layer):
    """Returns the variables of a layer, the trainable ones first."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [*layer.trainable_variables, *layer.non_trainable_variables]


def finish_layers_(model):
    """Lets layers that keep something made of their weights, such as an adapted Normalization, make it anew."""
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _sorted_nodes(model):
    """Returns the graph's nodes, depth first from the output, inputs before what reads them."""
    ordered, done = [], set()
    stack = [_producer(model.outputs[0])]
    while stack:
        node = stack[-1]
        parents = [_producer(tensor) for tensor in node.arguments.keras_tensors]
        waiting = [parent for parent in parents if parent not in done]
        if waiting:
            stack.append(waiting[0])
            continue
        stack.pop()
        if node not in done:
            done.add(node)
            if not node.is_input:
                ordered.append(node)
    return ordered


def _producer(tensor):
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]
