import keras
import numpy as np
import pytest
import tensorflow as tf

from ekg.devices import kind
from ekg.graph import execute, narrow_norms
from tests.helpers import relative_difference

EPSILON = 1e-3
# Widths of which k = 16, 4, 8 and 2 positions count as one
SHAPES = [(6, 8, 8, 13), (5, 4, 4, 20), (16, 7, 7, 10), (2, 6, 6, 24)]


def drawn(shape):
    """Returns (x, gamma, beta, direction), float64."""
    rng = np.random.default_rng(shape[-1])
    return (
        rng.normal(2, 3, shape),
        rng.uniform(0.5, 2, shape[-1]),
        rng.normal(size=shape[-1]),
        rng.normal(size=shape),
    )


def plain(x, gamma, beta):
    """Returns (output, mean, biased variance) as the definition has it."""
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
    return gamma * (x - mean) / tf.sqrt(variance + EPSILON) + beta, mean, variance


def results(function, values, direction, dtype):
    """Returns what a norm returns, and the gradients of ⟨output, direction⟩ by x, gamma and
    beta.
    """
    values = [tf.constant(value, dtype) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(values)
        returned = function(*values)
        loss = tf.reduce_sum(returned[0] * tf.constant(direction, dtype))
    return [*returned, *tape.gradient(loss, values)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_of_tiled_positions_is_the_definition_in_float64(shape):
    *values, direction = drawn(shape)
    k = narrow_norms.tiles(tf.zeros(shape))
    assert k == 16 // np.gcd(16, shape[-1]) > 1
    found = results(
        lambda *args: narrow_norms.normalise(args[0], k, *args[1:], EPSILON),
        values,
        direction,
        tf.float32,
    )
    expected = results(plain, values, direction, tf.float64)
    for value, expected_value in zip(found, expected):
        assert relative_difference(value, expected_value) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_given_statistics_are_used_as_the_definition_has_it(shape):
    x, gamma, beta, _ = drawn(shape)
    mean, variance = np.linspace(-1, 1, shape[-1]), np.linspace(0.1, 4, shape[-1])
    values = [tf.constant(value, tf.float32) for value in (gamma, beta, mean, variance)]
    found = narrow_norms.normalise_by(
        tf.constant(x, tf.float32), narrow_norms.tiles(x), *values, EPSILON
    )
    assert (
        relative_difference(found, gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta) < 1e-5
    )


def test_positions_that_do_not_divide_by_the_tile_keep_the_plain_operation():
    assert narrow_norms.tiles(tf.zeros((3, 7, 7, 13))) == 1  # 147 positions
    assert narrow_norms.tiles(tf.zeros((3, 8, 8, 32))) == 1  # fast as it is
    unknown = []
    function = tf.function(
        lambda x: unknown.append(narrow_norms.tiles(x)) or x,
        input_signature=[tf.TensorSpec((None, 8, 8, 13))],
    )
    function.get_concrete_function()
    assert unknown[0] == 16  # 64 positions of an image divide at any batch


def test_with_a_gpu_the_plain_operation_stays(monkeypatch):
    monkeypatch.setattr(kind, "gpus", lambda: ["a GPU"])
    assert narrow_norms.tiles(tf.zeros((6, 8, 8, 13))) == 1


@pytest.mark.parametrize(
    "options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}]
)
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_without_scale_or_offset_equals_keras(options, training):
    inputs = keras.Input((8, 8, 5))
    model = keras.Model(inputs, keras.layers.BatchNormalization(**options)(inputs))
    variables = execute.read_variables(model)
    x = tf.constant(drawn((6, 8, 8, 5))[0], tf.float32)
    found, statistics = execute.pure_forward(model)(*variables, x, training)
    expected, expected_statistics = model.stateless_call(*variables, x, training=training)
    assert relative_difference(found, expected) < 1e-5
    for value, expected_value in zip(statistics, expected_statistics):
        np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-6)


def test_half_precision_keeps_its_dtype_and_float32_statistics():
    x, gamma, beta, _ = drawn((6, 8, 8, 13))
    values = [tf.constant(value, tf.float32) for value in (gamma, beta)]
    y, mean, variance = narrow_norms.normalise(tf.constant(x, tf.bfloat16), 16, *values, EPSILON)
    assert (y.dtype, mean.dtype, variance.dtype) == (tf.bfloat16, tf.float32, tf.float32)
    assert relative_difference(tf.cast(y, tf.float32), plain(x, gamma, beta)[0]) < 0.02
