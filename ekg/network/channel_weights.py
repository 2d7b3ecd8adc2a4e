"""The weights that a channel takes with it: what a cut removes with a channel, but for what reads
the channel.
"""

import dataclasses

import numpy as np

from ekg.graph import records
from ekg.graph.calls import layer_variables

STATISTICS = ("moving_mean", "moving_variance")  # follow from the data and have no gradient


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelWeight:
    """Entries of one weight of a layer, a row for every kept channel.

    Attributes:
        layer: key of the layer in the whole model.
        name: of the weight in the layer's record: "kernel", "gamma", ...
        channels: numbers of the channels in the layout's row, int array [rows].
        rows: what each channel has of the weight, float64 [rows, entries]. Of a kernel these are
            its filters, without the input channels that the sub-network has lost.
    """

    layer: str
    name: str
    channels: np.ndarray
    rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where a weight of channels stands.

    Attributes:
        call: the first call of its layer.
        position: its number among the layer's weights as Supernet.weights() lists them.
        name: of the weight in the layer's record.
        is_kernel: whether it is what mixes channels, so that its rows are filters.
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

    Those are the kernel and bias of the layers that write a group, and whatever the layers that
    treat each of its channels by itself have for a channel: scales and offsets of norms, depthwise
    kernels, slopes. A layer that is called several times counts once.
    """
    places, seen = [], set()
    for call in supernet.graph.calls:
        record = records.record_of(call.layer)
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
                continue  # belongs to no channel, or goes with what the layer reads
            tensor = call.output if is_written else call.inputs[0]
            if supernet.layout.is_open(tensor):
                places.append(
                    Place(
                        call,
                        position,
                        name,
                        record.mixes and name == record.kernel,
                        axes.index(records.OUT if is_written else records.IN),
                        tensor,
                    )
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
    weight, values = (
        records.record_of(place.call.layer).weights[place.name],
        np.asarray(values, np.float64),
    )
    axes = weight.axes
    if place.is_kernel:
        read, is_read = axes.index(records.IN), mask[supernet.layout.index[place.call.inputs[0]]]
        values = np.take(
            values,
            records.kept_indices(np.flatnonzero(is_read), len(is_read), values.shape[read]),
            read,
        )
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).T
    # Several indices that stand for one channel, neighbours mostly, are rows of their own.
    repeats = max(len(rows) // len(index), 1)
    index = (np.tile if weight.is_tiled else np.repeat)(index, repeats)[: len(rows)]
    kept = mask[index] & (index < supernet.layout.num_channels)
    return (
        ChannelWeight(place.call.key, place.name, index[kept], rows[kept]) if kept.any() else None
    )
