"""Attention over heads, taken apart: its projections, and what it does between them.

A head is a channel: query, key, value and output lose the same heads. In a graph the layer stands
as four projections and the attention itself; the cut puts it together again as one smaller layer.
"""

import math
import types

import keras
import numpy as np
from keras import layers

from ekg.graph import flow
from ekg.graph.flow import Channels
from ekg.graph.records import IN, OUT, LayerRecord, Parts, Weight
from ekg.graph.steps import numbers_by_name

PROJECTIONS = {
    "query": "_query_dense",
    "key": "_key_dense",
    "value": "_value_dense",
    "gate": "_gate_dense",
    "output": "_output_dense",
}

# ---------------------------------------------------------------- the parts


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

    def call(self, x):
        return self.dense.call(x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], *self.kernel.shape[1:])


class FromHeads(_Projection):
    """[..., heads, size of a head] -> [..., channels], the same as in the tensors that it is tied
    to.
    """

    def call(self, x, *tied):
        return self.dense.call(x)

    def compute_output_spec(self, x, *tied):
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
        y, _ = layer._compute_attention(
            query, key, value, attention_mask=mask, training=training, **causal
        )
        return y if gate is None else keras.ops.multiply(y, gate)

    def compute_output_spec(self, query, key, value, *args, **kwargs):
        return keras.KerasTensor((*query.shape[:-1], value.shape[-1]), self.compute_dtype)


def _window_of(layer):
    return layer._sliding_window if is_multi_head(layer) else layer.sliding_window


def is_multi_head(layer):
    """Returns whether it is a MultiHeadAttention, and not a GroupQueryAttention."""
    return type(layer) is layers.MultiHeadAttention


class AttentionParts(Parts):
    """The parts of an attention layer."""

    def __init__(self, layer):
        self._layer = layer
        makers = {"output": FromHeads}
        self._dense = {
            name: makers.get(name, ToHeads)(getattr(layer, attribute), name)
            for name, attribute in PROJECTIONS.items()
            if hasattr(layer, attribute)
        }
        self._attending = Attending(layer, "attention")

    def call(self, query, value, key=None, return_attention_scores=False, training=None, **masks):
        key = value if key is None else key
        read = {"query": query, "key": key, "value": value, "gate": query}
        heads = {name: self._dense[name](x) for name, x in read.items() if name in self._dense}
        # A GroupQueryAttention has as many channels in its query, key, value and output.
        tied = [] if is_multi_head(self._layer) else [query, key, value]
        attended = self._attending(*(heads.get(name) for name in read), **masks)
        return self._dense["output"](attended, *tied)

    def changes(self, kept):
        heads, groups = len(kept["query"].output), len(kept["key"].output)
        count, layer, changes = len(kept["output"].output), self._layer, {}
        for name in self._dense:
            dense, place = f"{PROJECTIONS[name]}.", -1 if name == "output" else -2
            size = {"output": count, "query": heads, "gate": heads}.get(name, groups)
            for shape in ("full_output_shape", "partial_output_shape"):
                value = list(getattr(self._dense[name].dense, shape, ()))
                if value:  # the first is not in all versions of Keras
                    value[place] = size
                    changes[dense + shape] = tuple(value)
        if is_multi_head(layer):
            return changes | {"_num_heads": heads, "_output_shape": (count,)}
        return changes | {
            "num_query_heads": heads,
            "num_key_value_heads": groups,
            "feature_dim": count,
        }


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
    return channel_flow.begin(call, rank - 1)  # the rank of the output less two


def _attend(channel_flow, call):
    """Heads of query, key, value and gate are one and the same; masks are for all of them."""
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
    for number in named.values():
        channel_flow.close(channel_flow.channels[number].labels, f"mask of {flow.describe(call)}")
    for part in heads[1:]:
        channel_flow.merge(heads[0].labels, np.repeat(part.labels, size // len(part.labels)))
    return Channels(heads[0].labels, axis)


def _from_heads(channel_flow, call):
    """New channels, the same as in the tensors that they are tied to."""
    source, *tied = channel_flow.inputs(call)
    if source.axis != len(channel_flow.shapes[call.inputs[0]]) - 2:
        return flow.close(channel_flow, call)
    channels = channel_flow.begin(call, len(channel_flow.shapes[call.output]) - 1)
    for other in tied:
        channel_flow.merge(other.labels, channels.labels)
    return channels


def _products(layer, read, written):
    """Both products of attention: every query meets keys along the attention axes."""
    attention, (query, key, *_) = layer.of.layer, read
    axes = attention._attention_axes if is_multi_head(attention) else (1,)
    met = math.prod(key[axis] for axis in axes)
    queries = math.prod(query[1:-2])
    return queries * met * query[-2] * (query[-1] + written[-1])


PARTS = {
    ToHeads: LayerRecord(
        _to_heads,
        {"kernel": Weight((IN, OUT, None), (1,)), "bias": Weight((OUT, None))},
        ("kernel",),
        positions=lambda _, read, __, ___: math.prod(read[1:-1]),
        mixes=True,
        resize=lambda *_: {},
    ),
    FromHeads: LayerRecord(
        _from_heads,
        {"kernel": Weight((IN, None, OUT), (2,)), "bias": Weight((OUT,))},
        ("kernel",),
        positions=lambda _, read, __, ___: math.prod(read[1:-2]),
        mixes=True,
        silent=True,
        resize=lambda *_: {},
    ),
    Attending: LayerRecord(_attend, products=_products),
}
