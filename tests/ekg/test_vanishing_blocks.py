"""Blocks that vanish, in a search and whole jobs, in repair, latency and export."""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.deploy.folding import fold_batch_norms
from ekg.deploy.plain import plain
from ekg.distil import repair
from ekg.graph.constants import Constant
from ekg.latency.prediction import Predictor
from tests.helpers.digits import digits
from tests.helpers.models import conv_bn, randomise_

BLOCKS = ("first", "second")
IDLE = "first"  # the block that does nothing


def residual_network():
    """A network for digits of two residual blocks, of which one adds zero."""
    inputs = keras.Input((8, 8, 1))
    x = conv_bn(inputs, 6, "stem")
    for name in BLOCKS:
        y = conv_bn(conv_bn(x, 4, f"{name}_in"), 6, f"{name}_out", relu=False)
        x = layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([y, x]))
    x = layers.Dense(10, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x))
    model = randomise_(keras.Model(inputs, x, name="residual"))
    norm = model.get_layer(f"{IDLE}_out_bn")
    for weight in (norm.gamma, norm.beta):
        weight.assign(0 * weight)
    return model


@pytest.fixture(scope="module")
def network():
    """(model, its Supernet, the sub-network without the block that does nothing)."""
    model = residual_network()
    supernet = ekg.Supernet(model, min_channels=0)
    return model, supernet, supernet.whole().with_widths({f"{IDLE}_in": 0.0})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """(run folder, PruneResult of a job in which one block vanishes)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = residual_network()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return folder, ekg.prune(
        model,
        digits(80),
        exclude="stem",
        min_channels={"_in$": 0},
        target_rate=0.6,
        epochs=1,
        verbose=False,
        run_dir=folder,
        augment=None,
        bank={"num_teacher": 2},
        run={"runtimes": ()},
        search={"search_step": 0.5, "val_per_class": 4, "subset_per_class": 4},
    )


def test_a_search_takes_a_whole_block_out(pruned):
    _, result = pruned
    kept = dict(zip(result.subnetwork.names, result.subnetwork.kept_counts))
    assert 0 in kept.values()
    gone = next(name for name, count in kept.items() if count == 0)
    names = {layer.name for layer in result.model.layers}
    assert names.isdisjoint({gone, f"{gone}_bn", f"{gone}_relu"})
    # the narrowing of a group that has vanished costs no further step
    narrowed = [entry.group for entry in result.history[1:]]
    assert narrowed.count(gone) == 2 and result.rate <= 0.6


def test_what_a_job_hands_out_is_what_its_folder_holds(pruned):
    folder, result = pruned
    images = digits(60)[0]
    loaded = keras.models.load_model(folder / "trained_param.keras")
    np.testing.assert_allclose(loaded(images), result.model(images), atol=1e-6)
    assert ekg.Subnetwork.from_json(result.subnetwork.to_json()) == result.subnetwork


def test_without_an_idle_block_the_logits_are_the_same(network):
    model, supernet, subnetwork = network
    images = digits(60)[0]
    for training in (False, True):
        before, after = (
            supernet.logits(images, kept, training=training)
            for kept in (supernet.whole(), subnetwork)
        )
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_a_repair_takes_a_network_without_a_block(network):
    _, supernet, subnetwork = network
    images = digits(64)[0]
    both = subnetwork.with_widths({"second_in": 0.5, "stem": 0.7})
    target = supernet.logits(images, supernet.whole(), training=True)
    as_cut, repaired = supernet.cut(both), supernet.cut(both)
    residuals = repair.repair_(repaired, supernet, both, images)
    assert {"second_in", "second_out", "fc"} <= residuals.keys()  # and not what is gone
    assert residuals.keys().isdisjoint({f"{IDLE}_in", f"{IDLE}_out"})
    before, after = (
        np.mean((cut(images, training=True) - target) ** 2) for cut in (as_cut, repaired)
    )
    assert after < before


def test_the_predicted_latency_leaves_out_what_is_gone(network):
    _, supernet, subnetwork = network

    class Table:
        """A kernel takes as long as it has channels."""

        def curve(self, kernel):
            class Curve:
                def seconds(self, counts):
                    return sum(counts)

            return Curve()

    predictor = Predictor(supernet, Table())
    group = subnetwork.names.index(f"{IDLE}_in")
    # stem and second block whole, two sums with their activations, pooling, and classifier
    by_hand = 6 + (6 + 4) + (4 + 6) + 6 + 6 + 6 + 6
    assert predictor.seconds(subnetwork) == by_hand
    assert predictor.seconds_by_count(supernet.whole(), group)[0] == by_hand
    assert predictor.seconds(supernet.whole()) == by_hand + (6 + 4) + (4 + 6)


@pytest.mark.parametrize("use_bias", [True, False])
def test_exported_networks_have_layers_of_keras_alone(use_bias):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 1, name="stem")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="in")(x)
    y = layers.Conv2D(6, 1, activation="sigmoid", use_bias=use_bias, name="out")(y)
    y = layers.BatchNormalization(name="norm")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add(name="add")([x, y]))
    model = randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x)))
    supernet = ekg.Supernet(model, min_channels={"^in$": 0})
    cut = supernet.cut(supernet.whole().with_widths({"in": 0.0}))
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    own, folded = plain(cut), fold_batch_norms(cut)
    assert type(cut.get_layer("out")) is Constant and type(own.get_layer("out")) is not Constant
    assert own.count_params() == cut.count_params()
    assert len(own.trainable_variables) == len(cut.trainable_variables)
    assert type(folded.get_layer("norm")) is layers.Identity
    for network in (own, folded):
        np.testing.assert_allclose(network(images), cut(images), atol=1e-6)
    np.testing.assert_allclose(own(images, training=True), cut(images, training=True), atol=1e-5)
    assert plain(model) is model
