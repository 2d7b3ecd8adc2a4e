"""The arms of the proof that no setting of the library makes, against NumPy and Keras."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import ekg
from benchmarks.proof import recipes, setting, starts
from benchmarks.proof.runs import Run
from ekg.data.dataset import Split
from ekg.distil.slim import restore_norms_
from ekg.errors import EkgError
from ekg.graph.execute import read_variables
from tests.helpers.comparisons import log_softmax, random_subnetwork
from tests.helpers.models import make_data, make_tiny_resnet

TAU = 4.0


def kl(p, q):
    p, q = log_softmax(p / TAU), log_softmax(q / TAU)
    return TAU * (np.exp(p) * (p - q)).sum(axis=-1)


def cross_entropy(outputs, labels):
    return -log_softmax(outputs)[np.arange(len(labels)), labels]


@pytest.fixture
def batch(tiny_data):
    batch = next(tiny_data.epoch(8, seed=0, epoch=0, num_views=2))
    bank = np.random.default_rng(0).normal(0, 2, (8, 4, 3)).astype(np.float32)
    bank[:, 1] = bank[:, 0] + 0.01
    return {name: tf.constant(value) for name, value in (batch | {"bank": bank}).items()}


def network(images):
    flat = tf.reshape(images, [16, -1])[:, :9]
    return tf.matmul(flat, tf.reshape(tf.linspace(-1.0, 1.0, 27), [9, 3]))


def views_of(data, batch):
    return tf.concat([data.fine_tune_view(batch, number) for number in range(2)], 0)


def test_five_teachers_answer_each_view_with_the_statistics_of_the_batch(tiny_data, batch):
    teachers = [make_tiny_resnet() for _ in range(3)]
    for scale, teacher in zip((1.0, 1.01, 4.0), teachers):
        teacher.layers[-1].kernel.assign(scale * teacher.layers[-1].kernel)
    # Keras' own pass moves the statistics, which do not count here.
    views = views_of(tiny_data, batch)
    bank = np.stack([teacher(views, training=True).numpy() for teacher in teachers], axis=1)
    together = recipes.join(teachers)
    loss_fn = recipes.fine_tuning_by_five(tiny_data, 2, together)
    loss, terms = loss_fn(network, batch, read_variables(together))
    outputs, labels = network(views).numpy(), np.tile(batch["labels"].numpy(), 2)
    gap = kl(bank[:, 0], outputs).sum()
    chosen = [k for k in range(3) if k == 0 or kl(bank[:, 0], bank[:, k]).sum() < gap]
    assert 1 < len(chosen) == terms["num_teachers"] and bank.std() > 0.1
    expected = cross_entropy(outputs, labels) + kl(bank[:, chosen].mean(axis=1), outputs)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)


def test_each_image_chooses_its_own_teachers(tiny_data, batch):
    loss, terms = recipes.fine_tuning_by_image(tiny_data, 2)(network, batch, ())
    outputs, bank = (
        network(views_of(tiny_data, batch)).numpy().reshape(2, 8, 3),
        batch["bank"].numpy(),
    )
    knowledge, counts = [], []
    for rows, student in zip(bank, outputs.mean(axis=0)):
        chosen = [k for k in range(4) if k == 0 or kl(rows[0], rows[k]) < kl(rows[0], student)]
        knowledge.append(rows[chosen].mean(axis=0))
        counts.append(len(chosen))
    assert len(set(counts)) > 1
    np.testing.assert_allclose(terms["num_teachers"], np.mean(counts), rtol=1e-6)
    expected = [
        cross_entropy(view, batch["labels"].numpy()) + kl(np.array(knowledge), view)
        for view in outputs
    ]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize(("change", "weight"), [("", 1.0), ("squared", 4.0), ("twice", 2.0)])
def test_the_distillation_has_the_weight_of_its_arm(tiny_data, batch, change, weight):
    bank = starts.banks.MemoryBank(batch["bank"].numpy())
    run = Run("ekg", "bank", 0, change=change)
    teaching = recipes.make_teaching(run, tiny_data, None, lambda: bank, None)
    rows = teaching.complete({"index": np.arange(8)})["bank"]
    loss, terms = teaching.loss_fn(network, batch | {"bank": tf.constant(rows)}, ())
    outputs, bank = (
        network(views_of(tiny_data, batch)).numpy().reshape(2, 8, 3),
        batch["bank"].numpy(),
    )
    gap = kl(bank[:, 0], outputs.mean(axis=0)).sum()
    chosen = [k for k in range(4) if k == 0 or kl(bank[:, 0], bank[:, k]).sum() < gap]
    assert terms["num_teachers"] == len(chosen)  # the weight chooses no others
    expected = [
        cross_entropy(view, batch["labels"].numpy())
        + weight * kl(bank[:, chosen].mean(axis=1), view)
        for view in outputs
    ]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_the_bank_of_clean_images_holds_the_logits_of_the_unpruned_network(tiny_resnet, tiny_data):
    bank = recipes.clean_bank(tiny_data, tiny_resnet)
    images = tiny_data.normalise(tiny_data.train.images)
    np.testing.assert_allclose(
        bank.rows(np.array([7, 0, 3]))[:, 0],
        tiny_resnet(images, training=False).numpy()[[7, 0, 3]],
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_cosine_falls_from_the_first_learning_rate_to_nothing():
    cosine = recipes.make_schedule(Run("ekg", "bank", 0, epochs=8, change="cosine"))
    assert [cosine(epoch) for epoch in (0, 4, 8)] == pytest.approx([0.01, 0.005, 0])
    assert cosine(2) == pytest.approx(0.01 * (2 + 2**0.5) / 4) and cosine.epochs == 8
    assert recipes.make_schedule(Run("ekg", "bank", 0, epochs=8))(7.9) == pytest.approx(
        0.01 * 0.2**3
    )


def test_an_optimizer_keeps_the_average_of_the_weights_where_it_is_asked():
    with recipes.averaging(True):
        optimizer = keras.optimizers.SGD(learning_rate=1.0)
    weight = keras.Variable(1.0)
    optimizer.build([weight])
    for gradient in (0.5, 0.25):
        optimizer.apply([tf.constant(gradient)], [weight])
    assert float(weight) == 0.25
    optimizer.finalize_variable_values([weight])
    # It begins with the weight after the first step, 0.5.
    assert float(weight) == pytest.approx(0.999 * 0.5 + 0.001 * 0.25)
    with recipes.averaging(False):
        assert not keras.optimizers.SGD().use_ema


# ---------------------------------------------------------------- images and cuts


def test_the_images_are_the_first_of_each_class_in_their_order():
    data = make_data(num_train=90)
    few = setting.first_of_each_class(data, 5)
    labels, seen = data.train.labels, dict.fromkeys(range(3), 0)
    expected = []
    for number, label in enumerate(labels):
        seen[label] += 1
        expected += [number] * (seen[label] <= 5)
    np.testing.assert_array_equal(few.train.images, data.train.images[expected])
    assert len(few.train) == 15 and few.test is data.test
    with pytest.raises(EkgError, match="`data_path`: 99 images of each class are needed"):
        setting.first_of_each_class(data, 99)


def test_other_validation_images_are_views_or_images_that_nobody_trained_on():
    whole = make_data(num_train=90)
    few = setting.first_of_each_class(whole, 10)
    assert setting.with_validation(few, "ekg", whole) is few
    usual = few.last_of_each_class(4, 0)
    unseen = setting.with_validation(few, "unseen", whole).last_of_each_class(4, 0)
    trained = {image.tobytes() for image in few.train.images}
    assert not trained & {image.tobytes() for image in unseen.images} and len(unseen) == 12
    viewed = setting.with_validation(few, "viewed", whole).last_of_each_class(4, 0)
    np.testing.assert_array_equal(viewed.labels, usual.labels)
    assert (
        viewed.images.dtype == np.uint8
        and (viewed.images != usual.images).any(axis=(1, 2, 3)).mean() > 0.5
    )
    for image, original in zip(viewed.images, usual.images):  # moved and mirrored, nothing else
        assert set(image.reshape(-1, 3)[:, 0]) <= set(original.reshape(-1, 3)[:, 0])


def test_a_cut_of_another_program_is_recovered_from_its_weights():
    supernet = ekg.Supernet(make_tiny_resnet())
    subnetwork = random_subnetwork(supernet, 3)
    model = supernet.cut(subnetwork)
    restore_norms_(model, supernet.graph)
    found = starts.recover_subnetwork(supernet, model)
    assert [list(found.kept(i)) for i in range(4)] == [list(subnetwork.kept(i)) for i in range(4)]
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    first.kernel.assign_add(tf.random.stateless_normal(first.kernel.shape, (0, 0)))
    with pytest.raises(EkgError, match="is no slice of the unpruned network's"):
        starts.recover_subnetwork(supernet, model)
    twins = make_tiny_resnet()
    for norm in (
        layer for layer in twins.layers if isinstance(layer, keras.layers.BatchNormalization)
    ):
        norm.gamma.assign(tf.ones_like(norm.gamma))
        norm.beta.assign(tf.zeros_like(norm.beta))
    twins = ekg.Supernet(twins)
    with pytest.raises(EkgError, match="channels have the batch norm of one that was kept"):
        starts.recover_subnetwork(twins, twins.cut(subnetwork))


def test_a_data_set_with_other_validation_images_is_the_same_otherwise():
    data = make_data(num_train=90)
    other = setting.with_validation(data, "viewed", data)
    for field in dataclasses.fields(data):
        assert getattr(other, field.name) is getattr(data, field.name)
    assert isinstance(other.train, Split) and other.largest_class() == data.largest_class()
