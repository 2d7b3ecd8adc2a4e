"""One record per layer kind: everything that pruning knows of a kind of layer.

Groups, complexity, cutting, landscape and criteria read these records and nothing else; so a new kind of layer is one more
record. A layer of a kind without a record closes the channels that it reads: they are never pruned.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import keras
from keras import layers

from ekg.errors import EkgError
from ekg.graph import flow, norms

IN, OUT = "in", "out"


@dataclasses.dataclass(frozen=True)
class Weight:
    """How a weight of a layer is laid out.

    Attributes:
        axes: what the index of each axis is: IN, a channel that the layer reads; OUT, one that it writes; None, neither.
        filter_axes: the axes whose indices together name one filter; none for a weight that is not a kernel.
    """
    axes: tuple[str | None, ...]
    filter_axes: tuple[int, ...] = ()

    def __post_init__(self):
        if any(axis not in (IN, OUT, None) for axis in self.axes):
            raise EkgError(f"`axes` must be IN, OUT or None each; received {self.axes}.")
        if not set(self.filter_axes) <= set(range(len(self.axes))):
            raise EkgError(f"`filter_axes` must be among the {len(self.axes)} axes; received {self.filter_axes}.")


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRecord:
    """What a layer kind means to pruning.

    Attributes:
        flow: how channels go through it: (ChannelFlow, Call) -> channels of the output; see ekg.graph.flow.
        weights: {name of the variable: Weight}. A layer that has others is treated as if its kind had no record.
        multiplies: names of the weights of which every entry makes one multiply-accumulate at each output position.
        resize: (configuration, number of output channels) -> the entries of the configuration that a cut changes.
        run: (layer, its variables, trainable first, args of the call, training, ExecutionOptions) -> (output, new
            non-trainable values), or None where the layer's own call serves. Pure.
        mixes: whether every output channel depends on all input channels through a weight with the axes IN and OUT; a gate
            stands before such a layer.
        keeps_zeros: whether a channel of zeros stays one, so that a gate may stand before or behind it.
    """
    flow: Callable
    weights: Mapping[str, Weight] = dataclasses.field(default_factory=dict)
    multiplies: tuple[str, ...] = ()
    resize: Callable | None = None
    run: Callable | None = None
    mixes: bool = False
    keeps_zeros: bool = False

    def __post_init__(self):
        unknown = [name for name in self.multiplies if name not in self.weights]
        if unknown:
            raise EkgError(f"`multiplies` names {unknown}, which `weights` does not describe.")
        if self.mixes and not any({IN, OUT} <= set(weight.axes) for weight in self.weights.values()):
            raise EkgError("`mixes` needs a weight with the axes IN and OUT in `weights`.")
        if self.mixes and self.weights[self.kernel].axes[-2:] != (IN, OUT):
            raise EkgError(f"`mixes` needs a kernel whose last axes are IN and OUT; {self.kernel!r} has "
                           f"{self.weights[self.kernel].axes}.")
        if self.mixes and self.resize is None:
            raise EkgError("`mixes` needs `resize`: a cut gives the layer fewer output channels.")

    @property
    def kernel(self):
        """Name of the weight that mixes channels."""
        return next(name for name, weight in self.weights.items() if {IN, OUT} <= set(weight.axes))


def positions(shape):
    """Returns at how many positions of an image a layer with this output shape, (batch, ..., channels), computes."""
    return math.prod(shape[1:-1])


# ---------------------------------------------------------------- kinds with weights

_VECTOR = Weight((OUT,))


def _run_convolution(layer, variables, args, _training, options):
    """Computes a convolution in another number format than that of its weights, or a strided one of single pixels.

    A 1x1 convolution with strides first takes every stride-th pixel: for the strided operation itself some of TensorFlow's
    CPU kernels give a wrong gradient of the kernel where it reads fewer than eight channels.
    """
    is_strided_pointwise = tuple(layer.kernel_size) == (1, 1) and max(layer.strides) > 1 and layer.groups == 1 and (
        layer.data_format == "channels_last")
    if options.dtype == "float32" and not is_strided_pointwise:
        return None
    x, *values = (keras.ops.cast(value, options.dtype) for value in (args[0], *variables))
    strides = layer.strides
    if is_strided_pointwise:
        x, strides = x[:, ::strides[0], ::strides[1]], (1, 1)
    y = keras.ops.conv(x, values[0], strides, layer.padding, layer.data_format, layer.dilation_rate)
    return layer.activation(y + values[1] if layer.use_bias else y), []


def _run_batch_norm(layer, variables, args, training, options):
    return norms.batch_norm(layer, variables, args[0], training, options)


_CONV = LayerRecord(flow.mix, {"kernel": Weight((None, None, IN, OUT), (3,)), "bias": _VECTOR}, ("kernel",),
                    lambda _, channels: {"filters": channels}, _run_convolution, mixes=True)
_GROUPED_CONV = LayerRecord(flow.close, {"kernel": Weight((None, None, None, OUT), (3,)), "bias": _VECTOR}, ("kernel",),
                            run=_run_convolution)
_DENSE = LayerRecord(flow.mix, {"kernel": Weight((IN, OUT), (1,)), "bias": _VECTOR}, ("kernel",),
                     lambda _, channels: {"units": channels}, mixes=True)
_DEPTHWISE_CONV = LayerRecord(flow.multiply_channels, {"kernel": Weight((None, None, IN, None), (2, 3)), "bias": _VECTOR},
                              ("kernel",))
# A batch norm costs 2·H·W·C, whether it has a scale and an offset or not.
_BATCH_NORM = LayerRecord(flow.carry_along_axis,
                          dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), _VECTOR),
                          ("moving_mean", "moving_variance"), run=_run_batch_norm)

# ---------------------------------------------------------------- kinds without weights

_CARRY, _MERGE = LayerRecord(flow.carry), LayerRecord(flow.merge)
_CARRY_ZEROS, _TILE_ZEROS = LayerRecord(flow.carry, keeps_zeros=True), LayerRecord(flow.tile, keeps_zeros=True)
_STACK = LayerRecord(flow.stack)
_RESHAPE = dataclasses.replace(
    _TILE_ZEROS, resize=lambda config, channels: {"target_shape": (*config["target_shape"][:-1], channels)})

# kind -> LayerRecord, or a function from a layer to it
_RECORDS = {
    layers.Conv2D: lambda layer: _CONV if layer.groups == 1 else _GROUPED_CONV,
    layers.Dense: _DENSE, layers.DepthwiseConv2D: _DEPTHWISE_CONV, layers.BatchNormalization: _BATCH_NORM,
    **dict.fromkeys((layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Rescaling), _CARRY),
    **dict.fromkeys((layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum), _MERGE),
    layers.Concatenate: _STACK,
    **dict.fromkeys((layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D, layers.MaxPooling2D,
                     layers.AveragePooling2D, layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D, layers.Dropout,
                     layers.SpatialDropout2D, layers.Identity), _CARRY_ZEROS),
    layers.Flatten: _TILE_ZEROS, layers.Reshape: _RESHAPE,
}


def register_layer(kind, record):
    """Says what a layer kind of one's own means to pruning; an earlier record of the same kind is replaced.

    Args:
        kind: the layer class itself; subclasses need records of their own.
        record: LayerRecord, or a function from a layer of that kind to its LayerRecord or None.

    Raises:
        EkgError: kind is no Keras layer class, or record is neither a LayerRecord nor a function.
    """
    if not (isinstance(kind, type) and issubclass(kind, layers.Layer)):
        raise EkgError(f"`kind` must be a subclass of keras.layers.Layer; received {kind!r}.")
    if not (isinstance(record, LayerRecord) or callable(record)):
        raise EkgError(f"`record` must be an ekg.LayerRecord, or a function from a layer to one; received {record!r}.")
    _RECORDS[kind] = record


def record_of(layer):
    """Returns the LayerRecord of a layer, or None if its kind has none or the layer has weights that it does not know."""
    record = _RECORDS.get(type(layer))
    record = record(layer) if record is not None and not isinstance(record, LayerRecord) else record
    if record is None or any(variable.name not in record.weights for variable in layer.weights):
        return None
    return record


def is_mixing(layer):
    """Returns whether each output channel of the layer depends on all input channels."""
    record = record_of(layer)
    return record is not None and record.mixes


def classifier_of(graph):
    """Returns the call that writes class logits, whose kernel keeps its norm when rows of it are removed; None if none does.

    That is a mixing layer of one position and several units, called once, whose output the network returns, maybe behind a
    softmax. What returns images, maps or a single number has no class logits.

    Args:
        graph: graph.calls.Graph.
    """
    producer = {call.output: call for call in graph.calls}
    call = producer.get(graph.output)
    while call is not None and _is_softmax(call.layer):
        call = producer.get(call.inputs[0])
    if call is None or not is_mixing(call.layer) or len(graph.shapes[call.output]) != 2 or graph.shapes[call.output][-1] < 2:
        return None
    return call if sum(other.layer is call.layer for other in graph.calls) == 1 else None


def check_logits(graph):
    """Raises EkgError if the network ends in a softmax or sigmoid: the losses here take logits.

    Args:
        graph: graph.calls.Graph.
    """
    last = next((call.layer for call in graph.calls if call.output == graph.output), None)
    squashes = (keras.activations.softmax, keras.activations.sigmoid)
    if type(last) is layers.Softmax or getattr(last, "activation", None) in squashes:
        raise EkgError(f"`model` {graph.model.name!r} returns probabilities, by its last layer {last.name!r}; take the "
                       "network without it, which returns logits.")


def _is_softmax(layer):
    return type(layer) is layers.Softmax or (
        type(layer) is layers.Activation and layer.activation is keras.activations.softmax)


def keeps_zeros(layer):
    """Returns whether a gate may stand before or behind the layer with the same effect."""
    record = record_of(layer)
    return record is not None and record.keeps_zeros
