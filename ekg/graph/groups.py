"""Channel groups: which layer outputs must lose the same channels, found by following the channels through the graph.

Every convolution and dense layer starts new channels at its output. Layers that treat each channel by itself carry them on,
elementwise layers merge the channels of their inputs, Concatenate stacks them. Layers whose outputs were merged form
one group.
"""

import dataclasses
import logging

import numpy as np

from ekg.graph import flow, layers

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Layer outputs that lose their channels together.

    Attributes:
        name: name of the first layer that writes the group.
        size: number of channels.
        writers: names of the layers that mix channels whose output channels are the group's.
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

    def by_group(self, values):
        """Returns the values of all channels, array [num_channels], as a list of one array a group."""
        return [values[self.channels(group)] for group in range(len(self.groups))]


def find(graph):
    """Returns the Layout of a graph: its channel groups in network order and the gate sites.

    A gate sits on every tensor that a mixing layer reads, before layers that keep zeros (padding, pooling, ...): with
    a ReLU behind each batch norm and each add, that is behind the ReLU. The input, the logits, and whatever a layer
    of unknown effect reads are in no group.
    """
    channel_flow = _follow(graph)
    roots = {name: channel_flow.roots(channels) for name, channels in channel_flow.written.items()}
    members = [names for names in _connect(roots) if _is_prunable(names, roots)]
    numbers, offsets, total = {flow.FIXED: None}, [], 0
    for names in members:
        offsets.append(total)
        for root in np.concatenate([roots[name] for name in names]):
            if root not in numbers:
                numbers[root] = total
                total += 1
    index = {tensor: np.array([total if numbers.get(root) is None else numbers[root]
                               for root in channel_flow.roots(channels)], dtype=np.int64)
             for tensor, channels in channel_flow.channels.items()}
    sites = _find_sites(graph, index, total)
    producer = {call.output: call.layer.name for call in graph.calls}
    groups = []
    for names, first, last in zip(members, offsets, [*offsets[1:], total]):
        group_sites = [site for site in sites if ((index[site] >= first) & (index[site] < last)).any()]
        groups.append(ChannelGroup(names[0], last - first, tuple(names), tuple(producer[site] for site in group_sites)))
    return Layout(tuple(groups), tuple(offsets), total, index, sites)


def _follow(graph):
    """Returns the ChannelFlow of all calls; what the network returns is never pruned."""
    channel_flow = flow.ChannelFlow(graph)
    for call in graph.calls:
        record = layers.record_of(call.layer)
        has_channels_last = getattr(call.layer, "data_format", "channels_last") == "channels_last"
        channel_flow.follow(call, record.flow if record is not None and has_channels_last else flow.close)
    channel_flow.fix(channel_flow.channels[graph.output])
    return channel_flow


def _is_prunable(names, roots):
    """Returns whether no channel of the writers is fixed, and each of them writes all channels of their group.

    A writer of only a part of them, as when something is added to stacked tensors, might lose its last channel.
    """
    channels = [set(roots[name]) for name in names]
    if any(written != channels[0] for written in channels):
        logger.warning("layers %s: some write only a part of their common channels, so they are not pruned.",
                       ", ".join(map(repr, names)))
        return False
    return flow.FIXED not in channels[0]


def _connect(roots):
    """Returns lists of writer names that share channels, ordered by their first writer."""
    members, group_of = [], {}
    for name, written in roots.items():
        met = list({id(group_of[root]): group_of[root] for root in written if root in group_of}.values())
        names = met[0] if met else []
        if not met:
            members.append(names)
        for other in met[1:]:
            names.extend(other)
            members = [group for group in members if group is not other]
        names.append(name)
        for writer in names:
            group_of.update({root: names for root in roots[writer] if root != flow.FIXED})
    order = list(roots)
    return sorted((sorted(names, key=order.index) for names in members), key=lambda names: order.index(names[0]))


def _find_sites(graph, index, fixed):
    """Returns the sorted numbers of the tensors that carry a gate."""
    producer = {call.output: call for call in graph.calls}
    sites = set()
    for call in graph.calls:
        if layers.is_mixing(call.layer):
            tensor = call.inputs[0]
            while tensor in producer and layers.keeps_zeros(producer[tensor].layer):
                tensor = producer[tensor].inputs[0]
            if (index[tensor] != fixed).any():
                sites.add(tensor)
    return tuple(sorted(sites))
