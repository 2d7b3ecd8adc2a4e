"""Cuts a sub-network out of a model as a dense network.

The code here is the same for all layer types. Which axes of a layer's weights are channels, and
which of its attributes change with them, is in its record: for Keras' own layers in layers.py.
"""

import itertools
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.errors import EkgError, first_line
from ekg.graph import groups, neighbours, records, registry, removal, wrappers
from ekg.graph.calls import Graph, ModelCall, functional, looked_into
from ekg.graph.constants import Constant
from ekg.graph.copying import copy_operation, has_attribute, refit_
from ekg.graph.steps import PartsCall, Ref, fill_in, numbers_by_name, refs_in

logger = logging.getLogger(__name__)


def cut(graph, layout, mask, is_trial=False, keeps_norm=True, replacements=None):
    """Returns a new keras.Model without the masked channels, nested and compiled as the original
    is.

    Layer names stay. The kernel of the layer that writes class logits is rescaled to the Frobenius
    norm it had; all other weights are slices of the model's.

    Args:
        graph: Graph of the model.
        layout: groups.Layout of the graph.
        mask: bool array [num_channels + 1], the channels to keep.
        is_trial: whether the model is made to be thrown away: what is cut of its weights is zero
            then, which costs less.
        keeps_norm: whether the kernel that writes class logits keeps its norm: the output may be
            something else.
        replacements: {id of a layer: the layer that stands in its place}, or None.
    """
    cutter = _Cutter(graph, layout, mask, is_trial, keeps_norm, replacements)
    model = cutter.model(graph.model, graph.inputs, graph.outputs, graph.steps)
    if not is_trial:
        _compile_like(model, graph.origin)
    return model


def cut_part(graph, layout, mask, calls, reads):
    """Returns a keras.Model of a chain of calls alone, without the masked channels; what is cut of
    its weights is zero.

    Args:
        graph: Graph of the model.
        layout: groups.Layout of the graph.
        mask: bool array [num_channels + 1], the channels to keep.
        calls: list of Calls, each of which reads what is in `reads` or what one before it wrote;
            the last one's outputs are the model's.
        reads: numbers of the tensors that are its inputs.
    """
    return _Cutter(graph, layout, mask, is_trial=True, keeps_norm=False).part(calls, reads)


def copy(model, input_shape=None, replacements=None, open_layers=False):
    """Returns a copy of a functional or sequential keras.Model, object by object, with its weights.

    Args:
        model: keras.Model.
        input_shape: of an example, where the model takes any size; the copy takes any size, too.
        replacements: {id of a layer: the layer that stands in its place}, or None.
        open_layers: which layers of it are opened, as Graph takes it.
    """
    graph = Graph(model, input_shape, open_layers)
    layout = groups.find(graph)
    return cut(graph, layout, np.ones(layout.num_channels + 1, bool), replacements=replacements)


def kernel_norm(kernel):
    """Returns the Euclidean norm of a kernel, an array, summed in float64 by NumPy itself.

    The sum of np.linalg.norm is BLAS's: in float32, and in an order that is the processor's.
    """
    return float(np.sqrt(np.square(kernel, dtype=np.float64).sum()))


def open_model(
    model: keras.Model, input_shape: Any = None, open_layers: bool | str | Sequence[str] = True
) -> keras.Model:
    """Returns a functional keras.Model for a model of any kind; see opening.Opener.

    That is the model itself if it has no composite layers; else a copy of it, with weights of its
    own, in which composite layers and models are nested models.

    Args:
        model: keras.Model.
        input_shape: as Graph takes it.
        open_layers: which layers are opened, as Graph takes it.

    Raises:
        EkgError: the model is subclassed, and its input shape is not known, or it cannot be opened.
    """
    graph = Graph(model, input_shape, open_layers)
    for key, reason in graph.unopened.items():
        logger.info("layer %r (%s) stays closed: %s", key, type(graph.layers[key]).__name__, reason)
    is_opened = any(looked_into(graph.layers[key]) is None for key in graph.looked_into)
    return (
        copy(model, input_shape, open_layers=open_layers)
        if is_opened or graph.model is not model
        else model
    )


def norm_factor(kernel, row_mask, axis):
    """Returns ‖W‖ / ‖W⊙m‖, scalar float32, for a kernel W and a mask m of its rows, its indices
    along this axis.

    The factor carries no gradient: the importance of a channel is measured at its activation alone.
    """
    kept = kernel * tf.reshape(row_mask, [-1 if i == axis else 1 for i in range(len(kernel.shape))])
    return tf.stop_gradient(tf.math.divide_no_nan(tf.norm(kernel), tf.norm(kept)))


# attributes that Keras itself sets
_OF_KERAS = frozenset(
    (
        "name",
        "built",
        "autocast",
        "supports_jit",
        "jit_compile",
        "run_eagerly",
        "steps_per_execution",
        "stop_training",
        "compiled",
        "loss",
        "auto_scale_loss",
    )
)


class _Cutter:
    """A cut under way."""

    def __init__(self, graph, layout, mask, is_trial, keeps_norm, replacements=None):
        self._replacements = replacements or {}
        self._graph, self._layout, self._mask, self._is_trial = graph, layout, mask, is_trial
        self._kept = {tensor: np.flatnonzero(mask[index]) for tensor, index in layout.index.items()}
        self._classifier = neighbours.classifier_of(graph) if keeps_norm else None
        self._names = {operation.name for operation in graph.layers.values()}
        self._models = {}  # id of a model -> its copy
        self._copies = {}  # id of a layer -> [(changes, copy)]
        self._removal = removal.of(graph, layout, mask)

    def model(self, model, inputs, outputs, steps, given=None):
        """Returns the copy of a model, the outermost or a nested one, without the masked
        channels.

        Args:
            model: the keras.Model.
            inputs, outputs: numbers of the tensors that it takes and returns.
            steps: its steps.
            given: {number of an input without channels: tensor that is passed in its place}.
        """
        symbols = functional(model).inputs
        entries = [
            keras.Input(
                batch_shape=given[number].shape
                if given and number in given
                else self._cut_shape(symbol.shape, number),
                dtype=given[number].dtype if given and number in given else symbol.dtype,
                sparse=symbol.sparse,
                name=symbol._keras_history.operation.name,
            )
            for number, symbol in zip(inputs, symbols)
        ]
        is_broken = self._removal is not None and any(
            step in self._removal.gone or self._constant_call(step) is not None for step in steps
        )
        if isinstance(model, keras.Sequential) and not is_broken:
            # Functions of keras.ops among its steps make masks, as the copied layers do themselves.
            layers_ = [
                step
                for step in steps
                if isinstance(step, ModelCall) or isinstance(step.layer, keras.layers.Layer)
            ]
            copy = _sequential_like(model, [entries[0], *map(self._operation, layers_)])
        else:
            tensors = _Tensors(zip(inputs, entries), self._removal)
            for step in steps:
                if self._removal is not None and step in self._removal.gone:
                    continue
                constant = self._constant_call(step)
                if constant is not None:
                    like = self._like(constant, inputs, tensors)
                    tensors[constant.output] = self._constant(step, constant)(like)
                    continue
                given = self._given(step, inputs, tensors)
                read = _Tensors({**tensors, **given}, self._removal) if given else tensors
                args, kwargs = self._arguments(step, read)
                result = self._operation(step, given)(*args, **kwargs)
                tensors.update(zip(step.outputs, keras.tree.flatten(result)))
            copy = _model_like(model, entries, [tensors[number] for number in outputs])
        copy._trainable = model._trainable  # the layers have their own
        for name, value in vars(model).items():  # settings of a class of the user's own
            if (
                isinstance(value, (bool, int, float, str))
                and not name.startswith("_")
                and name not in _OF_KERAS
            ):
                setattr(copy, name, value)
        return copy

    def _constant_call(self, step):
        """Returns the Call that writes what a step writes where a constant takes the step's place,
        or None.
        """
        if self._removal is None or isinstance(step, ModelCall):
            return None
        call = step.steps[-1] if isinstance(step, PartsCall) else step
        return call if call in self._removal.constants else None

    def _constant(self, step, call):
        """Returns the Constant that takes the place of a step, whose output this Call writes."""
        layer, kept = call.layer, self._kept_by(call)
        number, shape = call.output, self._graph.shapes[call.output]

        def make():
            bias = getattr(layer, "bias", None)
            if bias is not None:
                arrays = self._arrays(call, registry.record_of(layer), kept)
                bias = arrays.get(id(bias), np.asarray(bias.value))
            axis = self._layout.axes[number]
            return Constant.of(
                layer, step.layer.name, self._cut_shape(shape, number)[1:], axis, bias
            )

        return self._known(step, {"constant": True}, make)[0]

    def _like(self, call, inputs, tensors):
        """Returns a tensor with a row for each row of the batch in what a call writes."""
        return tensors[self._with_rows(inputs, self._graph.rows[call.output])]

    def _with_rows(self, inputs, rows):
        """Returns the number of an input that has these rows of the batch per example, of numbers
        if there is one.
        """
        found = [number for number in inputs if self._graph.rows[number] == rows]
        return min(found, key=lambda number: self._graph.dtype(number) == "string")

    def _given(self, step, inputs, tensors):
        """Returns {number of a tensor without channels that a nested model takes: the tensor that
        is passed in its place, for its number of rows alone}.
        """
        if self._removal is None or not isinstance(step, ModelCall):
            return {}
        given = {}
        for number in refs_in((step.args, step.kwargs)):
            if number in self._removal.empty:
                given[number] = tensors[self._with_rows(inputs, self._graph.rows[number])]
        return given

    def part(self, calls, reads):
        """Returns a model of some calls; see cut_part."""
        rows = {number: self._graph.rows[number] for number in reads}
        shapes = {n: self._cut_shape(self._graph.shapes[n], n) for n in rows}
        entries = [
            keras.Input(
                batch_shape=(None, *shapes[number][1:]) if rows[number] else shapes[number],
                dtype=self._graph.dtype(number),
            )
            for number in rows
        ]
        tensors = dict(zip(rows, entries))
        for call in calls:
            args, kwargs = self._arguments(call, tensors)
            tensors.update(
                zip(call.outputs, keras.tree.flatten(self._operation(call)(*args, **kwargs)))
            )
        return keras.Model(entries, [tensors[number] for number in calls[-1].outputs])

    def _cut_shape(self, shape, number):
        shape = list(shape)
        for axis, index in self._layout.dims(number):
            if not self._mask[index].all():
                shape[axis] = int(np.count_nonzero(self._mask[index]))
        return tuple(shape)

    def _arguments(self, step, tensors):
        structure = step.args, step.kwargs
        if self._removal is not None and step in self._removal.dropped:
            structure = _without(structure, self._removal.dropped[step])
        args, kwargs = fill_in(structure, tensors)
        if not isinstance(step, ModelCall) and id(step.layer) in self._replacements:
            # Another layer need not accept its arguments, as the mask of a batch norm.
            return args, {}
        record = (
            None if isinstance(step, (ModelCall, PartsCall)) else registry.record_of(step.layer)
        )
        if record is None or record.arguments is None:
            return args, kwargs
        return record.arguments(step, args, kwargs, self._kept_by(step))

    def _operation(self, step, given=None):
        """Returns the copy of what a step calls; see model() for `given`, here by the numbers
        outside.
        """
        if isinstance(step, ModelCall):
            if id(step.model) not in self._models:
                passed = refs_in((step.args, step.kwargs))
                inside = {
                    entry: given[number]
                    for entry, number in zip(step.entries, passed)
                    if given and number in given
                }
                self._models[id(step.model)] = self.model(
                    step.model, step.entries, step.outputs, step.steps, inside
                )
            return self._models[id(step.model)]
        if isinstance(step, PartsCall):
            return self._whole(step)
        if id(step.layer) in self._replacements:
            return self._replacements[id(step.layer)]
        layer, record = step.layer, registry.record_of(step.layer)
        kept = self._kept_by(step)
        changes = (
            record.resize(layer, kept)
            if record is not None and record.resize is not None and kept.is_cut
            else {}
        )
        copy, is_new = self._copy(step, changes, lambda: self._arrays(step, record, kept))
        if is_new and isinstance(layer, keras.layers.Layer):
            self._refit_(copy, step, kept)
        return copy

    def _copy(self, step, changes, arrays_of):
        """Returns (the copy of the layer of a step with these changes, whether it was made now)."""
        layer = step.layer
        missing = [name for name in changes if not has_attribute(layer, name)]
        if missing:
            raise EkgError(
                f"the record of {step.key!r} ({type(layer).__name__}) changes {missing[0]!r}, "
                "which is no attribute of the layer."
            )
        is_known = bool(self._copies.get(id(layer)))
        return self._known(
            step,
            changes,
            lambda: copy_operation(
                layer, arrays_of(), changes, self._free_name(layer.name) if is_known else None
            ),
        )

    def _known(self, step, changes, make):
        """Returns (the copy of the layer of a step, whether make() has made it now); one without
        weights may be cut in several ways at its several calls.
        """
        known = self._copies.setdefault(id(step.layer), [])
        for other, copy in known:
            if other == changes:
                return copy, False
        known.append((changes, make()))
        return known[-1][1], True

    def _whole(self, step):
        """Returns the copy of a layer that stands as its parts."""
        calls = {call.key.removeprefix(f"{step.key}/"): call for call in step.steps}
        kept = {name: self._kept_by(call) for name, call in calls.items()}
        is_cut = any(part.is_cut for part in kept.values())

        def arrays_of():
            factors = step.parts.factors(kept) if is_cut else {}
            return {
                place: array * np.asarray(factors.get(name, 1), array.dtype)
                for name, call in calls.items()
                for place, array in self._arrays(
                    call, registry.record_of(call.layer), kept[name]
                ).items()
            }

        copy, is_new = self._copy(step, step.parts.changes(kept) if is_cut else {}, arrays_of)
        if is_new:
            self._refit_(copy, step, None)
            for name, attribute in step.parts.held.items():
                self._refit_(getattr(copy, attribute), calls[name], kept[name])
        return copy

    def _refit_(self, copy, step, kept):
        """Sets the shapes that a copy was built for, where there are several by argument."""
        if kept is not None:
            _refit_(copy, kept)
        if not copy._build_shapes_dict or (kept is not None and len(copy._build_shapes_dict) == 1):
            return
        numbers = {f"{name}_shape": own for name, own in numbers_by_name(step).items()}

        def cut(shape, own):
            is_one = not any(isinstance(size, (list, tuple)) for size in shape)
            return (
                self._cut_shape(shape, own[0])
                if is_one
                else [self._cut_shape(one, number) for one, number in zip(shape, own)]
            )

        copy._build_shapes_dict = {
            name: cut(shape, numbers[name]) if name in numbers else shape
            for name, shape in copy._build_shapes_dict.items()
        }

    def _free_name(self, name):
        """Returns the name with a number that no layer has."""
        number = next(i for i in itertools.count(1) if f"{name}_{i}" not in self._names)
        self._names.add(f"{name}_{number}")
        return f"{name}_{number}"

    def _kept_by(self, call):
        """Returns the records.Kept of a call."""
        kept, layout, shapes = self._kept, self._layout, self._graph.shapes
        inputs = call.inputs
        if self._removal is not None and call in self._removal.dropped:
            inputs = tuple(n for n in inputs if n not in self._removal.dropped[call])
        first, last = inputs[0] if inputs else call.output, call.output
        is_cut = any(
            len(kept[number]) != len(layout.index[number]) for number in (*inputs, *call.outputs)
        )
        return records.Kept(
            tuple(kept[number] for number in inputs or call.outputs),
            tuple(kept[number] for number in call.outputs),
            (layout.axes[first], layout.axes[last]),
            (len(layout.index[first]), len(layout.index[last])),
            (len(shapes[first]), len(shapes[last])),
            is_cut,
        )

    def _arrays(self, call, record, kept):
        """Returns {id of a variable of the layer: its value without the removed channels} of those
        that are cut.
        """
        if record is None or not record.weights:
            return {}
        channels = {
            records.IN: (kept.input, kept.sizes[0]),
            records.OUT: (kept.output, kept.sizes[1]),
            records.BACK: (kept.output, kept.sizes[1]),
        }
        if record.within:
            channels[records.WITHIN] = kept.inputs[1], len(self._layout.index[call.inputs[1]])
        described, arrays = records.weights_of(call.layer, record), {}
        for variable in call.layer.weights:
            weight = described[id(variable)]
            cuts = [
                (
                    axis,
                    records.kept_indices(
                        *channels[role],
                        variable.shape[axis],
                        weight.is_tiled and role == records.OUT,
                    ),
                )
                for axis, role in enumerate(weight.axes)
                if role is not None and len(channels[role][0]) != channels[role][1]
            ]
            if cuts and self._is_trial:
                sizes = {axis: len(indices) for axis, indices in cuts}
                arrays[id(variable)] = np.zeros(
                    [sizes.get(axis, size) for axis, size in enumerate(variable.shape)],
                    variable.dtype,
                )
            elif cuts:
                value = np.asarray(variable.value)
                for axis, indices in cuts:
                    value = np.take(value, indices, axis)
                arrays[id(variable)] = value
        if call is self._classifier and len(kept.input) != kept.sizes[0]:
            kernel = registry.kernel_of(call.layer)
            rows = described[id(kernel)].axes.index(records.IN)
            mask = tf.constant(self._mask[self._layout.index[call.inputs[0]]], tf.float32)
            arrays[id(kernel)] = arrays[id(kernel)] * norm_factor(kernel.value, mask, rows).numpy()
        return arrays


class _Tensors(dict):
    """{tensor number: tensor}; what nothing writes any more is the tensor that takes its place."""

    def __init__(self, tensors, removed):
        super().__init__(tensors)
        self._same = {} if removed is None else removed.same

    def __missing__(self, number):
        return self[self._same[number]]


def _without(structure, numbers):
    """Returns the arguments of a call without the tensors of these numbers in its lists."""
    if isinstance(structure, dict):
        return {name: _without(value, numbers) for name, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(
            _without(value, numbers)
            for value in structure
            if not (isinstance(value, Ref) and value.number in numbers)
        )
    return structure


def _refit_(copy, kept):
    """As copying.refit_(), of a layer and of one that it calls at every step."""
    refit_(copy, kept)
    if isinstance(copy, keras.layers.TimeDistributed):
        _refit_(copy.layer, wrappers.one_step(kept))


def _sequential_like(model, layers_):
    """Returns a Sequential model of the kind of another."""
    try:
        return type(model)(layers_, name=model.name)
    except TypeError:
        logger.warning(
            "`model` %r (%s) takes other arguments than layers: the pruned network is a plain "
            "keras.Sequential.",
            model.name,
            type(model).__name__,
        )
        return keras.Sequential(layers_, name=model.name)


def _model_like(model, inputs, outputs):
    """Returns a functional model of the kind and the structure of another."""
    inside, is_sequential = functional(model), isinstance(model, keras.Sequential)
    structures = [
        keras.tree.pack_sequence_as(structure, tensors)
        for structure, tensors in (
            (inside._inputs_struct, inputs),
            (inside._outputs_struct, outputs),
        )
    ]
    if is_sequential:  # of which layers in the middle are gone
        return keras.Model(*structures, name=model.name)
    try:
        return type(model)(inputs=structures[0], outputs=structures[1], name=model.name)
    except TypeError:
        logger.warning(
            "`model` %r (%s) takes other arguments than inputs and outputs: the pruned network "
            "is a plain keras.Model.",
            model.name,
            type(model).__name__,
        )
        return keras.Model(*structures, name=model.name)


def _compile_like(model, original):
    """Compiles a copy as the original was: optimizer, losses and metrics, without what they have
    counted.
    """
    if not getattr(original, "compiled", False):
        return
    reason = f"{type(original).__name__} has a compile() of its own."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras' warning of what is logged here
            model.compile_from_config(original.get_compile_config())
    except Exception as error:  # anything that a user's optimizer, loss or metric raises
        reason = first_line(error)
    if not model.compiled:
        logger.warning(
            "the pruned network of %r is not compiled, so compile it where you need that: %s",
            original.name,
            reason,
        )
