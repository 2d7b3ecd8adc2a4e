"""Recurrent layers: their units are channels, written and read again at every time step."""

import types

import keras
import numpy as np
from keras import layers

from ekg.graph import flow
from ekg.graph.activations import is_elementwise
from ekg.graph.flow import Channels
from ekg.graph.records import BACK, IN, OUT, LayerRecord, Parts, Weight
from ekg.graph.steps import numbers_by_name

KINDS = (layers.LSTM, layers.GRU, layers.SimpleRNN)

# ---------------------------------------------------------------- one layer


def _recur(channel_flow, call):
    """Begins new channels, which all states share; a state that is passed in has the same ones."""
    layer, named = call.layer, numbers_by_name(call)
    [sequences] = named.pop("sequences")
    source, rank = channel_flow.channels[sequences], len(channel_flow.shapes[sequences])
    if source.axis != rank - 1 and not source.is_fixed:
        return flow.close(channel_flow, call)
    labels = channel_flow.begin(call, len(channel_flow.shapes[call.output]) - 1).labels
    functions = [getattr(layer.cell, name, None) for name in ("activation", "recurrent_activation")]
    if not all(map(is_elementwise, functions)):
        channel_flow.close(
            labels,
            f"an activation of {flow.describe(call)} is not known to treat each channel by itself",
        )
    for name, numbers in named.items():
        for channels in (channel_flow.channels[number] for number in numbers):
            if name == "initial_state" and channels.axis == 1:
                channel_flow.merge(channels.labels, labels)
            else:
                channel_flow.close(channels.labels, f"{name} of {flow.describe(call)}")
    return [Channels(labels, len(channel_flow.shapes[number]) - 1) for number in call.outputs]


def _resize(layer, kept):
    """Returns the attributes of a layer with this number of units."""
    units = len(kept.output)

    def sized(value):
        return units if isinstance(value, int) else [units for _ in value]

    return {
        "cell.units": units,
        "cell.output_size": units,
        "cell.state_size": sized(layer.cell.state_size),
        "state_size": sized(layer.state_size),
    }


def _record(layer):
    """Returns the record of a layer; the gates stand one after the other along an axis."""
    bias = getattr(layer.cell, "bias", None)
    is_double = bias is not None and len(bias.shape) == 2  # a GRU that resets after the product
    return LayerRecord(
        _recur,
        {
            "kernel": Weight((IN, OUT), (1,), is_tiled=True),
            "recurrent_kernel": Weight((BACK, OUT), (1,), is_tiled=True),
            "bias": Weight((None, OUT) if is_double else (OUT,), is_tiled=True),
        },
        ("kernel", "recurrent_kernel"),
        positions=lambda _, read, __, ___: read[1],
        mixes=True,
        resize=_resize,
    )


# ---------------------------------------------------------------- both directions


class Merging(keras.layers.Layer):
    """Puts the outputs of both directions together, as a Bidirectional layer does."""

    def __init__(self, layer, name):
        super().__init__(name=name, dtype=layer.dtype_policy)
        self.of = types.SimpleNamespace(layer=layer)  # not as a layer: its weights are others'
        self.built = True

    @property
    def is_stacking(self):
        return self.of.layer.merge_mode == "concat"

    def call(self, y, backward):
        layer = self.of.layer
        y, backward = (keras.ops.cast(part, self.compute_dtype) for part in (y, backward))
        if layer.return_sequences:
            backward = keras.ops.flip(backward, axis=1)
        if self.is_stacking:
            return keras.ops.concatenate([y, backward], axis=-1)
        if layer.merge_mode is None:
            return y, backward
        if layer.merge_mode == "mul":
            return y * backward
        return (y + backward) / (2 if layer.merge_mode == "ave" else 1)


class BothDirections(Parts):
    """The parts of a Bidirectional layer, whose directions have equally many units."""

    def __init__(self, layer):
        self._layer = layer
        self._merging = Merging(layer, "merge")
        self.held = {
            layer.forward_layer.name: "forward_layer",
            layer.backward_layer.name: "backward_layer",
        }

    def call(self, sequences, initial_state=None, mask=None, training=None):
        both, outputs, states = (self._layer.forward_layer, self._layer.backward_layer), [], []
        half = len(initial_state or ()) // 2
        given = (initial_state[:half], initial_state[half:]) if half else ({}, {})
        for layer, state in zip(both, given):
            options = ({"initial_state": state} if half else {}) | (
                {} if mask is None else {"mask": mask}
            )
            y = layer(sequences, **options)
            outputs.append(y[0] if self._layer.return_state else y)
            states += y[1:] if self._layer.return_state else []
        merged = self._merging(*outputs)
        if not states:
            return merged
        return (*merged, *states) if self._layer.merge_mode is None else (merged, *states)

    def changes(self, kept):
        changes = {}
        for part, name in self.held.items():
            own = _resize(getattr(self._layer, name), kept[part])
            changes |= {f"{name}.{attribute}": value for attribute, value in own.items()}
        return changes


def _merge(channel_flow, call):
    """Ties each unit of one direction to the same unit of the other."""
    forward, backward = channel_flow.inputs(call)
    axis = len(channel_flow.shapes[call.output]) - 1
    if forward.axis != axis or backward.axis != axis:
        return flow.close(channel_flow, call)
    channel_flow.merge(forward.labels, backward.labels)
    if call.layer.is_stacking:
        return Channels(np.concatenate([forward.labels, backward.labels]), axis)
    return [Channels(forward.labels, axis)] * len(call.outputs)


def _both(layer):
    """Returns the record of a Bidirectional layer of known types, or None."""
    both = (layer.forward_layer, layer.backward_layer)
    if any(type(one) not in KINDS for one in both) or both[0].units != both[1].units:
        return None
    return LayerRecord(
        flow.close, flops=flops, parts=lambda own, _: BothDirections(own) if own.built else None
    )


def flops(layer, shapes, _written):
    """Returns the FLOPs of a layer that stays whole: all kernel entries at each time step."""
    kernels = [
        variable
        for variable in layer.weights
        if len(variable.shape) > 1 and "bias" not in variable.name
    ]
    return int(shapes[0][1] * sum(np.prod(variable.shape) for variable in kernels))


def _built(layer):
    return _record(layer) if layer.built else None


RECURRENT = {
    **dict.fromkeys(KINDS, _built),
    layers.Bidirectional: _both,
    Merging: LayerRecord(_merge),
}
