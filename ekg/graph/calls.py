"""The layer graph of a functional Keras model as a flat list of calls.

Nested models are looked into: the calls of their layers stand in the list like all others. Everything this package knows of
Keras' own bookkeeping of a functional graph is in this file.
"""

import dataclasses
import functools
import inspect
import math
from fractions import Fraction

import keras

from ekg.errors import EkgError
from ekg.graph.activations import is_linear
from ekg.graph.masks import Masks
from ekg.graph.refs import Ref, fill_in, refs_in


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or of a function of keras.ops, in the graph.

    Attributes:
        layer: the Keras layer or other operation that is called.
        key: name of the layer in the whole model: "mobilenet/conv1" for layer conv1 of the nested model mobilenet.
        args: positional arguments, with a Ref for every tensor.
        kwargs: arguments by name, likewise.
        outputs: numbers of the tensors that it writes.
    """
    layer: keras.Operation
    key: str
    args: tuple
    kwargs: dict
    outputs: tuple[int, ...]

    @functools.cached_property
    def inputs(self):
        """Numbers of the tensors that it reads, in the order of its arguments."""
        return tuple(refs_in((self.args, self.kwargs)))

    @property
    def output(self):
        """Number of the tensor that it writes, the first if there are several."""
        return self.outputs[0]

    def arguments(self, tensors):
        """Returns (args, kwargs) of the call with tensor number t replaced by tensors[t]."""
        return fill_in((self.args, self.kwargs), tensors)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelCall:
    """One call of a nested model.

    Attributes:
        model: the nested keras.Model.
        key: its name in the whole model.
        args: positional arguments, with a Ref for every tensor.
        kwargs: arguments by name.
        entries: numbers of the tensors inside that stand for its inputs.
        outputs: numbers of the tensors that it returns.
        steps: the Calls and ModelCalls inside, in the order in which they run.
    """
    model: keras.Model
    key: str
    args: tuple
    kwargs: dict
    entries: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list


class Entry(keras.Operation):
    """What a nested model does to an input: nothing but to give it the number format that it asks for."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def call(self, x):
        floats = [keras.backend.is_float_dtype(dtype) for dtype in (self.dtype, keras.backend.standardize_dtype(x.dtype))]
        return x if all(floats) else keras.ops.cast(x, self.dtype)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.dtype)


class Graph:
    """Calls of a functional model in an order in which each runs after all it needs.

    A block's main branch comes before its shortcut where the block adds [main, shortcut]. Tensors are numbered, the inputs
    first.

    Attributes:
        model: the keras.Model.
        calls: list of all Calls, without input layers, those of nested models among them.
        steps: the same as a tree: list of Calls and ModelCalls.
        layers: {key: layer or operation} of all that is called.
        shapes: {tensor number: shape tuple with None for the batch}.
        rows: {tensor number: how many rows of the batch one example has there, a Fraction}: more than one where positions
            were folded into the batch.
        masks: where masks are, as those of padded tokens. models: list of the model and of all that are nested in it.
        inputs, outputs: tuples of the numbers of the tensors that the model takes and returns.

    Raises:
        EkgError: the model is not functional, or is not built.
    """

    def __init__(self, model, input_shape=None):
        """
        Args:
            model: keras.Model, functional or sequential.
            input_shape: shape of one example, without the batch, or a list of one for each input; None takes what the model
                itself says.
        """
        self.model = model
        inside = functional(model)
        self.calls, self.shapes, self.layers, self._dtypes = [], {}, {}, {}
        self._keys = {}  # id of a layer -> key
        specs = _input_specs(inside, input_shape)
        self.inputs = tuple(self._number(spec) for spec in specs)
        self._inferred = {number: spec.shape != symbol.shape for number, spec, symbol in zip(
            self.inputs, specs, inside.inputs)}
        self.rows = dict.fromkeys(self.inputs, Fraction(1))
        self.steps, self.masks, self.models = [], Masks(), [model]
        self.outputs = self._follow(inside, self.inputs, self.steps, "")

    @property
    def output(self):
        """Number of the tensor that the model returns, the first if there are several."""
        return self.outputs[0]

    @property
    def num_outputs(self):
        """Size of the last axis of what the model returns: the number of classes."""
        return self.shapes[self.output][-1]

    @property
    def input_shapes(self):
        """Shape of an example of every input, without the batch."""
        return [self.shapes[number][1:] for number in self.inputs]

    def is_last(self, call):
        """Returns whether a call writes what the model returns, as it is or through a linear activation."""
        return any(number in self._returned for number in call.outputs)

    @functools.cached_property
    def _returned(self):
        """Numbers of the outputs, and of what linear activations return as one, which stand where a head was."""
        heads = {call.output: call.inputs[0] for call in self.calls if is_linear(call.layer)}
        return {*self.outputs, *(heads[number] for number in self.outputs if number in heads)}

    def tensors_of(self, inputs):
        """Returns {tensor number: value} of the model's inputs, in the number format that the model asks for.

        Args:
            inputs: a tensor, or a structure of them as the model takes.
        """
        values = _by_input(functional(self.model), inputs)
        if len(values) != len(self.inputs):
            raise EkgError(f"`model` {self.model.name!r} takes {len(self.inputs)} inputs; received {len(values)}.")
        return {number: keras.ops.convert_to_tensor(value, dtype=self._dtypes[number])
                for number, value in zip(self.inputs, values)}

    def structured(self, tensors):
        """Returns what the model returns, in its own structure, from {tensor number: value}."""
        structure = functional(self.model)._outputs_struct
        return keras.tree.pack_sequence_as(structure, [tensors[number] for number in self.outputs])

    def structured_inputs(self, values):
        """Returns a list of one value for each input in the structure that the model takes."""
        return keras.tree.pack_sequence_as(functional(self.model)._inputs_struct, values)

    def dtype(self, number):
        """Returns the number format of a tensor, as in "float32"."""
        return self._dtypes[number]

    def check_sizes(self):
        """Raises EkgError if the size of an input is not known, and with it the FLOPs."""
        shapes = self.input_shapes
        if any(size is None for shape in shapes for size in shape):
            raise EkgError(f"`model` {self.model.name!r} takes inputs of any size, {shapes}, so its FLOPs are not known; "
                           "give the size that they are counted for, as in `input_shape`=(224, 224, 3).")

    # ---------------------------------------------------------------- following the graph

    def _number(self, spec):
        number = len(self.shapes)
        self.shapes[number], self._dtypes[number] = tuple(spec.shape), keras.backend.standardize_dtype(spec.dtype)
        return number

    def _follow(self, model, inputs, steps, prefix):
        """Appends the calls of a functional model to `steps` and all lists; returns the numbers of its outputs."""
        numbers = {id(symbol): number for symbol, number in zip(model.inputs, inputs)}
        for node in _sorted_nodes(model):
            args, kwargs = node.arguments.convert(
                lambda value: Ref(numbers[id(value)]) if isinstance(value, keras.KerasTensor) else value)
            inner = looked_into(node.operation)
            if inner is None:
                step = self._call(node, args, kwargs, prefix)
            else:
                step = self._call_model(node, inner, args, kwargs, prefix)
            steps.append(step)
            numbers.update({id(symbol): number for symbol, number in zip(node.outputs, step.outputs)})
        return tuple(numbers[id(symbol)] for symbol in model.outputs)

    def _call(self, node, args, kwargs, prefix):
        inputs = refs_in((args, kwargs))
        args, kwargs = _first_by_place(node.operation, args, kwargs)
        is_inferred, specs = any(self._inferred.get(number) for number in inputs), node.outputs
        if is_inferred:  # the sizes are others than those that the layer was called with when the model was made
            specs = self._infer(node.operation.compute_output_spec, args, kwargs)
        leaves_open = any(_is_open(spec.shape) for spec in specs)
        if leaves_open and not any(_is_open(self.shapes[number]) for number in inputs):
            traced = functools.partial(keras.Operation.compute_output_spec, node.operation)
            specs, is_inferred = self._infer(traced, args, kwargs), True  # some layers do not say what they know
        outputs = tuple(map(self._number, specs))
        self._inferred.update(dict.fromkeys(outputs, is_inferred))
        call = Call(node.operation, self._key(node.operation, prefix), args, kwargs, outputs)
        self.masks.note(call, node, self._symbol)
        self.rows.update(dict.fromkeys(outputs, self._count_rows(call)))
        self.calls.append(call)
        return call

    def _symbol(self, number):
        """Returns a KerasTensor like a tensor."""
        return keras.KerasTensor(self.shapes[number], self._dtypes[number])

    def _infer(self, compute_output_spec, args, kwargs):
        """Returns a list of KerasTensors like the outputs of a call."""
        symbols = {number: self._symbol(number) for number in refs_in((args, kwargs))}
        args, kwargs = fill_in((args, kwargs), symbols)
        return keras.tree.flatten(compute_output_spec(*args, **kwargs))

    def _count_rows(self, call):
        """Returns how many rows of the batch one example has in what a call writes."""
        rows = [self.rows[number] for number in call.inputs] or [Fraction(1)]
        name, shapes = type(call.layer).__name__, [self.shapes[number] for number in (*call.inputs[:1], call.output)]
        if name == "Reshape" and not any(map(_is_open, shapes)):
            return rows[0] * Fraction(math.prod(shapes[0][1:]), math.prod(shapes[1][1:]))
        if name == "Concatenate" and call.layer.axis % len(shapes[1]) == 0:
            return sum(rows)
        if name == "Split" and call.layer.axis % len(shapes[1]) == 0:
            return rows[0] / len(call.outputs)
        return max(rows)

    def _call_model(self, node, inner, args, kwargs, prefix):
        entries, key = [], self._key(node.operation, prefix)
        self.models += [] if node.operation in self.models else [node.operation]
        given = args[0] if args else kwargs.get("inputs")
        refs = _by_input(inner, given)
        if isinstance(given, dict) and not isinstance(inner._inputs_struct, dict):
            args, kwargs = (refs,), {}  # Keras takes the names for the values and their order for the sizes
        if len(refs) != len(inner.inputs):
            raise EkgError(f"nested model {key!r} takes {len(inner.inputs)} inputs and is called with {len(refs)}.")
        for ref, symbol in zip(refs, inner.inputs):
            dtype = keras.backend.standardize_dtype(symbol.dtype)
            number = self._number(keras.KerasTensor(self.shapes[ref.number], dtype))
            self._inferred[number] = self.shapes[number] != tuple(symbol.shape)
            self.rows[number] = self.rows[ref.number]
            self.masks.note_same(number, ref.number)
            self.calls.append(Call(Entry(dtype), f"{key}/{symbol.name}", (ref,), {}, (number,)))
            entries.append(number)
        steps = []
        outputs = self._follow(inner, entries, steps, f"{key}/")
        return ModelCall(node.operation, key, args, kwargs, tuple(entries), outputs, steps)

    def _key(self, operation, prefix):
        """Returns the name of a layer in the whole model; one that is met again keeps its first."""
        if id(operation) not in self._keys:
            key, number = prefix + operation.name, 2
            while key in self.layers:
                key, number = f"{prefix}{operation.name}#{number}", number + 1
            self._keys[id(operation)], self.layers[key] = key, operation
        return self._keys[id(operation)]


def _by_input(model, given):
    """Returns a list of what a functional model is given, in the order of its inputs; a dict goes by their names."""
    if not isinstance(given, dict):
        return keras.tree.flatten(given)
    structure = model._inputs_struct
    names = sorted(structure) if isinstance(structure, dict) else [symbol.name for symbol in model.inputs]
    missing = [name for name in names if name not in given]
    if missing:
        raise EkgError(f"model {model.name!r} takes the inputs {names}; {missing} are missing.")
    return keras.tree.flatten([given[name] for name in names])


def _first_by_place(operation, args, kwargs):
    """Returns (args, kwargs) with the first argument of a call among the former."""
    if args:
        return args, kwargs
    first = next(iter(inspect.signature(operation.call).parameters))
    return ((kwargs[first],), {name: value for name, value in kwargs.items() if name != first}) if first in kwargs else (
        args, kwargs)


def _calls_itself(model):
    """Returns whether a model's class computes something else than its graph."""
    owner = next(kind for kind in type(model).__mro__ if "call" in vars(kind))
    return not owner.__module__.startswith("keras.src.")


def functional(model):
    """Returns the functional model that a model is, or that a Sequential one holds.

    Raises:
        EkgError: the model is neither, or a Sequential one that is not built.
    """
    if isinstance(model, keras.Function) and _calls_itself(model):
        raise EkgError(f"`model` {model.name!r} ({type(model).__name__}) has a call() of its own, which its graph does not "
                       "show; make that part of the graph.")
    if isinstance(model, keras.Sequential):
        if getattr(model, "_functional", None) is None:
            raise EkgError(f"`model` {model.name!r} has no input shape yet; begin it with keras.Input, or call it once.")
        return model._functional
    if isinstance(model, keras.Function):
        return model
    if isinstance(model, keras.Model):
        raise EkgError(f"`model` {model.name!r} ({type(model).__name__}) is a subclassed model, whose graph is not known; "
                       "make a functional one of its layers: inputs = keras.Input(...); keras.Model(inputs, "
                       "outputs of its layers).")
    raise EkgError(f"`model` must be a functional keras.Model; received {type(model).__name__} "
                   f"{getattr(model, 'name', model)!r}.")


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


def looked_into(operation):
    """Returns the functional model behind a nested model, or None for a layer and for models of other kinds."""
    if isinstance(operation, keras.Model) and _calls_itself(operation):
        return None
    if isinstance(operation, keras.Sequential):
        return getattr(operation, "_functional", None)
    return operation if isinstance(operation, keras.Function) else None


def _is_open(shape):
    """Returns whether a size of a tensor is not known, but for that of the batch."""
    return None in shape[1:]


def _input_specs(model, input_shape):
    """Returns a KerasTensor for each input, of the sizes that are asked for.

    Raises:
        EkgError: a size does not fit the model.
    """
    shapes = [tuple(symbol.shape[1:]) for symbol in model.inputs]
    if input_shape is not None:
        if not isinstance(input_shape, (tuple, list)):
            raise EkgError(f"`input_shape` must be a tuple, as (224, 224, 3), or a list of them; received {input_shape!r}.")
        is_one = not any(isinstance(size, (tuple, list)) for size in input_shape)
        shapes = [tuple(shape) for shape in ([input_shape] if is_one else input_shape)]
        fits = len(shapes) == len(model.inputs) and all(
            len(shape) == len(symbol.shape) - 1 and all(
                isinstance(size, int) and size > 0 and own in (None, size) for own, size in zip(symbol.shape[1:], shape))
            for shape, symbol in zip(shapes, model.inputs))
        if not fits:
            raise EkgError(f"`input_shape` {input_shape} does not fit the inputs of `model` {model.name!r}: "
                           f"{[tuple(symbol.shape[1:]) for symbol in model.inputs]}.")
    return [keras.KerasTensor((symbol.shape[0], *shape), symbol.dtype) for shape, symbol in zip(shapes, model.inputs)]


def _sorted_nodes(model):
    """Returns the graph's nodes, depth first from each output in turn, inputs before what reads them."""
    ordered, done = [], {_producer(tensor) for tensor in model.inputs}
    for output in model.outputs:
        stack = [_producer(output)]
        while stack:
            node = stack[-1]
            waiting = [parent for parent in map(_producer, node.arguments.keras_tensors) if parent not in done]
            if waiting and node not in done:
                stack.append(waiting[0])
                continue
            stack.pop()
            if node not in done:
                done.add(node)
                ordered.append(node)
    return ordered


def _producer(tensor):
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]
