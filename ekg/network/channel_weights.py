"""The weights that a cut removes with a channel, other than in the layers that read the channel."""

import dataclasses

import numpy as np

from ekg.graph import records, registry
from ekg.graph.calls import layer_variables

STATISTICS = ("moving_mean", "moving_variance")  # follow from the data and have no gradient


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelWeight:
    """Entries of one weight of a layer, one row per kept channel.

    Attributes:
        layer: key of the layer in the whole model.
        name: name of the weight in the layer's record: "kernel", "gamma", ...
        channels: channel numbers of the layout, int array [rows].
        rows: entries of the weight by channel, float64 [rows, entries]: of a kernel its filters,
            without the input channels that the sub-network has lost.
    """

    layer: str
    name: str
    channels: np.ndarray
    rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Position of a weight that has entries per channel.

    Attributes:
        call: the first call of its layer.
        position: its number among the layer's weights as Supernet.weights() lists them.
        name: of the weight in the layer's record.
        is_kernel: whether it mixes channels, so that its rows are filters.
        axis: axis of the channels that it belongs to.
        tensor: number of the tensor that has these channels.
    """

    call: object
    position: int
    name: str
    is_kernel: bool
    axis: int
    tensor: int

    @property
    def variable(self):
        return layer_variables(self.call.layer)[self.position]


def find_places(supernet):
    """Returns the list of Places of all weights that channels of groups take with them, in the
    order of the graph.

    They are the kernels and biases of the layers that write a group, and the weights per channel of
    layers that treat each of its channels by itself: scales and offsets of norms, depthwise
    kernels, slopes. A layer that is called several times counts once.
    """
    places, seen = [], set()
    for call in supernet.graph.calls:
        record = registry.record_of(call.layer)
        if record is None or call.key in seen:
            continue
        seen.add(call.key)
        names = {
            id(variable): name
            for variable, name in zip(
                getattr(call.layer, "weights", ()), records.weight_names(call.layer, record)
            )
        }
        for position, variable in enumerate(layer_variables(call.layer)):
            name = names.get(id(variable))
            if name is None or name in STATISTICS:
                continue
            axes = record.weights[name].axes
            is_written = records.OUT in axes
            if not is_written and (record.mixes or records.IN not in axes):
                continue  # belongs to no channel, or to the channels that the layer reads
            tensor = call.output if is_written else call.inputs[0]
            axis = axes.index(records.OUT if is_written else records.IN)
            found = [(axis, tensor)]
            if record.weights[name].within == records.OUT:
                found.append((axes.index(records.WITHIN), call.inputs[1]))
            is_kernel = record.mixes and name == record.kernel
            places.extend(
                Place(call, position, name, is_kernel, axis, tensor)
                for axis, tensor in found
                if supernet.layout.is_open(tensor)
            )
    return places


def rows_of(supernet, mask, place, values):
    """Returns the ChannelWeight of a weight's values, or None if the sub-network keeps no channel
    of it.

    Args:
        supernet: the Supernet.
        mask: bool [num_channels + 1], which channels are kept.
        place: Place of the weight.
        values: float array of the weight's shape: the weight itself, or its gradient.
    """
    index, axis = supernet.layout.index[place.tensor], place.axis
    weight = registry.record_of(place.call.layer).weights[place.name]
    values = np.asarray(values, np.float64)
    axes = weight.axes
    others = {records.IN: place.call.inputs[0]} if place.is_kernel else {}
    if weight.within:
        others |= {records.OUT: place.call.output, records.WITHIN: place.call.inputs[1]}
    for role, number in others.items():
        if role in axes and axes.index(role) != axis:
            other, is_kept = axes.index(role), mask[supernet.layout.index[number]]
            indices = np.flatnonzero(is_kept)
            values = np.take(
                values, records.kept_indices(indices, len(is_kept), values.shape[other]), other
            )
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).T
    # Several indices of one channel, mostly neighbours, are rows of their own.
    repeats = max(len(rows) // len(index), 1)
    index = (np.tile if weight.is_tiled else np.repeat)(index, repeats)[: len(rows)]
    kept = mask[index] & (index < supernet.layout.num_channels)
    return (
        ChannelWeight(place.call.key, place.name, index[kept], rows[kept]) if kept.any() else None
    )
