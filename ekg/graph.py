"""The layer graph of a functional Keras model as a flat list of calls.

Everything this project knows of Keras' own bookkeeping of a functional graph is in this file.
"""

import dataclasses
import inspect

import keras

import op_utils


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
        ValueError: the model is not functional, does not have exactly one input and one output, or a layer in it
            returns several tensors.
    """

    def __init__(self, model):
        if not isinstance(model, keras.Function):
            raise ValueError(f"model must be a functional keras.Model; received {type(model).__name__} {model.name!r}.")
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(f"model must have one input and one output; {model.name!r} has "
                             f"{len(model.inputs)} and {len(model.outputs)}.")
        self.model = model
        self.calls = []
        self.shapes = {0: tuple(model.inputs[0].shape)}
        self._numbers = {id(model.inputs[0]): 0}
        for node in _sorted_nodes(model):
            self._add(node)
        self.output = self._numbers[id(model.outputs[0])]

    def stateless_call(self, trainable, non_trainable, images, training):
        """Returns (output, new non-trainable values): the model's stateless_call, with fused batch norms.

        Args:
            trainable: list of tensors, as model.trainable_variables.
            non_trainable: list of tensors, as model.non_trainable_variables.
            images: input of the model.
            training: whether batch norms use and move statistics.
        """
        places = [id(variable) for variable in (*self.model.trainable_variables, *self.model.non_trainable_variables)]
        values = dict(zip(places, [*trainable, *non_trainable]))
        tensors = {0: images}
        for call in self.calls:
            variables = layer_variables(call.layer)
            tensors[call.output], new = run_call(call, [values[id(each)] for each in variables], tensors, training)
            values.update(zip([id(each) for each in variables[len(variables) - len(new):]], new))
        return tensors[self.output], [values[place] for place in places[len(trainable):]]

    def _add(self, node):
        if len(node.outputs) != 1:
            raise ValueError(f"layer {node.operation.name!r} returns {len(node.outputs)} tensors; only layers that "
                             "return one can be in a network that is pruned.")
        symbol = node.outputs[0]
        number = len(self._numbers)
        self._numbers[id(symbol)] = number
        self.shapes[number] = tuple(symbol.shape)
        inputs = tuple(self._numbers[id(tensor)] for tensor in node.arguments.keras_tensors)
        self.calls.append(Call(node.operation, inputs, number, node))


def takes_training(layer):
    """Returns whether the layer behaves otherwise in training than in inference."""
    return "training" in inspect.signature(layer.call).parameters


def layer_variables(layer):
    """Returns the variables of a layer, the trainable ones first."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [*layer.trainable_variables, *layer.non_trainable_variables]


def run_call(call, weights, tensors, training):
    """Returns (output, new non-trainable values) of one call. Pure.

    Args:
        call: Call.
        weights: values of layer_variables(call.layer).
        tensors: {tensor number: value}.
        training: whether batch norms use the statistics of the batch.
    """
    args, kwargs = call.arguments(tensors)
    if not isinstance(call.layer, keras.layers.Layer):
        return call.layer(*args, **kwargs), []
    if type(call.layer) is keras.layers.BatchNormalization:
        fused = op_utils.batch_norm(call.layer, weights, args[0], training)
        if fused is not None:
            return fused
    if takes_training(call.layer):
        kwargs = {**kwargs, "training": training}
    num_trainable = len(call.layer.trainable_variables)
    return call.layer.stateless_call(weights[:num_trainable], weights[num_trainable:], *args, **kwargs)


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
