"""The layer graph of a functional Keras model as a flat list of calls.

Everything this project knows of Keras' own bookkeeping of a functional graph is in this file.
"""

import dataclasses
import inspect

import keras
import tensorflow as tf

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
        numerics: Numerics that stateless_call computes with.

    Raises:
        ValueError: the model is not functional, does not have exactly one input and one output, or a layer in it
            returns several tensors.
    """

    def __init__(self, model, numerics=None):
        if not isinstance(model, keras.Function):
            raise ValueError(f"model must be a functional keras.Model; received {type(model).__name__} {model.name!r}.")
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(f"model must have one input and one output; {model.name!r} has "
                             f"{len(model.inputs)} and {len(model.outputs)}.")
        self.model, self.numerics = model, numerics or Numerics()
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
            numerics = self.numerics if call.output != self.output else Numerics()  # logits are float32
            tensors[call.output], new = run_call(call, [values[id(each)] for each in variables], tensors, training,
                                                 numerics)
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


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What a network is computed with.

    Attributes:
        dtype: "float32", "bfloat16" or "float16": of convolutions and activations. Weights, statistics of batch norms and
            logits are float32 always.
        sync_norms: whether batch norms in training take the statistics of all replicas' parts together.
        fuse_norms: whether batch norms run as one operation, which is fast but for second derivatives.
    """
    dtype: str = "float32"
    sync_norms: bool = False
    fuse_norms: bool = True


def takes_training(layer):
    """Returns whether the layer behaves otherwise in training than in inference."""
    return "training" in inspect.signature(layer.call).parameters


def layer_variables(layer):
    """Returns the variables of a layer, the trainable ones first."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [*layer.trainable_variables, *layer.non_trainable_variables]


def run_call(call, weights, tensors, training, numerics=None):
    """Returns (output, new non-trainable values) of one call. Pure, but for sums over replicas if asked.

    Args:
        call: Call.
        weights: values of layer_variables(call.layer).
        tensors: {tensor number: value}.
        training: whether batch norms use the statistics of the batch.
        numerics: Numerics; None stands for float32.
    """
    numerics = numerics or Numerics()
    args, kwargs = call.arguments(tensors)
    if not isinstance(call.layer, keras.layers.Layer):
        return call.layer(*args, **kwargs), []
    if type(call.layer) is keras.layers.BatchNormalization:
        fused = op_utils.batch_norm(call.layer, weights, args[0], training, numerics.sync_norms, numerics.fuse_norms)
        if fused is not None:
            return fused
    if type(call.layer) is keras.layers.Conv2D and numerics.dtype != "float32":
        return _convolve(call.layer, weights, args[0], numerics.dtype), []
    if call.layer.variables:  # whatever else has weights is computed in their format
        args, kwargs = tf.nest.map_structure(lambda value: _cast(value, "float32"), (args, kwargs))
    if takes_training(call.layer):
        kwargs = {**kwargs, "training": training}
    num_trainable = len(call.layer.trainable_variables)
    return call.layer.stateless_call(weights[:num_trainable], weights[num_trainable:], *args, **kwargs)


def _convolve(layer, weights, x, dtype):
    """Returns a Conv2D's output in another format than its weights'."""
    y = keras.ops.conv(_cast(x, dtype), _cast(weights[0], dtype), layer.strides, layer.padding, layer.data_format,
                       layer.dilation_rate)
    if layer.use_bias:
        y += _cast(weights[1], dtype)
    return layer.activation(y)


def _cast(value, dtype):
    return tf.cast(value, dtype) if tf.is_tensor(value) and value.dtype.is_floating else value


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
