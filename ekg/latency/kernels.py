"""The kernels of a network: the parts that a runtime computes as one, and their kinds.

A convolution or dense layer, an addition, a pooling begin a kernel. Norms and activations after it,
which runtimes fuse with it, belong to it, and so does a padding before it.
"""

import dataclasses
import json

import numpy as np

from ekg.graph import cutting
from ekg.graph.neighbours import find_readers
from ekg.graph.registry import states, within

# Entries of a configuration that do not change the time, or that follow from the channels.
_IRRELEVANT = (
    "name",
    "trainable",
    "filters",
    "units",
    "seed",
    "momentum",
    "epsilon",
    "activity_regularizer",
)
_IRRELEVANT_ENDINGS = ("_initializer", "_regularizer", "_constraint")


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A chain of calls of a network that run as one.

    Attributes:
        calls: the Calls, in the order in which they run.
        reads: numbers of the tensors that it reads.
        kind: text that is equal for kernels that differ in their numbers of channels alone.
        dims: for each number of channels that may change, the channel numbers that it counts: those
            read and those written; one entry where these are the same channels, none where all are
            fixed. Then the inner channels, as of heads, one entry per tensor that has them.
    """

    calls: tuple
    reads: tuple[int, ...]
    kind: str
    dims: tuple[np.ndarray, ...]

    @property
    def sizes(self):
        """Numbers of channels of the unpruned network, one per entry of dims."""
        return tuple(len(channels) for channels in self.dims)

    def counts(self, mask):
        """Returns how many channels of each entry of dims a mask over all channels keeps."""
        return tuple(int(mask[channels].sum()) for channels in self.dims)


def find_kernels(graph, layout):
    """Returns the list of Kernels of a network, in the order in which they run."""
    chains, chain_of, readers = [], {}, find_readers(graph)
    for call in graph.calls:
        chain = chain_of.get(call.inputs[0]) if len(call.inputs) == 1 else None
        if (
            chain is not None
            and len(readers[call.inputs[0]]) == 1
            and call.inputs[0] not in graph.outputs
            and (_joins_previous(call.layer) or all(_joins_next(other.layer) for other in chain))
        ):
            chain.append(call)
        else:
            chain = [call]
            chains.append(chain)
        chain_of.update(dict.fromkeys(call.outputs, chain))
    inner = {call.inputs[1] for call in graph.calls if within(call.layer)}
    return [_kernel(graph, layout, chain, inner) for chain in chains if not _is_free(chain)]


def part(graph, layout, kernel, counts):
    """Returns a keras.Model of a kernel alone, with these numbers of channels along its dims.

    Its weights are meaningless. The kept channels are spread over all of a dim, and every tensor
    keeps at least one, as in a sub-network.
    """
    mask = np.ones(layout.num_channels + 1, bool)
    for channels, count in zip(kernel.dims, counts):
        mask[channels] = False
        mask[channels[np.arange(count) * len(channels) // count]] = True
    for number in (*kernel.reads, *(number for call in kernel.calls for number in call.outputs)):
        index = layout.index[number]
        if len(index) and not mask[index].any():
            mask[index[0]] = True
    return cutting.cut_part(graph, layout, mask, kernel.calls, kernel.reads)


def _joins_previous(layer):
    return states(layer, "joins_previous")


def _joins_next(layer):
    return states(layer, "joins_next")


def _is_free(chain):
    """Returns whether a chain costs nothing in inference."""
    return all(states(call.layer, "is_free") for call in chain)


def _kernel(graph, layout, chain, tensors_of_inner):
    written = {number for call in chain for number in call.outputs}
    reads = tuple(
        dict.fromkeys(number for call in chain for number in call.inputs if number not in written)
    )
    fixed = layout.num_channels
    inner = [number for number in reads if number in tensors_of_inner]
    others = [layout.index[number] for number in reads if number not in inner]
    read = np.unique(np.concatenate(others or [np.array([fixed])]))
    wrote = np.unique(np.concatenate([layout.index[number] for number in chain[-1].outputs]))
    dims = [channels[channels != fixed] for channels in (read, wrote)]
    if np.intersect1d(*dims).size:
        dims = [np.union1d(*dims)]
    for number in inner:
        index = np.unique(layout.index[number])
        dims.append(index[index != fixed])
    dims = tuple(channels for channels in dims if channels.size)
    return Kernel(tuple(chain), reads, _kind(graph, layout, chain, reads), dims)


def _kind(graph, layout, chain, reads):
    """Returns the description of a kernel, without its numbers of channels, as text."""
    numbers = {
        number: place
        for place, number in enumerate(
            dict.fromkeys([*reads, *(number for call in chain for number in call.outputs)])
        )
    }
    tensors = [_describe_tensor(graph, layout, number) for number in numbers]
    calls = [
        (type(call.layer).__name__, _config(call), [numbers[number] for number in call.inputs])
        for call in chain
    ]
    return json.dumps([calls, tensors], sort_keys=True, default=repr)


def _describe_tensor(graph, layout, number):
    """Returns the sizes of a tensor without its channels, the number of fixed channels, and the
    number of positions of each other channel.
    """
    axis, index = layout.axes[number], layout.index[number]
    is_open = index != layout.num_channels
    axes = {0, *(place for place, _ in layout.dims(number))}
    sizes = [size for place, size in enumerate(graph.shapes[number]) if place not in axes]
    each = is_open.sum() / max(len(np.unique(index[is_open])), 1)
    inner = layout.inner.get(number)
    return (
        sizes,
        axis,
        int((~is_open).sum()),
        float(each),
        graph.dtype(number),
        str(graph.rows[number]),
        *([] if inner is None else [int((inner == layout.num_channels).sum())]),
    )


def _config(call):
    layer = call.layer
    try:
        config = layer.get_config()
    except NotImplementedError:
        return call.key
    return {
        name: value
        for name, value in config.items()
        if name not in _IRRELEVANT and not name.endswith(_IRRELEVANT_ENDINGS)
    }
