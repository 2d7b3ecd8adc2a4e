"""How channels flow through a graph: which channel of which tensor must be kept or removed together with which other.

Every function here named for a verb is what a layer record's `flow` may be: it takes the ChannelFlow and a call, and returns
the channels of the call's output, int array [channels].
"""

import logging

import keras
import numpy as np

logger = logging.getLogger(__name__)

FIXED = 0  # the channel that stands for all channels that are never pruned

# Each channel of the output depends on the same channel of the input alone.
ELEMENTWISE_ACTIVATIONS = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "hard_silu", "hard_swish", "mish",
    "sigmoid", "hard_sigmoid", "log_sigmoid", "tanh", "hard_tanh", "softplus", "softsign", "exponential", "linear"))


class _DisjointSets:
    """Channels as a union-find forest; channels of one set are pruned together."""

    def __init__(self):
        self._parent = [FIXED]

    def add(self, count):
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, channel):
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def merge(self, first, second):
        for a, b in zip(first, second):
            low, high = sorted((self.find(a), self.find(b)))
            self._parent[high] = low  # FIXED is the lowest, so whatever meets it becomes fixed


class ChannelFlow:
    """The channels of every tensor of a graph, as far as its calls have been followed.

    Attributes:
        shapes: {tensor number: shape tuple}.
        channels: {tensor number: int array, the channels of its last axis}.
        written: {layer name: channels that this layer begins}.
    """

    def __init__(self, graph):
        self.shapes = graph.shapes
        self._sets = _DisjointSets()
        self.channels = {0: self.fixed(0)}
        self.written = {}
        self._read = {}  # name of a layer with weights -> channels of its input

    def follow(self, call, rule):
        """Notes the channels of a call's output, which the rule (a function of this flow and the call) returns."""
        self._share_weights(call)
        self.channels[call.output] = rule(self, call)

    def inputs(self, call):
        """Returns the channels of each tensor that the call reads."""
        return [self.channels[tensor] for tensor in call.inputs]

    def fixed(self, tensor):
        """Returns channels for a tensor none of which is ever pruned."""
        return np.full(self.shapes[tensor][-1] or 0, FIXED)

    def begin(self, call):
        """Returns new channels for a call's output; a layer that is called again writes the same ones."""
        if call.layer.name not in self.written:
            self.written[call.layer.name] = self._sets.add(self.shapes[call.output][-1])
        return self.written[call.layer.name]

    def merge(self, first, second):
        """Says that two rows of channels are pruned together, one by one."""
        self._sets.merge(first, second)

    def fix(self, channels):
        """Says that these channels are never pruned."""
        self._sets.merge(channels, [FIXED] * len(channels))

    def roots(self, channels):
        """Returns one representative for each channel; channels that are pruned together have the same, fixed ones FIXED."""
        return np.array([self._sets.find(channel) for channel in channels], dtype=np.int64)

    def is_last_axis(self, call, axis):
        """Returns whether an axis of the call's output is the one of the channels."""
        return axis in (-1, len(self.shapes[call.output]) - 1)

    def _share_weights(self, call):
        """A layer that is called twice has one set of weights, so both calls must read the same channels."""
        if call.layer.weights if isinstance(call.layer, keras.layers.Layer) else ():
            for channels in self.inputs(call):
                self.merge(self._read.setdefault(call.layer.name, channels), channels)


# ---------------------------------------------------------------- rules

def close(flow, call):
    """The effect on channels is unknown: whatever is read here is never pruned."""
    inputs = flow.inputs(call)
    if any(flow.roots(channels).any() for channels in inputs):
        logger.warning("layer %r (%s): its effect on channels is unknown, so what it reads is not pruned.",
                       call.layer.name, type(call.layer).__name__)
    for channels in inputs:
        flow.fix(channels)
    return flow.fixed(call.output)


def carry(flow, call):
    """Each channel of the output depends on the same channel of the input alone."""
    if not is_elementwise(getattr(call.layer, "activation", None) or keras.activations.linear):
        return close(flow, call)
    return flow.channels[call.inputs[0]]


def carry_along_axis(flow, call):
    """As carry(), of a layer whose `axis` must be the one of the channels."""
    return carry(flow, call) if flow.is_last_axis(call, call.layer.axis) else close(flow, call)


def multiply_channels(flow, call):
    """Each input channel becomes `depth_multiplier` output channels, side by side."""
    return np.repeat(carry(flow, call), call.layer.depth_multiplier)


def mix(flow, call):
    """Every output channel depends on all input channels: new channels begin."""
    channels = flow.begin(call)
    if not is_elementwise(getattr(call.layer, "activation", None) or keras.activations.linear):
        flow.fix(channels)  # a softmax, say, mixes the channels once more
    return channels


def merge(flow, call):
    """Inputs of the same channels are combined element by element."""
    first, *others = flow.inputs(call)
    if any(len(other) != len(first) for other in others):
        return close(flow, call)
    for other in others:
        flow.merge(first, other)
    return first


def stack(flow, call):
    """Channels of the inputs stand one behind the other."""
    if not flow.is_last_axis(call, call.layer.axis):
        return close(flow, call)
    return np.concatenate(flow.inputs(call))


def tile(flow, call):
    """The last axis repeats the channels, once for every position, where an image is flattened into it."""
    channels, shape = flow.channels[call.inputs[0]], flow.shapes[call.output]
    if not len(channels) or shape[-1] is None or shape[-1] % len(channels) or (
            shape[-1] != len(channels) and len(shape) != 2):
        return close(flow, call)
    return np.tile(channels, shape[-1] // len(channels))


def is_elementwise(activation):
    """Returns whether an activation function treats every channel by itself."""
    name = keras.activations.serialize(activation)
    return isinstance(name, str) and name in ELEMENTWISE_ACTIVATIONS
