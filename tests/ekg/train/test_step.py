import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ekg.distil import losses
from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.graph.execute import pure_forward
from ekg.train import step as training_step
from ekg.train.step import Schedule, StepOptions, Trainer
from tests.helpers.comparisons import mirrored, relative_difference
from tests.helpers.models import make_data, make_tiny_resnet, randomise_


def plain_net():
    """A network without batch statistics, so that parts of a batch add up to the whole."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return randomise_(
        keras.Model(inputs, layers.Dense(3, name="fc")(layers.Flatten(name="flat")(x)))
    )


def make_trainer(
    make_model,
    data,
    replicas=1,
    *,
    loss_fn=None,
    weight_decay=1e-2,
    update_statistics=True,
    **options,
):
    """Returns the Trainer of a new model under so many replicas; `options` are StepOptions."""
    strategy = mirrored(replicas)
    with strategy.scope():
        model = make_model()
    return Trainer(
        strategy,
        model,
        loss_fn or losses.baseline(data),
        weight_decay=weight_decay,
        options=StepOptions(**options),
        update_statistics=update_statistics,
    )


def train(trainer, data, num_steps=3, batch_size=24):
    batches = list(data.epoch(batch_size, seed=0, epoch=0, num_views=1))[:num_steps]
    return [
        {name: value.numpy() for name, value in trainer.step(batch, 0.1).items()}
        for batch in batches
    ]


def largest_difference(trainer, expected):
    """Returns the largest relative_difference between weights of the models of two trainers."""
    return max(
        relative_difference(weights, others)
        for weights, others in zip(trainer.model.get_weights(), expected.model.get_weights())
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_reset_trainer_trains_like_a_new_one(dtype):
    """Also where it trained another network before: weights, statistics, momentum, random
    generators and loss scale.
    """
    data = make_data()

    def make():
        inputs = keras.Input((8, 8, 3))
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(inputs))
        x = layers.Dropout(0.4, seed=3, name="drop")(layers.Flatten(name="flat")(x))
        return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x)))

    new, used = (make_trainer(make, data, dtype=dtype) for _ in range(2))
    randomise_(used.model, 5)
    train(used, data)
    used.start_from(make())
    assert [value["loss"] for value in train(used, data)] == [
        value["loss"] for value in train(new, data)
    ]
    assert largest_difference(used, new) == 0
    assert (
        used.loss_scale.numpy() == new.loss_scale.numpy()
        and used.good_steps.numpy() == new.good_steps.numpy()
    )


def test_sgd_is_nesterov_with_weight_decay_in_the_gradient():
    """Two steps against NumPy on a model whose gradient is the mean input, kernel [3, 2]."""
    with mirrored(1).scope():
        inputs = keras.Input((3,))
        model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="fc")(inputs))
    start = model.get_layer("fc").kernel.numpy()
    trainer = Trainer(
        mirrored(1),
        model,
        lambda network, batch, _: (tf.reduce_mean(network(batch["x"])), {}),
        weight_decay=0.3,
    )
    kernel, velocity = start.astype(np.float64), 0.0
    for step in range(2):
        x = np.random.default_rng(step).normal(size=(5, 3)).astype(np.float32)
        trainer.step({"x": x, "labels": np.zeros(5)}, 0.2)
        gradient = np.repeat(x.mean(axis=0)[:, None] / 2, 2, axis=1) + 0.3 * kernel
        velocity = 0.9 * velocity - 0.2 * gradient
        kernel = kernel + 0.9 * velocity - 0.2 * gradient
    np.testing.assert_allclose(model.get_layer("fc").kernel.numpy(), kernel, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"accum": 2},
        {"accum": 8},
        {"replicas": 2},
        {"replicas": 2, "accum": 3},
        {"use_xla": True},
        {"use_xla": True, "accum": 4},
        {"use_xla": True, "replicas": 2},
    ],
)
def test_parts_of_a_batch_train_as_the_whole(options):
    data = make_data()
    one, other = make_trainer(plain_net, data), make_trainer(plain_net, data, **options)
    for metrics, expected in zip(train(other, data), train(one, data)):
        assert metrics == pytest.approx(expected, rel=1e-5)
    assert largest_difference(other, one) < 1e-5


@pytest.mark.parametrize("options", [{"replicas": 2}, {"accum": 2}])
def test_moving_statistics_are_the_mean_over_parts(options):
    data = make_data()
    trainer = make_trainer(make_tiny_resnet, data, **options)
    batch = next(data.epoch(24, seed=0, epoch=0, num_views=1))
    old = make_tiny_resnet()
    expected = np.mean(
        [
            old.stateless_call(
                old.trainable_variables,
                old.non_trainable_variables,
                data.plain_view({name: value[part] for name, value in batch.items()}),
                training=True,
            )[1][0].numpy()
            for part in (slice(0, 12), slice(12, 24))
        ],
        axis=0,
    )
    trainer.step(batch, 0.1)
    np.testing.assert_allclose(
        trainer.model.non_trainable_variables[0], expected, rtol=1e-4, atol=1e-6
    )


def test_compiled_and_plain_steps_agree_with_batch_statistics():
    data = make_data()
    plain, compiled = (
        make_trainer(make_tiny_resnet, data, use_xla=use_xla) for use_xla in (False, True)
    )
    assert train(compiled, data, 1)[0]["loss"] == pytest.approx(
        train(plain, data, 1)[0]["loss"], rel=1e-4
    )
    assert largest_difference(compiled, plain) < 1e-3


def test_statistics_stay_where_asked():
    data = make_data()
    trainer = make_trainer(make_tiny_resnet, data, update_statistics=False)
    before = [variable.numpy() for variable in trainer.model.non_trainable_variables]
    train(trainer, data)
    assert all(
        (old == new.numpy()).all()
        for old, new in zip(before, trainer.model.non_trainable_variables)
    )


def test_the_same_training_twice_gives_the_same_weights():
    data = make_data()
    first, second = (make_trainer(make_tiny_resnet, data) for _ in range(2))
    train(first, data)
    train(second, data)
    assert all(
        (a == b).all() for a, b in zip(first.model.get_weights(), second.model.get_weights())
    )


def test_schedule_falls_at_its_points():
    schedule = Schedule(0.1, (0.3, 0.6, 0.8), 0.2, 10)
    rates = [schedule(epoch) for epoch in (0, 2.99, 3, 5.9, 6, 8, 9.9)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


def test_the_learning_rate_rises_linearly_if_asked():
    schedule = Schedule(0.1, (0.5,), 0.2, 20, warmup_epochs=4)
    np.testing.assert_allclose(
        [schedule(epoch) for epoch in (0, 1, 2.5, 4, 9.9, 10)], [0.02, 0.04, 0.07, 0.1, 0.1, 0.02]
    )


# ------------------------------------------ several devices, formats, compilation


def test_synchronised_batch_norms_train_as_one_device():
    data, replicas = make_data(), 2
    one = make_trainer(make_tiny_resnet, data)
    other = make_trainer(make_tiny_resnet, data, replicas, sync_norms=True)
    for metrics, expected in zip(train(other, data, 2), train(one, data, 2)):
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert largest_difference(other, one) < 1e-3
    apart = make_trainer(make_tiny_resnet, data, replicas)
    train(apart, data, 2)
    assert largest_difference(apart, one) > 0.01


@pytest.mark.parametrize("options", [{"accum": 2}, {"use_xla": True}])
def test_synchronised_batch_norms_are_not_compiled_or_cut(options):
    with pytest.raises(EkgError, match="`sync_norms` excludes `accum` above 1 and `use_xla`"):
        StepOptions(sync_norms=True, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_width_trains_nearly_as_float32(dtype):
    data, seen = make_data(), []
    whole = make_trainer(make_tiny_resnet, data)
    half = make_trainer(make_tiny_resnet, data, dtype=dtype)
    assert half.loss_scale.numpy() == (2.0**15 if dtype == "float16" else 1)
    for metrics, expected in zip(train(half, data), train(whole, data)):
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=0.05)
        seen.append(metrics["loss"] != expected["loss"])
    assert all(seen)  # it was not float32 that ran
    for variable in (*half.model.variables, *half.optimizer.variables):
        assert variable.dtype in ("float32", "int64", "int32")
    assert largest_difference(half, whole) < 0.1


def test_the_loss_scale_halves_when_gradients_overflow_and_the_step_is_skipped(monkeypatch):
    """Activations are kept as float32, so that nothing but the scale differs."""
    monkeypatch.setattr(training_step, "pure_forward", lambda model, _: pure_forward(model))
    monkeypatch.setattr(training_step, "LOSS_SCALE", 2.0**127)
    monkeypatch.setattr(training_step, "LOSS_SCALE_GROWTH_STEPS", 2)
    data = make_data()
    original = losses.baseline(data)

    def loss_fn(*args):
        return 500 * original(*args)[0], {}

    trainer = make_trainer(plain_net, data, 2, loss_fn=loss_fn, dtype="float16")
    plain = make_trainer(plain_net, data, loss_fn=loss_fn)
    batch = next(data.epoch(24, 0, 0, 1))
    before = [weights.copy() for weights in trainer.model.get_weights()]
    scales = []
    while trainer.good_steps.numpy() == 0 and len(scales) < 20:
        trainer.step(batch, 1e-4)
        scales.append(float(trainer.loss_scale.numpy()))
        if trainer.good_steps.numpy() == 0:
            assert all((a == b).all() for a, b in zip(before, trainer.model.get_weights()))
    assert scales[:2] == [2.0**126, 2.0**125] and 1 < len(scales) < 20
    plain.step(batch, 1e-4)
    assert largest_difference(trainer, plain) < 1e-5  # the scale cancels
    trainer.step(batch, 1e-4)
    assert trainer.loss_scale.numpy() == 2 * scales[-1] and trainer.good_steps.numpy() == 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_compiled_and_plain_fine_tuning_agree(replicas):
    data = make_data()
    batch = next(data.epoch(24, 0, 0, 2))
    batch["bank"] = np.random.default_rng(0).normal(0, 2, (24, 3, 3)).astype(np.float32)
    trainers = [
        make_trainer(
            make_tiny_resnet,
            data,
            replicas,
            loss_fn=losses.fine_tuning(data, "ensemble", 4.0),
            weight_decay=1e-3,
            use_xla=use_xla,
        )
        for use_xla in (False, True)
    ]
    plain, compiled = (trainer.step(batch, 0.01) for trainer in trainers)
    assert {name: float(value) for name, value in compiled.items()} == pytest.approx(
        {name: float(value) for name, value in plain.items()}, rel=1e-4
    )
    assert largest_difference(*trainers) < 1e-3


@pytest.mark.parametrize("replicas", [1, 2])
def test_functions_that_xla_cannot_compile_run_uncompiled_with_one_warning(caplog, replicas):
    def loss_fn(network, batch, _):
        logits = network(tf.cast(batch["images"], tf.float32))
        length = tf.strings.length(tf.strings.as_string(logits))  # no text in XLA
        return tf.reduce_mean(logits) + 0 * tf.reduce_sum(tf.cast(length, tf.float32)), {}

    data = make_data()
    trainer = make_trainer(plain_net, data, replicas, loss_fn=loss_fn, use_xla=True)
    batch = next(data.epoch(24, 0, 0))
    values = [float(trainer.step(batch, 0.0)["loss"]) for _ in range(2)]
    expected = float(tf.reduce_mean(trainer.model(batch["images"].astype(np.float32))))
    assert values[0] == values[1] == pytest.approx(expected, rel=1e-5)
    assert caplog.text.count("XLA cannot compile the training step") == 1


def test_a_training_step_is_traced_once():
    data = make_data()
    trainer = make_trainer(make_tiny_resnet, data, 2, accum=2)
    train(trainer, data, 4)
    assert trainer._step.count_traces() == 1


def test_a_copy_has_equal_weights_and_shares_none(tiny_resnet):
    with mirrored(2).scope():
        copy = cutting.copy(tiny_resnet)
    assert all((a == b).all() for a, b in zip(copy.get_weights(), tiny_resnet.get_weights()))
    copy.get_layer("fc").bias.assign([7, 7, 7])
    assert not (tiny_resnet.get_layer("fc").bias.numpy() == 7).any()
