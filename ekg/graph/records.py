"""What a layer kind means to pruning: one record a kind.

Groups, complexity, cutting, landscape and criteria read these records and nothing else; so a new
kind of layer is one more record. A layer of a kind without a record closes the channels that it
reads: they are never pruned.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping

import keras
import numpy as np

from ekg.errors import EkgError

IN, OUT, BACK = "in", "out", "back"


@dataclasses.dataclass(frozen=True)
class Weight:
    """How a weight of a layer is laid out.

    Attributes:
        axes: what the index of each axis is: IN, a channel that the layer reads; OUT, one that it
            writes; None, neither. Where an axis is longer than there are channels, each stands for
            as many neighbouring indices; where it is shorter, as in a layer that works in groups,
            for one index of every group. BACK is a channel that the layer writes and reads again,
            as a recurrent one does.
        filter_axes: the axes whose indices together name one filter; none for a weight that is not
            a kernel.
        each_channel: whether every output channel is multiplied by all entries, though no axis is
            that of the channels, as by a slope that all share.
        is_tiled: whether a longer axis of OUT holds all channels several times, one row of them
            after the other, as the gates of an LSTM, and not each channel's indices side by side.
    """

    axes: tuple[str | None, ...]
    filter_axes: tuple[int, ...] = ()
    each_channel: bool = False
    is_tiled: bool = False

    def __post_init__(self):
        if any(axis not in (IN, OUT, BACK, None) for axis in self.axes):
            raise EkgError(f"`axes` must be IN, OUT, BACK or None each; received {self.axes}.")
        if not set(self.filter_axes) <= set(range(len(self.axes))):
            raise EkgError(
                f"`filter_axes` must be among the {len(self.axes)} axes; received "
                f"{self.filter_axes}."
            )


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
        ranks: number of axes of the two, with that of the batch.
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

    In a graph the parts stand in the layer's place, so that channels inside it can go. A cut makes
    one smaller layer of them again.

    Attributes:
        held: {name of a part that the layer itself holds: the attribute that holds it}.
    """

    held = types.MappingProxyType({})

    def call(self, *args, **kwargs):
        """Returns what the layer returns for symbolic tensors, computed by calls of the parts."""
        raise NotImplementedError

    def changes(self, kept):
        """Returns {attribute of the layer: value} that a cut changes; "cell.units" is one inside.

        Args:
            kept: {name of a part: Kept of its call}.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRecord:
    """What a layer kind means to pruning.

    Attributes:
        flow: how channels go through it: (ChannelFlow, Call) -> channels of the output; see
            ekg.graph.flow.
        weights: {name: Weight}, where the name is that of the layer's attribute or of the variable.
            A layer that has others is treated as if its kind had no record.
        multiplies: names of the weights of which every entry makes one multiply-accumulate at each
            position.
        positions: (layer, shape read, shape written, axis of the channels in both) -> number of
            positions at which it computes; None stands for those of what it writes.
        flops: (layer, list of shapes read, shape written) -> multiply-accumulates, of a kind whose
            channels never change.
        products: (layer, list of shapes read, shape written) -> multiply-accumulates without a
            weight, of which every output channel makes the same share.
        parts: (layer, arguments of the call by name) -> Parts that stand in its place, or None.
        resize: (layer, Kept) -> {attribute: value} of the layer that a cut changes.
        arguments: (call, its args, its kwargs, Kept) -> (args, kwargs) of the call that a cut makes
            in its place.
        run: (layer, its variables, trainable first, args of the call, Context) -> (output, new
            non-trainable values), or None where the layer's own call serves. Pure.
        mixes: whether every output channel depends on all input channels through a weight with the
            axes IN and OUT; a gate stands before such a layer.
        keeps_zeros: whether a channel of zeros stays one, so that a gate may stand before or behind
            it.
        patches: (layer, what it reads) -> patches of it, of which the layer's output before its
            activation is a linear function; see ekg.graph.patches. None: repair leaves the layer as
            it was cut.
        asks_mask: whether what it does to a channel depends on which others there are; `run` then
            gets Context.kept.
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
    mixes: bool = False
    keeps_zeros: bool = False
    asks_mask: bool = False

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
        if self.patches is not None and not any(
            weight.filter_axes for weight in self.weights.values()
        ):
            raise EkgError("`patches` needs a kernel, a weight with `filter_axes` in `weights`.")
        if self.asks_mask and self.run is None:
            raise EkgError("`asks_mask` needs `run`, which gets the mask.")

    @property
    def recurrent(self):
        """Name of the weight through which the layer reads what it wrote, or None."""
        return next((name for name, weight in self.weights.items() if BACK in weight.axes), None)

    @property
    def kernel(self):
        """Name of the weight that mixes channels."""
        return next(name for name, weight in self.weights.items() if {IN, OUT} <= set(weight.axes))


# kind, or the name of one that Keras does not publish -> LayerRecord, or a function from a layer to
# it. The modules that describe Keras' kinds fill it: ekg.graph.layers and ekg.graph.operations.
RECORDS = {}


def register_layer(kind, record):
    """Says what a layer kind of one's own means to pruning; an earlier record of the same kind is
    replaced.

    Args:
        kind: the layer class itself; subclasses need records of their own.
        record: LayerRecord, or a function from a layer of that kind to its LayerRecord or None.

    Raises:
        EkgError: kind is no Keras layer class, or record is neither a LayerRecord nor a function.
    """
    if not (isinstance(kind, type) and issubclass(kind, keras.layers.Layer)):
        raise EkgError(f"`kind` must be a subclass of keras.layers.Layer; received {kind!r}.")
    if not (isinstance(record, LayerRecord) or callable(record)):
        raise EkgError(
            f"`record` must be an ekg.LayerRecord, or a function from a layer to one; received "
            f"{record!r}."
        )
    RECORDS[kind] = record


def record_of(layer):
    """Returns the LayerRecord of a layer, or None if its kind has none or the layer has weights
    that it does not know.
    """
    record = RECORDS.get(type(layer)) or RECORDS.get(published_name(type(layer)))
    record = record(layer) if record is not None and not isinstance(record, LayerRecord) else record
    if record is None or record.flops is None and None in weight_names(layer, record):
        return None
    return record


def has_record(layer):
    """Returns whether the kind of a layer is described, if only as one that closes what it
    reads.
    """
    return type(layer) in RECORDS or published_name(type(layer)) in RECORDS


def published_name(kind):
    """Returns the name of a kind: keras.ops.Add for what stands in a graph where keras.ops.add was
    called.
    """
    module = "keras.ops" if kind.__module__.startswith("keras.src.ops.") else kind.__module__
    return f"{module}.{kind.__name__}"


def parts_of(layer, kwargs):
    """Returns the Parts of a layer called with these arguments by name, or None if it has none."""
    record = RECORDS.get(type(layer))
    record = record(layer) if record is not None and not isinstance(record, LayerRecord) else record
    return None if record is None or record.parts is None else record.parts(layer, kwargs)


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


def kernel_of(layer):
    """Returns the variable that mixes channels, of a mixing layer."""
    record = record_of(layer)
    return next(
        variable
        for variable, name in zip(layer.weights, weight_names(layer, record))
        if name == record.kernel
    )


def fitted_of(layer):
    """Returns (variable, Weight) of the kernel that the patches of a layer's record belong to."""
    record = record_of(layer)
    name = (
        record.kernel
        if record.mixes
        else next(name for name, weight in record.weights.items() if weight.filter_axes)
    )
    return next(
        (variable, record.weights[name])
        for variable, own in zip(layer.weights, weight_names(layer, record))
        if own == name
    )


def is_mixing(layer):
    """Returns whether each output channel of the layer depends on all input channels."""
    record = record_of(layer)
    return record is not None and record.mixes


def keeps_zeros(layer):
    """Returns whether a gate may stand before or behind the layer with the same effect."""
    record = record_of(layer)
    return record is not None and record.keeps_zeros


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
