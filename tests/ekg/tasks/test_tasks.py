"""The formulas of the tasks, against those of a classification and against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg import tasks
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.tasks.choice import choose_task
from tests.helpers.comparisons import log_softmax
from tests.helpers.digits import QUICK, digits, network, softmax

RNG = np.random.default_rng(0)
T, Z = (RNG.normal(0, 2, (6, 4)).astype(np.float32) for _ in range(2))


def values(task, labels, teacher, outputs, temperature=3.0):
    return [
        np.asarray(value)
        for value in (
            task.loss(labels, outputs),
            task.distance(teacher, outputs),
            task.divergence(teacher, outputs, temperature),
        )
    ]


def test_a_classifications_formulas_are_the_papers():
    labels, tau = np.arange(6, dtype=np.int32) % 4, 3.0
    p, q = (np.exp(log_softmax(x)) for x in (T, Z))
    soft_p, soft_q = (np.exp(log_softmax(x / tau)) for x in (T, Z))
    expected = [
        -np.log(q)[np.arange(6), labels],
        -(p * np.log(q)).sum(1),
        tau * (soft_p * (np.log(soft_p) - np.log(soft_q))).sum(1),
    ]
    for value, one in zip(values(tasks.Classification(), labels, T, Z), expected):
        np.testing.assert_allclose(value, one, rtol=1e-5, atol=1e-6)


def test_a_binary_label_is_a_classification_of_two_classes():
    labels = np.array([0, 1, 1, 0, 1, 0])
    binary = values(tasks.MultiLabel(), labels[:, None].astype(np.float32), T[:, :1], Z[:, :1])
    two = values(
        tasks.Classification(),
        labels.astype(np.int32),
        *(np.stack([np.zeros(6, np.float32), x[:, 0]], 1) for x in (T, Z)),
    )
    for one, other in zip(binary, two):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_several_labels_count_as_their_mean():
    labels = RNG.integers(0, 2, (6, 4)).astype(np.float32)
    together = values(tasks.MultiLabel(), labels, T, Z)
    alone = [
        values(tasks.MultiLabel(), labels[:, i : i + 1], T[:, i : i + 1], Z[:, i : i + 1])
        for i in range(4)
    ]
    for value, *parts in zip(together, *alone):
        np.testing.assert_allclose(value, np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)
    assert tasks.MultiLabel().measure(labels, Z)["accuracy"].numpy() == pytest.approx(
        ((Z > 0) == labels).mean(1)
    )


def test_a_map_counts_as_the_mean_over_its_positions():
    t, z = (RNG.normal(size=(3, 2, 5, 4)).astype(np.float32) for _ in range(2))
    labels = RNG.integers(0, 4, (3, 2, 5)).astype(np.int32)
    together = values(tasks.DenseClassification(), labels, t, z)
    flat = values(tasks.Classification(), labels.reshape(-1), t.reshape(-1, 4), z.reshape(-1, 4))
    for value, parts in zip(together, flat):
        np.testing.assert_allclose(value, parts.reshape(3, 10).mean(1), rtol=1e-5, atol=1e-6)
    right = tasks.DenseClassification().measure(labels, z)["pixel_accuracy"].numpy()
    np.testing.assert_allclose(right, (z.argmax(-1) == labels).mean((1, 2)), rtol=1e-6)


def test_a_regressions_formulas_are_squared_differences():
    labels = RNG.normal(size=(6, 4)).astype(np.float32)
    expected = [((labels - Z) ** 2).mean(1), ((T - Z) ** 2).mean(1), ((T - Z) ** 2).mean(1) / 3.0]
    for value, one in zip(values(tasks.Regression(), labels, T, Z), expected):
        np.testing.assert_allclose(value, one, rtol=1e-5)
    with pytest.raises(EkgError, match="`label_smoothing` has no effect here"):
        tasks.Regression().loss(labels, Z, 0.1)


@pytest.mark.parametrize("task", [task() for task in tasks.TASKS.values()], ids=list(tasks.TASKS))
def test_knowledge_that_is_the_output_itself_leaves_nothing_to_learn(task):
    """The divergence is 0 and its gradient too; the distance is smallest there."""
    shape = (3, 2, 2, 4) if isinstance(task, tasks.DenseClassification) else (3, 4)
    outputs = tf.constant(RNG.normal(size=shape), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(outputs)
        divergence, distance = (
            task.divergence(tf.stop_gradient(outputs), outputs, 2.0),
            task.distance(tf.stop_gradient(outputs), outputs),
        )
    assert divergence.shape == distance.shape == (3,)
    np.testing.assert_allclose(divergence, 0, atol=1e-6)
    for value in (divergence, distance):
        np.testing.assert_allclose(tape.gradient(value, outputs), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "shape", "labels", "expected"),
    [
        (tasks.Classification(), (3,), np.eye(3)[[2, 0]], [2, 0]),
        (tasks.Classification(), (3,), [[2], [0]], [2, 0]),
        (tasks.Classification(), (3,), [2.0, 0.0], [2, 0]),
        (tasks.MultiLabel(), (1,), [True, False], [[1], [0]]),
        (tasks.MultiLabel(), (2,), [[0, 1], [1, 1]], [[0, 1], [1, 1]]),
        (tasks.DenseClassification(), (2, 1, 2), [[[[1]], [[0]]]], [[[1], [0]]]),
        (tasks.Regression(), (1,), [0.5, 2], [[0.5], [2]]),
    ],
)
def test_labels_become_one_form(task, shape, labels, expected):
    prepared = task.prepare_labels(np.array(labels), shape)
    assert prepared.tolist() == expected
    task.check_labels(prepared, shape)


def test_examples_without_classes_are_drawn_from_the_whole_data():
    assert (
        np.bincount(tasks.MultiLabel().strata(np.zeros((100, 3), np.float32))).tolist() == [10] * 10
    )
    targets = RNG.normal(size=(95, 1)).astype(np.float32)
    parts = tasks.Regression().strata(targets)
    assert np.bincount(parts).max() - np.bincount(parts).min() <= 1
    assert all(targets[parts == i].max() <= targets[parts == i + 1].min() for i in range(9))


def model(units=3, activation=None, maps=False):
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(5, 1)(inputs)
    x = x if maps else layers.GlobalAveragePooling2D()(x)
    return keras.Model(
        inputs,
        (
            layers.Conv2D(units, 1, activation=activation)
            if maps
            else layers.Dense(units, activation=activation)
        )(x),
    )


@pytest.mark.parametrize(
    ("own", "labels", "expected"),
    [
        (model(), np.array([0, 2, 1]), tasks.Classification),
        (model(activation="softmax"), np.eye(3), tasks.Classification),
        (model(), np.array([[0], [2]]), tasks.Classification),
        (model(activation="sigmoid"), np.eye(3), tasks.MultiLabel),
        (model(), np.array([[1, 1, 0], [0, 0, 1]]), tasks.MultiLabel),
        (model(1), np.array([0, 1, 1]), tasks.MultiLabel),
        (model(1, "sigmoid"), np.array([0.0, 1.0]), tasks.MultiLabel),
        (model(1), np.array([0.3, 2.0]), tasks.Regression),
        (model(), np.ones((2, 3)) / 2, tasks.Regression),
        (model(maps=True), np.zeros((2, 4, 4), int), tasks.DenseClassification),
        (model(maps=True), np.zeros((2, 4, 4, 1), int), tasks.DenseClassification),
        (model(maps=True), np.full((2, 4, 4, 3), 0.5), tasks.Regression),
    ],
)
def test_the_task_follows_from_the_network_and_its_labels(own, labels, expected):
    assert type(choose_task("auto", Graph(own), labels)) is expected


def test_a_custom_task_is_used_unchanged():
    """One that counts every loss twice finds the same and ends with losses twice as high."""

    class Twice(tasks.Classification):
        def loss(self, labels, outputs, smoothing=0.0):
            return 2 * super().loss(labels, outputs, smoothing)

    once, twice = (
        ekg.prune(
            network(softmax),
            digits(),
            epochs=None,
            target_rate=0.7,
            task=task,
            **QUICK | {"search": QUICK["search"] | {"search_teacher": "none"}},
        )
        for task in (tasks.Classification(), Twice())
    )
    assert twice.table[0].loss == pytest.approx(2 * once.table[0].loss, rel=1e-5)
