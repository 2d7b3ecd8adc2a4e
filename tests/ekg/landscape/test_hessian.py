import keras
import numpy as np
import pytest
import tensorflow as tf

import ekg
from ekg.distil.slim import restore_norms_
from ekg.graph.calls import Graph
from ekg.landscape.hessian import model_landscape
from ekg.landscape.subnetworks import MaskedLandscapes
from tests.ekg.landscape.conftest import make_small
from tests.helpers.comparisons import evaluation_batches, relative_difference

PARTS = ((0, 7), (7, 14), (14, 22))  # the batches of 22 images, at most 8 in each


def make_small_in_float64(original):
    """Returns a network of make_small(), or one cut from it, with its weights in float64."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = make_small([original.get_layer(name).filters for name in ("one", "two")])
    finally:
        keras.config.set_dtype_policy(policy)
    for variable, value in zip(model.weights, original.get_weights()):
        variable.assign(value.astype(np.float64))
    return model


def assign_(variables, point):
    """Sets variables to the parts of one vector."""
    edges = np.cumsum([0, *(int(np.prod(variable.shape)) for variable in variables)])
    for variable, start, stop in zip(variables, edges, edges[1:]):
        variable.assign(point[start:stop].reshape(variable.shape))


def dense_hessian(original, data, parameters, batch_statistics, batches):
    """Central differences of Keras' own float64 gradients, mean over all images.

    Keras' second derivatives would be no oracle: tf.nn.moments takes the mean as a constant in the
    variance. The step is so small that no ReLU turns.
    """
    model = make_small_in_float64(original)
    variables = [v for v in model.trainable_variables if parameters == "all" or len(v.shape) > 1]

    @tf.function
    def gradient(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=batch_statistics)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tf.concat(
            [tf.reshape(g, [-1]) for g in tape.gradient(loss, [v.value for v in variables])], 0
        )

    parts = [
        (
            tf.cast(data.normalise(data.test.images[start:stop]), tf.float64),
            data.test.labels[start:stop],
        )
        for start, stop in batches
    ]
    point, columns, step = np.concatenate([v.numpy().ravel() for v in variables]), [], 1e-8
    for moved in step * np.eye(len(point)):
        sides = []
        for side in (point + moved, point - moved):
            assign_(variables, side)
            sides.append(sum(gradient(*part).numpy() for part in parts))
        columns.append((sides[0] - sides[1]) / (2 * step))
    return np.stack(columns, axis=1) / len(data.test)


@pytest.mark.parametrize("parameters", ["kernels", "all"])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_products_and_eigenvalues_equal_those_of_the_dense_hessian(
    small, tiny_data, parameters, batch_statistics
):
    landscape = model_landscape(
        small,
        evaluation_batches(tiny_data),
        parameters=parameters,
        batch_statistics=batch_statistics,
    )
    dense = dense_hessian(small, tiny_data, parameters, batch_statistics, PARTS)
    assert dense.shape == (landscape.dimension,) * 2 and landscape.dimension <= 2000
    vector = np.random.default_rng(0).normal(size=landscape.dimension)
    assert relative_difference(landscape.product(vector), dense @ vector) < 1e-3
    values = np.linalg.eigvalsh(dense)
    spectrum = landscape.spectrum(tolerance=1e-3, max_products=200)
    assert spectrum.converged and spectrum.largest == pytest.approx(values[-1], rel=1e-3)
    assert spectrum.smallest == pytest.approx(values[0], rel=1e-3)
    assert spectrum.condition == pytest.approx(abs(values[0] / values[-1]), rel=2e-3)
    assert (spectrum.parameters, spectrum.batch_statistics, spectrum.num_images) == (
        parameters,
        batch_statistics,
        22,
    )


def test_a_subnetworks_products_equal_the_cut_networks_with_kernels_at_their_former_norms(
    small, tiny_data
):
    """The eigenvalues equal the dense Hessian's there, not at the norms after the cut."""
    supernet = ekg.Supernet(small)
    subnetwork = supernet.whole().with_kept(0, 2).with_kept(1, 3)
    slimmed, cut = supernet.cut(subnetwork), supernet.cut(subnetwork)
    restore_norms_(slimmed, Graph(small))
    dense, other = (
        dense_hessian(model, tiny_data, "kernels", True, PARTS) for model in (slimmed, cut)
    )
    masked = MaskedLandscapes(supernet, evaluation_batches(tiny_data))(subnetwork)
    vector, wide = np.random.default_rng(0).normal(size=len(dense)), np.zeros(masked.dimension)
    wide[masked.support > 0] = vector
    assert relative_difference(masked.product(wide)[masked.support > 0], dense @ vector) < 1e-3
    values, other = np.linalg.eigvalsh(dense), np.linalg.eigvalsh(other)
    spectrum = masked.spectrum(tolerance=1e-3, max_products=200)
    assert spectrum.former_norms and spectrum.converged
    assert spectrum.largest == pytest.approx(values[-1], rel=1e-3)
    assert spectrum.smallest == pytest.approx(values[0], rel=1e-3)
    assert other[-1] > 1.2 * values[-1]


def test_the_gradient_is_the_slope_of_the_loss(small, tiny_data):
    landscape = model_landscape(
        small, evaluation_batches(tiny_data), parameters="all", batch_statistics=True
    )
    direction = np.random.default_rng(0).normal(size=landscape.dimension).astype(np.float32)
    direction /= np.linalg.norm(direction)
    above, below = (landscape.loss(landscape.point + step * direction) for step in (1e-2, -1e-2))
    assert landscape.gradient(landscape.point) @ direction == pytest.approx(
        (above - below) / 2e-2, rel=1e-2
    )


def test_unknown_parameters_are_refused(small, tiny_data):
    with pytest.raises(ekg.EkgError, match="`parameters` must be one of .* received 'biases'"):
        model_landscape(small, evaluation_batches(tiny_data), parameters="biases")
