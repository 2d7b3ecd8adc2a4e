"""Parameters and FLOPs of sub-networks in closed form, by integer arithmetic over kept channels.

FLOPs are multiply-accumulates of one image: a convolution H'·W'·kh·kw·Cin·Cout (divided by its
groups; a transposed convolution at the positions of its input), a dense layer Cin·Cout, a batch
norm 2·H·W·C, another norm or scale H·W·C per vector, recurrent and attention layers all their
products. Parameters are all weights, moving statistics included. Other layers are free.
"""

import collections
import dataclasses
import inspect
import logging
import math
from fractions import Fraction

import numpy as np

from ekg.graph import flow, groups, records, registry, removal
from ekg.graph.calls import Graph
from ekg.graph.steps import numbers_by_name, refs_in

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Cost of a network: number of parameters, and multiply-accumulates of one image."""

    params: int
    flops: int


def _total(costs):
    """Returns the sum of an iterable of Complexity."""
    costs = list(costs)
    return Complexity(sum(cost.params for cost in costs), sum(cost.flops for cost in costs))


class ComplexityTable:
    """Counts of one graph, precomputed for many sub-networks.

    The number of entries of a weight is a constant, times the kept input channels, the kept output
    channels, or both; and times the kept channels of a third tensor where each channel has inner
    ones, as a head does. For a mask m over all channels, the kept channels of the tensors are A·m,
    B·m and C·m with constant sparse matrices A, B and C, whose rows are calls; a call whose weights
    differ in the third tensor has several. All numbers are whole and below 2**53, so float64
    arithmetic is exact.

    Attributes:
        uncounted: descriptions of the layers that have weights of an unknown kind, whose FLOPs are
            missing.
    """

    # The growth of a weight's number of entries, by whether it has an axis of (input, output)
    # channels. The last entry is for weights between output channels.
    _GROWTHS = ((True, True), (True, False), (False, True), (False, False), records.BACK)

    def __init__(self, graph, layout):
        rows, reads, writes, inner, counted = [], [], [], [], set()
        self.uncounted = []
        self._graph, self._layout = graph, layout
        self._calls, self._closed = [], []  # of each row; (call, its Complexity)
        self._removed = {}  # positions of groups without channels -> Removal
        for call in graph.calls:
            weights = getattr(call.layer, "weights", ())
            record = registry.record_of(call.layer)
            is_first = id(call.layer) not in counted
            counted.add(id(call.layer))
            if record is None or record.flops is not None:
                rows_written = graph.rows[call.output]
                cost = self._count_closed(call, record, graph.shapes, rows_written, is_first)
                self._closed.append((call, cost))
            elif weights or record.products is not None:
                counts = self._count_call(call, record, graph, layout, is_first)
                for number, row in counts.items():
                    rows.append(row)
                    self._calls.append(call)
                    reads.append(layout.index[call.inputs[0]])
                    writes.append(layout.index[call.output])
                    inner.append(np.zeros(0, np.int64) if number is None else layout.index[number])
        # [FLOPs or parameters, growth, call], as fractions: a kernel in groups has a fraction of
        # the entries that its channels would make
        self._counts, self._divisors = (
            np.array(
                [[[getattr(value, part) for value in counts] for counts in row] for row in rows],
                dtype=np.float64,
            )
            .reshape(len(rows), 2, len(self._GROWTHS))
            .transpose(1, 2, 0)
            for part in ("numerator", "denominator")
        )
        self._reads, self._writes, self._inner = _Rows(reads), _Rows(writes), _Rows(inner)
        self._is_plain = np.array([not len(channels) for channels in inner], np.float64)
        # Positions of groups without channels -> what is left; see _left()
        self._alive = {(): (1.0, 1.0, _total(cost for _, cost in self._closed))}
        if self.uncounted:
            logger.warning(
                "the FLOPs of %s in %r are not counted, so a rate is a share of the FLOPs of all "
                "other layers; ekg.register_layer() says what a layer costs.",
                ", ".join(dict.fromkeys(self.uncounted)),
                graph.model.name,
            )

    def _count_closed(self, call, record, shapes, rows, is_first):
        """Returns the Complexity of a call whose channels never change."""
        params = is_first * sum(
            math.prod(variable.shape) for variable in getattr(call.layer, "weights", ())
        )
        flops = 0
        if record is not None:
            # In the order of the layer's signature.
            named = inspect.signature(call.layer.call).bind(*call.args, **call.kwargs).arguments
            read = [
                shapes[number]
                for name, value in named.items()
                if "mask" not in name
                for number in refs_in(value)
            ]
            flops = round(record.flops(call.layer, read, shapes[call.output]) * rows)
        elif getattr(call.layer, "weights", ()):
            self.uncounted.append(flow.describe(call))
        return Complexity(params, flops)

    def _count_call(self, call, record, graph, layout, is_first):
        """Returns {number of the tensor with the inner channels, or None: [FLOPs, parameters]} of a
        call, each a list of one constant per growth.
        """
        counts = collections.defaultdict(
            lambda: [[Fraction(0)] * len(self._GROWTHS) for _ in range(2)]
        )
        counts[None] = counts.default_factory()
        numbers = {records.IN: call.inputs[0], records.OUT: call.output, records.BACK: call.output}
        if record.within:
            numbers[records.WITHIN] = call.inputs[1]
        read, written = graph.shapes[call.inputs[0]], graph.shapes[call.output]
        # Tensors that are never pruned may have their channels along any axis.
        axis = flow.channel_axis(call.layer, len(written))
        axis = layout.axes[call.output] if axis in (None, -1) else axis
        positions = graph.rows[call.output] * (
            records.spatial_size(written, axis)
            if record.positions is None
            else record.positions(call.layer, read, written, axis)
        )
        names = records.weight_names(call.layer, record)
        for variable, name in zip(getattr(call.layer, "weights", ()), names):
            axes, constant = record.weights[name].axes, Fraction(1)
            for size, role in zip(variable.shape, axes):
                constant *= (
                    size if role is None else Fraction(size, len(layout.index[numbers[role]]))
                )
            reads_all, writes_all = records.IN in axes, records.OUT in axes
            is_back = records.BACK in axes
            writes_each = writes_all or record.weights[name].each_channel
            flops, params = counts[numbers[records.WITHIN] if records.WITHIN in axes else None]
            growth = self._GROWTHS.index(records.BACK if is_back else (reads_all, writes_each))
            flops[growth] += constant * positions * (name in record.multiplies)
            growth = self._GROWTHS.index(records.BACK if is_back else (reads_all, writes_all))
            # Another call of the layer adds no parameters.
            params[growth] += constant * is_first
        if record.products is not None:
            products = record.products(
                call.layer, [graph.shapes[number] for number in call.inputs], written
            )
            named = numbers_by_name(call)
            shares = products if isinstance(products, dict) else {None: products}
            for name, count in shares.items():
                number = None if name is None else named[name][0]
                channels = len(layout.index[call.output])
                channels *= 1 if name is None else len(layout.index[number])
                counts[number][0][self._GROWTHS.index((False, True))] += (
                    Fraction(count, channels) * graph.rows[call.output]
                )
        return counts

    def count(self, mask):
        """Returns the Complexity for a mask, float array [num_channels + 1] of zeros and ones."""
        kept_in, kept_out, inner = self._sums(mask)
        sizes = inner * self._growths(kept_in, kept_out)
        *are_left, constant = self._left(mask)
        flops, params = (
            float((counts * sizes / divisors * is_left).sum())
            for counts, divisors, is_left in zip(self._counts, self._divisors, are_left)
        )
        return Complexity(round(params) + constant.params, round(flops) + constant.flops)

    def _sums(self, mask):
        """Returns the numbers of kept channels (read, written, inner) of every row, float64 [rows];
        the last is 1 where there are no inner ones.
        """
        inner = self._inner.sums(mask) + self._is_plain
        return self._reads.sums(mask), self._writes.sums(mask), inner

    @staticmethod
    def _growths(kept_in, kept_out):
        """Returns the factors of each growth, float64 [growths, rows]."""
        return np.stack([kept_in * kept_out, kept_in, kept_out, np.ones_like(kept_in), kept_out**2])

    def removed(self, mask):
        """Returns the removal.Removal where a mask leaves groups without channels, else None."""
        without = self._layout.groups_without(mask)
        if without not in self._removed:
            self._removed[without] = removal.of(self._graph, self._layout, mask)
        return self._removed[without]

    def _left(self, mask):
        """Returns (whether the FLOPs of each row count, likewise its parameters, Complexity of the
        closed calls) of what is left where groups have no channels.
        """
        without = self._layout.groups_without(mask)
        if without not in self._alive:
            found = self.removed(mask)
            left = {call for call in self._graph.calls if call not in found.gone}
            layers = {id(call.layer) for call in left}
            closed = (
                Complexity(cost.params * (id(call.layer) in layers), cost.flops * (call in left))
                for call, cost in self._closed
            )
            self._alive[without] = (
                np.array([call in left for call in self._calls], np.float64),
                np.array([id(call.layer) in layers for call in self._calls], np.float64),
                _total(closed),
            )
        return self._alive[without]

    def most_saved(self, mask):
        """Returns what leaving out each channel saves at most, Complexity of float64 [channels].

        The counts grow with the kept channels, and ever faster, so their slopes at a mask are upper
        limits; the savings of several channels add up. Layers that go with the last channel of a
        group are not counted.

        Args:
            mask: float array [num_channels + 1] of zeros and ones.
        """
        kept_in, kept_out, inner = self._sums(mask)
        num_channels = len(mask) - 1
        saved = []
        for counts, divisors in zip(self._counts, self._divisors):
            both, read, written, _, back = counts / divisors
            by_read = inner * (both * kept_out + read)
            by_written = inner * (both * kept_in + written + 2 * back * kept_out)
            by_inner = (self._growths(kept_in, kept_out) * counts / divisors).sum(axis=0)
            saved.append(
                self._reads.sums_by_channel(by_read, num_channels)
                + self._writes.sums_by_channel(by_written, num_channels)
                + self._inner.sums_by_channel(by_inner, num_channels)
            )
        flops, params = saved
        return Complexity(params, flops)


class _Rows:
    """A matrix of counts whose rows are mostly zero: how often each call uses each channel."""

    def __init__(self, channels_by_call):
        """
        Args:
            channels_by_call: list with the channel numbers that each call uses, int arrays.
        """
        parts = [np.unique(channels, return_counts=True) for channels in channels_by_call]
        self._num_rows = len(parts)
        self._rows = np.repeat(np.arange(len(parts)), [len(channels) for channels, _ in parts])
        self._channels = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
        self._counts = np.concatenate([np.zeros(0), *(part[1] for part in parts)])

    def sums(self, values):
        """Returns the product of the matrix with the values of all channels, float64 [calls]."""
        weights = self._counts * values[self._channels]
        return np.bincount(self._rows, weights, minlength=self._num_rows)

    def sums_by_channel(self, values, num_channels):
        """Returns the product of the transposed matrix with values of all calls, float64
        [num_channels].
        """
        weights = self._counts * values[self._rows]
        return np.bincount(self._channels, weights, minlength=num_channels)[:num_channels]


def model_complexity(model, input_shape=None):
    """Returns the Complexity of a functional keras.Model, for inputs of this shape where the model
    leaves it open.

    Raises:
        EkgError: the model is not functional, or the size of its inputs is not known.
    """
    graph = Graph(model, input_shape)
    layout = groups.find(graph)
    return ComplexityTable(graph, layout).count(np.ones(layout.num_channels + 1))
