"""Opens composite layers and models: takes them apart into the graph of their parts.

The call() of such a layer runs on symbolic tensors, and its calls become a functional model. The
layers inside stay the same objects; what the layer does with weights of its own is a part as well,
see tracing.py. The model must compute what the layer computes, in inference and in training, or the
layer stays closed.
"""

import inspect
import logging
import re

import keras
import numpy as np

from ekg.errors import EkgError, first_line
from ekg.graph import activations, registry, tracing
from ekg.graph.steps import Ref, refs_in
from ekg.graph.tracing import Closed

logger = logging.getLogger(__name__)

BATCH = 2  # examples that a layer and the graph of its parts are compared on
TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2  # shares of the largest value


class CalledOtherwise(Exception):
    """A layer that was taken apart is called with other arguments, so it must stay closed."""


class Opener:
    """Takes the layers of one graph apart.

    Attributes:
        reasons: {key: why a composite layer stays closed}.
    """

    def __init__(self, which):
        """
        Args:
            which: True opens all layers; False none; a regular expression that is searched in the
                layers' names, or a list of these, those alone.

        Raises:
            EkgError: it is none of these.
        """
        self.reasons = {}
        self._opens_all = which is True
        self._patterns = [] if isinstance(which, bool) else _compiled(which)
        self._opened = {}  # id of a layer -> (signature of its call, model)
        self._opened_keys = set()
        self._outputs = {}  # id of a model of parts -> numbers of the outputs that it has
        self._called_otherwise = set()  # ids of layers

    def keep_whole(self, layer):
        """Marks a layer that must not be taken apart, not even into the parts of its record."""
        self._called_otherwise.add(id(layer))

    def stays_whole(self, layer):
        """Returns whether a layer was marked by keep_whole()."""
        return id(layer) in self._called_otherwise

    def opens(self, key):
        """Returns whether a layer of this name is to be opened."""
        return self._opens_all or any(pattern.search(key) for pattern in self._patterns)

    def opens_root(self):
        """Returns whether anything is to be opened."""
        return self._opens_all or bool(self._patterns)

    def open(self, layer, key, arguments, symbols, sizes, read, is_fixed):
        """Returns the functional keras.Model of a layer's parts, or None where it stays closed.

        Args:
            layer: layer that is called.
            key: its name in the whole model.
            arguments: (args, kwargs) of the call, with a Ref for every tensor.
            symbols: {tensor number: keras.KerasTensor} of what the call reads.
            sizes: {tensor number: (shape tuple with all sizes that are known, dtype)} likewise; the
                first size is the number of rows per example.
            read: for each output whether something reads it; others may be left out.
            is_fixed: whether the whole network takes inputs of one size.

        Raises:
            CalledOtherwise: the layer was opened for a call of other arguments.
        """
        is_inside = any(key.startswith(f"{outer}/") for outer in self._opened_keys)
        if not (is_made_of_layers(layer) or is_inside and is_own_activation(layer)):
            return None
        if not self.opens(key):
            return None
        if self.stays_whole(layer):
            self.reasons[key] = "it is called in several ways"
            return None
        signature = _signature(arguments, symbols), tuple(read)
        if id(layer) in self._opened:
            known, model = self._opened[id(layer)]
            if known != signature:
                self.keep_whole(layer)
                raise CalledOtherwise
            return model
        try:
            model, outputs = take_apart(
                layer, arguments, symbols, sizes, read=read, is_fixed=is_fixed
            )
            self._outputs[id(model)] = outputs
        except Closed as reason:
            self.reasons[key], model = str(reason), None
        self._opened[id(layer)] = signature, model
        self._opened_keys |= set() if model is None else {key}
        return model

    def outputs_of(self, model):
        """Returns the numbers of the outputs of a layer that the model of its parts has, or None
        for all of them.
        """
        return self._outputs.get(id(model))


def _compiled(which):
    patterns = [which] if isinstance(which, str) else which
    if not isinstance(patterns, (list, tuple)) or not all(
        isinstance(pattern, str) for pattern in patterns
    ):
        raise EkgError(
            "`open_layers` must be True, False, a regular expression for names of layers, or a "
            f"list of these; received {which!r}."
        )
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise EkgError(f"`open_layers`: {which!r} is no regular expression: {error}.") from None


def is_made_of_layers(layer):
    """Returns whether a layer without a record holds layers or weights, or is a model with its own
    call().
    """
    if not isinstance(layer, keras.layers.Layer) or registry.has_record(layer):
        return False
    if isinstance(layer, keras.Model):
        return True
    own = type(layer).__module__.startswith("keras.src.")  # Keras' own layers have records
    return not own and bool(
        layer._flatten_layers(include_self=False, recursive=False) or layer.weights
    )


def is_own_activation(layer):
    """Returns whether a layer is an Activation whose function Keras cannot write and read."""
    return type(layer) is keras.layers.Activation and not activations.is_saved(layer.activation)


def _signature(arguments, symbols):
    """Returns a text that two calls share if one functional model serves both."""

    def described(leaf):
        if isinstance(leaf, Ref):
            return str((symbols[leaf.number].shape, symbols[leaf.number].dtype))
        return repr(leaf)

    return repr(keras.tree.map_structure(described, arguments))


# ---------------------------------------------------------------- one layer


def take_apart(layer, arguments, symbols, sizes, structure=None, read=None, is_fixed=True):
    """Returns (functional keras.Model of a layer's parts, numbers of its outputs); see
    Opener.open().

    Its inputs are the tensors of the call in their order, or have the structure that is given. Its
    outputs are the layer's, without numbers that nothing reads.

    Raises:
        Closed: the layer cannot be taken apart.
    """
    if not layer.built:
        raise Closed("it is not built; call it once on some inputs before")
    if layer._seed_generators:
        raise Closed("it has randomness of its own")
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    names = structure if isinstance(structure, dict) and len(structure) == len(symbols) else ()
    reason = None
    if not own:
        try:
            inputs, given = _entries(layer, arguments, symbols, sorted(names))
            outputs = tracing.call(layer, *given)
            return _checked(layer, inputs, outputs, arguments, sizes, structure, read)
        except Closed as closed:
            reason = closed
    try:
        batch = tracing.batch_of(layer, sizes)
        traced = _with_sizes(symbols, sizes, batch, is_fixed)
        inputs, given = _entries(layer, arguments, traced, sorted(names))
        shapes = [symbols[number].shape for number in refs_in(arguments)]
        inputs, outputs = tracing.call_with_weights(layer, inputs, shapes, batch, *given)
        return _checked(layer, inputs, outputs, arguments, sizes, structure, read)
    except Closed as closed:
        raise reason or closed from None


def _with_sizes(symbols, sizes, batch, is_fixed):
    """Returns {tensor number: KerasTensor} of this number of examples.

    Raises:
        Closed: a size is not known, or may differ in the cut network.
    """
    traced = {}
    for number, symbol in symbols.items():
        shape = sizes[number][0]
        if None in shape[1:] or not is_fixed and None in symbol.shape[1:]:
            raise Closed(f"it uses the size of what it reads, which may be any, {symbol.shape[1:]}")
        traced[number] = keras.KerasTensor((batch * shape[0], *shape[1:]), symbol.dtype)
    return traced


def _checked(layer, inputs, outputs, arguments, sizes, structure, read):
    """Returns take_apart() from what a layer's call() reads and returns.

    Raises:
        Closed: it does not compute what the layer computes.
    """
    leaves = keras.tree.flatten(outputs)
    kept = [
        number
        for number, leaf in enumerate(leaves)
        if isinstance(leaf, keras.KerasTensor) or read is None or read[number]
    ]
    if not kept or not all(isinstance(leaves[number], keras.KerasTensor) for number in kept):
        raise Closed("it returns something that does not depend on its inputs")
    if len(kept) < len(leaves):
        outputs = [leaves[number] for number in kept]
    try:
        model = keras.Model(_packed(inputs, structure), outputs, name=layer.name)
    except Exception as error:  # two layers of one name, say
        raise Closed(f"its parts make no functional model: {first_line(error)}") from error
    model._trainable = layer._trainable
    _check_weights(layer, model)
    _check_outputs(layer, model, arguments, sizes, structure, kept)
    return model, kept


def _packed(values, structure):
    """Returns values in a structure; without one, a list of them, or the only one."""
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, values)
    return values if len(values) > 1 else values[0]


def _entries(layer, arguments, symbols, names=()):
    """Returns (list of keras.Input, (args, kwargs) of the call with them in place of tensors).

    Keras asks for inputs that are named like the keys of a dict, which `names` are.
    """
    inputs = []

    def entry(leaf):
        if not isinstance(leaf, Ref):
            return leaf
        symbol = symbols[leaf.number]
        if names:
            name = names[len(inputs)]
        else:
            name = f"input{len(inputs) + 1}" if inputs else "input"
        inputs.append(keras.Input(batch_shape=symbol.shape, dtype=symbol.dtype, name=name))
        dtypes = keras.backend.standardize_dtype(symbol.dtype), layer.compute_dtype
        casts = layer.autocast and all(map(keras.backend.is_float_dtype, dtypes))
        is_cast = casts and dtypes[0] != dtypes[1]
        return keras.ops.cast(inputs[-1], dtypes[1]) if is_cast else inputs[-1]

    args, kwargs = keras.tree.map_structure(entry, arguments)
    training = inspect.signature(layer.call).parameters.get("training")
    if training is not None and training.default is inspect.Parameter.empty:
        return inputs, (args, kwargs | {"training": None})
    return inputs, (args, _without_training(kwargs))


def _without_training(kwargs):
    """Returns the arguments by name without `training`, which the whole model sets."""
    return {name: value for name, value in kwargs.items() if name != "training"}


def _check_weights(layer, model):
    known = {id(variable) for variable in model.variables}
    own = {id(variable) for variable in tracing.own_weights(layer)}
    missing = [
        variable
        for variable in layer.weights
        if id(variable) not in known and id(variable) not in own
    ]
    if missing:
        raise Closed(f"its call() does not use the weight {missing[0].path!r} as one of a layer")


def _check_outputs(layer, model, arguments, sizes, structure, kept):
    """Raises Closed if a functional model does not compute what its layer computes."""
    rng = np.random.default_rng(0)
    for training in (False, True):
        values = []

        def value_of(leaf, values=values):
            if not isinstance(leaf, Ref):
                return leaf
            values.append(_random(sizes[leaf.number], rng))
            return values[-1]

        args, kwargs = keras.tree.map_structure(value_of, arguments)
        try:
            expected, states = _run(layer, training, args, _without_training(kwargs))
            expected = [keras.tree.flatten(expected)[number] for number in kept]
            found, new_states = _run(model, training, (_packed(values, structure),), {})
        except Exception as error:  # anything that a user's layer raises
            raise Closed(f"the graph of its parts does not run: {first_line(error)}") from error
        pairs = [
            *zip(expected, keras.tree.flatten(found)),
            *((value, new_states[key]) for key, value in states.items() if key in new_states),
        ]
        tolerance = TOLERANCE if layer.compute_dtype == "float32" else HALF_TOLERANCE
        if not all(_is_close(first, second, tolerance) for first, second in pairs):
            mode = "training" if training else "inference"
            raise Closed(f"in {mode} the graph of its parts does not give what it gives")


def _random(size_and_dtype, rng):
    (rows, *shape), dtype = size_and_dtype
    if None in shape:
        raise Closed(f"the size of what it reads is not known, {tuple(shape)}")
    if keras.backend.is_float_dtype(dtype):
        return keras.ops.convert_to_tensor(rng.normal(size=(BATCH * rows, *shape)), dtype)
    return keras.ops.convert_to_tensor(rng.integers(0, 2, (BATCH * rows, *shape)), dtype)


def _run(layer, training, args, kwargs):
    """Returns (outputs, {id of a non-trainable variable: its new value}); nothing is updated.

    Seeds differ from the layer's, so that they count.
    """
    values = [
        (variable, variable.value + 1 if variable.dtype == "uint32" else variable.value)
        for variable in layer.variables
    ]
    with keras.StatelessScope(values) as scope:
        outputs = layer(*args, training=training, **kwargs)
    return outputs, {
        id(variable): scope.get_current_value(variable)
        for variable in layer.non_trainable_variables
    }


def _is_close(first, second, tolerance):
    first, second = (
        np.asarray(keras.ops.convert_to_numpy(value), np.float64) for value in (first, second)
    )
    if first.shape != second.shape:
        return False
    bound = tolerance * max(np.abs(first).max(initial=0), np.finfo(np.float32).tiny)
    return bool(np.allclose(first, second, rtol=0, atol=bound, equal_nan=True))


# ---------------------------------------------------------------- a whole model


def open_root(model, input_shape):
    """Returns a functional keras.Model of the layers of a subclassed model, which stay the same.

    Args:
        model: keras.Model with a call() of its own.
        input_shape: shape of one example, without the batch, or a list or dict of them; None takes
            those that the model was built with. The model reads numbers in Keras' float format.

    Raises:
        EkgError: the shape is not known, or the model cannot be taken apart.
    """
    what = f"`model` {model.name!r} ({type(model).__name__})"
    entries = _root_entries(model, input_shape)
    if entries is None:
        raise EkgError(
            f"{what} is a subclassed model, whose input shape is not known; give `input_shape`, "
            "as (224, 224, 3), or call it once on some inputs."
        )
    symbols = dict(enumerate(keras.tree.flatten(entries)))
    numbers = iter(symbols)
    arguments = (keras.tree.map_structure(lambda _: Ref(next(numbers)), entries),), {}
    sizes = {number: ((1, *symbol.shape[1:]), symbol.dtype) for number, symbol in symbols.items()}
    try:
        if not model.built:
            model(
                keras.tree.map_structure(
                    lambda symbol: keras.ops.zeros((1, *symbol.shape[1:]), symbol.dtype), entries
                )
            )
        opened, _ = take_apart(model, arguments, symbols, sizes, entries)
    except Closed as reason:
        raise EkgError(
            f"{what} cannot be taken apart into its layers: {reason}. Make a functional model of "
            "its layers: inputs = keras.Input(...); keras.Model(inputs, outputs of its layers)."
        ) from reason
    logger.info("%s becomes a functional keras.Model of its layers", what)
    return opened


def _root_entries(model, input_shape):
    """Returns a KerasTensor for each input in their structure, or None if no shape is known."""
    if isinstance(model, keras.Function):
        return model._inputs_struct
    built = getattr(model, "_build_shapes_dict", None) or {}
    known = _without_batch(next(iter(built.values()))) if len(built) == 1 else None
    if input_shape is None:
        input_shape = known
    elif isinstance(known, dict) and not isinstance(input_shape, dict):
        # One shape per input, as a Graph has them.
        input_shape = dict(zip(sorted(known), input_shape))
    if input_shape is None:
        return None
    return _map_shapes(
        lambda shape: keras.KerasTensor((None, *shape), keras.config.floatx()), input_shape
    )


def _without_batch(shapes):
    return _map_shapes(lambda shape: tuple(shape[1:]), shapes)


def _map_shapes(function, shapes):
    """Returns a structure of shapes with the function applied to each."""
    if isinstance(shapes, dict):
        return {name: _map_shapes(function, shape) for name, shape in shapes.items()}
    if any(isinstance(size, (tuple, list, dict)) for size in shapes):
        return [_map_shapes(function, shape) for shape in shapes]
    return function(tuple(shapes))
