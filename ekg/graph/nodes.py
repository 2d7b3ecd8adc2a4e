"""Keras' bookkeeping of a functional model: its nodes and input tensors."""

import keras

from ekg.errors import EkgError


def input_specs(model, input_shape):
    """Returns one KerasTensor per input, of the given sizes.

    Raises:
        EkgError: a size does not fit the model.
    """
    shapes = [tuple(symbol.shape[1:]) for symbol in model.inputs]
    if input_shape is not None:
        if not isinstance(input_shape, (tuple, list)):
            raise EkgError(
                "`input_shape` must be a tuple, as (224, 224, 3), or a list of them; received "
                f"{input_shape!r}."
            )
        is_one = not any(isinstance(size, (tuple, list)) for size in input_shape)
        shapes = [tuple(shape) for shape in ([input_shape] if is_one else input_shape)]
        fits = len(shapes) == len(model.inputs) and all(
            len(shape) == len(symbol.shape) - 1
            and all(
                isinstance(size, int) and size > 0 and own in (None, size)
                for own, size in zip(symbol.shape[1:], shape)
            )
            for shape, symbol in zip(shapes, model.inputs)
        )
        if not fits:
            raise EkgError(
                f"`input_shape` {input_shape} does not fit the inputs of `model` {model.name!r}: "
                f"{[tuple(symbol.shape[1:]) for symbol in model.inputs]}."
            )
    return [
        keras.KerasTensor((symbol.shape[0], *shape), symbol.dtype)
        for shape, symbol in zip(shapes, model.inputs)
    ]


def sorted_nodes(model):
    """Returns the graph's nodes, depth first from each output, inputs before readers."""
    ordered, done = [], {producer(tensor) for tensor in model.inputs}
    for output in model.outputs:
        stack = [producer(output)]
        while stack:
            node = stack[-1]
            waiting = [
                parent
                for parent in map(producer, node.arguments.keras_tensors)
                if parent not in done
            ]
            if waiting and node not in done:
                stack.append(waiting[0])
                continue
            stack.pop()
            if node not in done:
                done.add(node)
                ordered.append(node)
    return ordered


def producer(tensor):
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]
