import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg import landscape
from tests.conftest import conv_bn, randomise_
from tests.helpers import random_subnetwork, relative_difference


def make_small():
    """A convolutional net with batch norms of about three hundred parameters."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 3, "one"), 4, "two", strides=2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="small"), seed=3)


@pytest.fixture
def small():
    return make_small()


def of(model, data, **options):
    return landscape.of_model(model, data.test, data.normalise, **{"batch_size": 8} | options)


def dense_hessian(data, parameters, batch_statistics, batches):
    """Central differences of Keras' own float64 gradients, mean over all images.

    Keras' second derivatives would be no oracle: tf.nn.moments takes the mean as a constant in the variance. The step is
    so small that no ReLU turns.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = make_small()
    finally:
        keras.config.set_dtype_policy(policy)
    for variable, value in zip(model.weights, make_small().get_weights()):
        variable.assign(value.astype(np.float64))
    variables = [v for v in model.trainable_variables if parameters == "all" or len(v.shape) > 1]

    @tf.function
    def gradient(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=batch_statistics)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, [v.value for v in variables])], 0)

    parts = [(tf.cast(data.normalise(data.test.images[start:stop]), tf.float64), data.test.labels[start:stop])
             for start, stop in batches]
    point, columns, step = np.concatenate([v.numpy().ravel() for v in variables]), [], 1e-8
    for i in range(len(point)):
        sides = []
        for sign in (1, -1):
            moved, start = point.copy(), 0
            moved[i] += sign * step
            for v in variables:
                size = int(np.prod(v.shape))
                v.assign(moved[start:start + size].reshape(v.shape))
                start += size
            sides.append(sum(gradient(*part).numpy() for part in parts))
        columns.append((sides[0] - sides[1]) / (2 * step))
    return np.stack(columns, axis=1) / len(data.test)


@pytest.mark.parametrize("parameters", ["kernels", "all"])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_products_and_eigenvalues_equal_the_dense_hessians(small, tiny_data, parameters, batch_statistics):
    scene = of(small, tiny_data, parameters=parameters, batch_statistics=batch_statistics)
    dense = dense_hessian(tiny_data, parameters, batch_statistics, ((0, 7), (7, 14), (14, 22)))
    assert dense.shape == (scene.dimension,) * 2 and scene.dimension <= 2000
    vector = np.random.default_rng(0).normal(size=scene.dimension)
    assert relative_difference(scene.product(vector), dense @ vector) < 1e-3
    values = np.linalg.eigvalsh(dense)
    found = scene.spectrum(tolerance=1e-3, max_products=200)
    assert found.converged and found.largest == pytest.approx(values[-1], rel=1e-3)
    assert found.smallest == pytest.approx(values[0], rel=1e-3)
    assert found.condition == pytest.approx(abs(values[0] / values[-1]), rel=2e-3)
    assert (found.parameters, found.batch_statistics, found.num_images) == (parameters, batch_statistics, 22)


def test_a_quadratics_spectrum_is_found():
    """Loss ½ x'Ax as cross-entropy cannot be had, so the product alone is replaced."""
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    values = np.concatenate([[-3.0], np.linspace(-0.5, 5, 58), [20.0]])
    matrix = basis @ np.diag(values) @ basis.T

    class Quadratic(landscape.Landscape):
        def __init__(self):
            self.support, self.point = np.ones(60, np.float32), np.zeros(60, np.float32)
            self._parameters, self._batch_statistics, self._split = "all", False, [0]

        def product(self, vector, point=None):
            return matrix @ vector
    seen = []
    found = Quadratic().spectrum(tolerance=1e-6, on_product=lambda *each: seen.append(each))
    assert found.converged and found.largest == pytest.approx(20, abs=1e-6) and found.smallest == pytest.approx(-3, abs=1e-6)
    assert found.condition == pytest.approx(0.15, abs=1e-6) and found.products == len(seen) < 60
    assert seen[-1] == (found.products, pytest.approx(max(found.residual_largest / 20, found.residual_smallest / 3)))
    short = Quadratic().spectrum(tolerance=1e-6, max_products=5)
    assert not short.converged and short.products == 5 and short.residual_smallest > 1e-3


def test_a_subnetworks_landscape_is_that_of_the_network_cut_out(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    make = landscape.MaskedLandscapes(supernet, tiny_data.test, tiny_data.normalise, batch_size=8)
    for seed in (1, 4):
        subnetwork = random_subnetwork(supernet, seed)
        masked, cut = make(subnetwork), of(supernet.cut(subnetwork), tiny_data, batch_statistics=True)
        assert masked.loss(masked.point) == pytest.approx(cut.loss(cut.point), rel=1e-4)
        assert int(masked.support.sum()) == cut.dimension
        vector = np.random.default_rng(0).normal(size=cut.dimension)
        wide = np.zeros(masked.dimension)
        wide[masked.support > 0] = vector
        assert relative_difference(masked.product(wide)[masked.support > 0], cut.product(vector)) < 1e-3
        one, other = masked.spectrum(tolerance=1e-3), cut.spectrum(tolerance=1e-3)
        assert one.condition == pytest.approx(other.condition, rel=1e-2)
        np.testing.assert_array_equal(masked.product(np.ones(masked.dimension))[masked.support == 0], 0)


def test_the_surface_does_not_feel_the_scale_of_a_filter_before_a_batch_norm(small, tiny_data):
    """Li et al. 2018: a direction of the filters' own norms makes the plot invariant where the function is."""
    steps, found = [-0.5, 0.0, 0.5], []
    for scale in (1.0, 7.0):
        for layer in (small.get_layer("one"), small.get_layer("two")):
            kernel = layer.kernel.numpy()
            kernel[..., 1] *= scale
            layer.kernel.assign(kernel)
        scene = of(small, tiny_data, batch_statistics=True)
        found.append(scene.surface(scene.directions(seed=2), steps))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3)
    assert found[0][1, 1] == pytest.approx(scene.loss(scene.point)) and np.ptp(found[0]) > 0.01


def test_directions_have_the_filters_norms():
    rng = np.random.default_rng(0)
    for shape, axes in (((3, 3, 4, 5), (0, 1, 2)), ((3, 3, 6, 1), (0, 1)), ((7, 4), (0,))):
        weights, direction = rng.normal(size=shape), rng.normal(size=shape)
        found = landscape.normalise_filters(direction, weights)
        np.testing.assert_allclose((found**2).sum(axis=axes), (weights**2).sum(axis=axes), rtol=1e-6)
        factor = found / direction
        np.testing.assert_allclose(factor, np.broadcast_to(factor.max(axis=axes, keepdims=True), shape), rtol=1e-6)
    assert not landscape.normalise_filters(np.ones(4), np.ones(4)).any()


def test_a_spectrum_goes_to_json():
    found = landscape.Spectrum(2.0, -1.0, 0.1, 0.2, 5, True, "kernels", False, 10)
    assert dataclasses.asdict(found)["largest"] == 2.0 and found.condition == 0.5


def test_unknown_parameters_are_refused(small, tiny_data):
    with pytest.raises(ValueError, match="parameters must be one of .* received 'biases'"):
        of(small, tiny_data, parameters="biases")
