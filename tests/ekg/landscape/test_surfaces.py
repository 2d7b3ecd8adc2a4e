import itertools
import math

import numpy as np
import pytest
from keras import layers

from ekg.landscape.hessian import model_landscape
from ekg.landscape.surfaces import filter_axes, normalise_filters, surface
from tests.helpers.comparisons import evaluation_batches


def built(layer, num_inputs):
    layer.build((None, 8, 8, num_inputs))
    return layer


@pytest.mark.parametrize(
    ("layer", "num_filters"),
    [
        (built(layers.Conv2D(5, 3), 4), 5),
        (built(layers.Conv2D(1, 3), 4), 1),
        (built(layers.Conv2D(6, 3, groups=2), 4), 6),
        (built(layers.DepthwiseConv2D(3), 6), 6),
        (built(layers.DepthwiseConv2D(3, depth_multiplier=2), 6), 12),
        (built(layers.Dense(4), 7), 4),
        (built(layers.Dense(1), 7), 1),
    ],
    ids=lambda value: (
        f"{type(value).__name__} of" if isinstance(value, layers.Layer) else str(value)
    ),
)
def test_every_filter_of_a_direction_has_the_norm_of_the_weights_filter(layer, num_filters):
    """One factor a filter: a kernel of one output channel has one, a depthwise one of 6 channels
    and multiplier 2 has 12.
    """
    rng = np.random.default_rng(0)
    weights, direction = (rng.normal(size=layer.kernel.shape) for _ in range(2))
    axes = filter_axes(layer, layer.kernel)
    normalised = normalise_filters(direction, weights, axes)
    factors = []
    for place in itertools.product(*(range(weights.shape[axis]) for axis in axes)):
        entries = [slice(None)] * weights.ndim
        for axis, number in zip(axes, place):
            entries[axis] = number
        old, new, expected = (
            array[tuple(entries)].ravel() for array in (direction, normalised, weights)
        )
        norm, length = (
            math.sqrt(sum(value * value for value in values)) for values in (expected, old)
        )
        np.testing.assert_allclose(new, old * norm / length, rtol=1e-6)
        factors.append(norm / length)
    assert len(set(np.round(factors, 9))) == num_filters
    np.testing.assert_array_equal(
        normalise_filters(np.ones(4), np.ones(4), filter_axes(layer, layer.bias)), 0
    )


def test_filters_of_a_dense_kernel_are_its_columns_by_hand():
    weights, direction = np.array([[3.0, 0.0], [4.0, -5.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(normalise_filters(direction, weights, (1,)), [[5, 0], [0, 5]])


def test_a_convolution_cut_to_one_filter_has_the_norm_of_its_whole_kernel_by_hand():
    weights, direction = np.full((2, 2, 4, 1), 0.5), np.zeros((2, 2, 4, 1))
    direction[0, 1, 2, 0] = -7.0
    layer = built(layers.Conv2D(1, 2), 4)
    normalised = normalise_filters(direction, weights, filter_axes(layer, layer.kernel))
    assert (
        normalised[0, 1, 2, 0] == -2 and np.count_nonzero(normalised) == 1
    )  # 16 entries of 0.5: norm 2


def test_batch_norms_have_no_filters_and_the_last_axis_of_an_unknown_kernel_numbers_its_filters():
    norm, unknown = built(layers.BatchNormalization(), 4), built(layers.ConvLSTM2D(5, 3), 4)
    assert [filter_axes(norm, variable) for variable in norm.weights] == [()] * 4
    assert [filter_axes(unknown, variable) for variable in unknown.weights] == [(3,), (3,), ()]
    transposed = built(layers.Conv2DTranspose(5, 3), 4)  # [kh, kw, c_out, c_in]
    assert [filter_axes(transposed, variable) for variable in transposed.weights] == [(2,), ()]


def test_the_surface_does_not_depend_on_the_scale_of_a_filter_before_a_batch_norm(small, tiny_data):
    """Li et al. 2018: a direction of the filters' own norms makes the plot invariant where the
    function is.
    """
    steps, surfaces = [-0.5, 0.0, 0.5], []
    for scale in (1.0, 7.0):
        for layer in (small.get_layer("one"), small.get_layer("two")):
            kernel = layer.kernel.numpy()
            kernel[..., 1] *= scale
            layer.kernel.assign(kernel)
        landscape = model_landscape(small, evaluation_batches(tiny_data), batch_statistics=True)
        surfaces.append(surface(landscape, landscape.directions(seed=2), steps))
    np.testing.assert_allclose(surfaces[0], surfaces[1], rtol=2e-3)
    assert (
        surfaces[0][1, 1] == pytest.approx(landscape.loss(landscape.point))
        and np.ptp(surfaces[0]) > 0.01
    )


def test_rows_of_a_surface_follow_the_first_direction(small, tiny_data):
    landscape = model_landscape(small, evaluation_batches(tiny_data), batch_statistics=True)
    directions, told = landscape.directions(seed=0), []
    losses = surface(landscape, directions, [0.0, 0.5], on_point=lambda: told.append(1))
    assert losses[1, 0] == pytest.approx(
        landscape.loss(landscape.point + np.float32(0.5) * directions[0])
    )
    assert losses[0, 1] == pytest.approx(
        landscape.loss(landscape.point + np.float32(0.5) * directions[1])
    )
    assert losses[1, 0] != losses[0, 1] and len(told) == 4
