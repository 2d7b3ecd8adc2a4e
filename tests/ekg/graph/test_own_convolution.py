"""A registered convolution is slimmed, folded and timed as Keras' convolutions are."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.deploy.folding import fold_batch_norms
from ekg.distil.slim import restore_norms_
from ekg.graph import neighbours, registry
from ekg.graph.calls import Graph
from ekg.latency import kernels
from tests.helpers.models import randomise_


@keras.saving.register_keras_serializable("test")
class Pointwise(layers.Layer):
    """A 1x1 convolution whose kernel has another name, and another order of its axes."""

    def __init__(self, width, offset=False, **options):
        super().__init__(**options)
        self.width, self.offset = width, offset

    def build(self, shape):
        self.taps = self.add_weight(shape=(self.width, shape[-1]), initializer="he_normal")
        self.shift = self.add_weight(shape=(self.width,)) if self.offset else None

    def call(self, x):
        y = keras.ops.einsum("...i,oi->...o", x, self.taps)
        return y if self.shift is None else y + self.shift

    def get_config(self):
        return super().get_config() | {"width": self.width, "offset": self.offset}


@keras.saving.register_keras_serializable("test")
class Squash(layers.Layer):
    """An activation that Keras does not have."""

    def call(self, x):
        return x / (1 + keras.ops.abs(x))


RECORD = ekg.LayerRecord(
    ekg.flow.mix,
    {"taps": ekg.Weight((ekg.OUT, ekg.IN), (0,)), "shift": ekg.Weight((ekg.OUT,))},
    ("taps",),
    resize=lambda _, kept: {"width": len(kept.output)},
    mixes=True,
    fuses_with_norm=True,
    keeps_norm=True,
)
SQUASH = ekg.LayerRecord(ekg.flow.carry, keeps_zeros=True, joins_previous=True)


@pytest.fixture(autouse=True)
def known_records(monkeypatch):
    monkeypatch.setattr(registry, "RECORDS", dict(registry.RECORDS))
    ekg.register_layer(Pointwise, RECORD)
    ekg.register_layer(Squash, SQUASH)


def make_network(offset=False):
    entry = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(entry)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    x = Pointwise(10, offset, name="own")(x)
    x = Squash(name="own_squash")(layers.BatchNormalization(epsilon=1e-5, name="own_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(entry, layers.Dense(4, name="fc")(x)))


def halved(supernet):
    return supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})


def test_slimming_restores_the_norm_of_its_kernel_and_leaves_the_function():
    model, images = make_network(), np.random.default_rng(1).normal(size=(5, 6, 6, 3))
    supernet = ekg.Supernet(model)
    cut = supernet.cut(halved(supernet))
    before = np.asarray(cut(images, training=False))
    smaller = np.linalg.norm(cut.get_layer("own").taps.numpy())
    restore_norms_(cut, Graph(model))
    norms = [np.linalg.norm(network.get_layer("own").taps.numpy()) for network in (cut, model)]
    assert smaller < 0.9 * norms[1] and norms[0] == pytest.approx(norms[1], rel=1e-5)
    np.testing.assert_allclose(cut(images, training=False), before, atol=1e-4)


def test_without_keeps_norm_the_kernel_stays_as_it_is_cut():
    ekg.register_layer(Pointwise, dataclasses.replace(RECORD, keeps_norm=False))
    model = make_network()
    assert [call.key for call in neighbours.normalised_convolutions(Graph(model))] == ["stem"]


@pytest.mark.parametrize("offset", [False, True])
def test_a_batch_norm_after_it_is_folded_into_its_kernel(offset):
    model, images = make_network(offset), np.random.default_rng(1).normal(size=(5, 6, 6, 3))
    folded = fold_batch_norms(model)
    kinds = [type(layer) for layer in folded.layers]
    assert layers.BatchNormalization not in kinds
    assert type(folded.get_layer("own_bn")) is (layers.Identity if offset else layers.Rescaling)
    taps = [network.get_layer("own").taps.numpy() for network in (model, folded)]
    assert np.abs(taps[0] - taps[1]).max() > 0.01
    np.testing.assert_allclose(
        folded(images, training=False), model(images, training=False), atol=1e-4
    )


def test_it_is_timed_together_with_its_norm_and_a_registered_activation():
    supernet = ekg.Supernet(make_network())
    found = kernels.find_kernels(supernet.graph, supernet.layout)
    chains = [[call.key for call in kernel.calls] for kernel in found]
    assert ["own", "own_bn", "own_squash"] in chains
    [own] = [kernel for kernel in found if kernel.calls[0].key == "own"]
    part = kernels.part(supernet.graph, supernet.layout, own, (4, 5))
    assert layers.BatchNormalization not in [type(layer) for layer in fold_batch_norms(part).layers]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"a": ekg.Weight((ekg.IN,)), "b": ekg.Weight((ekg.OUT,))}}, "one kernel"),
        ({"fuses_with_norm": False}, "`keeps_norm` needs `fuses_with_norm`"),
    ],
)
def test_inconsistent_records_are_refused(changes, message):
    plain = {"mixes": False, "multiplies": (), "resize": None}
    with pytest.raises(ekg.EkgError, match=message):
        dataclasses.replace(RECORD, **plain, **changes)


def test_registering_changes_the_records_in_use_and_not_the_default_ones():
    assert registry.RECORDS[Pointwise] is RECORD
    assert Pointwise not in registry.default()
    assert set(registry.RECORDS) - set(registry.default()) == {Pointwise, Squash}
