"""How each layer type behaves under pruning: what a LayerRecord says.

Groups, complexity, cutting, slimming, folding, latency, landscape, criteria and parameter files
read these records and nothing else; a new layer type is one more record. A layer without a record
closes the channels that it reads: they are never pruned.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping

import keras
import numpy as np

from ekg.errors import EkgError

IN, OUT, BACK, WITHIN = "in", "out", "back", "within"


@dataclasses.dataclass(frozen=True)
class Weight:
    """How a weight of a layer is laid out.

    Attributes:
        axes: what the index of each axis is: IN, a channel that the layer reads; OUT, one that it
            writes; None, neither. Where an axis is longer than there are channels, each channel has
            as many neighbouring indices; where it is shorter, as in a layer that works in groups,
            one index of every group. BACK is a channel that the layer writes and reads again, as a
            recurrent layer does. WITHIN, after IN or OUT, is an index within each of these
            channels, as within a head; the second tensor that the layer reads has these indices as
            its channels.
        filter_axes: the axes whose indices together name one filter; none for a weight that is not
            a kernel.
        each_channel: whether every output channel is multiplied by all entries, though no axis is
            the channels', as by a slope that all share.
        is_tiled: whether a longer axis of OUT holds all channels several times, one row after the
            other, as the gates of an LSTM, and not each channel's indices side by side.
        file_name: its name in a parameter file; None for the variable's own.
        file_rank: number of its axes in a parameter file, the additional ones first and of length
            1; None for the variable's own.
    """

    axes: tuple[str | None, ...]
    filter_axes: tuple[int, ...] = ()
    each_channel: bool = False
    is_tiled: bool = False
    file_name: str | None = None
    file_rank: int | None = None

    def __post_init__(self):
        if any(axis not in (IN, OUT, BACK, WITHIN, None) for axis in self.axes):
            raise EkgError(
                f"`axes` must be IN, OUT, BACK, WITHIN or None each; received {self.axes}."
            )
        if WITHIN in self.axes and self.within is None:
            raise EkgError(f"`axes` may have one WITHIN, after IN or OUT; received {self.axes}.")
        if not set(self.filter_axes) <= set(range(len(self.axes))):
            raise EkgError(
                f"`filter_axes` must be among the {len(self.axes)} axes; received "
                f"{self.filter_axes}."
            )

    @property
    def within(self) -> str | None:
        """IN or OUT, whose channels have the indices of an axis WITHIN; None without one."""
        if self.axes.count(WITHIN) != 1:
            return None
        before = self.axes[: self.axes.index(WITHIN)][-1:]
        return before[0] if before in ((IN,), (OUT,)) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """The channels of one call that a sub-network keeps.

    Attributes:
        inputs: for every tensor that the call reads the kept channels, int array in ascending
            order.
        outputs: likewise for every tensor that it writes.
        axes: axis of the channels in the first tensor that it reads and in the first that it
            writes, or None.
        sizes: number of channels of the two before the cut.
        ranks: number of axes of the two, including the batch.
        is_cut: whether a tensor that it reads or writes has fewer channels than before.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    axes: tuple[int | None, int | None]
    sizes: tuple[int, int]
    ranks: tuple[int, int]
    is_cut: bool

    @property
    def input(self):
        """Kept channels of the first tensor that the call reads."""
        return self.inputs[0]

    @property
    def output(self):
        """Kept channels of the first tensor that the call writes."""
        return self.outputs[0]

    @property
    def axis(self):
        """Axis of the channels in the first tensor that the call writes."""
        return self.axes[1]


@dataclasses.dataclass(frozen=True)
class Context:
    """How a layer is to be computed.

    Attributes:
        training: whether batch norms use the statistics of the batch.
        options: execute.ExecutionOptions.
        kept: mask of the channels that the layer reads, float32 [channels]; None keeps all.
    """

    training: bool
    options: object
    kept: object = None


class Parts:
    """How one layer computes through smaller ones, each of which has a record of its own.

    In a graph the parts take the layer's place, so that channels inside it can go. A cut makes one
    smaller layer of them again.

    Attributes:
        held: {name of a part that the layer itself holds: the attribute that holds it}.
    """

    held: Mapping[str, str] = types.MappingProxyType({})

    def call(self, *args, **kwargs):
        """Returns what the layer returns for symbolic tensors, computed by calls of the parts."""
        raise NotImplementedError

    def changes(self, kept):
        """Returns {attribute of the layer: value} that a cut changes; "cell.units" is one inside.

        Args:
            kept: {name of a part: Kept of its call}.
        """
        raise NotImplementedError

    def factors(self, _kept):
        """Returns {name of a part: factor of all its weights} where a cut changes more than their
        sizes; see changes().
        """
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRecord:
    """How a layer type behaves under pruning.

    Attributes:
        flow: how channels go through it: (ChannelFlow, Call) -> channels of the output; see
            ekg.flow.
        weights: {name: Weight}, by the layer's attribute or the name of the variable. A layer with
            other weights is treated as if its type had no record.
        multiplies: names of the weights of which every entry makes one multiply-accumulate at each
            position.
        positions: (layer, shape read, shape written, axis of the channels in both) -> number of
            positions at which it computes; None counts the positions that it writes.
        flops: (layer, list of shapes read, shape written) -> multiply-accumulates, of a kind whose
            channels never change.
        products: (layer, list of shapes read, shape written) -> multiply-accumulates without a
            weight, of which every output channel makes the same share; or {argument: such a
            number} where each channel of a tensor that the layer reads as this argument makes
            the same share, too.
        parts: (layer, arguments of the call by name) -> Parts that take its place, or None.
        resize: (layer, Kept) -> {attribute: value} of the layer that a cut changes.
        arguments: (call, its args, its kwargs, Kept) -> (args, kwargs) of the call that a cut makes
            in its place.
        run: (layer, its variables, trainable first, args of the call, Context) -> (output, new
            non-trainable values), or None where the layer's own call serves. Pure.
        rows: (Call, {tensor number: shape}, {tensor number: rows of the batch per example}) -> rows
            of the batch per example in what it writes, 0 for a weight; None: as many as in what it
            reads.
        centred: (layer, array that it reads, training) -> (the array, axes over which it takes a
            mean away), or None where it takes none away; see ekg.testing.
        mixes: whether every output channel depends on all input channels through a weight with the
            axes IN and OUT; a gate precedes such a layer.
        keeps_zeros: whether a channel of zeros stays one, so that a gate may precede or follow it.
        silent: whether it writes its activation of its bias alone, or of zeros if it has no `bias`,
            where its first tensor holds nothing but zeros; then all channels that it reads may go.
        patches: (layer, what it reads) -> patches of it, of which the layer's output before its
            activation is a linear function; see ekg.graph.patches. None: repair leaves the layer as
            it was cut.
        begins: whether it writes channels of its own without mixing those that it reads, as an
            embedding does.
        asks_mask: whether its effect on a channel depends on which others there are; `run` then
            gets Context.kept.
        fuses_with_norm: whether its output, but for an activation, is linear in its weights: one
            kernel, and maybe a bias with an entry per filter. A batch norm that follows is then
            folded into it for deployment.
        keeps_norm: whether slimming also rescales its kernel to the norm that it had before the
            cut, where a batch norm follows and makes up for the factor.
        joins_previous: whether runtimes compute it together with the layer before it, as an
            activation.
        joins_next: whether runtimes compute it together with the layer after it, as a padding.
        is_free: whether it takes no time in inference.
    """

    flow: Callable
    weights: Mapping[str, Weight] = dataclasses.field(default_factory=dict)
    multiplies: tuple[str, ...] = ()
    positions: Callable | None = None
    flops: Callable | None = None
    products: Callable | None = None
    parts: Callable | None = None
    resize: Callable | None = None
    arguments: Callable | None = None
    run: Callable | None = None
    patches: Callable | None = None
    rows: Callable | None = None
    centred: Callable | None = None
    mixes: bool = False
    keeps_zeros: bool = False
    silent: bool = False
    begins: bool = False
    asks_mask: bool = False
    fuses_with_norm: bool = False
    keeps_norm: bool = False
    joins_previous: bool = False
    joins_next: bool = False
    is_free: bool = False

    def __post_init__(self):
        unknown = [name for name in self.multiplies if name not in self.weights]
        if unknown:
            raise EkgError(f"`multiplies` names {unknown}, which `weights` does not describe.")
        if self.mixes and not any(
            {IN, OUT} <= set(weight.axes) for weight in self.weights.values()
        ):
            raise EkgError("`mixes` needs a weight with the axes IN and OUT in `weights`.")
        if self.mixes and self.resize is None:
            raise EkgError("`mixes` needs `resize`: a cut gives the layer fewer output channels.")
        if self.silent and not self.mixes:
            raise EkgError("`silent` needs `mixes`: it is about all channels that are mixed.")
        if self.patches is not None and not any(
            weight.filter_axes for weight in self.weights.values()
        ):
            raise EkgError("`patches` needs a kernel, a weight with `filter_axes` in `weights`.")
        if self.asks_mask and self.run is None:
            raise EkgError("`asks_mask` needs `run`, which gets the mask.")
        kernels = [name for name, weight in self.weights.items() if weight.filter_axes]
        if self.fuses_with_norm and (len(kernels) != 1 or len(self.weights) > 2):
            raise EkgError("`fuses_with_norm` needs `weights` of one kernel and at most a bias.")
        if self.keeps_norm and not self.fuses_with_norm:
            raise EkgError(
                "`keeps_norm` needs `fuses_with_norm`: the norm makes up for the factor."
            )

    @property
    def recurrent(self) -> str | None:
        """Name of the weight through which the layer reads what it wrote, or None."""
        return next((name for name, weight in self.weights.items() if BACK in weight.axes), None)

    @property
    def within(self) -> str | None:
        """IN or OUT, whose channels have inner ones with a group of their own, or None; see
        Weight.
        """
        return next((weight.within for weight in self.weights.values() if weight.within), None)

    @property
    def kernel(self) -> str:
        """Name of the weight that mixes channels."""
        return next(name for name, weight in self.weights.items() if {IN, OUT} <= set(weight.axes))

    @property
    def filter_kernel(self) -> str:
        """Name of the kernel whose entries make the filters."""
        if self.mixes:
            return self.kernel
        return next(name for name, weight in self.weights.items() if weight.filter_axes)


def weight_names(layer, record):
    """Returns the name in the record of each of layer.weights, None where it has none.

    A weight goes by the layer's attribute that holds it; by its own name only if that is the name
    of one weight alone.
    """
    if not getattr(layer, "weights", ()):
        return []
    known = {
        id(value): name
        for name in record.weights
        for value in [getattr(layer, name, None)]
        if isinstance(value, keras.Variable)
    }
    own = [variable.name for variable in layer.weights]
    return [
        known.get(
            id(variable),
            variable.name
            if variable.name in record.weights
            and own.count(variable.name) == 1
            and variable.name not in known.values()
            else None,
        )
        for variable in layer.weights
    ]


def weights_of(layer, record):
    """Returns {id of a variable of the layer: its Weight in the record}."""
    return {
        id(variable): record.weights[name]
        for variable, name in zip(layer.weights, weight_names(layer, record))
        if name is not None
    }


def kept_indices(kept, num_channels, size, is_tiled=False):
    """Returns the kept indices of an axis of this size whose channels these are.

    Args:
        kept: kept channels, ascending int array.
        num_channels: number of channels before the cut.
        size: length of the axis: a multiple of num_channels, or, in a layer that works in groups, a
            part of it.
        is_tiled: see Weight.
    """
    if is_tiled:
        return (np.arange(size // num_channels)[:, None] * num_channels + kept).reshape(-1)
    if size >= num_channels:
        repeat = size // max(num_channels, 1)
        return (kept[:, None] * repeat + np.arange(repeat)).reshape(-1)
    return kept[kept < size]


def spatial_size(shape, axis):
    """Returns the number of positions of an image of this shape, batch first, with its channels
    along this axis.
    """
    return math.prod(size for i, size in enumerate(shape) if i not in (0, axis))
