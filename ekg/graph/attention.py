"""Attention over heads, taken apart: its projections, and what it does between them.

A head is a channel: query, key, value and output lose the same heads. In a graph the layer stands
as four projections and the attention itself; the cut puts it together again as one smaller layer.

The numbers of a head are channels, too, the same in every head: `key_dim` of queries and keys, and
`value_dim` of values, or one `head_dim` of all. Such a group has a small tensor of its own, a row
of ones that a gate can multiply. The query is multiplied by it, and so is what the output's
projection reads. Keras divides the products of queries and keys by the root of `key_dim`. A cut
multiplies the query's weights by the root of the share that stays, so that they are what they were.
"""

import math
import types
from fractions import Fraction

import keras
import numpy as np
from keras import layers

from ekg.graph import flow
from ekg.graph.flow import Channels
from ekg.graph.records import IN, OUT, WITHIN, LayerRecord, Parts, Weight
from ekg.graph.steps import numbers_by_name

PROJECTIONS = {
    "query": "_query_dense",
    "key": "_key_dense",
    "value": "_value_dense",
    "gate": "_gate_dense",
    "output": "_output_dense",
}

# ---------------------------------------------------------------- the parts


class HeadDim(keras.layers.Layer):
    """A row of ones for any input, [1, size]: one for each number of a head."""

    def __init__(self, size, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.size, self.built = size, True

    def call(self, _):
        return keras.ops.ones((1, self.size), self.compute_dtype)

    def compute_output_spec(self, _):
        return keras.KerasTensor((1, self.size), self.compute_dtype)


def _times(x, dim):
    """Returns [..., size] times a row of [1 or batch, size]."""
    return x * keras.ops.reshape(dim, (-1, *[1] * (len(x.shape) - 2), dim.shape[-1]))


class _Projection(keras.layers.Layer):
    """One of the dense layers inside an attention layer, whose weights it has."""

    def __init__(self, dense, name):
        super().__init__(name=name, trainable=dense.trainable, dtype=dense.dtype_policy)
        self.dense, self.built = dense, True

    @property
    def kernel(self):
        return self.dense.kernel

    @property
    def bias(self):
        return self.dense.bias

    @property
    def activation(self):
        return self.dense.activation


class ToHeads(_Projection):
    """[..., channels] -> [..., heads, size of a head]."""

    def call(self, x, dim):
        return self.dense.call(x)

    def compute_output_spec(self, x, dim):
        return keras.KerasTensor((*x.shape[:-1], *self.kernel.shape[1:]), self.compute_dtype)


class ToQueries(ToHeads):
    """The same, multiplied by a HeadDim, and by attention's scale, so that it is the same in a cut
    layer.
    """

    def __init__(self, dense, name, scale):
        super().__init__(dense, name)
        self.scale = scale

    def call(self, x, dim):
        y = _times(self.dense.call(x), dim)
        return y * keras.ops.cast(self.scale, y.dtype)


class FromHeads(_Projection):
    """[..., heads, size of a head], multiplied by a HeadDim -> [..., channels], the same as in the
    tensors that it is tied to.
    """

    def call(self, x, dim, *tied):
        return self.dense.call(_times(x, dim))

    def compute_output_spec(self, x, dim, *tied):
        return keras.KerasTensor((*x.shape[:-2], self.kernel.shape[-1]), self.compute_dtype)


class Attending(keras.layers.Layer):
    """What an attention layer does between its projections, head by head."""

    def __init__(self, layer, name):
        super().__init__(name=name, dtype=layer.dtype_policy)
        self.of = types.SimpleNamespace(layer=layer)  # not as a layer: its weights are others'
        self.dropout, self.built = layer._dropout_layer, True

    def call(
        self,
        query,
        key,
        value,
        gate=None,
        key_dim=None,
        value_dim=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        use_causal_mask=False,
        training=None,
    ):
        layer = self.of.layer
        masks = (query_mask, value_mask, key_mask, attention_mask)
        is_causal = (
            use_causal_mask and _window_of(layer) is None and all(mask is None for mask in masks)
        )
        mask = (
            None
            if is_causal
            else layer._compute_attention_mask(
                query,
                value,
                query_mask=query_mask,
                value_mask=value_mask,
                key_mask=key_mask,
                attention_mask=attention_mask,
                use_causal_mask=use_causal_mask,
            )
        )
        repeats = query.shape[-2] // key.shape[-2]
        if repeats > 1:
            key, value = (keras.ops.repeat(part, repeats, axis=-2) for part in (key, value))
        causal = {"use_causal_mask": True} if is_causal else {}
        if not is_multi_head(layer):
            layer._return_attention_scores = False  # as its call() does
        query = query / keras.ops.cast(_scale_of(layer), query.dtype)
        y, _ = layer._compute_attention(
            query, key, value, attention_mask=mask, training=training, **causal
        )
        return y if gate is None else keras.ops.multiply(y, gate)

    def compute_output_spec(self, query, key, value, *args, **kwargs):
        return keras.KerasTensor((*query.shape[:-1], value.shape[-1]), self.compute_dtype)


def _scale_of(layer):
    name = "_inverse_sqrt_key_dim" if is_multi_head(layer) else "_inverse_sqrt_head_dim"
    return getattr(layer, name)


def _window_of(layer):
    return layer._sliding_window if is_multi_head(layer) else layer.sliding_window


def is_multi_head(layer):
    """Returns whether it is a MultiHeadAttention, and not a GroupQueryAttention."""
    return type(layer) is layers.MultiHeadAttention


class AttentionParts(Parts):
    """The parts of an attention layer."""

    def __init__(self, layer):
        self._layer = layer
        scale = _scale_of(layer)
        makers = {"output": FromHeads, "query": lambda *held: ToQueries(*held, scale)}
        self._dense = {
            name: makers.get(name, ToHeads)(getattr(layer, attribute), name)
            for name, attribute in PROJECTIONS.items()
            if hasattr(layer, attribute)
        }
        sizes = (
            {"key_dim": layer.key_dim, "value_dim": layer.value_dim}
            if is_multi_head(layer)
            else {"head_dim": layer.head_dim}
        )
        self._dims = [HeadDim(size, name, layer.dtype_policy) for name, size in sizes.items()]
        self._attending = Attending(layer, "attention")

    def call(self, query, value, key=None, return_attention_scores=False, training=None, **masks):
        key = value if key is None else key
        read = {"query": query, "key": key, "value": value, "gate": query}
        dims = [dim(query) for dim in self._dims]
        key_dim, value_dim = dims[0], dims[-1]
        heads = {
            name: self._dense[name](x, key_dim if name in ("query", "key") else value_dim)
            for name, x in read.items()
            if name in self._dense
        }
        # A GroupQueryAttention has as many channels in its query, key, value and output.
        tied = [] if is_multi_head(self._layer) else [query, key, value]
        attended = self._attending(
            *(heads.get(name) for name in read), key_dim=key_dim, value_dim=value_dim, **masks
        )
        return self._dense["output"](attended, value_dim, *tied)

    def changes(self, kept):
        heads, groups = len(kept["query"].output), len(kept["key"].output)
        count, layer, changes = len(kept["output"].output), self._layer, {}
        dims = [len(kept[dim.name].output) for dim in self._dims]
        for name in self._dense:
            number = {"query": heads, "gate": heads}.get(name, groups)
            sizes = (number, dims[0] if name in ("query", "key") else dims[-1])
            sizes = (count,) if name == "output" else sizes
            for shape in ("full_output_shape", "partial_output_shape"):
                value = getattr(self._dense[name].dense, shape, ())
                if value:  # the first is not in all versions of Keras
                    changes[f"{PROJECTIONS[name]}.{shape}"] = (*value[: -len(sizes)], *sizes)
        scale = 1.0 / math.sqrt(float(dims[0]))  # as Keras computes it
        if is_multi_head(layer):
            return changes | {
                "_num_heads": heads,
                "_key_dim": dims[0],
                "_value_dim": dims[1],
                "_inverse_sqrt_key_dim": scale,
                "_output_shape": (count,),
            }
        return changes | {
            "num_query_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": dims[0],
            "_inverse_sqrt_head_dim": scale,
            "feature_dim": count,
        }

    def factors(self, kept):
        """Returns the factor of the query's weights that makes up for another scale."""
        size = self._dims[0].size
        left = len(kept[self._dims[0].name].output)
        return {} if left == size else {"query": math.sqrt(left / size)}


def parts(layer, kwargs):
    """Returns the AttentionParts of a call, or None where the layer stays whole."""
    if not layer.built or kwargs.get("return_attention_scores"):
        return None
    return AttentionParts(layer) if len(layer._output_dense.kernel.shape) == 3 else None


def flops(layer, shapes, _written):
    """Projections and both products of attention, of a layer that stays whole."""
    query, value = shapes[0], shapes[1]
    key = shapes[2] if len(shapes) > 2 else value
    entries = {
        name: math.prod(getattr(layer, attribute).kernel.shape)
        for name, attribute in PROJECTIONS.items()
        if hasattr(layer, attribute)
    }
    axes = [axis % len(query) for axis in layer._attention_axes] if is_multi_head(layer) else [1]
    met = math.prod(value[axis] for axis in axes)  # keys that a query meets
    _, heads, size = layer._query_dense.kernel.shape
    products = met * heads * (size + layer._value_dense.kernel.shape[-1])
    each = entries["query"] + entries.get("gate", 0) + entries["output"] + products  # query
    return (
        math.prod(query[1:-1]) * each
        + math.prod(key[1:-1]) * entries["key"]
        + math.prod(value[1:-1]) * entries["value"]
    )


# ---------------------------------------------------------------- how channels go through them


def _to_heads(channel_flow, call):
    source, rank = channel_flow.channels[call.inputs[0]], len(channel_flow.shapes[call.inputs[0]])
    if source.axis != rank - 1 and not source.is_fixed:
        return flow.close(channel_flow, call)
    heads = channel_flow.begin(call, rank - 1)  # the rank of the output less two
    return Channels(heads.labels, heads.axis, inner=channel_flow.channels[call.inputs[1]].labels)


def _attend(channel_flow, call):
    """Heads of query, key, value and gate are one and the same; masks are for all of them. What it
    writes has the values' inner channels.
    """
    axis = len(channel_flow.shapes[call.output]) - 2
    size = channel_flow.shapes[call.output][axis]
    named = {name: number for name, [number] in numbers_by_name(call).items()}
    heads = [
        channel_flow.channels[named.pop(name)]
        for name in ("query", "key", "value", "gate")
        if name in named
    ]
    if any(part.axis != axis for part in heads):
        return flow.close(channel_flow, call)
    named.pop("key_dim")
    inner = channel_flow.channels[named.pop("value_dim")].labels
    for number in named.values():
        channel_flow.close(channel_flow.channels[number].labels, f"mask of {flow.describe(call)}")
    for part in heads[1:]:
        channel_flow.merge(heads[0].labels, np.repeat(part.labels, size // len(part.labels)))
    return Channels(heads[0].labels, axis, inner=inner)


def _from_heads(channel_flow, call):
    """New channels, the same as in the tensors that they are tied to."""
    source, _, *tied = channel_flow.inputs(call)
    if source.axis != len(channel_flow.shapes[call.inputs[0]]) - 2:
        return flow.close(channel_flow, call)
    channels = channel_flow.begin(call, len(channel_flow.shapes[call.output]) - 1)
    for other in tied:
        channel_flow.merge(other.labels, channels.labels)
    return channels


def _begin(channel_flow, call):
    return channel_flow.begin(call, 1)


def _products(layer, read, written):
    """Both products of attention: every query meets keys along the attention axes."""
    attention, (query, key, *_) = layer.of.layer, read
    axes = attention._attention_axes if is_multi_head(attention) else (1,)
    met = math.prod(key[axis] for axis in axes)
    products = math.prod(query[1:-2]) * met * query[-2]
    if is_multi_head(attention):
        return {"key_dim": products * query[-1], "value_dim": products * written[-1]}
    return {"key_dim": products * (query[-1] + written[-1])}


_TO_HEADS = LayerRecord(
    _to_heads,
    {"kernel": Weight((IN, OUT, WITHIN), (1,)), "bias": Weight((OUT, WITHIN))},
    ("kernel",),
    positions=lambda _, read, __, ___: math.prod(read[1:-1]),
    mixes=True,
    resize=lambda *_: {},
)

PARTS = {
    HeadDim: LayerRecord(
        _begin,
        resize=lambda _, kept: {"size": len(kept.output)},
        rows=lambda *_: Fraction(0),
        begins=True,
        is_free=True,
    ),
    ToHeads: _TO_HEADS,
    ToQueries: _TO_HEADS,
    FromHeads: LayerRecord(
        _from_heads,
        {"kernel": Weight((IN, WITHIN, OUT), (2,)), "bias": Weight((OUT,))},
        ("kernel",),
        positions=lambda _, read, __, ___: math.prod(read[1:-2]),
        mixes=True,
        silent=True,
        resize=lambda *_: {},
    ),
    Attending: LayerRecord(_attend, products=_products),
}
