"""Moving statistics that fit the weights: whatever is frozen, whatever the momentum, whatever order
the data come in.
"""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.data.dataset import Batches, Split, TrainingBatches, mixed_order
from ekg.distil import losses
from ekg.distil.slim import cut_with_statistics
from ekg.graph import cutting
from ekg.train import batch_norm_statistics
from ekg.train.batch_norm_statistics import estimate_statistics_, fit_statistics_
from ekg.train.evaluate import evaluate
from ekg.train.step import Trainer
from tests.helpers.comparisons import mirrored
from tests.helpers.models import conv_bn, make_data, make_tiny_resnet, randomise_


def batches_of(data, batch_size=40):
    return Batches(data.train, data.normalise, batch_size)


def test_only_the_statistics_of_trainable_norms_are_estimated(tiny_data):
    """With a frozen convolution the input of the batch norm is what that convolution gives, and
    frozen norms stay.
    """
    model = make_tiny_resnet()
    for name in ("stem", "a1_bn"):
        model.get_layer(name).trainable = False
    before = {layer.name: layer.get_weights() for layer in model.layers}
    estimate_statistics_(model, batches_of(tiny_data))
    stem = np.asarray(
        model.get_layer("stem")(tiny_data.normalise(tiny_data.train.images)), np.float64
    )
    norm = model.get_layer("stem_bn")
    np.testing.assert_allclose(norm.moving_mean, stem.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, stem.var(axis=(0, 1, 2)), rtol=1e-4)
    for layer in model.layers:
        is_estimated = layer.name.endswith("_bn") and layer.trainable
        kept = layer.get_weights()[:2] if is_estimated else layer.get_weights()
        assert all((old == new).all() for old, new in zip(before[layer.name], kept))


@pytest.mark.parametrize(
    "options", [{"scale": False}, {"momentum": 1.0}, {"momentum": 0.999}, {"axis": 1}]
)
def test_statistics_of_every_form_of_batch_norm_are_exact(tiny_data, options):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm", **options)(x)
    x = layers.BatchNormalization(name="norm2")(
        layers.Dense(5, name="hidden")(layers.Flatten(name="flat")(x))
    )
    model = randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x)))
    estimate_statistics_(model, batches_of(tiny_data, 96))
    images = tiny_data.normalise(tiny_data.train.images)
    # All images were one batch, so moving statistics are its own, and what the second norm reads is
    # the same again.
    for name, axes in (
        ("norm", (0, 2, 3) if options.get("axis") == 1 else (0, 1, 2)),
        ("norm2", (0,)),
    ):
        layer = model.get_layer(name)
        values = np.asarray(keras.Model(model.input, layer.input)(images), np.float64)
        np.testing.assert_allclose(layer.moving_mean, values.mean(axis=axes), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, values.var(axis=axes), rtol=1e-3)


def test_classes_are_mixed_and_keep_their_own_order():
    labels = np.repeat(np.arange(4), 50).astype(np.int32)
    order = mixed_order(labels)
    assert sorted(order) == list(range(200))
    for label in range(4):
        members = order[labels[order] == label]
        assert (np.diff(members) > 0).all()
    counts = np.bincount(labels[order[:40]], minlength=4)
    assert counts.min() >= 3  # of 40 images; in index order they would all be of one class


def test_slimming_of_class_sorted_data_takes_statistics_of_all_classes(monkeypatch):
    data = make_data()
    sort = np.argsort(data.train.labels, kind="stable")
    sorted_split = Split(data.train.images[sort], data.train.labels[sort])
    monkeypatch.setattr(batch_norm_statistics, "NUM_STATISTICS_IMAGES", 30)
    supernet = ekg.Supernet(make_tiny_resnet())
    batches = Batches(sorted_split, data.normalise, 30, mixed_order(sorted_split.labels))
    model = cut_with_statistics(supernet, supernet.whole(), batches)
    stem, of_one_class = (
        np.asarray(supernet.model.get_layer("stem")(data.normalise(images))).mean(axis=(0, 1, 2))
        for images in (data.train.images, sorted_split.images[:30])
    )
    mean = model.get_layer("stem_bn").moving_mean.numpy()
    assert np.abs(mean - stem).max() < 0.35 * np.abs(of_one_class - stem).max()


@pytest.mark.parametrize("momentum", [0.9, 0.999])
def test_a_short_training_ends_with_statistics_that_fit_its_weights(momentum):
    """With a high momentum the moving statistics lag behind; estimated again they give the loss of
    batch statistics.
    """
    data = make_data(num_train=240, num_test=240)
    keras.utils.set_random_seed(0)
    with mirrored(1).scope():
        inputs = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(conv_bn(inputs, 6, "one"), 8, "two"))
        model = keras.Model(inputs, layers.Dense(3, name="fc")(x))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = momentum
    trainer = Trainer(mirrored(1), model, losses.baseline(data), weight_decay=0.0)
    for epoch in range(3):
        for batch in TrainingBatches(data, 24, 0, num_views=1).epoch(epoch):
            trainer.step(batch, 0.05)
    test = Batches(data.test, data.normalise, 240)
    stale = model.get_layer("two_bn").moving_variance.numpy()
    fit_statistics_(model, batches_of(data, 240))
    fitting_variance = model.get_layer("two_bn").moving_variance.numpy()
    fitting = evaluate(model, test).loss
    logits = np.asarray(
        cutting.copy(model)(data.normalise(data.test.images), training=True), np.float64
    )
    with_batch = (
        np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(240), data.test.labels]
    ).mean()
    assert fitting == pytest.approx(with_batch, rel=0.05, abs=0.01)
    if momentum > 0.99:  # where they began, at one, is most of what they were
        np.testing.assert_allclose(stale, 0.999**30 + (1 - 0.999**30) * fitting_variance, rtol=0.1)
        assert np.abs(stale / fitting_variance - 1).max() > 0.3


def test_a_copy_keeps_state_that_a_layer_derives_from_its_weights(images):
    """An adapted Normalization holds tensors beside its weights."""
    inputs = keras.Input((8, 8, 3))
    normalise = layers.Normalization(name="adapted")
    normalise.adapt(images * 3 + 2)
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(normalise(inputs), 4, "conv"))
    model = randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x)))
    normalise.adapt(images * 3 + 2)  # random weights are no statistics
    supernet = ekg.Supernet(model)
    for other in (cutting.copy(model), supernet.cut(supernet.whole())):
        np.testing.assert_allclose(other(images), model(images), rtol=1e-5, atol=1e-6)
