"""Repair of a cut network: its patches, its least squares, exactness, and that it never leaves a
worse network.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.distil import least_squares, repair, repair_sweep
from ekg.errors import EkgError
from ekg.graph import patches, registry
from ekg.network.supernet import Supernet
from tests.helpers.models import conv_bn, make_tiny_resnet, randomise_

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------- patches

LINEAR = [
    (layers.Dense(5), (7,)),
    (layers.Dense(5), (3, 7)),
    (layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (9, 5)),
    (layers.Conv1D(4, 3, 2, padding="same"), (9, 5)),
    (layers.Conv2D(6, 3, 2, padding="same"), (8, 7, 5)),
    (layers.Conv2D(6, (3, 2), padding="valid", dilation_rate=2), (8, 7, 5)),
    (layers.Conv2D(6, 1, 2), (8, 7, 5)),
    (layers.Conv2D(6, 3, padding="same", groups=2), (8, 7, 4)),
    (layers.Conv2D(4, 3, padding="same", groups=4), (8, 7, 4)),
    (layers.Conv3D(3, 2, padding="same"), (4, 5, 3, 2)),
    (layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2), (8, 8, 3)),
    (layers.DepthwiseConv1D(3, padding="same"), (8, 3)),
    (layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2), (6, 6, 3)),
    (layers.Conv2DTranspose(5, 3, 2, padding="same"), (5, 6, 3)),
    (layers.Conv2D(6, 3, padding="same", data_format="channels_first"), (5, 8, 7)),
]


@pytest.mark.parametrize("layer, shape", LINEAR, ids=lambda value: getattr(value, "name", None))
def test_a_layer_is_its_patches_times_its_kernel_as_a_matrix(layer, shape):
    x = normal(2, *shape)
    layer.build((None, *shape))
    layer.set_weights([normal(*weight.shape) for weight in layer.weights])
    p = registry.record_of(layer).patches(layer, tf.constant(x))
    variable, weight = registry.fitted_of(layer)
    kernel = patches.kernel_matrix(variable.numpy(), weight, p.shape[-2])
    computed = np.einsum("...br,brc->...bc", p, kernel)
    computed = computed.reshape(*computed.shape[:-2], -1) + layer.bias.numpy()
    expected = convolved(layer, x)
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        patches.kernel_from_matrix(kernel, weight, tuple(variable.shape)), variable.numpy()
    )


def convolved(layer, x):
    """Returns what a layer writes, channels last; CPUs convolve channels_last alone."""
    if getattr(layer, "data_format", None) != "channels_first":
        return layer(x).numpy()
    last = layers.Conv2D(6, 3, padding="same")
    last.build((None, *np.moveaxis(x, 1, -1).shape[1:]))
    last.set_weights(layer.get_weights())
    return last(np.moveaxis(x, 1, -1)).numpy()


# ---------------------------------------------------------------- least squares


def moments(p, t):
    made = least_squares.Moments()
    for part in (slice(0, 100), slice(100, None)):
        made.add(tf.constant(p[part][:, None]), tf.constant(t[part][:, None]))
    return made


@pytest.mark.parametrize("has_intercept", (True, False))
def test_the_fit_equals_numpys(has_intercept, monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGES", (1e-10,))
    p, noise = normal(300, 6) + 2, 0.1 * normal(300, 2)
    t = (p @ normal(6, 2) + 3 + noise).astype(np.float32)
    kernel, intercept, left = least_squares.fit(
        moments(p[:240], t[:240]), moments(p[240:], t[240:]), np.zeros((1, 6, 2)), has_intercept
    )
    design = np.c_[p, np.ones(300)][:240] if has_intercept else p[:240]
    expected = np.linalg.lstsq(design.astype(np.float64), t[:240], rcond=None)[0]
    np.testing.assert_allclose(kernel[0], expected[:6], atol=1e-5)
    np.testing.assert_allclose(intercept[0], expected[6] if has_intercept else 0, atol=1e-4)
    residual = t[240:] - p[240:] @ kernel[0]
    variance = (lambda value: value.var(0)) if has_intercept else (lambda value: (value**2).mean(0))
    assert left == pytest.approx(variance(residual).sum() / variance(t[240:]).sum(), rel=1e-3)


def test_the_ridge_is_chosen_by_examples_that_were_left_out():
    """With as many rows as positions and pure noise, only a large ridge predicts anything."""
    p, t = normal(40, 40), normal(40, 3)
    prior = np.zeros((1, 40, 3))
    noisy = least_squares.fit(moments(p, t), moments(normal(200, 40), normal(200, 3)), prior)[0]
    exact = least_squares.fit(moments(p, t), moments(p, t), prior)[0]
    assert np.linalg.norm(noisy) < 0.5 * np.linalg.norm(exact)


# ---------------------------------------------------------------- whole networks


def with_copies(model, writers, half):
    """Lets the second half of the channels that layers write be multiples of the first half, and
    returns the model.
    """
    for name in writers:
        layer = model.get_layer(name)
        values = []
        for weight in layer.get_weights():
            weight = weight.copy()
            weight[..., half:] = weight[..., :half]
            values.append(weight)
        layer.set_weights(values)
    return model


def keep_first_half(supernet, names):
    return supernet.whole().with_widths(dict.fromkeys(names, 0.5))


def plain_network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", name="b")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Dense(6, activation="tanh", name="c")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(4, name="fc")(x)), ("a", "b", "c")


def normed_network():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(
        layers.BatchNormalization(name="a_bn")(
            layers.Conv2D(8, 3, padding="same", name="a")(inputs)
        )
    )
    x = layers.ReLU()(
        layers.BatchNormalization(scale=False)(
            layers.Conv2D(6, 3, 2, padding="same", use_bias=False)(x)
        )
    )
    inner_inputs = keras.Input(x.shape[1:])
    y = layers.DepthwiseConv2D(3, padding="same")(inner_inputs)
    inner = keras.Model(
        inner_inputs,
        layers.Conv2D(6, 1, name="inner_conv")(layers.BatchNormalization()(y)),
        name="inner",
    )
    x = layers.Add()([inner(x), x])
    x = layers.LayerNormalization()(x)
    x = layers.Conv2D(8, 3, padding="same", groups=2)(x)
    return keras.Model(inputs, layers.Dense(4, name="fc")(layers.GlobalAveragePooling2D()(x))), (
        "a",
        "a_bn",
    )


@pytest.mark.parametrize("make", (plain_network, normed_network))
def test_dropped_channels_that_are_combinations_of_kept_ones_are_repaired_exactly(make):
    """The network has twice the channels that it needs: without half of them it computes the same
    to 1e-5.
    """
    model, writers = make()
    randomise_(model)
    for name in writers:
        with_copies(model, [name], model.get_layer(name).weights[0].shape[-1] // 2)
    supernet, images = Supernet(model), normal(64, 8, 8, 3)
    names = [group.name for group in supernet.groups if group.name in writers]
    subnetwork = keep_first_half(supernet, names)
    cut = supernet.cut(subnetwork)
    repair.repair_(cut, supernet, subnetwork, images)
    wanted = supernet.logits(images, supernet.whole())
    found = Supernet(cut, class_logits=False).logits(
        images, Supernet(cut, class_logits=False).whole()
    )
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-5 * scale


def batch_outputs(model, images):
    """Returns a network's outputs with the statistics of the batch, by Keras itself."""
    return model(images, training=True).numpy()


def error(model, supernet, images):
    return np.square(batch_outputs(model, images) - batch_outputs(supernet.model, images)).mean()


def repaired(supernet, subnetwork, images):
    model = supernet.cut(subnetwork)
    left = repair.repair_(model, supernet, subnetwork, images)
    return model, left


@pytest.fixture(scope="module")
def residual():
    """A residual network, a sub-network that also cuts the stream, and images to repair and to
    judge with.
    """
    supernet = Supernet(make_tiny_resnet())
    subnetwork = supernet.whole().with_widths({group.name: 0.6 for group in supernet.groups})
    return supernet, subnetwork, normal(256, 8, 8, 3), normal(256, 8, 8, 3)


def test_a_repaired_network_is_nearer_to_the_unpruned_one_on_other_images(residual):
    supernet, subnetwork, images, others = residual
    model, left = repaired(supernet, subnetwork, images)
    assert error(model, supernet, others) < 0.5 * error(supernet.cut(subnetwork), supernet, others)
    assert set(left) >= {"a1", "a2", "b1", "b2", "b3", "fc"} and all(
        0 <= value < 1 for value in left.values()
    )


def test_a_block_corrects_the_error_that_its_residual_stream_carries(residual, monkeypatch):
    supernet, subnetwork, images, others = residual
    with_error = error(repaired(supernet, subnetwork, images)[0], supernet, others)
    monkeypatch.setattr(repair_sweep.Sweep, "_error_beside", lambda *_: None)
    assert with_error < error(repaired(supernet, subnetwork, images)[0], supernet, others)


def test_the_whole_network_is_left_as_it_is(residual):
    supernet, _, images, _ = residual
    model, left = repaired(supernet, supernet.whole(), images)
    assert left == {}
    for mine, theirs in zip(model.get_weights(), supernet.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_layer_that_is_called_twice_keeps_its_weights_and_others_are_repaired():
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(6, 3, padding="same", activation="relu", name="shared")
    x = layers.Conv2D(6, 1, name="first")(inputs)
    x = layers.GlobalAveragePooling2D()(shared(shared(x)))
    supernet = Supernet(randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x))))
    subnetwork = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    images = normal(128, 8, 8, 3)
    model, left = repaired(supernet, subnetwork, images)
    assert set(left) == {"fc"}
    np.testing.assert_array_equal(
        model.get_layer("shared").kernel, supernet.cut(subnetwork).get_layer("shared").kernel
    )
    assert error(model, supernet, images) < error(supernet.cut(subnetwork), supernet, images)


def test_a_layer_whose_record_has_no_patches_keeps_its_weights(residual, monkeypatch):
    supernet, subnetwork, images, _ = residual
    record = registry.RECORDS[layers.Dense]
    monkeypatch.setitem(registry.RECORDS, layers.Dense, dataclasses.replace(record, patches=None))
    assert "fc" not in repaired(supernet, subnetwork, images)[1]


def test_a_frozen_batch_norm_is_kept_and_the_fit_has_no_constant_then():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 8, "a"), 6, "b")
    model = randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(layers.Flatten()(x))))
    model.get_layer("b_bn").trainable = False
    supernet, images = Supernet(model), normal(256, 8, 8, 3)
    subnetwork = supernet.whole().with_widths({"a": 0.5})
    made, _ = repaired(supernet, subnetwork, images)
    for mine, theirs in zip(
        made.get_layer("b_bn").get_weights(), model.get_layer("b_bn").get_weights()
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert error(made, supernet, images) < error(supernet.cut(subnetwork), supernet, images)


# ---------------------------------------------------------------- what users call


def test_ekg_repair_returns_a_network_with_moving_statistics_that_fit(residual):
    supernet, subnetwork, images, _ = residual
    model = ekg.repair(supernet, subnetwork, images)
    norm = model.get_layer("stem_bn")
    written = keras.Model(model.inputs, model.get_layer("stem").output)(images).numpy()
    np.testing.assert_allclose(norm.moving_mean, written.mean((0, 1, 2)), atol=1e-5)
    whole = Supernet(
        supernet.model
    )  # whose moving statistics are random, so those of the batch are compared
    assert error(model, whole, images) < error(supernet.cut(subnetwork), whole, images)


def test_the_plain_cut_is_kept_where_it_has_the_lower_loss(residual, caplog):
    supernet, subnetwork, images, _ = residual
    model = supernet.cut(subnetwork)
    before, losses = model.get_weights(), iter((1.0, float("nan")))
    assert not repair.repair_if_better_(
        model, supernet, subnetwork, images, lambda: None, lambda: next(losses)
    )
    assert "the repair is discarded" in caplog.text
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_too_few_examples_and_numbers_that_are_not_finite_are_refused(residual):
    supernet, subnetwork, images, _ = residual
    with pytest.raises(EkgError, match="`images`: a repair needs at least 16 examples; received 3"):
        ekg.repair(supernet, subnetwork, images[:3])
    broken = images.copy()
    broken[5, 2] = np.nan
    with pytest.raises(EkgError, match="`images` must be finite"):
        ekg.repair(supernet, subnetwork, broken)


def test_examples_are_as_many_as_fit_into_memory(residual, monkeypatch):
    supernet = residual[0]
    assert repair.num_examples(supernet.graph) == repair.MOST_EXAMPLES
    # The input, the stem's convolution and its batch norm: 8x8 of 3, 6 and 6 channels, float32, for
    # both networks.
    monkeypatch.setattr(repair, "ACTIVATION_BYTES", 100 * 2 * 4 * 64 * (6 + 6 + 6))
    assert repair.num_examples(supernet.graph) == 100


@pytest.mark.parametrize("choice", (True, False))
def test_a_job_repairs_the_cut_network_unless_told_not_to(choice, monkeypatch):
    """What decides is the loss on D_val, 16 images of each class here, with the statistics that
    fit.
    """
    known = []

    def spy(model, supernet, subnetwork, inputs, estimate, loss):
        before = loss()
        known.append(
            (len(inputs), before, real(model, supernet, subnetwork, inputs, estimate, loss), loss())
        )

    real = repair.repair_if_better_
    monkeypatch.setattr(repair, "repair_if_better_", spy)
    labels = np.arange(96) % 3
    images = RNG.normal(size=(96, 8, 8, 3)).astype(np.float32)
    result = ekg.prune(
        make_tiny_resnet(),
        (images, labels),
        target_rate=0.5,
        epochs=None,
        repair=choice,
        verbose=False,
        search={"search_step": 0.6},
    )
    assert len(known) == choice
    for count, before, is_better, after in known:
        assert count == 96 and (after < before if is_better else after == before)
        assert result.table[-1].loss == pytest.approx(after, rel=1e-5)
