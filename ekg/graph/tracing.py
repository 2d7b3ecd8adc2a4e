"""Runs the call() of a layer on symbolic tensors, with weights of its own as tensors of the graph.

A weight that the layer itself holds, or one of a layer inside that call() does not call on
tensors of the graph, is written by an own_weights.OwnWeight. Sizes that call() takes from its
inputs stay in the graph, so it runs with a number of examples that nothing else has, and what
depends on this number is replaced afterwards.
"""

import contextlib
import math

import keras
import numpy as np

from ekg.errors import first_line
from ekg.graph import registry
from ekg.graph.nodes import sorted_nodes
from ekg.graph.own_weights import AcrossBatch, OwnWeight

# Numbers of examples; the first one is taken that divides no size of the layer.
BATCHES = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103)


class Closed(Exception):
    """A layer cannot be taken apart, for the reason in the text."""


def own_weights(layer):
    """Returns a list of the weights that a layer holds itself, without the layers inside."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def call(layer, args, kwargs):
    """Returns what a layer's call() returns for symbolic tensors.

    Raises:
        Closed: it does not run.
    """
    try:
        # A number that is drawn while the graph is made would stay in it. This first draw, which
        # ends with the scope, makes it differ from what the layer itself draws.
        with keras.StatelessScope(), _as_models(layer):
            keras.random.uniform(())
            return layer.call(*args, **kwargs)
    except Exception as error:  # anything that a user's layer raises
        raise Closed(f"its call() does not run on symbolic tensors: {first_line(error)}") from error


@contextlib.contextmanager
def _as_models(layer):
    """Lets layers inside of which Keras makes no node, as they return None beside tensors, be
    called on tensors of the graph: a functional model of what they do takes their place.
    """
    inside = [
        inner
        for inner in layer._flatten_layers(include_self=False)
        if inner._layers and not isinstance(inner, keras.Model) and not registry.has_record(inner)
    ]
    kinds = {id(inner): type(inner) for inner in inside}
    try:
        for inner in inside:
            inner.__class__ = _called_as_model(type(inner))
        yield
    finally:
        for inner in inside:
            inner.__class__ = kinds[id(inner)]


def _called_as_model(kind):
    """Returns a subclass of a type of layers; see _as_models()."""

    def call_layer(self, *args, **kwargs):
        try:
            return kind.__call__(self, *args, **kwargs)
        except Exception:  # anything that Keras or a user's layer raises
            return _call_as_model(self, args, kwargs)

    return type(kind.__name__, (kind,), {"__call__": call_layer, "__module__": kind.__module__})


def _call_as_model(layer, args, kwargs):
    """Returns what a layer returns for tensors of a graph, by a functional model in the graph."""
    entries = {
        id(leaf): (leaf, keras.Input(batch_shape=leaf.shape, dtype=leaf.dtype))
        for leaf in keras.tree.flatten((args, kwargs))
        if isinstance(leaf, keras.KerasTensor)
    }
    args, kwargs = keras.tree.map_structure(
        lambda leaf: entries[id(leaf)][1] if id(leaf) in entries else leaf, (args, kwargs)
    )
    outputs = layer.call(*args, **kwargs)
    leaves = keras.tree.flatten(outputs)
    symbols = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    given, inputs = zip(*entries.values())
    results = keras.Model(list(inputs), symbols, name=layer.name)(list(given))
    results = iter(keras.tree.flatten(results))
    return keras.tree.pack_sequence_as(
        outputs, [next(results) if isinstance(leaf, keras.KerasTensor) else leaf for leaf in leaves]
    )


def batch_of(layer, sizes):
    """Returns the number of examples that call_with_weights() is to run with.

    Args:
        layer: keras.layers.Layer.
        sizes: {tensor number: (shape, dtype)} of what it reads.
    """
    shapes = [shape[1:] for shape, _ in sizes.values()] + [v.shape for v in layer.weights]
    known = {size for shape in shapes for size in shape if size}
    return next(n for n in BATCHES if all(size % n for size in known))


def call_with_weights(layer, inputs, shapes, batch, args, kwargs):
    """Returns (inputs, outputs) of the graph of a layer's parts, with weights as tensors.

    Args:
        layer: keras.layers.Layer.
        inputs: list of keras.Input, of `batch` examples each.
        shapes: list of the shapes that the inputs of the graph get in their place.
        batch: number of examples.
        args, kwargs: arguments of its call(), with the inputs in their places.

    Raises:
        Closed: it does not run, or does something unknown with a weight of its own.
    """
    if not inputs:
        raise Closed("it reads no tensor")
    weights = own_weights(layer)
    for _ in range(2):
        with _in_their_place(layer, weights, inputs[0]):
            outputs = call(layer, args, kwargs)
        taken = {id(weight) for weight in weights}
        missing = _missing(layer, inputs, outputs)
        if missing <= taken:
            break
        # Layers inside that were not called on a tensor of the graph, as one that looks up all
        # positions: their weights become tensors as well.
        weights = [weight for weight in layer.weights if id(weight) in missing | taken]
    return _with_any_batch(inputs, shapes, batch, outputs)


def _missing(layer, inputs, outputs):
    """Returns the ids of the weights of a layer that no layer of a graph holds."""
    leaves = [leaf for leaf in keras.tree.flatten(outputs) if isinstance(leaf, keras.KerasTensor)]
    if not leaves:
        raise Closed("it returns something that does not depend on its inputs")
    try:
        known = {id(v) for v in keras.Model(inputs, leaves).variables}
    except Exception as error:  # two layers of one name, say
        raise Closed(f"its parts make no functional model: {first_line(error)}") from error
    return {id(v) for v in layer.weights if id(v) not in known}


@contextlib.contextmanager
def _in_their_place(layer, weights, entry):
    """Puts tensors of the graph in the place of weights, as attributes of the layers that hold
    them.
    """
    names, replaced = {inner.name for inner in layer._flatten_layers(include_self=False)}, []
    wanted = {id(weight) for weight in weights}
    try:
        for owner in layer._flatten_layers():
            for attribute, value in list(vars(owner).items()):
                if id(value) not in wanted:
                    continue
                replaced.append((owner, attribute, value))
                if not keras.backend.is_float_dtype(value.dtype):
                    # Numbers of positions, say, which stay as they are.
                    owner.__dict__[attribute] = keras.ops.convert_to_tensor(value.numpy())
                    continue
                name = attribute.lstrip("_")
                name = name if owner is layer else f"{owner.name}_{name}"
                while name in names:
                    name += "_weight"
                names.add(name)
                owner.__dict__[attribute] = OwnWeight.holding(value, owner, name)(entry)
        yield
    finally:
        for owner, attribute, value in replaced:
            owner.__dict__[attribute] = value


# ---------------------------------------------------------------- any number of examples


def _with_any_batch(inputs, shapes, batch, outputs):
    """Returns (inputs, outputs) of a graph like this one for any number of examples."""
    entries = [
        keras.Input(batch_shape=shape, dtype=symbol.dtype, name=symbol.name)
        for symbol, shape in zip(inputs, shapes)
    ]
    tensors = {id(symbol): entry for symbol, entry in zip(inputs, entries)}
    held = set()  # ids of tensors that depend on weights alone
    leaves = [leaf for leaf in keras.tree.flatten(outputs) if isinstance(leaf, keras.KerasTensor)]
    for node in sorted_nodes(keras.Model(inputs, leaves)):
        operation, read = node.operation, node.arguments.keras_tensors
        is_weight = isinstance(operation, OwnWeight)
        if not is_weight and any(id(symbol) in held for symbol in read):
            _check_known(operation)
        args, kwargs = node.arguments.convert(
            lambda value: (
                tensors[id(value)]
                if isinstance(value, keras.KerasTensor)
                else _for_one(value, batch)
            )
        )
        rows = inputs[0].shape[0]
        try:
            results = _call_again(operation, args, kwargs, node.outputs[0], batch, rows, entries[0])
        except Closed:
            raise
        except Exception as error:  # anything that Keras or a user's layer raises
            raise Closed(f"the graph of its parts does not run: {first_line(error)}") from error
        for symbol, result in zip(node.outputs, keras.tree.flatten(results)):
            tensors[id(symbol)] = result
            if is_weight or all(id(symbol_read) in held for symbol_read in read):
                held.add(id(symbol))
    return entries, keras.tree.map_structure(
        lambda leaf: tensors[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf, outputs
    )


def _for_one(value, batch):
    """Returns an array with the row of one example in place of equal rows for all examples."""
    shape = getattr(value, "shape", ())
    if isinstance(value, keras.Variable) or len(shape) < 2 or shape[0] != batch:
        return value
    array = np.asarray(value)
    return array[:1] if (array == array[:1]).all() else value


def _check_known(operation):
    """Raises Closed if nothing is known of what an operation does with a weight."""
    record = registry.record_of(operation)
    is_known = record is not None and record.flops is None
    if not isinstance(operation, (keras.layers.Layer, keras.Function)) and not is_known:
        raise Closed(
            f"a weight of its own goes into {operation.name!r} ({type(operation).__name__}), of "
            "which nothing is known"
        )


def _call_again(operation, args, kwargs, written, batch, rows, like):
    """Returns what an operation gives for tensors of any number of examples.

    Args:
        operation: keras.Operation.
        args, kwargs: arguments, with the new tensors.
        written: the first KerasTensor that it gives for `batch` examples.
        batch: number of examples of the graph as it was made.
        rows: number of rows of the first tensor that it reads.
        like: the tensor of any number of examples in the place of that one.
    """
    kind = registry.published_name(type(operation))
    if kind == "keras.ops.Reshape" and written.shape[0] % batch == 0:
        rest = written.shape[1:]
        return keras.ops.reshape(args[0] if args else kwargs["x"], (-1, *rest))
    if kind in _REPEATING and written.shape[0] == rows:
        x = args[0] if args else kwargs["x"]
        if x.shape[0] is None and kind != "keras.ops.BroadcastTo":
            return operation(*args, **kwargs)
        if x.shape[0] is None:
            raise Closed(f"{operation.name!r} names the number of examples")
        if math.prod(x.shape) != math.prod(written.shape[1:]):
            x = keras.ops.broadcast_to(x, (1, *written.shape[1:]))
        if len(x.shape) < len(written.shape):
            x = keras.ops.reshape(x, (1, *written.shape[1:]))
        return AcrossBatch()(x, like)
    return operation(*args, **kwargs)


_REPEATING = ("keras.ops.Tile", "keras.ops.BroadcastTo", "keras.ops.Repeat")
