"""Channel groups: which layer outputs must lose the same channels.

Groups are found by following the channels through the graph. Every convolution and dense layer
starts new channels at its output. Layers that treat each channel by itself carry them, elementwise
layers merge the channels of their inputs, Concatenate stacks them. Channels that the same layers
write form one group.
"""

import dataclasses
import functools
import logging
import math

import numpy as np

from ekg.graph import flow, records, registry, removal, wrappers
from ekg.graph.limits import FROZEN, PruningLimits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Layer outputs that lose their channels together.

    Attributes:
        name: name of the first layer that writes the group.
        size: number of channels; where several must go at once, as one of each group of a grouped
            convolution, they count as one here.
        writers: names of the layers that mix channels whose output channels are the group's.
        sites: names of the layers whose output carries a gate of the group.
        least: smallest number of channels that may stay; with 0 the group may vanish.
        multiple: the number of channels that stay is a multiple of it, unless all stay.
    """

    name: str
    size: int
    writers: tuple[str, ...]
    sites: tuple[str, ...]
    least: int = 1
    multiple: int = 1

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """The numbers of channels that may stay, ascending."""
        first = -(-self.least // self.multiple) * self.multiple
        return (*range(first, self.size, self.multiple), self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Channel numbers of every tensor of a graph.

    Channels of all groups are numbered consecutively, group after group; the number after the last
    one means all channels that are never pruned.

    Attributes:
        groups: tuple of ChannelGroup in network order.
        offsets: tuple, number of the first channel of each group.
        num_channels: number of channels of all groups.
        index: {tensor number: int array [channels of the tensor], the channel numbers}.
        axes: {tensor number: axis of its channels, or None}.
        sites: tuple of tensor numbers that carry a gate, in network order.
        closed: {key of a mixing layer: why its output channels, or some of them, are never pruned}.
        staying: {name of a group that was to vanish: why one of its channels stays}.
        inner: {tensor number: channel numbers of the indices along the axis after its channels'},
            of tensors whose channels have such indices in a group of their own, as heads do.
    """

    groups: tuple[ChannelGroup, ...]
    offsets: tuple[int, ...]
    num_channels: int
    index: dict[int, np.ndarray]
    axes: dict[int, int | None]
    sites: tuple[int, ...]
    closed: dict[str, str]
    staying: dict[str, str] = dataclasses.field(default_factory=dict)
    inner: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _starts(self):
        return np.array(self.offsets, np.int64)

    def groups_without(self, mask):
        """Returns the positions of the groups of which a mask over all channels keeps none."""
        if all(group.least for group in self.groups):
            return ()
        kept = np.add.reduceat(np.asarray(mask[:-1], np.float64), self._starts)
        return tuple(np.flatnonzero(kept == 0).tolist())

    @functools.cached_property
    def groups_of(self):
        """{tensor number: frozenset of the positions of its channels' groups; None where some
        channels are never pruned, or there are none}.
        """
        found = {}
        for tensor, index in self.index.items():
            own = np.unique(np.searchsorted(self._starts, index, side="right") - 1).tolist()
            is_open = len(index) > 0 and (index != self.num_channels).all()
            found[tensor] = frozenset(own) if is_open else None
        return found

    def empty(self, groups):
        """Returns the numbers of the tensors whose channels are all of these groups."""
        groups = frozenset(groups)
        return frozenset(
            number for number, own in self.groups_of.items() if own is not None and own <= groups
        )

    def channels(self, group):
        """Returns the slice of channel numbers of the group with this position."""
        return slice(self.offsets[group], self.offsets[group] + self.groups[group].size)

    def by_group(self, values):
        """Returns the values of all channels, array [num_channels], as a list of one array per
        group.
        """
        return [values[self.channels(group)] for group in range(len(self.groups))]

    def dims(self, tensor):
        """Returns [(axis of a tensor, channel numbers of its indices)] of the axes of channels."""
        axis = self.axes[tensor]
        dims = [] if axis is None else [(axis, self.index[tensor])]
        return dims + ([(axis + 1, self.inner[tensor])] if tensor in self.inner else [])

    def is_open(self, tensor):
        """Returns whether some channels of a tensor may be pruned."""
        return bool((self.index[tensor] != self.num_channels).any())


def find(graph, limits=None):
    """Returns the Layout of a graph: its channel groups in network order and the gate sites.

    A gate sits on every tensor that a mixing layer reads, before layers that keep zeros (padding,
    pooling, ...): with a ReLU after each batch norm and each add, that is after the ReLU. The
    input, the logits, and what a layer of unknown effect reads are in no group. Where a layer
    writes channels of several groups, as one that is added to stacked tensors, each group keeps one
    of them.

    Args:
        graph: calls.Graph.
        limits: PruningLimits; None leaves everything open.

    Raises:
        EkgError: the size of an input is unknown, or a limit names something that is not there.
    """
    graph.check_sizes()
    limits = limits or PruningLimits()
    channel_flow = _follow(graph, limits)
    roots = dict(
        zip(channel_flow.written, channel_flow.all_roots(list(channel_flow.written.values())))
    )
    parts = _partition(roots)
    offsets = np.cumsum([0, *(len(members) for _, members in parts)]).tolist()
    total = offsets.pop()
    numbers = np.full(channel_flow.num_labels, total, dtype=np.int64)  # of each root
    for (_, members), first in zip(parts, offsets):
        numbers[members] = np.arange(first, first + len(members))
    rows = channel_flow.all_roots([channels.labels for channels in channel_flow.channels.values()])
    index = {tensor: numbers[row] for tensor, row in zip(channel_flow.channels, rows)}
    inner = {
        tensor: numbers[channel_flow.roots(channels.inner)]
        for tensor, channels in channel_flow.channels.items()
        if channels.inner is not None
    }
    sites = _find_sites(graph, index, total)
    producer = {number: call.key for call in graph.calls for number in call.outputs}
    groups, names = [], set()
    sites_by_group = [[] for _ in parts]
    ends = np.array([*offsets[1:], total])
    for site in sites:
        channels = np.unique(index[site])
        channels = channels[channels < total]
        for number in np.unique(np.searchsorted(ends, channels, side="right")).tolist():
            sites_by_group[number].append(site)
    for (writers, members), first, last, group_sites in zip(parts, offsets, ends, sites_by_group):
        name = _free_name(writers[0], names)
        least, multiple = limits.of_group(name)
        together = min(int(np.isin(roots[key], members).sum()) for key in writers) // len(members)
        groups.append(
            ChannelGroup(
                name,
                int(last) - first,
                writers,
                tuple(producer[site] for site in group_sites),
                min(-(-least // together), int(last) - first),
                multiple // math.gcd(multiple, together),
            )
        )
    limits.check_patterns([group.name for group in groups])
    closed = {
        key: channel_flow.reason(labels)
        for key, labels in channel_flow.written.items()
        if channel_flow.reason(labels) is not None
    }
    closed |= {
        call.key: "it mixes another axis than the channels' that it reads"
        for call in graph.calls
        if registry.is_mixing(call.layer) and call.key not in channel_flow.written
    }
    axes = {tensor: channels.axis for tensor, channels in channel_flow.channels.items()}
    layout = Layout(tuple(groups), tuple(offsets), total, index, axes, sites, closed, inner=inner)
    return _with_vanishing(graph, layout, limits)


def _with_vanishing(graph, layout, limits):
    """Returns the Layout in which groups that were to vanish, and cannot, keep a channel.

    Raises:
        EkgError: a pattern names such a group.
    """
    wanted = [i for i, group in enumerate(layout.groups) if group.least == 0]
    if not wanted:
        return layout
    obstacles = removal.Obstacles(graph, layout)
    vanishing, staying, groups = set(), {}, list(layout.groups)
    for i in wanted:
        problem = obstacles.find(frozenset({*vanishing, i}))
        if problem is None:
            vanishing.add(i)
            continue
        name = groups[i].name
        limits.check_vanishing(name, problem)
        logger.info("channel group %r keeps a channel: %s.", name, problem)
        groups[i], staying[name] = dataclasses.replace(groups[i], least=1), problem
    return dataclasses.replace(layout, groups=tuple(groups), staying=staying)


def _follow(graph, limits):
    """Returns the ChannelFlow of all calls. The network's outputs are never pruned, nor what the
    limits exclude.
    """
    channel_flow, excluded = flow.ChannelFlow(graph), limits.excluded(graph)
    for call in graph.calls:
        record = registry.record_of(call.layer)
        begins = registry.is_mixing(call.layer) or registry.states(call.layer, "begins")
        is_fixed = not begins and all(channels.is_fixed for channels in channel_flow.inputs(call))
        channel_flow.follow(
            call, flow.stay if is_fixed else flow.close if record is None else record.flow
        )
        written = [channel_flow.channels[number].labels for number in call.outputs]
        if registry.within(call.layer) == records.OUT:
            written.append(channel_flow.channels[call.inputs[1]].labels)
        labels = np.concatenate(written)
        if call.key in excluded:
            channel_flow.close(labels, f"{call.key!r} is excluded")
        elif (
            registry.is_mixing(call.layer)
            and wrappers.is_frozen(call.layer)
            and not limits.prune_frozen
        ):
            channel_flow.close(labels, f"{call.key!r} {FROZEN}")
    for number in graph.outputs:
        channel_flow.close(channel_flow.channels[number].labels, "output of the network")
    _close_unread(graph, channel_flow)
    return channel_flow


def _close_unread(graph, channel_flow):
    """Closes channels that no gate reaches, as of a nested model's output that nothing reads."""
    rows = channel_flow.all_roots([channels.labels for channels in channel_flow.channels.values()])
    index = dict(zip(channel_flow.channels, rows))
    is_gated = np.zeros(channel_flow.num_labels, bool)
    is_gated[flow.FIXED] = True
    for site in _find_sites(graph, index, flow.FIXED):
        is_gated[index[site]] = True
    written = list(channel_flow.written.values())
    for labels, roots in zip(written, channel_flow.all_roots(written)):
        channel_flow.close(labels[~is_gated[roots]], "nothing reads it")


def _partition(roots):
    """Returns [(keys of the layers that write a group, the group's roots)], in the order of the
    first layers.

    Args:
        roots: {key: representative of every channel that the layer writes, int array}.
    """
    keys, kinds = list(roots), {(): 0}  # tuple of writers -> its number
    known = [()]  # the keys of kinds
    kind_of = np.zeros(
        1 + max((int(written.max(initial=0)) for written in roots.values()), default=0),
        dtype=np.int64,
    )
    for number, written in enumerate(roots.values()):
        written = np.unique(written[written != flow.FIXED])
        kinds_before = kind_of[written]
        for kind in np.unique(kinds_before).tolist():
            members = written[kinds_before == kind]
            grown = (*known[kind], number)
            if grown not in kinds:
                kinds[grown] = len(known)
                known.append(grown)
            kind_of[members] = kinds[grown]
    by_kind = np.split(
        np.argsort(kind_of, kind="stable"), np.cumsum(np.bincount(kind_of, minlength=len(known)))
    )
    parts = {
        tuple(keys[i] for i in kind): members
        for kind, members in zip(known, by_kind)
        if kind and len(members)
    }
    order = {key: i for i, key in enumerate(roots)}
    return sorted(parts.items(), key=lambda part: (order[part[0][0]], part[1][0]))


def _free_name(name, taken):
    """Returns the name, with a number after it if it is taken, and adds it to the taken ones."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}#{number}", number + 1
    taken.add(free)
    return free


def _find_sites(graph, index, fixed):
    """Returns the sorted numbers of the tensors that carry a gate."""
    producer = {number: call for call in graph.calls for number in call.outputs}
    sites = set()
    for call in graph.calls:
        if registry.is_mixing(call.layer):
            tensor = call.inputs[0]
            while (
                tensor in producer
                and registry.keeps_zeros(producer[tensor].layer)
                and len(producer[tensor].inputs) == 1
            ):
                tensor = producer[tensor].inputs[0]
            tensors = [tensor, call.inputs[1]] if registry.within(call.layer) else [tensor]
            sites.update(number for number in tensors if (index[number] != fixed).any())
    return tuple(sorted(sites))
