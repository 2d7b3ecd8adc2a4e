"""The record of TimeDistributed: the inner layer's record, over one more axis."""

import dataclasses

import keras
import tensorflow as tf

from ekg.graph import flow
from ekg.graph.records import LayerRecord, spatial_size


class _OneStep(flow.ChannelFlow):
    """A ChannelFlow as the layer inside a TimeDistributed sees it: every tensor without its axis of
    steps."""

    def __init__(self, whole, call):
        """
        Args:
            whole: flow.ChannelFlow of the graph; what begins, merges and closes here does so there.
            call: Call of the TimeDistributed.
        """
        vars(self).update(vars(whole))
        numbers = (*call.inputs, *call.outputs)
        self.shapes = {number: _without_steps(whole.shapes[number]) for number in numbers}
        self.channels = {}
        for number in call.inputs:
            channels = whole.channels[number]
            axis = None if channels.axis is None else channels.axis - 1
            self.channels[number] = dataclasses.replace(channels, axis=axis)


def _without_steps(shape):
    return (shape[0], *shape[2:])


def is_frozen(layer):
    """Returns whether a layer, or the one that it calls at every step, is not trainable."""
    return not layer.trainable or (
        isinstance(layer, keras.layers.TimeDistributed) and is_frozen(layer.layer)
    )


def _flow(record):
    """Returns the rule of the layer inside, for a TimeDistributed."""

    def rule(whole, call):
        if len(call.inputs) != 1 or whole.channels[call.inputs[0]].axis == 1:
            return flow.close(whole, call)
        inside = dataclasses.replace(call, layer=call.layer.layer)
        channels = record.flow(_OneStep(whole, call), inside)
        found = channels if isinstance(channels, list) else [channels]
        return [
            one if one.axis is None else dataclasses.replace(one, axis=one.axis + 1)
            for one in found
        ]

    return rule


def one_step(kept):
    """Returns the records.Kept of the inner layer for the Kept of a call of a TimeDistributed."""
    axes = tuple(None if axis is None else axis - 1 for axis in kept.axes)
    return dataclasses.replace(kept, axes=axes, ranks=tuple(rank - 1 for rank in kept.ranks))


def _resize(record):
    def resize(layer, kept):
        changes = record.resize(layer.layer, one_step(kept))
        return {f"layer.{name}": value for name, value in changes.items()}

    return resize


def _positions(record):
    def positions(layer, read, written, axis):
        if record.positions is None:
            return spatial_size(written, axis)
        inside = record.positions(
            layer.layer, _without_steps(read), _without_steps(written), axis - 1
        )
        return written[1] * inside

    return positions


def _flops(record):
    def flops(layer, shapes, written):
        read = [_without_steps(shape) for shape in shapes]
        return written[1] * record.flops(layer.layer, read, _without_steps(written))

    return flops


def _run(record):
    """Returns the inner record's `run`, with the steps as rows of the batch."""

    def run(layer, variables, args, context):
        x = args[0]
        steps = x.shape[1] or tf.shape(x)[1]
        rows = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
        rows.set_shape((None, *x.shape[2:]))
        result = record.run(layer.layer, variables, [rows], context)
        if result is None:
            return None
        output, new = result
        return tf.reshape(output, tf.concat([[-1, steps], tf.shape(output)[1:]], 0)), new

    return run


def over_steps(record):
    """Returns the record of a TimeDistributed for the record of its inner layer; None for None."""
    if record is None:
        return None
    if record.flops is not None:
        return LayerRecord(flow.close, flops=_flops(record))
    if record.arguments is not None:  # merges and slices, whose calls change with a cut
        return None
    return dataclasses.replace(
        record,
        flow=_flow(record),
        positions=_positions(record),
        resize=None if record.resize is None else _resize(record),
        run=None if record.run is None else _run(record),
        rows=None,
        centred=None,
        silent=False,
        fuses_with_norm=False,
        keeps_norm=False,
        joins_previous=False,
        joins_next=False,
        is_free=False,
    )
