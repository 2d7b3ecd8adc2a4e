import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import op_utils
import utils
from ekg import losses
from ekg.graph import Graph
from tests.conftest import make_data, make_tiny_resnet, randomise_
from tests.helpers import relative_difference


def plain_net():
    """A network without batch statistics, so that parts of a batch add up to the whole."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(layers.Flatten(name="flat")(x))))


@functools.cache  # several strategies over the same devices would take each other's collective keys
def mirrored(replicas):
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def make_trainer(make_model, data, replicas=1, **options):
    strategy = mirrored(replicas)
    with strategy.scope():
        model = make_model()
    return op_utils.Trainer(strategy, model, losses.baseline(data), weight_decay=1e-2,
                            forward=Graph(model).stateless_call, **options)


def train(trainer, data, num_steps=3, batch_size=24):
    batches = list(data.epoch(batch_size, seed=0, epoch=0, num_views=1))[:num_steps]
    return [{name: value.numpy() for name, value in trainer.step(batch, 0.1).items()} for batch in batches]


def test_sgd_is_nesterov_with_weight_decay_in_the_gradient():
    """Two steps against NumPy on a model whose gradient is the mean input, kernel [3, 2]."""
    with mirrored(1).scope():
        inputs = keras.Input((3,))
        model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="fc")(inputs))
    start = model.get_layer("fc").kernel.numpy()
    trainer = op_utils.Trainer(mirrored(1), model, lambda network, batch, _: (tf.reduce_mean(network(batch["x"])), {}),
                               weight_decay=0.3)
    kernel, velocity = start.astype(np.float64), 0.0
    for step in range(2):
        x = np.random.default_rng(step).normal(size=(5, 3)).astype(np.float32)
        trainer.step({"x": x, "labels": np.zeros(5)}, 0.2)
        gradient = np.repeat(x.mean(axis=0)[:, None] / 2, 2, axis=1) + 0.3 * kernel
        velocity = 0.9 * velocity - 0.2 * gradient
        kernel = kernel + 0.9 * velocity - 0.2 * gradient
    np.testing.assert_allclose(model.get_layer("fc").kernel.numpy(), kernel, rtol=1e-5)


@pytest.mark.parametrize("options", [{"accum": 2}, {"accum": 8}, {"replicas": 2}, {"replicas": 2, "accum": 3},
                                     {"jit": True}, {"jit": True, "accum": 4}, {"jit": True, "replicas": 2}])
def test_parts_of_a_batch_train_as_the_whole(options):
    data = make_data()
    one, other = make_trainer(plain_net, data), make_trainer(plain_net, data, **options)
    for found, expected in zip(train(other, data), train(one, data)):
        assert found == pytest.approx(expected, rel=1e-5)
    for found, expected in zip(other.model.get_weights(), one.model.get_weights()):
        assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("options", [{"replicas": 2}, {"accum": 2}])
def test_moving_statistics_are_the_mean_over_parts(options):
    data = make_data()
    trainer = make_trainer(make_tiny_resnet, data, **options)
    batch = next(data.epoch(24, seed=0, epoch=0, num_views=1))
    old = make_tiny_resnet()
    expected = np.mean([old.stateless_call(
        old.trainable_variables, old.non_trainable_variables,
        data.baseline_view({name: value[part] for name, value in batch.items()}), training=True)[1][0].numpy()
        for part in (slice(0, 12), slice(12, 24))], axis=0)
    trainer.step(batch, 0.1)
    np.testing.assert_allclose(trainer.model.non_trainable_variables[0], expected, rtol=1e-4, atol=1e-6)


def test_compiled_and_plain_steps_agree_with_batch_statistics():
    data = make_data()
    plain, compiled = (make_trainer(make_tiny_resnet, data, jit=jit) for jit in (False, True))
    assert train(compiled, data, 1)[0]["loss"] == pytest.approx(train(plain, data, 1)[0]["loss"], rel=1e-4)
    for found, expected in zip(compiled.model.get_weights(), plain.model.get_weights()):
        assert relative_difference(found, expected) < 1e-3


def test_statistics_stay_where_asked():
    data = make_data()
    trainer = make_trainer(make_tiny_resnet, data, update_statistics=False)
    before = [variable.numpy() for variable in trainer.model.non_trainable_variables]
    train(trainer, data)
    assert all((old == new.numpy()).all() for old, new in zip(before, trainer.model.non_trainable_variables))


def test_the_same_training_twice_gives_the_same_weights():
    data = make_data()
    first, second = (make_trainer(make_tiny_resnet, data) for _ in range(2))
    train(first, data)
    train(second, data)
    assert all((a == b).all() for a, b in zip(first.model.get_weights(), second.model.get_weights()))


def test_schedule_falls_at_its_points():
    schedule = op_utils.Schedule(0.1, (0.3, 0.6, 0.8), 0.2, 10)
    rates = [schedule(epoch) for epoch in (0, 2.99, 3, 5.9, 6, 8, 9.9)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


def test_the_learning_rate_rises_linearly_if_asked():
    schedule = op_utils.Schedule(0.1, (0.5,), 0.2, 20, warmup_epochs=4)
    np.testing.assert_allclose([schedule(epoch) for epoch in (0, 1, 2.5, 4, 9.9, 10)], [0.02, 0.04, 0.07, 0.1, 0.1, 0.02])


def test_a_non_finite_loss_stops_and_is_named():
    data = make_data()
    trainer = make_trainer(plain_net, data)
    trainer.model.get_layer("fc").bias.assign([np.nan, 0, 0])

    class Bar:
        def update(self, _): ...
        def set_postfix(self, _): ...
    with pytest.raises(FloatingPointError, match="loss became non-finite in epoch 3"):
        op_utils.train_epoch(trainer, data.epoch(24, 0, 2, 1), op_utils.Schedule(0.1, (), 1, 5), 2, 4, Bar())


@pytest.mark.parametrize(("batch_size", "replicas"), [(22, 1), (8, 1), (5, 1), (64, 1), (8, 2)])
def test_evaluation_is_exact_whatever_the_batch(tiny_resnet, tiny_data, batch_size, replicas):
    strategy = mirrored(replicas)
    with strategy.scope():
        model = make_tiny_resnet()
    found = op_utils.evaluate(strategy, model, tiny_data.test, tiny_data.normalise, batch_size,
                              forward=Graph(model).stateless_call, jit=batch_size == 22)
    logits = tiny_resnet(tiny_data.normalise(tiny_data.test.images)).numpy().astype(np.float64)
    labels = tiny_data.test.labels
    loss = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(22), labels]).mean()
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert (found.top1, found.top5) == ((logits.argmax(axis=1) == labels).mean(), 1.0)


def test_a_network_that_tells_nothing_apart_is_right_for_one_class():
    for k in (1, 2):
        hits = op_utils.top_k_hits(np.arange(4), tf.zeros((4, 4)), k).numpy()
        assert hits.tolist() == [1, float(k > 1), 0, 0]
    assert not op_utils.top_k_hits(np.arange(4), tf.fill((4, 4), np.nan), 1).numpy().any()


def test_top5_counts_the_five_highest():
    logits = np.arange(20, dtype=np.float32)[None].repeat(4, axis=0)
    assert op_utils.top_k_hits([19, 15, 14, 0], tf.constant(logits), 5).numpy().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("jit", [False, True])
def test_statistics_are_those_of_all_images(tiny_resnet, tiny_data, jit):
    """Of uneven batches: the first layer's are those of one pass over all images, up to the last bit or two."""
    images = tiny_data.normalise(tiny_data.train.images)
    batches = [images[:40], images[40:52], images[52:]]
    op_utils.reestimate_statistics_(tiny_resnet, batches, Graph(tiny_resnet).stateless_call, jit)
    stem = tiny_resnet.get_layer("stem")(images).numpy().astype(np.float64)
    norm = tiny_resnet.get_layer("stem_bn")
    np.testing.assert_allclose(norm.moving_mean, stem.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, stem.var(axis=(0, 1, 2)), rtol=1e-4)


def test_even_batches():
    assert op_utils.even_batches(320, 256) == [(0, 160), (160, 320)]
    assert op_utils.even_batches(10, 4) == [(0, 3), (3, 6), (6, 10)]
    assert op_utils.even_batches(4, 4) == [(0, 4)]


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(utils.UserError, match="--gpu_id 99: this machine has"):
        op_utils.make_strategy([99])


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(utils.UserError, match="--batch_size 24 must be a multiple of 10 = 2 replicas x 5"):
        op_utils.check_batch("--batch_size", 24, mirrored(2), 5)


def test_xla_choice():
    assert op_utils.use_xla("on") and not op_utils.use_xla("off")
    assert op_utils.use_xla("auto") == bool(tf.config.list_physical_devices("GPU"))
