"""The layer graph of a functional Keras model as a flat list of calls.

The list includes the calls inside nested models. Everything that this package knows of Keras' own
bookkeeping of a functional graph is in this file.
"""

import functools
import inspect
from fractions import Fraction

import keras

from ekg.errors import EkgError
from ekg.graph.activations import is_linear
from ekg.graph.keras_masks import Masks
from ekg.graph.nodes import input_specs, sorted_nodes
from ekg.graph.opening import CalledOtherwise, Opener, is_made_of_layers, open_root
from ekg.graph.registry import parts_of, states
from ekg.graph.steps import Call, Entry, ModelCall, PartsCall, Ref, fill_in, refs_in


class Graph:
    """Calls of a functional model, each after the calls whose outputs it reads.

    A block's main branch comes before its shortcut where the block adds [main, shortcut]. Tensors
    are numbered, the inputs first.

    Attributes:
        model: the keras.Model.
        origin: the keras.Model that was given, which was compiled; another one than `model` where
            that is subclassed.
        calls: list of all Calls, without input layers and including nested models.
        steps: the same as a tree: list of Calls and ModelCalls.
        unopened: {key of a composite layer: why it was not taken apart}.
        layers: {key: layer or operation} of everything that is called.
        looked_into: keys of the layers whose parts are in the list of calls.
        shapes: {tensor number: shape tuple with None for the batch}.
        rows: {tensor number: rows of the batch per example, a Fraction}: more than one where
            positions were folded into the batch.
        masks: Keras' masks, as of padded tokens.
        inputs, outputs: tuples of the numbers of the tensors that the model takes and returns.

    Raises:
        EkgError: the model is not functional, or is not built.
    """

    def __init__(self, model, input_shape=None, open_layers=False):
        """
        Args:
            model: keras.Model, functional or sequential; or of any kind where `open_layers` opens
                it.
            input_shape: shape of one example, without the batch, or a list of one for each input;
                None takes the shapes of the model itself.
            open_layers: which composite layers are taken apart and become nested models in the
                graph: True for all, or regular expressions for their names; see opening.Opener.
        """
        opener = Opener(open_layers)
        self.origin = model
        if (
            opener.opens_root()
            and isinstance(model, keras.Model)
            and looked_into(model) is None
            and not isinstance(model, keras.Sequential)
        ):
            model, input_shape = open_root(model, input_shape), None
        while True:
            try:
                self._read(model, input_shape, opener)
                break
            except CalledOtherwise:  # then that layer stays closed
                continue

    def _read(self, model, input_shape, opener):
        self.model, self._opener, self.unopened = model, opener, opener.reasons
        inside = functional(model)
        self.calls, self.shapes, self.layers, self._dtypes = [], {}, {}, {}
        self._keys, self._parts = {}, {}  # id of a layer -> key; -> its records.Parts
        specs = input_specs(inside, input_shape)
        self.inputs = tuple(self._number(spec) for spec in specs)
        self._inferred = {
            number: spec.shape != symbol.shape
            for number, spec, symbol in zip(self.inputs, specs, inside.inputs)
        }
        self.rows = dict.fromkeys(self.inputs, Fraction(1))
        self.steps, self.masks, self.models, self.looked_into = [], Masks(), [model], set()
        self.outputs = self._follow(inside, self.inputs, self.steps, "")

    @property
    def output(self):
        """Number of the tensor that the model returns, the first if there are several."""
        return self.outputs[0]

    @property
    def num_outputs(self):
        """Size of the last axis of the output: the number of classes."""
        return self.shapes[self.output][-1]

    @property
    def input_shapes(self):
        """Shapes of an example of every input, without the batch."""
        return [self.shapes[number][1:] for number in self.inputs]

    @property
    def input_names(self):
        """Names of the inputs, as data name them: keys of a dict, or names of input layers."""
        return _input_names(functional(self.model))

    def is_last(self, call):
        """Returns whether a call writes an output of the model, directly or through a linear
        activation.
        """
        return any(number in self._returned for number in call.outputs)

    @functools.cached_property
    def _returned(self):
        """Numbers of the outputs, and of the tensors that a linear activation in place of a head
        returns.
        """
        heads = {call.output: call.inputs[0] for call in self.calls if is_linear(call.layer)}
        return {*self.outputs, *(heads[number] for number in self.outputs if number in heads)}

    def tensors_of(self, inputs):
        """Returns {tensor number: value} of the model's inputs, in the dtypes that the model
        expects.

        Args:
            inputs: a tensor, or a structure of them as the model takes.
        """
        values = _by_input(functional(self.model), inputs)
        if len(values) != len(self.inputs):
            raise EkgError(
                f"`model` {self.model.name!r} takes {len(self.inputs)} inputs; received "
                f"{len(values)}."
            )
        return {
            number: keras.ops.convert_to_tensor(value, dtype=self._dtypes[number])
            for number, value in zip(self.inputs, values)
        }

    def structured(self, tensors):
        """Returns what the model returns, in its own structure, from {tensor number: value}."""
        structure = functional(self.model)._outputs_struct
        return keras.tree.pack_sequence_as(structure, [tensors[number] for number in self.outputs])

    def structured_inputs(self, values):
        """Returns a list of one value per input in the structure that the model takes."""
        return keras.tree.pack_sequence_as(functional(self.model)._inputs_struct, values)

    def why_closed(self, key):
        """Returns why a composite layer was not taken apart, as a part of a sentence, or an empty
        text.
        """
        return f", as it stays closed: {self.unopened[key]}" if key in self.unopened else ""

    def dtype(self, number):
        """Returns the dtype of a tensor, as in "float32"."""
        return self._dtypes[number]

    def is_open(self, number):
        """Returns whether positions of a tensor may be more or fewer, in inputs of other sizes."""
        takes_any = any(_is_open(symbol.shape) for symbol in functional(self.model).inputs)
        shape = self.shapes[number]
        return _is_open(shape) or (takes_any and len(shape) > 2)

    def check_sizes(self):
        """Raises EkgError if the size of an input is unknown, and thus the FLOPs."""
        shapes = self.input_shapes
        if any(size is None for shape in shapes for size in shape):
            raise EkgError(
                f"`model` {self.model.name!r} takes inputs of any size, {shapes}, so its FLOPs "
                "are not known; give the size that they are counted for, as in "
                "`input_shape`=(224, 224, 3)."
            )

    # ---------------------------------------------------------------- following the graph

    def _number(self, spec):
        number = len(self.shapes)
        self.shapes[number], self._dtypes[number] = (
            tuple(spec.shape),
            keras.backend.standardize_dtype(spec.dtype),
        )
        return number

    def _follow(self, model, inputs, steps, prefix):
        """Appends the calls of a functional model to `steps` and all lists; returns the numbers of
        its outputs.
        """
        numbers = {id(symbol): number for symbol, number in zip(model.inputs, inputs)}
        nodes = sorted_nodes(model)
        read = {id(symbol) for node in nodes for symbol in node.arguments.keras_tensors}
        read |= {id(symbol) for symbol in model.outputs}
        for node in nodes:
            args, kwargs = node.arguments.convert(
                lambda value: (
                    Ref(numbers[id(value)]) if isinstance(value, keras.KerasTensor) else value
                )
            )
            is_read = [id(symbol) in read for symbol in node.outputs]
            inner = looked_into(node.operation) or self._opened(node, args, kwargs, prefix, is_read)
            parts = self._parts_of(node.operation, kwargs) if inner is None else None
            if parts is not None:
                step = self._call_parts(node, parts, args, kwargs, prefix)
            elif inner is None:
                step = self._call(node, args, kwargs, prefix)
            else:
                step = self._call_model(node, inner, args, kwargs, prefix)
            steps.append(step)
            kept = self._opener.outputs_of(inner)
            written = node.outputs if kept is None else [node.outputs[number] for number in kept]
            numbers.update({id(symbol): number for symbol, number in zip(written, step.outputs)})
        return tuple(numbers[id(symbol)] for symbol in model.outputs)

    def _opened(self, node, args, kwargs, prefix, read):
        """Returns the functional model of a layer's parts, or None if the layer stays closed."""
        key, numbers = self._key(node.operation, prefix), refs_in((args, kwargs))
        if self.masks.is_on(numbers):
            if is_made_of_layers(node.operation):
                self.unopened[key] = "it receives a mask"
            return None
        symbols = dict(zip(numbers, node.arguments.keras_tensors))
        if not all(self.rows[number] >= 1 for number in numbers):
            return None  # a weight, or a part of an example
        sizes = {
            number: ((int(self.rows[number]), *self.shapes[number][1:]), self._dtypes[number])
            for number in numbers
        }
        is_fixed = not any(_is_open(symbol.shape) for symbol in functional(self.model).inputs)
        return self._opener.open(
            node.operation, key, (args, kwargs), symbols, sizes, read, is_fixed
        )

    def _call(self, node, args, kwargs, prefix):
        inputs = refs_in((args, kwargs))
        args, kwargs = _first_by_place(node.operation, args, _taken(node.operation, kwargs))
        is_inferred, specs = any(self._inferred.get(number) for number in inputs), node.outputs
        # The sizes differ from the call by which the model was made.
        if is_inferred:
            specs = self._infer(node.operation.compute_output_spec, args, kwargs)
        leaves_open = any(_is_open(spec.shape) for spec in specs)
        if leaves_open and not any(_is_open(self.shapes[number]) for number in inputs):
            traced = functools.partial(keras.Operation.compute_output_spec, node.operation)
            # Some layers do not report the sizes that they know.
            specs = self._infer(traced, args, kwargs)
            is_inferred = True
        outputs = tuple(map(self._number, specs))
        self._inferred.update(dict.fromkeys(outputs, is_inferred))
        call = Call(node.operation, self._key(node.operation, prefix), args, kwargs, outputs)
        self.masks.note(call, node, self._symbol)
        self.rows.update(dict.fromkeys(outputs, self._count_rows(call)))
        self.calls.append(call)
        return call

    def _parts_of(self, layer, kwargs):
        """Returns the records.Parts of a layer, the same at every call, or None at every call."""
        if self._opener.stays_whole(layer):
            return None
        parts = parts_of(layer, kwargs)
        known = self._parts.setdefault(id(layer), parts)
        if (known is None) != (parts is None):  # one call could be cut, and another one not
            self._opener.keep_whole(layer)
            raise CalledOtherwise
        return known

    def _call_parts(self, node, parts, args, kwargs, prefix):
        """Follows the parts of a layer as if they were called in its place."""
        key = self._key(node.operation, prefix)
        self.looked_into.add(key)
        given = inspect.signature(node.operation.call).bind(*args, **kwargs).arguments
        given = self.masks.taken_ones(node.operation, given)
        symbols = {
            number: keras.Input(batch_shape=self.shapes[number], dtype=self._dtypes[number])
            for number in refs_in(given)
        }
        model = keras.Model([*symbols.values()], parts.call(**fill_in(given, symbols)))
        steps = []
        outputs = self._follow(model, [*symbols], steps, f"{key}/")
        self.masks.note(Call(node.operation, key, args, kwargs, outputs), node, self._symbol)
        return PartsCall(node.operation, key, args, kwargs, outputs, parts, steps)

    def _symbol(self, number):
        """Returns a KerasTensor like a tensor."""
        return keras.KerasTensor(self.shapes[number], self._dtypes[number])

    def _infer(self, compute_output_spec, args, kwargs):
        """Returns a list of KerasTensors like the outputs of a call."""
        symbols = {number: self._symbol(number) for number in refs_in((args, kwargs))}
        args, kwargs = fill_in((args, kwargs), symbols)
        return keras.tree.flatten(compute_output_spec(*args, **kwargs))

    def _count_rows(self, call):
        """Returns the rows of the batch per example in the output of a call."""
        count = states(call.layer, "rows")
        if count:
            return count(call, self.shapes, self.rows)
        return max([self.rows[number] for number in call.inputs], default=Fraction(1))

    def _call_model(self, node, inner, args, kwargs, prefix):
        entries, key = [], self._key(node.operation, prefix)
        self.looked_into.add(key)
        # An opened layer: its model takes the tensors one by one.
        if looked_into(node.operation) is None:
            model = inner
            given = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Ref)]
            args, kwargs = (given if len(given) > 1 else given[0],), {}
        else:
            model, given = node.operation, args[0] if args else kwargs.get("inputs")
        self.models += [] if model in self.models else [model]
        refs = _by_input(inner, given)
        if isinstance(given, dict) and not isinstance(inner._inputs_struct, dict):
            # Keras would use the names for the values and their order for the sizes.
            args = (refs,)
            kwargs = {}
        if len(refs) != len(inner.inputs):
            raise EkgError(
                f"nested model {key!r} takes {len(inner.inputs)} inputs and is called with "
                f"{len(refs)}."
            )
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
        return ModelCall(model, key, args, kwargs, tuple(entries), outputs, steps)

    def _key(self, operation, prefix):
        """Returns the name of a layer in the whole model; a layer that is met again keeps its first
        name.
        """
        if id(operation) not in self._keys:
            key, number = prefix + operation.name, 2
            while key in self.layers:
                key, number = f"{prefix}{operation.name}#{number}", number + 1
            self._keys[id(operation)], self.layers[key] = key, operation
        return self._keys[id(operation)]


def _by_input(model, given):
    """Returns the arguments of a functional model in the order of its inputs; a dict is read by
    their names.
    """
    if not isinstance(given, dict):
        return keras.tree.flatten(given)
    structure = model._inputs_struct
    names = sorted(structure) if isinstance(structure, dict) else _input_names(model)
    missing = [name for name in names if name not in given]
    if missing:
        raise EkgError(f"model {model.name!r} takes the inputs {names}; {missing} are missing.")
    return keras.tree.flatten([given[name] for name in names])


def _input_names(model):
    structure = model._inputs_struct
    if isinstance(structure, dict) and len(structure) == len(model.inputs):
        return sorted(structure)
    return [symbol.name for symbol in model.inputs]


def _taken(operation, kwargs):
    """Returns the arguments by name without a `training` that Keras takes, and the layer does
    not.
    """
    parameters = inspect.signature(operation.call).parameters.values()
    if any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in parameters):
        return kwargs
    return {name: value for name, value in kwargs.items() if name != "training"}


def _first_by_place(operation, args, kwargs):
    """Returns (args, kwargs) of a call with its first argument in args."""
    if args:
        return args, kwargs
    first = next(iter(inspect.signature(operation.call).parameters))
    return (
        ((kwargs[first],), {name: value for name, value in kwargs.items() if name != first})
        if first in kwargs
        else (args, kwargs)
    )


def _calls_itself(model):
    """Returns whether the class of a model has a call() of its own, besides its graph."""
    owner = next(kind for kind in type(model).__mro__ if "call" in vars(kind))
    return not owner.__module__.startswith("keras.src.")


def functional(model):
    """Returns the functional model that a model is, or that a Sequential one holds.

    Raises:
        EkgError: the model is neither, or a Sequential one that is not built.
    """
    if isinstance(model, keras.Function) and _calls_itself(model):
        raise EkgError(
            f"`model` {model.name!r} ({type(model).__name__}) has a call() of its own, which its "
            "graph does not show; make that part of the graph."
        )
    if isinstance(model, keras.Sequential):
        if getattr(model, "_functional", None) is None:
            raise EkgError(
                f"`model` {model.name!r} has no input shape yet; begin it with keras.Input, or "
                "call it once."
            )
        return model._functional
    if isinstance(model, keras.Function):
        return model
    if isinstance(model, keras.Model):
        raise EkgError(
            f"`model` {model.name!r} ({type(model).__name__}) is a subclassed model, whose graph "
            "is not known; make a functional one of its layers: inputs = keras.Input(...); "
            "keras.Model(inputs, outputs of its layers)."
        )
    raise EkgError(
        f"`model` must be a functional keras.Model; received {type(model).__name__} "
        f"{getattr(model, 'name', model)!r}."
    )


def layer_variables(layer):
    """Returns the variables of a layer, the trainable ones first."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [*layer.trainable_variables, *layer.non_trainable_variables]


def finish_layers_(model):
    """Refreshes values that layers derive from their weights (e.g. an adapted Normalization)."""
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def looked_into(operation):
    """Returns the functional model of a nested model, or None for a layer and for models of other
    types.
    """
    if isinstance(operation, keras.Model) and _calls_itself(operation):
        return None
    if isinstance(operation, keras.Sequential):
        return getattr(operation, "_functional", None)
    return operation if isinstance(operation, keras.Function) else None


def _is_open(shape):
    """Returns whether a size of a tensor is unknown, other than the batch."""
    return None in shape[1:]
