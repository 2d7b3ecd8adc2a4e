"""The records of keras.ops functions and Python operators in a functional graph."""

import math
from fractions import Fraction

import keras
import numpy as np

from ekg.graph import flow
from ekg.graph.flow import Channels
from ekg.graph.records import LayerRecord
from ekg.graph.steps import Entry, Ref

# ---------------------------------------------------------------- rules


def _carry(channel_flow, call):
    """Carries one tensor element by element; other arguments are numbers."""
    return (
        channel_flow.channels[call.inputs[0]]
        if len(call.inputs) == 1
        else flow.close(channel_flow, call)
    )


def _clip(channel_flow, call):
    bounds = call.layer.x_min, call.layer.x_max
    return (
        flow.close(channel_flow, call) if any(map(np.ndim, bounds)) else _carry(channel_flow, call)
    )


def _divide(channel_flow, call):
    """Closes a division by a tensor: a masked channel would divide by zero."""
    is_tensor = isinstance(call.args[1] if len(call.args) > 1 else call.kwargs.get("x2"), Ref)
    return flow.close(channel_flow, call) if is_tensor else flow.merge(channel_flow, call)


def _axes(call, rank, name="axis"):
    """Returns the axes that an operation names, counted from 0; all if it names none."""
    axes = getattr(call.layer, name)
    axes = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    return [axis % rank for axis in axes]


def _names_batch(channel_flow, call, axes):
    """Returns whether the axis of the examples is one of these."""
    return any(channel_flow.is_batch(call.inputs[0], axis) for axis in axes)


def _reduce(channel_flow, call):
    """Carries channels through a mean, sum or extreme over positions."""
    channels, rank = channel_flow.channels[call.inputs[0]], len(channel_flow.shapes[call.inputs[0]])
    axes = _axes(call, rank)
    if (
        channels.axis is None
        or channels.axis in axes
        or _names_batch(channel_flow, call, axes)
        or getattr(call.layer, "initial", None) is not None
    ):
        return flow.close(channel_flow, call)
    return Channels(
        channels.labels,
        channels.axis - (0 if call.layer.keepdims else sum(a < channels.axis for a in axes)),
    )


def _expand(channel_flow, call):
    channels, rank = channel_flow.channels[call.inputs[0]], len(channel_flow.shapes[call.output])
    axes = _axes(call, rank)
    if channels.axis is None or _names_batch(channel_flow, call, axes):
        return flow.close(channel_flow, call)
    return Channels(
        channels.labels, [axis for axis in range(rank) if axis not in axes][channels.axis]
    )


def _squeeze(channel_flow, call):
    channels, shape = channel_flow.channels[call.inputs[0]], channel_flow.shapes[call.inputs[0]]
    axes = (
        [i for i, size in enumerate(shape) if size == 1]
        if call.layer.axis is None
        else _axes(call, len(shape))
    )
    if (
        call.layer.axis is None  # a last channel would be squeezed, too
        or channels.axis is None
        or channels.axis in axes
        or _names_batch(channel_flow, call, axes)
    ):
        return flow.close(channel_flow, call)
    return Channels(channels.labels, channels.axis - sum(axis < channels.axis for axis in axes))


def _transpose(channel_flow, call):
    rank = len(channel_flow.shapes[call.inputs[0]])
    axes = call.layer.axes if call.layer.axes is not None else range(rank)[::-1]
    return flow.move_axes(channel_flow, call, [axis % rank for axis in axes])


def _swap(channel_flow, call):
    order = list(range(len(channel_flow.shapes[call.inputs[0]])))
    first, second = call.layer.axis1, call.layer.axis2
    order[first], order[second] = order[second], order[first]
    return flow.move_axes(channel_flow, call, order)


def _move(channel_flow, call):
    rank = len(channel_flow.shapes[call.inputs[0]])
    source, destination = (
        [axis % rank for axis in axes] for axes in (call.layer.source, call.layer.destination)
    )
    order = [axis for axis in range(rank) if axis not in source]
    for to, axis in sorted(zip(destination, source)):
        order.insert(to, axis)
    return flow.move_axes(channel_flow, call, order)


def _pad(channel_flow, call):
    """Carries channels through a padding, unless of the channels themselves or the batch."""
    channels, rank = channel_flow.channels[call.inputs[0]], len(channel_flow.shapes[call.inputs[0]])
    widths = [tuple(pair) for pair in call.layer.pad_width]
    widths = widths * rank if len(widths) == 1 else widths
    if channels.axis is None or any(widths[axis] != (0, 0) for axis in (0, channels.axis)):
        return flow.close(channel_flow, call)
    return channels


def _split(channel_flow, call):
    """Splits channels into parts of equal size that shrink together; another axis leaves them as
    they are.
    """
    channels, rank = channel_flow.channels[call.inputs[0]], len(channel_flow.shapes[call.inputs[0]])
    axis = call.layer.axis % rank
    if channels.axis is None or axis == 0:
        return flow.close(channel_flow, call)
    if axis != channels.axis:
        return [channels] * len(call.outputs)
    size = channel_flow.shapes[call.output][axis]
    if any(channel_flow.shapes[number][axis] != size for number in call.outputs):
        return flow.close(channel_flow, call)
    _tie(channel_flow, channels.labels, size)
    return [
        Channels(channels.labels[i * size : (i + 1) * size], axis) for i in range(len(call.outputs))
    ]


def _tie(channel_flow, labels, size):
    """Ties all blocks of this many neighbouring channels."""
    blocks = labels.reshape(-1, size)
    for block in blocks[1:]:
        channel_flow.merge(blocks[0], block)


def _key_of(call):
    key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    return list(key) if isinstance(key, (tuple, list)) else [key]


def _expanded(key, rank):
    """Returns the entries of an index by axis, with slices in place of the ellipsis, and entries
    for new axes.
    """
    named = sum(entry is not None and entry is not Ellipsis for entry in key)
    rest = [slice(None)] * (rank - named)
    if Ellipsis not in key:
        return [*key, *rest]
    place = key.index(Ellipsis)
    return [*key[:place], *rest, *key[place + 1 :]]


def _get_item(channel_flow, call):
    """Takes one of several blocks of channels of equal size, which shrink together; closes other
    slices.
    """
    channels, shape = channel_flow.channels[call.inputs[0]], channel_flow.shapes[call.inputs[0]]
    key = _key_of(call)
    if channels.axis is None or not all(
        entry is None or entry is Ellipsis or isinstance(entry, (int, slice)) for entry in key
    ):
        return flow.close(channel_flow, call)
    axis, target, labels = -1, -1, None
    for entry in _expanded(key, len(shape)):
        axis += entry is not None
        target += not isinstance(entry, int)
        is_batch = channel_flow.is_batch(call.inputs[0], axis)
        if entry is None or not (is_batch or axis == channels.axis):
            continue
        if is_batch and entry != slice(None) or isinstance(entry, int):
            return flow.close(channel_flow, call)
        if axis == channels.axis:
            start, stop, step = entry.indices(len(channels.labels))
            size = stop - start
            if step != 1 or size < 1 or len(channels.labels) % size or start % size:
                return flow.close(channel_flow, call)
            _tie(channel_flow, channels.labels, size)
            labels, new_axis = channels.labels[start:stop], target
    return Channels(labels, new_axis)


def _first(call, name):
    """Returns the argument of this name, the second one of an operation's call."""
    return call.args[1] if len(call.args) > 1 else call.kwargs[name]


def _roll(channel_flow, call):
    """Carries channels through a shift along other axes than theirs and the batch's."""
    channels, rank = channel_flow.channels[call.inputs[0]], len(channel_flow.shapes[call.inputs[0]])
    axes = _axes(call, rank)
    if channels.axis in (None, *axes) or _names_batch(channel_flow, call, axes):
        return flow.close(channel_flow, call)
    return channels


def _repeat_tiles(channel_flow, call):
    """Carries channels through a repetition along other axes than theirs and the batch's."""
    channels, shape = channel_flow.channels[call.inputs[0]], channel_flow.shapes[call.inputs[0]]
    repeats = call.layer.repeats
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    repeats = [1] * (len(shape) - len(repeats)) + repeats
    if channels.axis is None or repeats[channels.axis - len(shape)] != 1:
        return flow.close(channel_flow, call)
    if channel_flow.is_batch(call.inputs[0], 0) and repeats[: len(repeats) - len(shape) + 1] != [1]:
        return flow.close(channel_flow, call)
    return Channels(channels.labels, channels.axis + len(repeats) - len(shape))


def _broadcast(channel_flow, call):
    """Carries channels through a repetition up to a shape, along other axes than theirs."""
    channels, shape = channel_flow.channels[call.inputs[0]], channel_flow.shapes[call.inputs[0]]
    target = channel_flow.shapes[call.output]
    if channels.axis is None or channel_flow.is_batch(call.inputs[0], 0):
        return flow.close(channel_flow, call)
    axis = channels.axis - len(shape) + len(target)
    if target[axis] != len(channels.labels):
        return flow.close(channel_flow, call)
    return Channels(channels.labels, axis)


def _slice(channel_flow, call):
    """Carries channels through a slice of other axes."""
    channels, shape = channel_flow.channels[call.inputs[0]], channel_flow.shapes[call.inputs[0]]
    target, start = channel_flow.shapes[call.output], _first(call, "start_indices")
    if channels.axis is None or len(call.inputs) > 1 or np.ndim(start) != 1:
        return flow.close(channel_flow, call)
    whole = {channels.axis} | ({0} if channel_flow.is_batch(call.inputs[0], 0) else set())
    if any(start[axis] != 0 or target[axis] != shape[axis] for axis in whole):
        return flow.close(channel_flow, call)
    return Channels(channels.labels, channels.axis)


def _take(channel_flow, call):
    """Carries channels of a table whose rows are looked up; other tables close."""
    channels, shape = channel_flow.channels[call.inputs[0]], channel_flow.shapes[call.inputs[0]]
    is_table = isinstance(call.args[0], Ref)
    if channels.axis is None or call.layer.axis is None or not is_table:
        return flow.close(channel_flow, call)
    axis, rank = call.layer.axis % len(shape), len(channel_flow.shapes[call.output])
    if axis == channels.axis or channel_flow.is_batch(call.inputs[0], axis):
        return flow.close(channel_flow, call)
    for number in call.inputs[1:]:
        channel_flow.close(channel_flow.channels[number].labels, f"index of {flow.describe(call)}")
    moved = rank - len(shape) if axis < channels.axis else 0
    return Channels(channels.labels, channels.axis + moved)


# ---------------------------------------------------------------- products of two tensors


def _matmul_flops(_operation, shapes, written):
    """Multiply-accumulates of a matrix product, as many per number as it has rows to sum."""
    return math.prod(written[1:]) * (shapes[0][-1] or 1)


def _einsum_flops(operation, shapes, _written):
    """Multiply-accumulates of a sum of products: one for each index of all operands together."""
    reads = operation.subscripts.replace(" ", "").split("->")[0].split(",")
    sizes = {}
    for labels, shape in zip(reads, shapes):
        before, _, after = labels.partition("...")
        sizes |= dict(zip(before, shape)) | dict(zip(after[::-1], shape[::-1]))
        between = shape[len(before) : len(shape) - len(after)] if "..." in labels else ()
        sizes |= {f"...{len(between) - i}": size for i, size in enumerate(between)}
    return math.prod(size for size in sizes.values() if size)


def _attention_flops(_operation, shapes, _written):
    """Both products of attention, of queries, keys and values [batch, positions, heads, size]."""
    query, key, value = shapes[:3]
    return query[1] * key[1] * query[2] * (query[3] + value[3])


# ---------------------------------------------------------------- rows of the batch per example


def reshaped_rows(call, shapes, rows):
    """Returns the rows of the batch per example after a reshape, which may fold positions into
    it.
    """
    number = call.inputs[0]
    sizes = [shapes[number][1:], shapes[call.output][1:]]
    if any(None in shape for shape in sizes):
        return rows[number]
    return rows[number] * Fraction(math.prod(sizes[0]), math.prod(sizes[1]))


def stacked_rows(call, shapes, rows):
    """Returns the rows of the batch per example after a concatenation."""
    several = [rows[number] for number in call.inputs]
    is_batch = call.layer.axis % len(shapes[call.output]) == 0
    return sum(several) if is_batch else max(several)


def _split_rows(call, shapes, rows):
    number = call.inputs[0]
    is_batch = call.layer.axis % len(shapes[call.output]) == 0
    return rows[number] / len(call.outputs) if is_batch else rows[number]


# ---------------------------------------------------------------- what a cut changes


def _resize_reshape(operation, kept):
    shape = list(operation.newshape)
    if kept.axis is not None and shape[kept.axis] != -1:
        shape[kept.axis] = len(kept.output)
    return {"newshape": tuple(shape)} if tuple(shape) != tuple(operation.newshape) else {}


def _resize_shape(operation, kept):
    """Returns the shape of a slice or a repetition with as many channels as are kept."""
    shape = list(operation.shape)
    if kept.axis is not None and shape[kept.axis] != -1:
        shape[kept.axis] = len(kept.output)
    return {"shape": tuple(shape)} if tuple(shape) != tuple(operation.shape) else {}


def _resize_split(operation, kept):
    if isinstance(operation.indices_or_sections, int):
        return {}
    edges = np.cumsum([len(part) for part in kept.outputs])[:-1]
    is_cut = sum(map(len, kept.outputs)) != kept.sizes[0] and kept.sizes[0] != kept.sizes[1]
    return {"indices_or_sections": tuple(int(edge) for edge in edges)} if is_cut else {}


def slice_constants(call, args, kwargs, kept):
    """Removes the entries of removed channels from arrays that are combined with a tensor."""
    from_end = None if kept.axis is None else kept.axis - kept.ranks[1]

    def sliced(value):
        if isinstance(value, keras.KerasTensor) or not hasattr(value, "shape") or from_end is None:
            return value
        shape = tuple(value.shape)
        if (
            len(shape) < -from_end
            or shape[from_end] != kept.sizes[1]
            or len(kept.output) == kept.sizes[1]
        ):
            return value
        return np.take(np.asarray(value), kept.output, len(shape) + from_end)

    return keras.tree.map_structure(sliced, (args, kwargs))


def _slice_key(call, args, kwargs, kept):
    """Moves a slice of the channels so that it takes the same block as before."""
    key = _expanded(_key_of(call), kept.ranks[0])
    axis = -1
    for i, entry in enumerate(key):
        axis += entry is not None
        if isinstance(entry, slice) and axis == kept.axes[0] and len(kept.output) != kept.sizes[1]:
            start, stop, _ = entry.indices(kept.sizes[0])
            block, size = start // (stop - start), len(kept.output)
            if (start, stop) != (0, kept.sizes[0]):
                key[i] = slice(block * size, (block + 1) * size)
    key = tuple(key)
    return ((args[0], key), kwargs) if len(args) > 1 else (args, {**kwargs, "key": key})


# ---------------------------------------------------------------- table

_ELEMENTWISE = (
    "Relu",
    "Relu6",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Gelu",
    "Silu",
    "HardSilu",
    "Sigmoid",
    "HardSigmoid",
    "LogSigmoid",
    "Tanh",
    "HardTanh",
    "Softplus",
    "Softsign",
    "Squareplus",
    "SoftShrink",
    "HardShrink",
    "TanhShrink",
    "Threshold",
    "SparsePlus",
    "SparseSigmoid",
    "Exp",
    "Cast",
    "ConvertToTensor",
    "StopGradient",
)
# Runtimes compute these together with the layer before.
_FUSED = frozenset(("Relu", "Relu6", "Silu", "Sigmoid", "HardSilu", "HardSigmoid", "Gelu", "Tanh"))
_ELEMENTWISE_ZEROS = ("Abs", "Absolute", "Negative", "Square")
OPERATIONS = {
    f"keras.ops.{name}": record
    for name, record in {
        **{name: LayerRecord(_carry, joins_previous=name in _FUSED) for name in _ELEMENTWISE},
        **dict.fromkeys(_ELEMENTWISE_ZEROS, LayerRecord(_carry, keeps_zeros=True)),
        "Clip": LayerRecord(_clip),
        **dict.fromkeys(
            ("Add", "Subtract", "Multiply", "Maximum", "Minimum"),
            LayerRecord(flow.merge, arguments=slice_constants),
        ),
        **dict.fromkeys(("Divide", "TrueDivide"), LayerRecord(_divide, arguments=slice_constants)),
        "Concatenate": LayerRecord(flow.stack, rows=stacked_rows),
        **dict.fromkeys(("Mean", "Sum", "Max", "Min"), LayerRecord(_reduce, keeps_zeros=True)),
        "Reshape": LayerRecord(
            flow.tile, keeps_zeros=True, resize=_resize_reshape, rows=reshaped_rows
        ),
        "Transpose": LayerRecord(_transpose, keeps_zeros=True),
        "Swapaxes": LayerRecord(_swap, keeps_zeros=True),
        "Moveaxis": LayerRecord(_move, keeps_zeros=True),
        "ExpandDims": LayerRecord(_expand, keeps_zeros=True),
        "Squeeze": LayerRecord(_squeeze, keeps_zeros=True),
        "Pad": LayerRecord(_pad),
        "Split": LayerRecord(_split, resize=_resize_split, rows=_split_rows),
        "GetItem": LayerRecord(_get_item, arguments=_slice_key),
        "Roll": LayerRecord(_roll, keeps_zeros=True),
        "Tile": LayerRecord(_repeat_tiles, keeps_zeros=True),
        "BroadcastTo": LayerRecord(_broadcast, keeps_zeros=True, resize=_resize_shape),
        "Slice": LayerRecord(_slice, keeps_zeros=True, resize=_resize_shape),
        "Take": LayerRecord(_take),
        "Matmul": LayerRecord(flow.close, flops=_matmul_flops),
        "Einsum": LayerRecord(flow.close, flops=_einsum_flops),
        "DotProductAttention": LayerRecord(flow.close, flops=_attention_flops),
        "Softmax": LayerRecord(flow.carry_beside_axis),
        "Resize": lambda operation: LayerRecord(
            flow.carry, keeps_zeros=not operation.pad_to_aspect_ratio or operation.fill_value == 0
        ),
    }.items()
} | {Entry: LayerRecord(_carry, keeps_zeros=True, is_free=True)}
