import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from tests import networks
from tests.conftest import conv_bn, make_tiny_resnet, randomise_
from tests.helpers import check_masked_is_cut, random_subnetwork, relative_difference


def test_the_whole_subnetwork_is_the_model(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    assert (
        relative_difference(
            supernet.logits(images, supernet.whole(), training=False), tiny_resnet(images)
        )
        < 1e-5
    )


def test_masked_and_cut_networks_agree_and_nothing_is_changed(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    before = tiny_resnet.get_weights()
    for seed in range(10):
        check_masked_is_cut(supernet, random_subnetwork(supernet, seed), images)
    assert all((old == new).all() for old, new in zip(before, tiny_resnet.get_weights()))


def test_one_trace_serves_all_subnetworks(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    for seed in range(5):
        supernet.logits(images, random_subnetwork(supernet, seed))
    assert supernet._forward.experimental_get_tracing_count() == 1


def test_a_part_of_the_program_continues_where_another_ended(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    weights, mask = supernet.weights(), tf.constant(supernet.mask(random_subnetwork(supernet, 1)))
    expected = supernet.forward(weights, mask, tf.constant(images))
    for group in range(len(supernet.groups)):
        position = supernet.first_use(group)
        tensors = supernet.execute(weights, mask, {0: tf.constant(images)}, stop=position)
        state = {tensor: tensors[tensor] for tensor in supernet.tensors_read_from(position)}
        logits = supernet.execute(weights, mask, state, start=position)[supernet.graph.output]
        np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    "make", [make_tiny_resnet, networks.regnet, networks.shufflenet, networks.unet]
)
@pytest.mark.parametrize(
    "num_images", [1, 32]
)  # of few images what a kernel reads is smaller than its rows
def test_masked_rows_of_kernels_are_masked_activations(make, num_images):
    model = randomise_(make())
    supernet = ekg.Supernet(model, class_logits=False)
    images = tf.constant(
        np.random.default_rng(0).normal(size=(num_images, *model.input_shape[1:])), tf.float32
    )
    weights, seen = supernet.weights(), []
    for seed in range(2):
        mask = tf.constant(supernet.mask(random_subnetwork(supernet, seed)))
        by_rows = supernet.forward(weights, mask, images, at_gate=lambda site, _: seen.append(site))
        by_gates = supernet.forward(weights, mask, images, gates=supernet.gates(mask))
        assert relative_difference(by_rows, by_gates) < 1e-4
        assert (
            relative_difference(by_rows, supernet.forward(weights, tf.ones_like(mask), images))
            > 1e-3
        )
    assert sorted(seen) == sorted(2 * supernet.layout.sites)


def test_dropout_is_off_in_the_supernet():
    inputs = keras.Input((8, 8, 3))
    x = layers.Dropout(0.5, name="drop")(
        layers.GlobalAveragePooling2D(name="pool")(conv_bn(inputs, 4, "conv"))
    )
    supernet = ekg.Supernet(keras.Model(inputs, layers.Dense(3, name="fc")(x)))
    images = np.ones((2, 8, 8, 3), np.float32)
    first, second = (
        supernet.logits(images, supernet.whole(), training=True).numpy() for _ in range(2)
    )
    assert (first == second).all()


def test_a_model_without_channel_groups_is_refused():
    inputs = keras.Input((4,))
    with pytest.raises(ekg.EkgError, match="nothing in `model` 'flat' can be pruned"):
        ekg.Supernet(keras.Model(inputs, layers.Dense(2)(inputs), name="flat"))
