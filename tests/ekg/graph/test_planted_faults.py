"""A fault in a record of attention, recurrence or weights, or in what opens a layer, is found."""

import dataclasses

import keras
import pytest
from keras import layers

import ekg
from ekg.graph import attention, flow, opening, own_weights, recurrent
from ekg.graph.records import IN, OUT, WITHIN, Weight
from ekg.graph.registry import RECORDS
from ekg.network.supernet import Supernet
from ekg.testing import check_prunable
from tests.helpers.models import randomise_

STEPS = 4


def network(make):
    inputs = keras.Input((STEPS, 3))
    x = make(layers.Dense(6, activation="relu", name="first")(inputs))
    x = layers.Dense(5, activation="relu", name="second")(x)
    x = layers.Dense(3, name="fc")(layers.GlobalAveragePooling1D(name="pool")(x))
    return randomise_(keras.Model(inputs, x, name="network"))


def attended():
    layer = layers.MultiHeadAttention(4, 3, value_dim=2, output_shape=7, name="mha")
    return network(lambda x: layer(x, x))


def grouped():
    layer = layers.GroupQueryAttention(3, 4, 2, name="gqa")
    return network(lambda x: layer(x, x))


def units():
    return network(layers.LSTM(4, return_sequences=True, name="units"))


def handed_over():
    def states(x):
        x, h = layers.GRU(4, return_sequences=True, return_state=True, name="encoder")(x)
        return layers.GRU(4, return_sequences=True, name="decoder")(x, initial_state=h)

    return network(states)


def both():
    return network(layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True), name="both"))


@keras.saving.register_keras_serializable("test_planted_faults")
class Tokens(layers.Layer):
    """A token before the others, and positions."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.places = self.add_weight(shape=(STEPS + 1, shape[-1]), name="places")

    def call(self, x):
        token = keras.ops.tile(self.token, (keras.ops.shape(x)[0], 1, 1))
        return keras.ops.concatenate([token, x], axis=1) + self.places

    def compute_output_shape(self, shape):
        return (shape[0], STEPS + 1, shape[-1])


def tokens():
    return network(Tokens(name="tokens"))


def words():
    inputs = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(9, 6, name="words")(inputs)
    x = x + layers.Dense(6, activation="relu", name="first")(x)
    x = layers.Dense(5, name="mix")(layers.Dense(5, activation="relu", name="up")(x))
    x = layers.Dense(3, name="fc")(layers.GlobalAveragePooling1D(name="pool")(x))
    return randomise_(keras.Model(inputs, x, name="network"))


class Noisy(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(6, name="dense")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) + keras.random.normal((6,))


def replaced(kind, **changes):
    """Returns a function that gives a kind another record."""

    def plant(patch):
        patch.setitem(RECORDS, kind, dataclasses.replace(RECORDS[kind], **changes))

    return plant


def replaced_units(change):
    """Returns a function that gives recurrent layers another record."""

    def plant(patch):
        for kind in recurrent.KINDS:
            patch.setitem(RECORDS, kind, lambda layer: change(recurrent._record(layer)))

    return plant


def replaced_weights(**changes):
    """Returns a function that gives weights of a layer itself another record."""

    def plant(patch):
        patch.setitem(
            RECORDS,
            own_weights.OwnWeight,
            lambda layer: dataclasses.replace(own_weights._own_weight(layer), **changes),
        )

    return plant


def with_weight(record, name, **changes):
    weight = dataclasses.replace(record.weights[name], **changes)
    return dataclasses.replace(record, weights={**record.weights, name: weight})


def without(record, name):
    return dataclasses.replace(
        record,
        resize=lambda layer, kept: {
            key: value for key, value in record.resize(layer, kept).items() if key != name
        },
    )


def new_states(channel_flow, call):
    """As recurrent units flow, but for the states that are handed over."""
    labels = channel_flow.begin(call, len(channel_flow.shapes[call.output]) - 1).labels
    return [flow.Channels(labels, len(channel_flow.shapes[number]) - 1) for number in call.outputs]


def changed(kind, name):
    """Returns a function that lets the parts of a layer forget an attribute."""

    def plant(patch):
        whole = kind.changes
        patch.setattr(
            kind,
            "changes",
            lambda self, kept: {
                key: value for key, value in whole(self, kept).items() if key != name
            },
        )

    return plant


def first_alone(channel_flow, call):
    return channel_flow.channels[call.inputs[0]]


def reversed_rows(channel_flow, call):
    channels = own_weights._across(channel_flow, call)
    return flow.Channels(channels.labels[::-1], channels.axis)


def backwards(channel_flow, call):
    channels = recurrent._merge(channel_flow, call)
    return flow.Channels(channels.labels[::-1], channels.axis)


FAULTS = {
    "heads of query alone": (attended, replaced(attention.Attending, flow=first_alone)),
    "size for head": (
        attended,
        replaced(
            attention.ToHeads,
            weights={"kernel": Weight((IN, None, OUT), (2,)), "bias": Weight((OUT, WITHIN))},
        ),
    ),
    "bias of heads stays": (
        attended,
        replaced(
            attention.ToHeads,
            weights={"kernel": Weight((IN, OUT, WITHIN), (1,)), "bias": Weight((None, None))},
        ),
    ),
    "bias of the output stays": (
        attended,
        replaced(
            attention.FromHeads,
            weights={"kernel": Weight((IN, WITHIN, OUT), (2,)), "bias": Weight((None,))},
        ),
    ),
    "number of heads": (attended, changed(attention.AttentionParts, "_num_heads")),
    "channels of the output": (attended, changed(attention.AttentionParts, "_output_shape")),
    "groups of heads": (grouped, changed(attention.AttentionParts, "num_key_value_heads")),
    "numbers of a head stay in a kernel": (
        attended,
        replaced(
            attention.ToQueries,
            weights={"kernel": Weight((IN, OUT, None), (1,)), "bias": Weight((OUT, WITHIN))},
        ),
    ),
    "numbers of a head stay in a bias": (
        grouped,
        replaced(
            attention.ToHeads,
            weights={"kernel": Weight((IN, OUT, WITHIN), (1,)), "bias": Weight((OUT, None))},
        ),
    ),
    "numbers of a head stay in the output": (
        attended,
        replaced(
            attention.FromHeads,
            weights={"kernel": Weight((IN, None, OUT), (2,)), "bias": Weight((OUT,))},
        ),
    ),
    "queries keep their size": (
        attended,
        lambda patch: patch.setattr(attention.AttentionParts, "factors", lambda *_: {}),
    ),
    "products keep their scale": (
        attended,
        changed(attention.AttentionParts, "_inverse_sqrt_key_dim"),
    ),
    "products of a group keep their scale": (
        grouped,
        changed(attention.AttentionParts, "_inverse_sqrt_head_dim"),
    ),
    "size of keys": (attended, changed(attention.AttentionParts, "_key_dim")),
    "size of values": (attended, changed(attention.AttentionParts, "_value_dim")),
    "size of a head": (grouped, changed(attention.AttentionParts, "head_dim")),
    "masked numbers of a head are read": (
        attended,
        lambda patch: patch.setattr(attention, "_times", lambda x, dim: x),
    ),
    "products of all numbers": (
        attended,
        replaced(
            attention.Attending, products=lambda *given: sum(attention._products(*given).values())
        ),
    ),
    "products of queries and values": (
        attended,
        replaced(
            attention.Attending,
            products=lambda *given: {"value_dim": sum(attention._products(*given).values())},
        ),
    ),
    "gates side by side": (
        units,
        replaced_units(lambda record: with_weight(record, "kernel", is_tiled=False)),
    ),
    "recurrent gates side by side": (
        units,
        replaced_units(lambda record: with_weight(record, "recurrent_kernel", is_tiled=False)),
    ),
    "biases side by side": (
        units,
        replaced_units(lambda record: with_weight(record, "bias", is_tiled=False)),
    ),
    "rows of the recurrent kernel stay": (
        units,
        replaced_units(lambda record: with_weight(record, "recurrent_kernel", axes=(None, OUT))),
    ),
    "number of units": (handed_over, replaced_units(lambda record: without(record, "cell.units"))),
    "size of states": (units, replaced_units(lambda record: without(record, "cell.state_size"))),
    "masked units are read again": (
        units,
        lambda patch: patch.setattr(
            Supernet, "_without_masked_states", lambda self, call, values, mask: values
        ),
    ),
    "states apart": (
        handed_over,
        replaced_units(lambda record: dataclasses.replace(record, flow=new_states)),
    ),
    "directions in the other order": (both, replaced(recurrent.Merging, flow=backwards)),
    "one direction": (both, replaced(recurrent.Merging, flow=first_alone)),
    "entries of a token stay": (
        tokens,
        replaced_weights(weights={"weight": Weight((None, None, None))}),
    ),
    "shape of a token": (tokens, replaced_weights(resize=None)),
    "token in the other order": (tokens, replaced(own_weights.AcrossBatch, flow=reversed_rows)),
    "entries of embeddings stay": (
        words,
        replaced(layers.Embedding, weights={"embeddings": Weight((None, None))}),
    ),
    "size of embeddings": (words, replaced(layers.Embedding, resize=None)),
    "noise that the graph keeps": (
        lambda: network(Noisy(name="noisy")),
        lambda patch: patch.setattr(opening, "_check_outputs", lambda *_: None),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    make, plant = FAULTS[fault]
    plant(monkeypatch)
    # States show where both have other widths, and a size where not all channels stay.
    tried = 3 if fault in ("states apart", "shape of a token") else 1
    with pytest.raises(ekg.EkgError):
        check_prunable(make(), subnetworks=tried)


@pytest.mark.parametrize("make", [attended, grouped, units, handed_over, both, tokens, words])
def test_without_it_the_same_networks_are_right(make):
    assert len(check_prunable(make(), subnetworks=1).groups) >= 2
