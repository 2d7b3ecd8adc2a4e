import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

import ekg
from ekg import importance
from ekg.devices import Team
from ekg.objective import Objective
from tests.helpers import mirrored, random_subnetwork


def make_objective(model, data, batch_size=8, **options):
    return Objective(ekg.Supernet(model), data.test, data.normalise, batch_size=batch_size, **options)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_reward_is_minus_both_cross_entropies(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data)
    supernet, split = objective.supernet, tiny_data.test
    first, second = supernet.whole(), random_subnetwork(supernet, 3)
    objective.learn(first)
    objective.learn(second)
    found = objective.scores(second, [(None, second)])[0]
    loss = hits = soft = 0.0
    for images, labels in ((split.images[i:j], split.labels[i:j]) for i, j in ((0, 7), (7, 14), (14, 22))):
        one, two = (supernet.logits(tiny_data.normalise(images), each).numpy().astype(np.float64)
                    for each in (first, second))
        teacher = np.exp(log_softmax((one + two) / 2))
        loss -= log_softmax(two)[np.arange(len(labels)), labels].sum()
        hits += (two.argmax(axis=1) == labels).sum()
        soft -= (teacher * log_softmax(two)).sum()
    np.testing.assert_allclose([found.loss, found.accuracy, found.reward],
                               [loss / 22, hits / 22, -(loss + soft) / 22], rtol=1e-5)


@pytest.mark.parametrize(("teacher", "expected"), [("ensemble", lambda a, b, c: (a + b + c) / 3),
                                                   ("single", lambda a, b, c: a)])
def test_knowledge_is_the_mean_of_all_interim_subnetworks_or_the_first(tiny_resnet, tiny_data, teacher, expected):
    objective = make_objective(tiny_resnet, tiny_data, teacher=teacher)
    subnetworks = [objective.supernet.whole(), *(random_subnetwork(objective.supernet, seed) for seed in (1, 2))]
    for subnetwork in subnetworks:
        objective.learn(subnetwork)
    for number in range(len(objective.labels)):
        parts = [objective.logits(subnetwork)[number].numpy() for subnetwork in subnetworks]
        np.testing.assert_allclose(objective.evaluators[0]._knowledge[number], expected(*parts), rtol=1e-5, atol=1e-6)


def test_without_a_teacher_the_reward_is_the_validation_loss(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data, teacher="none")
    whole = objective.supernet.whole()
    objective.learn(whole)
    score = objective.scores(whole, [(None, whole)])[0]
    assert score.reward == -score.loss


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_shared_prefix_leaves_the_scores_as_they_are(tiny_resnet, tiny_data, monkeypatch, budget):
    monkeypatch.setattr("ekg.evaluator.STATE_BUDGET", budget)
    monkeypatch.setattr("ekg.evaluator.STRETCH", 2)
    objective = make_objective(tiny_resnet, tiny_data)
    assert objective.evaluators[0]._keeps_states == (budget > 0)
    supernet = objective.supernet
    present = random_subnetwork(supernet, 5).with_widths({group.name: 0.8 for group in supernet.groups})
    objective.learn(present)
    candidates = [(group, present.with_width(group, 0.4)) for group in range(len(supernet.groups))]
    shared, alone = (objective.scores(present, candidates, share_prefix=share) for share in (True, False))
    for one, other in zip(shared, alone):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-6)
    assert len({score.loss for score in shared}) == len(candidates)


def test_nothing_is_traced_again_for_other_subnetworks(tiny_resnet, tiny_data, monkeypatch):
    monkeypatch.setattr("ekg.evaluator.STRETCH", 2)
    objective = make_objective(tiny_resnet, tiny_data)  # 22 images: batches of 7, 7 and 8, two shapes
    supernet = objective.supernet
    for seed in range(4):
        present = random_subnetwork(supernet, seed)
        objective.learn(present)
        list(objective.gate_products(present))
        objective.logits(present)
        objective.scores(present, [(group, present.with_width(group, 0.0)) for group in range(len(supernet.groups))])
    counts = objective.evaluators[0].count_traces()
    assert set(counts.values()) == {2}
    num_groups = len(supernet.groups)
    assert len(counts) <= (num_groups + 1) * 3 // 2 + 3  # segments, stretches of two of them, and three more


@pytest.mark.parametrize("teacher", ["ensemble", "none"])
def test_importance_is_the_gradient_at_the_activations(tiny_resnet, tiny_data, teacher):
    """Oracle: Keras sub-models from each site to the logits, differentiated with respect to their input."""
    objective = make_objective(tiny_resnet, tiny_data, teacher=teacher)
    supernet, split = objective.supernet, tiny_data.test
    whole = supernet.whole()
    objective.learn(whole)
    found = importance.ekg(objective, whole)
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
                        own = tf.stop_gradient(tf.nn.softmax(logits))
                        loss -= tf.reduce_sum(own * tf.nn.log_softmax(logits))
                product = (tape.gradient(loss, y) * y).numpy().sum(axis=(0, 1, 2))
                expected[group.name] += np.abs(product) / len(split)
    tiny_resnet.set_weights(weights)
    np.testing.assert_allclose(found, np.concatenate(list(expected.values())), rtol=2e-3, atol=2e-5)


def test_removed_channels_have_no_importance(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data)
    half = random_subnetwork(objective.supernet, 0).with_widths({"a1": 0.5, "b2": 0.5})
    objective.learn(half)
    mask = objective.supernet.mask(half)[:-1]
    scores = importance.ekg(objective, half)
    assert (scores[mask == 0] == 0).all() and (scores[mask == 1] > 0).sum() > mask.sum() / 2


def test_an_unknown_teacher_is_refused(tiny_resnet, tiny_data):
    with pytest.raises(ValueError, match="received 'both'"):
        make_objective(tiny_resnet, tiny_data, teacher="both")


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_team_finds_the_same_bit_for_bit(tiny_resnet, tiny_data, monkeypatch, replicas, budget):
    monkeypatch.setattr("ekg.evaluator.STATE_BUDGET", budget)
    alone, shared = (make_objective(tiny_resnet, tiny_data, team=team) for team in (None, Team(mirrored(replicas))))
    supernet = alone.supernet
    assert sorted(shared.evaluators) == list(range(replicas))
    for seed in range(2):
        present = random_subnetwork(supernet, seed).with_widths({group.name: 0.8 for group in supernet.groups})
        candidates = [(group, present.with_width(group, 0.3)) for group in range(len(supernet.groups))]
        found = []
        for objective in (alone, shared):
            objective.learn(present)
            found.append((objective.scores(present, candidates), importance.ekg(objective, present).tolist()))
        assert found[0] == found[1]


def test_members_work_on_their_own_devices(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data, team=Team(mirrored(2)))
    for number, evaluator in objective.evaluators.items():
        assert all(values[0].device.endswith(f"CPU:{number}") for values in evaluator._weights.values())


def test_compiled_and_plain_scores_agree(tiny_resnet, tiny_data):
    plain, compiled = (make_objective(tiny_resnet, tiny_data, jit=jit, team=Team(mirrored(2))) for jit in (False, True))
    present = random_subnetwork(plain.supernet, 5)
    candidates = [(group, present.with_width(group, 0.4)) for group in range(len(plain.supernet.groups))]
    found = []
    for objective in (plain, compiled):
        objective.learn(present)
        found.append([dataclasses.astuple(score) for score in objective.scores(present, candidates)])
        scores = importance.ekg(objective, present)
        found[-1].append((scores / scores.max()).tolist())
    for one, other in zip(*found):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


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
    np.testing.assert_allclose(importance.l1(objective, whole), expected, rtol=1e-5)

    def distances(filters):
        median = optimize.minimize(lambda x: np.linalg.norm(filters - x, axis=1).sum(), filters.mean(axis=0), tol=1e-12).x
        return np.linalg.norm(filters - median, axis=1)
    expected = np.concatenate([sum(distances(filters_of(tiny_resnet, name).astype(np.float64)) for name in names)
                               for names in writers])
    np.testing.assert_allclose(importance.fpgm(objective, whole), expected, rtol=1e-3)


@pytest.mark.parametrize("criterion", list(importance.CRITERIA))
def test_channels_that_are_gone_score_nothing(tiny_resnet, tiny_data, criterion):
    objective = make_objective(tiny_resnet, tiny_data)
    subnetwork = random_subnetwork(objective.supernet, 3)
    objective.learn(objective.supernet.whole())
    scores = importance.CRITERIA[criterion](objective, subnetwork)
    kept = objective.supernet.mask(subnetwork)[:-1] > 0
    assert scores.shape == kept.shape and not scores[~kept].any() and (scores[kept] > 0).mean() > 0.9


def test_gbn_is_the_sum_over_images_of_what_a_gate_changes(tiny_resnet, tiny_data):
    """Oracle: each image's own gate moved by a little in the masked network, central differences of its batch's loss."""
    objective = make_objective(tiny_resnet, tiny_data, batch_size=22)
    supernet = objective.supernet
    found = importance.gbn(objective, supernet.whole())
    images, labels = tiny_data.normalise(tiny_data.test.images), tiny_data.test.labels
    weights, mask = supernet.weights(), tf.constant(supernet.mask(supernet.whole()))
    layout, step = supernet.layout, 1e-2

    @tf.function
    def loss(image, channel, change):
        gates = {}
        for site, gate in supernet.gates(mask).items():
            rank = len(supernet.graph.shapes[site])
            moved = tf.cast(layout.index[site] == channel, tf.float32) * change
            own = tf.reshape(tf.one_hot(image, 22)[:, None] * moved[None], [22, *[1] * (rank - 2), -1])
            gates[site] = gate + own
        logits = supernet.forward(weights, mask, images, gates=gates)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    for channel in (0, 7, 12, 20):
        sides = [[float(loss(tf.constant(image), tf.constant(channel), tf.constant(change))) for image in range(22)]
                 for change in (step, -step)]
        expected = sum(abs(one - other) for one, other in zip(*sides)) / (2 * step)
        assert found[channel] == pytest.approx(expected, rel=0.03)
