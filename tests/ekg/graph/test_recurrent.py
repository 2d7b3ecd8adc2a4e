"""Units of recurrent layers are pruned like channels; FLOPs and parameters by hand."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.testing import check_prunable
from tests.helpers.models import randomise_

STEPS, CLASSES = 6, 3


def network(make):
    """A convolution, what is made of its output, and class logits."""
    inputs = keras.Input((STEPS, 3))
    x = layers.Conv1D(5, 3, padding="same", activation="relu", name="conv")(inputs)
    x = make(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x) if len(x.shape) == 3 else x
    outputs = layers.Dense(CLASSES, name="fc")(x)
    return randomise_(keras.Model(inputs, outputs, name="recurrent"))


def sizes_of(supernet):
    return {group.name: group.size for group in supernet.groups}


@pytest.mark.parametrize(
    ("layer", "gates", "biases"),
    [
        (layers.LSTM(4, name="units"), 4, 4),
        (layers.GRU(4, return_sequences=True, name="units"), 3, 6),
        (layers.GRU(4, reset_after=False, use_bias=False, dropout=0.2, name="units"), 3, 0),
        (layers.SimpleRNN(4, return_sequences=True, go_backwards=True, name="units"), 1, 1),
    ],
)
def test_a_unit_is_removed_with_all_its_gates_and_states(layer, gates, biases):
    supernet = check_prunable(network(layer), subnetworks=1)
    assert sizes_of(supernet) == {"conv": 5, "units": 4}
    for subnetwork, conv, units in (
        (supernet.whole(), 5, 4),
        (supernet.smallest(), 1, 1),
        (supernet.whole().with_widths({"units": 0.5}), 5, 2),
    ):
        products = gates * units * (conv + units)
        counted = supernet.complexity(subnetwork)
        assert counted.flops == STEPS * (9 * conv + products) + units * CLASSES
        assert counted.params == (10 * conv + products + biases * units + (units + 1) * CLASSES)
    cut = supernet.cut(supernet.whole().with_widths({"units": 0.5})).get_layer("units")
    assert type(cut) is type(layer) and cut.units == 2


def test_states_that_are_passed_on_are_the_same_units():
    def encoded(x):
        encoder = layers.LSTM(4, return_sequences=True, return_state=True, name="encoder")
        y, h, c = encoder(x)
        z = layers.LSTM(4, return_sequences=True, name="decoder")(y, initial_state=[h, c])
        return layers.Dense(4, name="mix")(ops.concatenate([ops.mean(z, axis=1), c], axis=-1))

    supernet = check_prunable(network(encoded), subnetworks=1)
    assert {group.name: group.writers for group in supernet.groups} == {
        "conv": ("conv",),
        "encoder": ("encoder", "decoder"),
        "mix": ("mix",),
    }


@pytest.mark.parametrize(
    ("kind", "mode", "gates"),
    [
        (layers.LSTM, "concat", 4),
        (layers.GRU, "sum", 3),
        (layers.SimpleRNN, "mul", 1),
        (layers.SimpleRNN, "ave", 1),
    ],
)
def test_both_directions_lose_the_same_units(kind, mode, gates):
    both = layers.Bidirectional(
        kind(4, return_sequences=kind is not layers.GRU, name="units"), merge_mode=mode, name="both"
    )
    supernet = check_prunable(network(both), subnetworks=1)
    assert {group.name: group.writers for group in supernet.groups} == {
        "conv": ("conv",),
        "both/forward_units": ("both/forward_units", "both/backward_units"),
    }
    for subnetwork, conv, units in ((supernet.whole(), 5, 4), (supernet.smallest(), 1, 1)):
        read = units * (2 if mode == "concat" else 1)
        assert (
            supernet.complexity(subnetwork).flops
            == STEPS * (9 * conv + 2 * gates * units * (conv + units)) + read * CLASSES
        )
    cut = supernet.cut(supernet.smallest()).get_layer("both")
    assert type(cut) is layers.Bidirectional and cut.backward_layer.units == 1


def test_the_states_and_outputs_of_each_direction_are_separate():
    def apart(x):
        both = layers.Bidirectional(layers.GRU(3, return_state=True), merge_mode=None, name="both")
        forward, backward, *states = both(x)
        return layers.Dense(4, name="mix")(ops.concatenate([forward * 2.0, backward, *states], -1))

    supernet = check_prunable(network(apart), subnetworks=1)
    assert list(sizes_of(supernet).values()) == [5, 3, 4]


def test_padded_steps_named_in_the_graph_are_left_out():
    inputs = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(9, 5, mask_zero=True, name="embed")(inputs)
    x = layers.GRU(4, return_sequences=True, name="first")(x)
    x = layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both")(x)
    model = randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="words"))
    tokens = np.random.default_rng(0).integers(1, 9, (12, STEPS))
    tokens[:6, 3:] = 0
    supernet = check_prunable(model, inputs=tokens, subnetworks=1)
    assert list(sizes_of(supernet)) == ["first", "both/forward_lstm"]
    shorter = np.where(np.arange(STEPS) < 3, tokens, 0)
    logits = supernet.logits(shorter, supernet.smallest(), training=False)
    assert np.abs(logits - supernet.logits(tokens, supernet.smallest(), training=False)).max() > 0


def test_an_activation_that_mixes_units_closes_them():
    supernet = ekg.Supernet(network(layers.LSTM(4, activation="softmax", name="units")))
    assert list(sizes_of(supernet)) == ["conv"]
    assert supernet.layout.closed["units"].startswith("an activation of 'units' (LSTM)")


def test_a_recurrent_layer_writes_no_class_logits():
    inputs = keras.Input((STEPS, 3))
    x = layers.Conv1D(5, 3, activation="relu", name="conv")(inputs)
    model = randomise_(keras.Model(inputs, layers.LSTM(4, name="units")(x)))
    supernet = check_prunable(model, subnetworks=1)
    assert supernet.classifier is None and list(sizes_of(supernet)) == ["conv"]


def test_the_mask_of_units_counts_from_their_layer_on():
    """A search computes what comes before it once for all candidates."""
    supernet = ekg.Supernet(network(layers.LSTM(4, name="units")))
    first = supernet.program[supernet.first_use(1)]
    assert first.layer is supernet.model.get_layer("units")
