import keras
import numpy as np
import pytest
import tensorflow as tf

from ekg.graph import execute
from ekg.graph.execute import ExecutionOptions
from tests.helpers import relative_difference


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fuse_norms", [True, False])
def test_a_pure_forward_equals_keras(tiny_resnet, images, training, fuse_norms):
    """Both forms of batch norms return Keras' own logits and move the statistics as Keras does."""
    forward = execute.pure_forward(tiny_resnet, ExecutionOptions(fuse_norms=fuse_norms))
    variables = execute.read_variables(tiny_resnet)
    logits, new = forward(*variables, images, training)
    expected, expected_new = tiny_resnet.stateless_call(*variables, images, training=training)
    assert relative_difference(logits, expected) < 1e-5
    assert len(new) == len(expected_new)
    for value, expected_value in zip(new, expected_new):
        np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-6)


def test_a_frozen_batch_norm_keeps_its_moving_statistics(tiny_resnet, images):
    tiny_resnet.get_layer("stem_bn").trainable = False
    forward = execute.pure_forward(tiny_resnet)
    variables = execute.read_variables(tiny_resnet)
    logits, _ = forward(*variables, images, True)
    expected, _ = tiny_resnet.stateless_call(*variables, images, training=True)
    assert relative_difference(logits, expected) < 1e-5


@pytest.mark.parametrize("num_inputs", [1, 3, 5, 8])
@pytest.mark.parametrize("size", [8, 7])
def test_a_strided_pointwise_convolution_has_the_gradient_of_its_pixels(num_inputs, size):
    """Some CPUs' kernels of that operation return another one where it reads few channels."""
    inputs = keras.Input((size, size, num_inputs))
    model = keras.Model(
        inputs, keras.layers.Conv2D(5, 1, strides=2, padding="same", use_bias=False)(inputs)
    )
    rng, forward = np.random.default_rng(0), execute.pure_forward(model)
    x, direction = rng.normal(size=(7, size, size, num_inputs)), rng.normal(size=(7, 4, 4, 5))
    images, slope = tf.constant(x, tf.float32), tf.constant(direction, tf.float32)

    @tf.function
    def gradient(kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(forward([kernel], [], images, True)[0] * slope)
        return tape.gradient(loss, kernel)

    expected = np.einsum("bhwi,bhwo->io", x[:, ::2, ::2], direction)
    assert relative_difference(gradient(tf.constant(model.get_weights()[0]))[0, 0], expected) < 1e-5


def test_activations_have_the_chosen_dtype_and_logits_float32(tiny_resnet, images):
    forward, dtypes = execute.pure_forward(tiny_resnet, ExecutionOptions("bfloat16")), []
    tiny_resnet.get_layer("a_out").call = lambda x: dtypes.append(x.dtype) or tf.nn.relu(x)
    variables = execute.read_variables(tiny_resnet)
    logits, statistics = tf.function(forward)(*variables, images, True)
    assert dtypes == [tf.bfloat16] and logits.dtype == tf.float32
    assert {value.dtype for value in statistics} == {tf.float32}
    expected = execute.pure_forward(tiny_resnet)(*variables, images, True)[0]
    assert relative_difference(logits, expected) < 0.05
