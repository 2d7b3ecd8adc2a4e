"""Parameters and FLOPs of a sub-network in closed form: no forward pass, integer arithmetic over kept channels.

FLOPs are multiply-accumulates of one image: a convolution H'·W'·kh·kw·Cin·Cout (divided by its groups), a dense layer
Cin·Cout, a batch norm 2·H·W·C. Parameters are all weights, moving statistics included. Other layers are free.
"""

import dataclasses
import logging
import math

import numpy as np
from keras import layers

from ekg import graph as graphs
from ekg import groups

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Cost of a network: number of parameters, and multiply-accumulates of one image."""
    params: int
    flops: int


def _conv(layer, shape):
    positions, taps = math.prod(shape[1:-1]), math.prod(layer.kernel_size)
    return _Cost(pair_flops=positions * taps / layer.groups, pair_params=taps / layer.groups,
                 out_params=int(layer.use_bias))


def _dense(layer, shape):
    return _Cost(pair_flops=math.prod(shape[1:-1]), pair_params=1, out_params=int(layer.use_bias))


def _depthwise(layer, shape):
    taps = math.prod(layer.kernel_size)
    return _Cost(out_flops=math.prod(shape[1:-1]) * taps, out_params=taps + int(layer.use_bias))


def _batch_norm(layer, shape):
    return _Cost(out_flops=2 * math.prod(shape[1:-1]), out_params=len(layer.weights))


COSTS = {layers.Conv2D: _conv, layers.Dense: _dense, layers.DepthwiseConv2D: _depthwise,
         layers.BatchNormalization: _batch_norm}


@dataclasses.dataclass(frozen=True)
class _Cost:
    """What a call costs for every pair (input channel, output channel), and for every output channel."""
    pair_flops: float = 0
    out_flops: int = 0
    pair_params: float = 0
    out_params: int = 0


class ComplexityTable:
    """Counts of one graph, ready to be asked for many sub-networks.

    For a mask m over all channels, the kept channels of every call's input and output are A·m and B·m with constant
    matrices A and B. All numbers are whole and below 2**53, so float64 arithmetic is exact.
    """

    def __init__(self, graph, layout):
        costs, reads, writes, seen = [], [], [], set()
        self._constant_params = 0
        for call in graph.calls:
            count = COSTS.get(type(call.layer))
            is_first = call.layer.name not in seen
            seen.add(call.layer.name)
            if count is None:
                weights = getattr(call.layer, "weights", ())
                if weights and is_first:
                    logger.warning("layer %r (%s): its FLOPs are not counted.", call.layer.name, type(call.layer).__name__)
                self._constant_params += is_first * sum(math.prod(weight.shape) for weight in weights)
                continue
            cost = count(call.layer, graph.shapes[call.output])
            costs.append((cost.pair_flops, cost.out_flops, is_first * cost.pair_params, is_first * cost.out_params))
            reads.append(np.bincount(layout.index[call.inputs[0]], minlength=layout.num_channels + 1))
            writes.append(np.bincount(layout.index[call.output], minlength=layout.num_channels + 1))
        self._costs = np.array(costs, dtype=np.float64).reshape(-1, 4).T
        self._reads = np.array(reads, dtype=np.float64).reshape(len(costs), -1)
        self._writes = np.array(writes, dtype=np.float64).reshape(len(costs), -1)

    def count(self, mask):
        """Returns the Complexity for a mask, float array [num_channels + 1] of zeros and ones."""
        kept_in, kept_out = self._reads @ mask, self._writes @ mask
        pair_flops, out_flops, pair_params, out_params = self._costs
        flops = pair_flops @ (kept_in * kept_out) + out_flops @ kept_out
        params = pair_params @ (kept_in * kept_out) + out_params @ kept_out
        return Complexity(round(params) + self._constant_params, round(flops))


def of_model(model):
    """Returns the Complexity of a functional keras.Model as it stands.

    Raises:
        ValueError: the model is not functional, or has several inputs or outputs.
    """
    graph = graphs.Graph(model)
    layout = groups.find(graph)
    return ComplexityTable(graph, layout).count(np.ones(layout.num_channels + 1))
