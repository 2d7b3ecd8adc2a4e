"""Parameters and FLOPs of a sub-network in closed form: no forward pass, integer arithmetic over kept channels.

FLOPs are multiply-accumulates of one image: a convolution H'·W'·kh·kw·Cin·Cout (divided by its groups), a dense layer
Cin·Cout, a batch norm 2·H·W·C. Parameters are all weights, moving statistics included. Other layers are free.
"""

import dataclasses
import logging
import math

import numpy as np

from ekg.graph import groups, layers
from ekg.graph.calls import Graph

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Cost of a network: number of parameters, and multiply-accumulates of one image."""
    params: int
    flops: int


class ComplexityTable:
    """Counts of one graph, ready to be asked for many sub-networks.

    The number of entries of a weight is a constant, times the kept input channels, the kept output channels, or both. For
    a mask m over all channels, the kept channels of every call's input and output are A·m and B·m with constant matrices A
    and B. All numbers are whole and below 2**53, so float64 arithmetic is exact.
    """

    # What the entries of a weight grow with, by whether it has an axis of (input, output) channels.
    _GROWTHS = ((True, True), (True, False), (False, True), (False, False))

    def __init__(self, graph, layout):
        rows, reads, writes, counted = [], [], [], set()
        self._constant_params = 0
        for call in graph.calls:
            weights = getattr(call.layer, "weights", ())
            record = layers.record_of(call.layer) if weights else None
            is_first = call.layer.name not in counted
            counted.add(call.layer.name)
            if record is None:
                if weights and is_first:
                    logger.warning("layer %r (%s): its FLOPs are not counted.", call.layer.name, type(call.layer).__name__)
                self._constant_params += is_first * sum(math.prod(weight.shape) for weight in weights)
                continue
            rows.append(self._count_call(call, record, graph.shapes[call.output], is_first))
            reads.append(np.bincount(layout.index[call.inputs[0]], minlength=layout.num_channels + 1))
            writes.append(np.bincount(layout.index[call.output], minlength=layout.num_channels + 1))
        # [FLOPs or parameters, growth, call]
        self._counts = np.array(rows, dtype=np.float64).reshape(-1, 2, len(self._GROWTHS)).transpose(1, 2, 0)
        self._reads = np.array(reads, dtype=np.float64).reshape(len(rows), -1)
        self._writes = np.array(writes, dtype=np.float64).reshape(len(rows), -1)

    def _count_call(self, call, record, shape, is_first):
        """Returns [FLOPs, parameters] of a call, each a list of the constants of every growth."""
        counts = [[0] * len(self._GROWTHS) for _ in range(2)]
        for variable in call.layer.weights:
            axes = record.weights[variable.name].axes
            growth = self._GROWTHS.index((layers.IN in axes, layers.OUT in axes))
            constant = math.prod(size for size, axis in zip(variable.shape, axes) if axis is None)
            if variable.name in record.multiplies:
                counts[0][growth] += constant * layers.positions(shape)
            counts[1][growth] += constant * is_first  # a layer that is called again has no more parameters
        return counts

    def count(self, mask):
        """Returns the Complexity for a mask, float array [num_channels + 1] of zeros and ones."""
        kept_in, kept_out = self._reads @ mask, self._writes @ mask
        sizes = np.stack([kept_in * kept_out, kept_in, kept_out, np.ones_like(kept_in)])
        flops, params = (float((counts * sizes).sum()) for counts in self._counts)
        return Complexity(round(params) + self._constant_params, round(flops))


def model_complexity(model):
    """Returns the Complexity of a functional keras.Model as it stands.

    Raises:
        EkgError: the model is not functional, or has several inputs or outputs.
    """
    graph = Graph(model)
    layout = groups.find(graph)
    return ComplexityTable(graph, layout).count(np.ones(layout.num_channels + 1))
