import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

from ekg.search import criteria
from tests.helpers import make_objective, random_subnetwork


@pytest.mark.parametrize("teacher", ["ensemble", "none"])
def test_importance_is_the_gradient_at_the_activations(tiny_resnet, tiny_data, teacher):
    """Oracle: Keras sub-models from each site to the logits, differentiated with respect to their input."""
    objective = make_objective(tiny_resnet, tiny_data, teacher)
    supernet, split = objective.supernet, tiny_data.test
    whole = supernet.whole()
    objective.add_knowledge(whole)
    scores = criteria.ekg(objective, whole)
    expected = {group.name: np.zeros(group.size) for group in supernet.groups}
    weights = tiny_resnet.get_weights()
    for group in supernet.groups:
        for site in group.sites:
            beside = {"a1_relu": ["stem_relu"], "b1_relu": ["a_out"]}.get(site, [])  # the branch of the shortcut
            symbols = [tiny_resnet.get_layer(name).output for name in [site, *beside]]
            prefix, suffix = keras.Model(tiny_resnet.input, symbols), keras.Model(symbols, tiny_resnet.output)
            for i, j in ((0, 7), (7, 14), (14, 22)):
                y, *others = tf.nest.flatten(prefix(tiny_data.normalise(split.images[i:j]), training=True))
                with tf.GradientTape() as tape:
                    tape.watch(y)
                    logits = suffix([y, *others] if others else y, training=True)
                    loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(split.labels[i:j], logits))
                    if teacher == "ensemble":  # of one network: itself
                        knowledge = tf.stop_gradient(tf.nn.softmax(logits))
                        loss -= tf.reduce_sum(knowledge * tf.nn.log_softmax(logits))
                product = (tape.gradient(loss, y) * y).numpy().sum(axis=(0, 1, 2))
                expected[group.name] += np.abs(product) / len(split)
    tiny_resnet.set_weights(weights)
    np.testing.assert_allclose(scores, np.concatenate(list(expected.values())), rtol=2e-3, atol=2e-5)


def filters_of(model, name):
    kernel = model.get_layer(name).kernel.numpy()
    return kernel.reshape(-1, kernel.shape[-1]).T


def test_l1_and_fpgm_sum_over_the_convolutions_that_write_a_group(tiny_resnet, tiny_data):
    """By hand: the residual stream is written by the stem and a2, the second one by b2 and its projection b3."""
    objective = make_objective(tiny_resnet, tiny_data)
    supernet = objective.supernet
    whole = supernet.whole()
    writers = [("stem", "a2"), ("a1",), ("b1",), ("b2", "b3")]
    assert [group.writers for group in supernet.groups] == writers
    expected = np.concatenate([sum(np.abs(filters_of(tiny_resnet, name)).sum(axis=1) for name in names)
                               for names in writers])
    np.testing.assert_allclose(criteria.l1(objective, whole), expected, rtol=1e-5)

    def distances(filters):
        median = optimize.minimize(lambda x: np.linalg.norm(filters - x, axis=1).sum(), filters.mean(axis=0), tol=1e-12).x
        return np.linalg.norm(filters - median, axis=1)
    expected = np.concatenate([sum(distances(filters_of(tiny_resnet, name).astype(np.float64)) for name in names)
                               for names in writers])
    np.testing.assert_allclose(criteria.fpgm(objective, whole), expected, rtol=1e-3)


@pytest.mark.parametrize("criterion", list(criteria.CRITERIA))
def test_channels_that_are_gone_score_nothing(tiny_resnet, tiny_data, criterion):
    objective = make_objective(tiny_resnet, tiny_data)
    subnetwork = random_subnetwork(objective.supernet, 3)
    objective.add_knowledge(objective.supernet.whole())
    scores = criteria.CRITERIA[criterion](objective, subnetwork)
    kept = objective.supernet.mask(subnetwork)[:-1] > 0
    assert scores.shape == kept.shape and not scores[~kept].any() and (scores[kept] > 0).mean() > 0.9


def test_gbn_is_the_sum_over_images_of_what_a_gate_changes(tiny_resnet, tiny_data):
    """Oracle: the gate of one image moved by a little in the masked network, central differences of its batch's loss."""
    objective = make_objective(tiny_resnet, tiny_data, batch_size=22)
    supernet = objective.supernet
    scores = criteria.gbn(objective, supernet.whole())
    images, labels = tiny_data.normalise(tiny_data.test.images), tiny_data.test.labels
    weights, mask = supernet.weights(), tf.constant(supernet.mask(supernet.whole()))
    layout, step = supernet.layout, 1e-2

    @tf.function
    def loss(image, channel, change):
        gates = {}
        for site, gate in supernet.gates(mask).items():
            rank = len(supernet.graph.shapes[site])
            moved = tf.cast(layout.index[site] == channel, tf.float32) * change
            by_image = tf.reshape(tf.one_hot(image, 22)[:, None] * moved[None], [22, *[1] * (rank - 2), -1])
            gates[site] = gate + by_image
        logits = supernet.forward(weights, mask, images, gates=gates)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    for channel in (0, 7, 12, 20):
        sides = [[float(loss(tf.constant(image), tf.constant(channel), tf.constant(change))) for image in range(22)]
                 for change in (step, -step)]
        expected = sum(abs(above - below) for above, below in zip(*sides)) / (2 * step)
        assert scores[channel] == pytest.approx(expected, rel=0.03)
