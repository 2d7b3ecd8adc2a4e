import numpy as np
import pytest
import tensorflow as tf

from ekg.distil import losses
from ekg.graph.execute import pure_forward, read_variables
from ekg.tasks.kinds import Classification
from tests.helpers.comparisons import log_softmax

TAU = 4.0


def kl(p, q, tau=TAU):
    p, q = log_softmax(p / tau), log_softmax(q / tau)
    return tau * (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.fixture
def batch(tiny_data):
    batch = next(tiny_data.epoch(8, seed=0, epoch=0, num_views=2))
    bank = np.random.default_rng(0).normal(0, 2, (8, 4, 3)).astype(np.float32)
    bank[:, 1] = bank[:, 0] + 0.01
    return {name: tf.constant(value) for name, value in (batch | {"bank": bank}).items()}


def test_teachers_that_add_nothing_are_left_out():
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(6, 3, 5)).astype(np.float32)
    bank[:, 1] = bank[:, 0] + 0.1 * rng.normal(size=(6, 5))
    for student in (
        bank[:, 0] + 0.5 * rng.normal(size=(6, 5)).astype(np.float32),
        bank[:, 0],
        9 * bank[:, 2],
    ):
        gap = kl(bank[:, 0], student).sum()
        chosen = [k for k in range(3) if k == 0 or kl(bank[:, 0], bank[:, k]).sum() < gap]
        knowledge, count = losses.choose_knowledge(tf.constant(bank), tf.constant(student), TAU)
        assert count == len(chosen)
        np.testing.assert_allclose(knowledge, bank[:, chosen].mean(axis=1), rtol=1e-5)
    assert chosen == [0, 1, 2]


def plain_view(batch, data):
    """Returns the first view of a batch by NumPy: normalised, flipped, padded and cropped."""
    views = []
    for image, (_, _, _, flip, down, right) in zip(
        batch["images"].numpy(), batch["draws"].numpy()[:, 0]
    ):
        image = (image.astype(np.float32) - data.mean) / data.std
        image = image[:, ::-1] if flip >= 0.5 else image
        image = np.pad(image, [(4, 4), (4, 4), (0, 0)], mode="reflect")
        top, left = (int(9 * draw) for draw in (down, right))
        views.append(image[top : top + 8, left : left + 8])
    return np.stack(views)


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("teacher", ["ensemble", "single", "none"])
def test_fine_tuning_loss_equals_numpy(tiny_resnet, tiny_data, batch, teacher, num_views):
    received = []

    def network(images):
        received.append(images)
        flat = tf.reshape(images, [8 * num_views, -1])
        return tf.matmul(flat[:, :9], tf.reshape(tf.linspace(-1.0, 1.0, 27), [9, 3]))

    batch["draws"] = batch["draws"][:, :num_views]
    loss_fn = losses.fine_tuning(
        tiny_data, teacher, TAU, pure_forward(tiny_resnet), num_views=num_views
    )
    loss, terms = loss_fn(network, batch, read_variables(tiny_resnet))
    (views,) = received
    if num_views == 1:
        np.testing.assert_allclose(views, plain_view(batch, tiny_data), rtol=1e-5, atol=1e-6)
    for a in range(num_views if num_views > 1 else 0):
        np.testing.assert_array_equal(views[8 * a : 8 * a + 8], tiny_data.fine_tune_view(batch, a))
    outputs = network(views).numpy().astype(np.float64).reshape(num_views, 8, 3)
    labels, bank, mean = batch["labels"].numpy(), batch["bank"].numpy(), outputs.mean(axis=0)
    expected = sum(-log_softmax(z)[np.arange(8), labels] for z in outputs) / num_views
    if teacher == "ensemble":
        chosen = [
            k
            for k in range(4)
            if k == 0 or kl(bank[:, 0], bank[:, k]).sum() < kl(bank[:, 0], mean).sum()
        ]
        assert terms["num_teachers"] == len(chosen) and 1 < len(chosen) < 4
        expected += sum(kl(bank[:, chosen].mean(axis=1), z) for z in outputs) / num_views
    elif teacher == "single":
        taught = tiny_resnet(views, training=False).numpy().reshape(num_views, 8, 3)
        expected += sum(kl(t, z) for t, z in zip(taught, outputs)) / num_views
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    right = (network(views).numpy().argmax(axis=1) == np.tile(labels, num_views)).mean()
    assert float(terms["top1"]) == pytest.approx(right)


def test_label_smoothing_is_cross_entropy_with_a_mixture():
    logits = np.random.default_rng(3).normal(0, 2, (6, 5)).astype(np.float32)
    labels = np.arange(6, dtype=np.int32) % 5
    mixture = 0.9 * np.eye(5)[labels] + 0.1 / 5
    np.testing.assert_allclose(
        tf.reduce_mean(Classification().loss(labels, tf.constant(logits), 0.1)),
        -(mixture * log_softmax(logits)).sum(axis=1).mean(),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        tf.reduce_mean(Classification().loss(labels, tf.constant(logits))),
        -log_softmax(logits)[np.arange(6), labels].mean(),
        rtol=1e-6,
    )
