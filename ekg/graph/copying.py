"""Copies of Keras layers and operations, object by object.

A layer that is rebuilt from its configuration loses what the configuration does not hold: an
adapted state, a user's function, the state of a seed. A copy here takes every attribute of the
original as it is; only variables, and layers and seeds inside, are new. A cut changes values and
attributes on the way.
"""

import contextlib
import functools
import logging
import operator
import types

import keras
import numpy as np
import tensorflow as tf

from ekg.errors import EkgError

logger = logging.getLogger(__name__)

_CONTAINERS = (list, tuple, set, dict)
_WITHOUT_BUILD = (keras.layers.StringLookup, keras.layers.IntegerLookup)

# Bookkeeping of Keras and TensorFlow about a layer's place in graphs and its variables, which a
# copy has for itself.
_BOOKKEEPING = frozenset(
    (
        "_tracker",
        "_trainable_variables",
        "_non_trainable_variables",
        "_layers",
        "_metrics",
        "_seed_generators",
        "_inbound_nodes",
        "_outbound_nodes",
        "build",
        "quantize",
        "_lock",
        "_tracked",
        "_saved_model_inputs_spec",
        "_saved_model_arg_spec",
        "_losses",
        "_loss_ids",
        "_losses_override",
    )
)


def copy_operation(operation, arrays=None, changes=None, name=None):
    """Returns a copy of a layer or operation with variables of its own, which is in no graph yet.

    Args:
        operation: keras.Operation, a layer that is built or a function of keras.ops.
        arrays: {id of a variable: the value that its copy gets}; the others keep theirs.
        changes: {attribute: value} of the copy, or of a layer that it holds: "layer.units".
        name: another name for the copy.

    Raises:
        EkgError: the layer holds a layer that is not built, or hides variables where they are not
            found.
    """
    changes = {**(changes or {}), **({"name": name} if name else {})}
    if not isinstance(operation, keras.layers.Layer):
        return _copy_plain(operation, changes)
    _check_functions(operation)
    copies = {}
    copy = _copy_layer(operation, arrays or {}, changes, copies)
    left = {id(variable) for variable in operation.variables} & {
        id(variable) for variable in copy.variables
    }
    if left or len(copy.variables) != len(operation.variables):
        raise EkgError(
            f"layer {operation.name!r} ({type(operation).__name__}) keeps variables where they "
            "cannot be copied; hold each in an attribute of the layer."
        )
    return copy


def _check_functions(layer):
    """Rejects layers that capture themselves, or a part of themselves, in the closure of an
    attribute.

    The copy's function would still use the weights of the original.
    """
    for owner in layer._flatten_layers():
        for name, value in vars(owner).items():
            if name in _BOOKKEEPING or name.startswith("_self_"):
                continue
            held = {id(item) for item in _held_by_functions(value, set())}
            if (
                held
                and layer.variables
                and not held.isdisjoint(map(id, (*owner._flatten_layers(), *owner.variables)))
            ):
                raise EkgError(
                    f"layer {owner.name!r} ({type(owner).__name__}) keeps in {name!r} a function "
                    "that holds the layer itself, which a copy cannot take over; make it a "
                    "method."
                )


def _held_by_functions(value, seen, is_inside=False):
    """Yields every object captured by the functions that are reachable from a value.

    Args:
        value: value of an attribute.
        seen: ids of the values that were visited.
        is_inside: whether a function captures the value itself.
    """
    if is_inside:
        yield value
        yield getattr(value, "__self__", None)
    if not (callable(value) or isinstance(value, _CONTAINERS)) or id(value) in seen:
        return
    seen.add(id(value))
    held = []
    if isinstance(value, types.FunctionType):
        held = [
            *_contents(value.__closure__ or ()),
            *(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).values(),
        ]
        is_inside = True
    elif isinstance(value, _CONTAINERS):
        held = value.values() if isinstance(value, dict) else value
    elif isinstance(value, functools.partial):  # one of a method or a layer goes over to the copy
        held = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, tf.types.experimental.PolymorphicFunction):
        held, is_inside = [value.python_function], True
    for item in held:
        yield from _held_by_functions(item, seen, is_inside)


def _contents(cells):
    """Returns what the cells of a closure hold, but for those that hold nothing yet."""
    held = []
    for cell in cells:
        with contextlib.suppress(ValueError):
            held.append(cell.cell_contents)
    return held


def _copy_plain(operation, changes):
    """Copies a function of keras.ops, with what it saves of itself."""
    copy = type(operation).__new__(type(operation))
    copy.__dict__.update(operation.__dict__)
    copy.__dict__.update(_inbound_nodes=[], _outbound_nodes=[])
    if changes and getattr(operation, "_auto_config", None) is not None:
        config = {
            **operation._auto_config.config,
            **{key: value for key, value in changes.items() if key != "name"},
        }
        copy.__dict__["_auto_config"] = type(operation._auto_config)(**config)
    copy.__dict__.update(changes)
    return copy


def _copy_layer(layer, arrays, changes, copies):
    if isinstance(layer, keras.Model):
        raise EkgError(
            f"model {layer.name!r} ({type(layer).__name__}) is held by a layer, or has a call() "
            "of its own; call it in the graph itself, as a functional model."
        )
    unbuilt = [
        inner.name
        for inner in layer._flatten_layers(include_self=False, recursive=False)
        if not inner.built and not isinstance(inner, _WITHOUT_BUILD)
    ]
    if unbuilt:
        raise EkgError(
            f"layer {layer.name!r} ({type(layer).__name__}) holds layer {unbuilt[0]!r}, which is "
            "not built; call the model once on some inputs before."
        )
    copy = type(layer).__new__(type(layer))
    copies[id(layer)] = copy
    copy._initialize_tracker()
    copy.__dict__.update(
        _inbound_nodes=[],
        _outbound_nodes=[],
        _tracked=[],
        _saved_model_inputs_spec=None,
        _saved_model_arg_spec=None,
        _losses=[],
        _loss_ids=set(),
        _losses_override=[],
        _lock=False,
        _trainable=layer._trainable,
    )
    # A frozen layer's variables stay among the trainable ones, so that it can be unfrozen.
    for store in ("trainable_variables", "non_trainable_variables"):
        for variable in getattr(layer, f"_{store}"):
            if id(variable) not in copies:  # a wrapper and the layer inside may hold the same one
                copies[id(variable)] = _copy_variable(variable, arrays.get(id(variable)))
            copy._tracker.add_to_store(store, copies[id(variable)])
            copy._post_track_variable(copies[id(variable)])
    # Methods and functions of an inner object come after the object.
    for name, value in sorted(
        layer.__dict__.items(), key=lambda item: callable(item[1]) and not _is_tracked(item[1])
    ):
        if name not in _BOOKKEEPING and not name.startswith("_self_"):
            new = _copy_value(value, arrays, copies)
            if not _is_tracked(new):
                copy.__dict__[name] = (
                    new  # setattr() costs most of the time of a cut, and tracks nothing here
                )
            else:
                setattr(copy, name, new)
    if type(copy) is keras.layers.Identity and copy._auto_config is None:
        # It cannot be saved where it was made with a dtype policy in place of its name.
        like = keras.layers.Identity(dtype=copy.dtype_policy.name)
        copy.__dict__["_auto_config"] = like._auto_config
    for name, value in {**changes, **_without_arrays(copy, bool(changes or arrays))}.items():
        _set_attribute_(copy, name, value)
    copy._lock_state()
    return copy


def has_attribute(layer, name):
    """Returns whether a layer has an attribute; "layer.units" is one of the layer that it holds."""
    try:
        operator.attrgetter(name)(layer)
    except AttributeError:
        return False
    return True


def _set_attribute_(layer, name, value):
    *inside, last = name.split(".")
    for part in inside:
        layer = getattr(layer, part)
    setattr(layer, last, value)


def _is_tracked(value):
    """Returns whether a value is, or holds, something that a layer keeps a record of."""
    if isinstance(value, (list, tuple, set)):
        return any(map(_is_tracked, value))
    if isinstance(value, dict):
        return any(map(_is_tracked, value.values()))
    return isinstance(
        value,
        (
            keras.layers.Layer,
            keras.Variable,
            keras.random.SeedGenerator,
            keras.metrics.Metric,
            tf.saved_model.experimental.TrackableResource,  # a table of words, for a SavedModel
        ),
    )


def _copy_variable(variable, array):
    value = variable.value if array is None else array
    copy = keras.Variable(
        lambda shape, dtype=None: tf.convert_to_tensor(value),
        shape=value.shape,
        dtype=variable.dtype,
        trainable=variable._trainable,
        autocast=variable._autocast,
        aggregation=variable.aggregation,
        synchronization=variable.synchronization,
        name=variable.name,
    )
    copy._path = variable.path
    copy.regularizer = variable.regularizer
    copy.constraint = variable.constraint
    copy.overwrite_with_gradient = variable.overwrite_with_gradient
    return copy


def _copy_value(value, arrays, copies):
    """Returns a copy of a value that holds variables, layers or seeds; other values are shared."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, keras.layers.Layer):
        return _copy_layer(value, arrays, {}, copies)
    if isinstance(value, keras.Variable):
        copies[id(value)] = _copy_variable(value, arrays.get(id(value)))
        return copies[id(value)]
    if isinstance(value, keras.metrics.Metric):
        copies[id(value)] = _copy_metric(value)
        return copies[id(value)]
    if isinstance(value, keras.random.SeedGenerator):
        copy = keras.random.SeedGenerator(seed=value._initial_seed, name=value.name)
        copy.state.assign(value.state)
        copies[id(value)] = copy
        return copy
    if isinstance(value, dict):  # plain ones in place of those that Keras wraps
        return {key: _copy_value(item, arrays, copies) for key, item in value.items()}
    if isinstance(value, (list, set)):
        return (list if isinstance(value, list) else set)(
            _copy_value(item, arrays, copies) for item in value
        )
    if isinstance(value, types.MethodType) and id(value.__self__) in copies:
        return types.MethodType(value.__func__, copies[id(value.__self__)])
    if isinstance(value, functools.partial):
        return functools.partial(
            *(_copy_value(item, arrays, copies) for item in (value.func, *value.args)),
            **_copy_value(value.keywords, arrays, copies),
        )
    if isinstance(value, tuple) and not hasattr(value, "_fields") and _is_tracked(value):
        return tuple(_copy_value(item, arrays, copies) for item in value)
    return value


def _copy_metric(metric):
    """Returns a metric like another; that one itself, where Keras cannot make it again."""
    try:
        return type(metric).from_config(metric.get_config())
    except Exception as error:  # anything that a user's metric raises
        logger.debug("metric %r is shared by the copies of its layer: %s", metric.name, error)
        return metric


def _without_arrays(layer, is_cut):
    """Returns {attribute: zeros} for the initializers of a cut layer that hold an array of the size
    before the cut.
    """
    if not is_cut:
        return {}
    for name, value in vars(layer).items():
        if isinstance(
            value, (keras.regularizers.Regularizer, keras.constraints.Constraint)
        ) and holds_array(value):
            raise EkgError(
                f"layer {layer.name!r} ({type(layer).__name__}) has a {name} that holds an array, "
                "which does not fit the layer when it is cut; exclude the layers around it."
            )
    return {
        name: keras.initializers.Zeros()
        for name, value in vars(layer).items()
        if isinstance(value, keras.initializers.Initializer) and holds_array(value)
    }


def holds_array(value):
    """Returns whether an initializer, regularizer or constraint holds an array."""
    return any(
        np.ndim(item) > 0 and not isinstance(item, (str, tuple))
        for item in vars(value).values()
        if not isinstance(item, keras.Variable)
    )


def refit_(copy, kept):
    """Sets what a cut layer remembers of the shapes that it was built for.

    Args:
        copy: the cut keras.layers.Layer.
        kept: records.Kept of one of its calls.
    """
    axis, rank, count = kept.axes[0], kept.ranks[0], len(kept.input)
    if axis is None:
        return

    def cut(shape, count):
        # Inputs with fewer axes are broadcast from the last one on.
        shape = tuple(shape)
        place = len(shape) + axis - rank
        return (
            (*shape[:place], count, *shape[place + 1 :])
            if place > 0 and shape[place] != 1
            else shape
        )

    shapes = copy._build_shapes_dict
    if shapes and len(shapes) == 1:
        [(name, shape)] = shapes.items()
        is_one = not any(isinstance(size, (list, tuple)) for size in shape)
        copy._build_shapes_dict = {
            name: cut(shape, count)
            if is_one
            else [cut(one, len(own)) for one, own in zip(shape, kept.inputs)]
        }
    spec = copy.input_spec
    if isinstance(spec, keras.InputSpec) and spec.axes:
        axes = {place: count if place % rank == axis else size for place, size in spec.axes.items()}
        copy.input_spec = keras.InputSpec(
            dtype=spec.dtype,
            ndim=spec.ndim,
            min_ndim=spec.min_ndim,
            max_ndim=spec.max_ndim,
            axes=axes,
        )
