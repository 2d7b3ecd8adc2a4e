"""The public test finds what it is made to find."""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.graph import flow, registry
from tests.helpers.models import conv_bn, make_tiny_resnet, randomise_


class Centred(layers.Layer):
    """Takes the mean over all channels away: what one channel becomes depends on the others."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=-1, keepdims=True)


class Weighted(layers.Layer):
    """Multiplies every channel by a weight."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="random_normal")

    def call(self, x):
        return x * self.factor


@pytest.fixture
def known_records(monkeypatch):
    monkeypatch.setattr(registry, "RECORDS", dict(registry.RECORDS))


def network_with(layer):
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(layer(conv_bn(inputs, 6, "first")), 5, "second")
    return randomise_(
        keras.Model(
            inputs, layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D()(x)), name="own"
        )
    )


def test_a_correct_network_passes():
    assert len(ekg.testing.check_prunable(make_tiny_resnet()).groups) == 4


def test_the_first_layer_whose_numbers_differ_is_named(known_records):
    ekg.register_layer(Centred, ekg.LayerRecord(flow.carry))
    with pytest.raises(
        ekg.EkgError,
        match="layer 'centred' .Centred. with statistics of the batch differs from the masked",
    ):
        ekg.testing.check_prunable(network_with(Centred(name="centred")), reload=False)


def test_without_its_record_the_same_layer_closes_its_channels_and_is_right():
    supernet = ekg.testing.check_prunable(network_with(Centred(name="centred")), reload=False)
    assert [group.name for group in supernet.groups] == ["second"]


def test_a_record_whose_axes_are_wrong_is_refused_by_the_supernet(known_records):
    ekg.register_layer(Weighted, ekg.LayerRecord(flow.carry, {"factor": ekg.Weight((None,))}))
    with pytest.raises(ekg.EkgError, match="`model` 'own' cannot be cut: "):
        ekg.Supernet(network_with(Weighted(name="weighted")))


def test_a_cut_that_cannot_be_read_again_is_found(known_records):
    ekg.register_layer(Weighted, ekg.LayerRecord(flow.carry, {"factor": ekg.Weight(("out",))}))
    model = network_with(Weighted(name="weighted"))
    ekg.testing.check_prunable(model, reload=False)
    with pytest.raises(ekg.EkgError, match="the cut network cannot be saved and read again: "):
        ekg.testing.check_prunable(model)


def test_custom_inputs_may_be_given():
    images = np.random.default_rng(0).uniform(size=(5, 8, 8, 3)).astype(np.float32)
    ekg.testing.check_prunable(make_tiny_resnet(), inputs=images, subnetworks=1)


def test_a_channel_that_never_changes_is_no_difference():
    """Its batch norm gives the rounding error of its mean divided by √ε, and that is not the cut's
    fault.
    """
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(
        4, 3, padding="same", name="flat", kernel_initializer="zeros", bias_initializer="normal"
    )(inputs)
    x = conv_bn(layers.BatchNormalization(name="norm")(x), 5, "second")
    model = randomise_(
        keras.Model(
            inputs, layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D()(x)), name="own"
        )
    )
    model.get_layer("flat").kernel.assign(np.zeros((3, 3, 3, 4)))
    model.get_layer("flat").bias.assign([-0.23984681, 7.1, 0.3, -1e3])
    model.get_layer("norm").beta.assign(np.full(4, 1e-3))
    ekg.testing.check_prunable(model, subnetworks=3)
