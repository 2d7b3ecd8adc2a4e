"""Channel groups: which layer outputs must lose the same channels, found by walking the graph.

Every Conv2D and Dense starts new channels at its output. Layers that treat each channel by itself carry them on,
elementwise layers merge the channels of their inputs, Concatenate stacks them. Convolutions whose outputs were merged
form one group.
"""

import dataclasses
import logging

import keras
import numpy as np
from keras import layers

logger = logging.getLogger(__name__)

FIXED = 0  # the channel (of the union-find below) that stands for all channels that are never pruned

# Each channel of the output depends on the same channel of the input alone.
_ELEMENTWISE_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "hard_silu", "hard_swish", "mish",
    "sigmoid", "hard_sigmoid", "log_sigmoid", "tanh", "hard_tanh", "softplus", "softsign", "exponential", "linear"}
# Channelwise, and a channel of zeros stays zero: a gate may stand before or behind them with the same effect.
ZERO_KEEPING = (layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D, layers.MaxPooling2D,
                layers.AveragePooling2D, layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D, layers.Flatten,
                layers.Reshape, layers.Dropout, layers.SpatialDropout2D, layers.Identity)


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Layer outputs that lose their channels together.

    Attributes:
        name: name of the first layer that writes the group.
        size: number of channels.
        writers: names of the Conv2D and Dense layers whose output channels are the group's.
        sites: names of the layers whose output carries a gate of the group.
    """
    name: str
    size: int
    writers: tuple[str, ...]
    sites: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where every channel of every tensor belongs.

    Channels of all groups are numbered in one row, group after group; the number after the last one stands for all
    channels that are never pruned.

    Attributes:
        groups: tuple of ChannelGroup in network order.
        offsets: tuple, number of the first channel of each group.
        num_channels: number of channels of all groups.
        index: {tensor number: int array [channels of the tensor], the channel numbers}.
        sites: tuple of tensor numbers that carry a gate, in network order.
    """
    groups: tuple[ChannelGroup, ...]
    offsets: tuple[int, ...]
    num_channels: int
    index: dict[int, np.ndarray]
    sites: tuple[int, ...]

    def channels(self, group):
        """Returns the slice of channel numbers of the group with this position."""
        return slice(self.offsets[group], self.offsets[group] + self.groups[group].size)


class _Channels:
    """Union-find over channels."""

    def __init__(self):
        self._parent = [FIXED]

    def new(self, count):
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, channel):
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def roots(self, channels):
        return np.array([self.find(channel) for channel in channels], dtype=np.int64)

    def merge(self, first, second):
        for a, b in zip(first, second):
            low, high = sorted((self.find(a), self.find(b)))
            self._parent[high] = low  # FIXED is the lowest, so whatever meets it becomes fixed

    def fix(self, channels):
        self.merge(channels, [FIXED] * len(channels))


class _Walk:
    """Walks the calls in order and notes the channels of every tensor."""

    def __init__(self, graph):
        self.graph = graph
        self.channels = _Channels()
        self.of = {0: self._fixed(0)}  # tensor number -> channels
        self.writers = {}  # layer name -> channels of its output
        self._read = {}  # name of a layer with weights -> channels of its input
        for call in graph.calls:
            is_last = getattr(call.layer, "data_format", "channels_last") == "channels_last"
            rule = RULES.get(type(call.layer), _Walk.close) if is_last else _Walk.close
            self._share_weights(call)
            self.of[call.output] = rule(self, call)
        self.channels.fix(self.of[graph.output])

    def _fixed(self, tensor):
        return np.full(self.graph.shapes[tensor][-1] or 0, FIXED)

    def _share_weights(self, call):
        """A layer that is called twice has one set of weights, so both calls must read the same channels."""
        if call.layer.weights if isinstance(call.layer, layers.Layer) else ():
            for tensor in call.inputs:
                self.channels.merge(self._read.setdefault(call.layer.name, self.of[tensor]), self.of[tensor])

    def inputs(self, call):
        return [self.of[tensor] for tensor in call.inputs]

    def close(self, call):
        """Makes all channels that meet in this call unprunable."""
        channels = self.inputs(call)
        if any(self.channels.roots(each).any() for each in channels):
            logger.warning("layer %r (%s): its effect on channels is unknown, so what it reads is not pruned.",
                           call.layer.name, type(call.layer).__name__)
        for each in channels:
            self.channels.fix(each)
        return self._fixed(call.output)


def is_mixing(layer):
    """Returns whether each output channel of the layer depends on all input channels."""
    return type(layer) is layers.Dense or (type(layer) is layers.Conv2D and layer.groups == 1)


def _is_elementwise(activation):
    name = keras.activations.serialize(activation)
    return isinstance(name, str) and name in _ELEMENTWISE_ACTIVATIONS


def _carry(walk, call):
    if not _is_elementwise(getattr(call.layer, "activation", None) or keras.activations.linear):
        return walk.close(call)
    return walk.of[call.inputs[0]]


def _batch_norm(walk, call):
    last = len(walk.graph.shapes[call.output]) - 1
    return _carry(walk, call) if call.layer.axis in (-1, last) else walk.close(call)


def _mix(walk, call):
    if not is_mixing(call.layer):
        return walk.close(call)
    name, size = call.layer.name, walk.graph.shapes[call.output][-1]
    if name not in walk.writers:
        walk.writers[name] = walk.channels.new(size)
    if not _is_elementwise(call.layer.activation):
        walk.channels.fix(walk.writers[name])  # a softmax, say, mixes the channels
    return walk.writers[name]


def _depthwise(walk, call):
    return np.repeat(_carry(walk, call), call.layer.depth_multiplier)


def _merge(walk, call):
    first, *others = walk.inputs(call)
    if any(len(other) != len(first) for other in others):
        return walk.close(call)
    for other in others:
        walk.channels.merge(first, other)
    return first


def _stack(walk, call):
    last = len(walk.graph.shapes[call.output]) - 1
    return np.concatenate(walk.inputs(call)) if call.layer.axis in (-1, last) else walk.close(call)


def _reshape(walk, call):
    """The last axis of the output repeats the channels when the image is flattened into it."""
    channels, shape = walk.of[call.inputs[0]], walk.graph.shapes[call.output]
    if not len(channels) or shape[-1] is None or shape[-1] % len(channels) or (
            shape[-1] != len(channels) and len(shape) != 2):
        return walk.close(call)
    return np.tile(channels, shape[-1] // len(channels))


RULES = {
    layers.Conv2D: _mix, layers.Dense: _mix, layers.DepthwiseConv2D: _depthwise,
    layers.BatchNormalization: _batch_norm, layers.Activation: _carry, layers.ReLU: _carry, layers.LeakyReLU: _carry,
    layers.ELU: _carry, layers.Rescaling: _carry,
    layers.Add: _merge, layers.Subtract: _merge, layers.Multiply: _merge, layers.Average: _merge,
    layers.Maximum: _merge, layers.Minimum: _merge, layers.Concatenate: _stack,
    **{kind: _carry for kind in ZERO_KEEPING}, layers.Flatten: _reshape, layers.Reshape: _reshape,
}


def find(graph):
    """Returns the Layout of a graph: its channel groups in network order and the gate sites.

    A gate sits on every tensor that a Conv2D or Dense reads, before layers that keep zeros (padding, pooling, ...): with
    a ReLU behind each batch norm and each add, that is behind the ReLU. The input, the logits, and whatever a layer
    of unknown effect reads are in no group.
    """
    walk = _Walk(graph)
    roots = {name: walk.channels.roots(channels) for name, channels in walk.writers.items()}
    members = _connect(roots)
    members = [names for names in members if _is_prunable(names, roots)]
    numbers, offsets, total = {FIXED: None}, [], 0
    for names in members:
        offsets.append(total)
        for root in np.concatenate([roots[name] for name in names]):
            if root not in numbers:
                numbers[root] = total
                total += 1
    index = {tensor: np.array([total if numbers.get(root) is None else numbers[root]
                               for root in walk.channels.roots(channels)], dtype=np.int64)
             for tensor, channels in walk.of.items()}
    sites = _find_sites(graph, index, total)
    producer = {call.output: call.layer.name for call in graph.calls}
    groups = []
    for names, first, last in zip(members, offsets, [*offsets[1:], total]):
        own = [site for site in sites if ((index[site] >= first) & (index[site] < last)).any()]
        groups.append(ChannelGroup(names[0], last - first, tuple(names), tuple(producer[site] for site in own)))
    return Layout(tuple(groups), tuple(offsets), total, index, sites)


def _is_prunable(names, roots):
    """Returns whether no channel of the writers is fixed, and each of them writes all channels of their group.

    A writer of only a part of them, as when something is added to stacked tensors, might lose its last channel.
    """
    channels = [set(roots[name]) for name in names]
    if any(each != channels[0] for each in channels):
        logger.warning("layers %s: some write only a part of their common channels, so they are not pruned.",
                       ", ".join(map(repr, names)))
        return False
    return FIXED not in channels[0]


def _connect(roots):
    """Returns lists of writer names that share channels, ordered by their first writer."""
    members, group_of = [], {}
    for name, own in roots.items():
        found = list({id(group_of[root]): group_of[root] for root in own if root in group_of}.values())
        names = found[0] if found else []
        if not found:
            members.append(names)
        for other in found[1:]:
            names.extend(other)
            members = [each for each in members if each is not other]
        names.append(name)
        for writer in names:
            group_of.update({root: names for root in roots[writer] if root != FIXED})
    order = list(roots)
    return sorted((sorted(names, key=order.index) for names in members), key=lambda names: order.index(names[0]))


def _find_sites(graph, index, fixed):
    producer = {call.output: call for call in graph.calls}
    sites = set()
    for call in graph.calls:
        if is_mixing(call.layer):
            tensor = call.inputs[0]
            while tensor in producer and isinstance(producer[tensor].layer, ZERO_KEEPING):
                tensor = producer[tensor].inputs[0]
            if (index[tensor] != fixed).any():
                sites.add(tensor)
    return tuple(sorted(sites))
