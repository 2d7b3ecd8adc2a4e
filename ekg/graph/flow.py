"""Rules by which channels flow through a graph: which channels must be kept or removed together.

A tensor has its channels along one axis. Every function here that is named for a verb can be the
`flow` of a layer record: it takes the ChannelFlow and a call, and returns the Channels of the
call's output, or a list with the Channels of each output.
"""

import dataclasses
import logging
import math

import keras
import numpy as np
import tensorflow as tf

from ekg.graph.activations import is_elementwise
from ekg.graph.steps import Entry, Ref

logger = logging.getLogger(__name__)

FIXED = 0  # the label of all channels that are never pruned


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor.

    Attributes:
        labels: int array.
        axis: axis of the channels; None if the tensor has no channels.
        is_fixed: whether no channel of the tensor is ever pruned, so that the channels may be along
            any axis.
        inner: labels of the indices along the next axis, which each channel has, as a head has its
            numbers; None where they are in no group.
    """

    labels: np.ndarray
    axis: int | None
    is_fixed: bool = False
    inner: np.ndarray | None = None


class _DisjointSets:
    """Channels as a union-find forest; channels of one set are pruned together, or never for one
    reason.
    """

    def __init__(self):
        self._parent = [FIXED]
        self._reasons = {}

    def add(self, count):
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    @property
    def size(self):
        return len(self._parent)

    def find(self, label):
        parent = self._parent
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
        return label

    def merge(self, first, second):
        for a, b in zip(first.tolist(), second.tolist()):
            low, high = self.find(a), self.find(b)
            if low != high:
                low, high = min(low, high), max(low, high)
                self._parent[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons.pop(high))

    def close(self, labels, reason):
        for label in labels.tolist():
            self._reasons.setdefault(self.find(label), reason)

    def reason(self, label):
        return self._reasons.get(self.find(label))

    def roots(self, labels):
        """Returns the root of each label, FIXED where its set is closed, all at once."""
        parents = np.array(self._parent)
        while (parents[parents] != parents).any():
            parents = parents[parents]
        closed = np.zeros(len(parents), bool)
        closed[parents[list(self._reasons)]] = True
        return np.where(closed[parents[labels]], FIXED, parents[labels])


class ChannelFlow:
    """The channels of every tensor of a graph, as far as its calls have been followed.

    Attributes:
        graph: calls.Graph.
        shapes: {tensor number: shape tuple}.
        channels: {tensor number: Channels}.
        written: {layer key: labels that this layer begins}.
    """

    def __init__(self, graph):
        self.shapes, self._sets, self.graph = graph.shapes, _DisjointSets(), graph
        self.channels, self.written = {}, {}
        self._held = {}  # key of a layer that looks up its channels -> their labels
        self._read = {}  # (key of a layer with weights, number of its input) -> Channels
        for number in graph.inputs:
            self.channels[number] = self.fixed(number, "input of the network")

    @property
    def num_labels(self):
        """Number of labels that were given out."""
        return self._sets.size

    def follow(self, call, rule):
        """Notes the channels of a call's outputs, which the rule (a function of this flow and the
        call) returns.
        """
        self._share_weights(call)
        channels = rule(self, call)
        for number, own in zip(
            call.outputs, [channels] if isinstance(channels, Channels) else channels
        ):
            self.channels[number] = own

    def inputs(self, call):
        """Returns the Channels of each tensor that the call reads."""
        return [self.channels[tensor] for tensor in call.inputs]

    def fixed(self, tensor, reason):
        """Returns the Channels of a tensor that is never pruned."""
        shape = self.shapes[tensor]
        labels = self._sets.add((shape[-1] or 0) if len(shape) > 1 else 0)
        self._sets.close(labels, reason)
        return Channels(labels, len(shape) - 1 if len(shape) > 1 else None, is_fixed=True)

    def is_batch(self, tensor, axis):
        """Returns whether an axis of a tensor is that of the examples; a weight has none."""
        return axis == 0 and self.graph.rows[tensor] != 0

    def begin(self, call, axis, repeat=1):
        """Returns new channels along an axis of a call's output; another call of the layer writes
        the same channels.

        Args:
            call: Call.
            axis: axis of the output.
            repeat: number of groups of channels that shrink together, whose channels are the same.
        """
        if call.key not in self.written:
            size = self.shapes[call.output][axis]
            self.written[call.key] = np.tile(self._sets.add(size // repeat), repeat)
        return Channels(self.written[call.key], axis)

    def hold(self, call, axis):
        """Returns new channels along an axis of a call's output that are pruned only together with
        those of a layer that mixes; another call of the layer writes the same channels.
        """
        if axis < 0:
            return Channels(np.zeros(0, np.int64), None)
        return Channels(self.held(call.key, self.shapes[call.output][axis]), axis)

    def held(self, key, size):
        """Returns the labels of the channels that a layer of this name holds."""
        if key not in self._held:
            self._held[key] = self._sets.add(size)
        return self._held[key]

    def merge(self, first, second):
        """Ties two arrays of labels, entry by entry: they are pruned together."""
        self._sets.merge(first, second)

    def close(self, labels, reason):
        """Closes channels: they are never pruned, for this reason."""
        self._sets.close(labels, reason)

    def roots(self, labels):
        """Returns one representative per label: the same for channels that are pruned together,
        FIXED for closed channels.
        """
        return self.all_roots([labels])[0]

    def all_roots(self, rows):
        """Returns roots() of each of several arrays of labels, in little more time than of one."""
        ends = np.cumsum([len(row) for row in rows])
        return np.split(self._sets.roots(np.concatenate([*rows, []]).astype(np.int64)), ends[:-1])

    def is_open(self, labels):
        """Returns whether one of these channels is not closed yet."""
        return any(self._sets.reason(label) is None for label in labels.tolist())

    def reason(self, labels):
        """Returns why the first closed one of these channels is never pruned, or None."""
        return next(filter(None, map(self._sets.reason, labels.tolist())), None)

    def _share_weights(self, call):
        """Ties the inputs of a layer that is called twice: its weights are the same.

        A nested model, too, is the same at every call.
        """
        if isinstance(call.layer, Entry) or (
            isinstance(call.layer, keras.layers.Layer) and call.layer.weights
        ):
            for i, channels in enumerate(self.inputs(call)):
                first = self._read.setdefault((call.key, i), channels)
                if first is channels:
                    continue
                if first.axis == channels.axis and len(first.labels) == len(channels.labels):
                    self.merge(first.labels, channels.labels)
                else:
                    for other in (first, channels):
                        self.close(other.labels, f"{describe(call)} is called with several shapes")


def describe(call):
    """Returns the name and type of a call's layer, for messages."""
    return f"{call.key!r} ({type(call.layer).__name__})"


def channel_axis(layer, rank):
    """Returns the axis of the channels in the input of a layer, from its data format or axis; None
    if it has neither.
    """
    if isinstance(getattr(layer, "axis", None), (int, list, tuple)):
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        # Along several axes: none of them is the channels' axis.
        return axes[0] % rank if len(axes) == 1 else -1
    data_format = getattr(layer, "data_format", None)
    return {"channels_last": rank - 1, "channels_first": 1}.get(data_format)


def _bias_is_ambiguous(flow, call):
    """Returns whether Keras may add the bias of a channels_first layer along the columns of the
    map.

    It does where there are as many columns as channels, which a cut can bring about.
    """
    shape, layer = flow.shapes[call.output], call.layer
    is_first = getattr(layer, "data_format", None) == "channels_first" and getattr(
        layer, "use_bias", False
    )
    return is_first and (shape[-1] is None or shape[-1] <= shape[1])


def carry_noise(flow, call):
    """Carries channels through a dropout whose `noise_shape` must not name them."""
    channels, shape = flow.channels[call.inputs[0]], call.layer.noise_shape
    names_channels = (
        shape is not None and channels.axis is not None and shape[channels.axis] not in (None, 1)
    )
    return close(flow, call) if names_channels else carry(flow, call)


def _along_channels(flow, call, axis=None):
    """Returns whether a call works along the axis of its input's channels and treats each one by
    itself.
    """
    channels, rank = flow.channels[call.inputs[0]], len(flow.shapes[call.inputs[0]])
    axis = channel_axis(call.layer, rank) if axis is None else axis
    return (
        len(call.inputs) == 1
        and channels.axis is not None
        and axis in (None, channels.axis)
        and is_elementwise(getattr(call.layer, "activation", None))
    )


# ---------------------------------------------------------------- rules of layers


def close(flow, call):
    """Closes channels whose further use is unknown: what is read here is never pruned."""
    reason = f"read by {describe(call)}{flow.graph.why_closed(call.key)}"
    if any(flow.is_open(channels.labels) for channels in flow.inputs(call)):
        logger.warning(
            "layer %s: its effect on channels is unknown, so what it reads is not pruned%s.",
            describe(call),
            flow.graph.why_closed(call.key),
        )
    for channels in flow.inputs(call):
        flow.close(channels.labels, reason)
    return [flow.fixed(number, f"written by {describe(call)}") for number in call.outputs]


def stay(flow, call):
    """Keeps everything: what is read here is never pruned, and so is what is written."""
    reason = flow.reason(
        np.concatenate([[], *(channels.labels for channels in flow.inputs(call))]).astype(np.int64)
    )
    return [flow.fixed(number, reason or f"written by {describe(call)}") for number in call.outputs]


def carry(flow, call):
    """Carries channels on: each one of the output depends on the same one of the input alone."""
    if not _along_channels(flow, call):
        return close(flow, call)
    channels, shape = flow.channels[call.inputs[0]], flow.shapes[call.output]
    axis = channels.axis if len(shape) == len(flow.shapes[call.inputs[0]]) else len(shape) - 1
    return (
        Channels(channels.labels, axis)
        if shape[axis] == len(channels.labels)
        else close(flow, call)
    )


def carry_along_axis(flow, call):
    """Carries channels through a layer whose `axis` must be theirs."""
    return carry(flow, call)


def carry_groups(flow, call):
    """Carries channels through a layer that treats `groups` of neighbours as a whole: whole groups
    are removed.
    """
    channels = carry(flow, call)
    if isinstance(channels, Channels):
        rows = channels.labels.reshape(call.layer.groups, -1)
        for column in rows.T[1:]:
            flow.merge(rows[:, 0], column)
    return channels


def multiply_channels(flow, call):
    """Turns each input channel into several output channels, side by side."""
    if not _along_channels(flow, call) or _bias_is_ambiguous(flow, call):
        return close(flow, call)
    channels, shape = flow.channels[call.inputs[0]], flow.shapes[call.output]
    return Channels(
        np.repeat(channels.labels, shape[channels.axis] // len(channels.labels)), channels.axis
    )


def hold(flow, call):
    """Holds new channels along the last axis, one row of a table per number that is read: they are
    pruned with the channels of mixing layers that they are added to.
    """
    for channels in flow.inputs(call):
        flow.close(channels.labels, f"index of {describe(call)}")
    return flow.hold(call, len(flow.shapes[call.output]) - 1)


def mix(flow, call):
    """Begins new channels, each of which depends on all input channels."""
    source, rank = flow.channels[call.inputs[0]], len(flow.shapes[call.inputs[0]])
    axis = channel_axis(call.layer, rank)
    axis = rank - 1 if axis is None else axis
    if source.axis != axis and not source.is_fixed:
        return close(flow, call)
    if _bias_is_ambiguous(flow, call):
        return close(flow, call)
    is_first = getattr(call.layer, "data_format", None) == "channels_first"
    channels = flow.begin(call, 1 if is_first else len(flow.shapes[call.output]) - 1)
    # A softmax, say, mixes the channels again.
    if not is_elementwise(getattr(call.layer, "activation", None)):
        flow.close(
            channels.labels,
            f"the activation of {describe(call)} is not known to treat each channel by itself",
        )
    return channels


def mix_groups(flow, call):
    """Begins new channels as mix() does, in `groups` that all lose the same number."""
    source, groups = flow.channels[call.inputs[0]], call.layer.groups
    if _bias_is_ambiguous(flow, call):
        return close(flow, call)
    if source.is_fixed:
        return flow.begin(
            call, channel_axis(call.layer, len(flow.shapes[call.inputs[0]])), repeat=groups
        )
    if not _along_channels(flow, call):
        return close(flow, call)
    rows = source.labels.reshape(groups, -1)
    for row in rows[1:]:
        flow.merge(rows[0], row)
    return flow.begin(call, source.axis, repeat=groups)


def merge(flow, call):
    """Merges inputs and constants element by element; a single channel, or a single number, is
    spread over the channels of the others.
    """
    shape = flow.shapes[call.output]
    numbers = [number for number in call.inputs if not _is_single(flow.shapes[number])]
    inputs = [flow.channels[number] for number in numbers]
    from_end = {
        channels.axis - len(flow.shapes[number])
        for channels, number in zip(inputs, numbers)
        if channels.axis is not None
    }
    if (
        len(from_end) != 1
        or any(channels.axis is None for channels in inputs)
        or not is_elementwise(getattr(call.layer, "activation", None))
    ):
        return close(flow, call)
    axis = from_end.pop()
    wide = [channels.labels for channels in inputs if len(channels.labels) == shape[axis]]
    if not wide or any(_spreads_badly(constant, axis, shape) for constant in constants(call)):
        return close(flow, call)
    for channels in flow.inputs(call):
        if channels.axis is not None and len(channels.labels) == shape[axis]:
            flow.merge(wide[0], channels.labels)
        else:
            flow.close(channels.labels, f"spread over all channels by {describe(call)}")
    return Channels(wide[0], len(shape) + axis)


def _is_single(shape):
    """Returns whether a tensor of this shape is one number, the same for all examples."""
    return all(size == 1 for size in shape)


def constants(call):
    """Returns the arrays among a call's arguments that are not tensors of the graph."""
    leaves = keras.tree.flatten((call.args, call.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, Ref) and hasattr(leaf, "shape")]


def _spreads_badly(constant, axis, written):
    """Returns whether a constant is a weight, or does not fit channels along this axis, counted
    from the end.

    Keras reads an array that is long along one axis only as a vector of the last axis, wherever the
    lengths agree. So that axis must be the channels', and a cut must not make the channels as many
    as the last axis if they are along another one.
    """
    shape, size = tuple(constant.shape), written[axis]
    own = shape[axis] if len(shape) >= -axis else 1
    is_variable = isinstance(constant, (keras.Variable, tf.Variable))
    is_vector = sum(length > 1 for length in shape) == 1
    may_be_last = axis != -1 and (written[-1] is None or written[-1] <= size)
    return is_variable or own not in (1, size) or (is_vector and (own == 1 or may_be_last))


def stack(flow, call):
    """Concatenates the channels of the inputs, or, along another axis, ties them."""
    inputs, rank = flow.inputs(call), len(flow.shapes[call.output])
    if (
        len({channels.axis for channels in inputs}) != 1
        or inputs[0].axis is None
        or constants(call)
    ):
        return close(flow, call)
    if call.layer.axis % rank == inputs[0].axis:
        return Channels(np.concatenate([channels.labels for channels in inputs]), inputs[0].axis)
    return merge(flow, call)


def tile(flow, call):
    """Merges axes into one, or reshapes the axes other than the channels', which stays whole."""
    channels, number = flow.channels[call.inputs[0]], call.inputs[0]
    shape, target = flow.shapes[number], flow.shapes[call.output]
    count = len(channels.labels)
    is_flatten = isinstance(call.layer, keras.layers.Flatten)
    moves_axes = is_flatten and call.layer.data_format == "channels_first" and len(shape) > 2
    if not count or channels.axis is None or moves_axes:
        return close(flow, call)
    if channels.axis == len(shape) - 1 and target[-1] == count:
        return Channels(channels.labels, len(target) - 1)
    if None in (*shape[1:], *target[1:]) or math.prod(shape[1:]) != math.prod(target[1:]):
        return close(flow, call)  # a part of the positions becomes rows of the batch
    if channels.axis == 1 and len(target) > 1 and target[1] == count:
        return Channels(channels.labels, 1)
    if len(target) != 2:
        return close(flow, call)
    along = channels.labels.reshape(
        [-1 if axis == channels.axis else 1 for axis in range(1, len(shape))]
    )
    return Channels(np.broadcast_to(along, shape[1:]).reshape(-1), 1)


def normalise(flow, call):
    """Normalises over the kept channels; the layer's `axis` must be the channels'."""
    rank = len(flow.shapes[call.inputs[0]])
    return (
        carry(flow, call) if channel_axis(call.layer, rank) not in (None, -1) else close(flow, call)
    )


def carry_beside_axis(flow, call):
    """Carries channels through a layer whose `axis` must not be theirs."""
    channels, rank = flow.channels[call.inputs[0]], len(flow.shapes[call.inputs[0]])
    axes = call.layer.axis if isinstance(call.layer.axis, (list, tuple)) else [call.layer.axis]
    if (
        len(call.inputs) > 1
        or None in axes
        or channels.axis is None
        or channels.axis in [axis % rank for axis in axes]
    ):
        return close(flow, call)
    return channels


def permute(flow, call):
    """Puts the axes in the order of the layer's `dims`."""
    channels = flow.channels[call.inputs[0]]
    return (
        move_axes(flow, call, [0, *call.layer.dims])
        if channels.axis is not None
        else close(flow, call)
    )


def move_axes(flow, call, order):
    """Returns the channels after a transposition: axis order[i] of the input is axis i of the
    output.
    """
    channels = flow.channels[call.inputs[0]]
    if channels.axis is None or list(order)[0] != 0:
        return close(flow, call)
    return Channels(channels.labels, list(order).index(channels.axis))
