"""Second derivatives of every form of batch norm against central differences of Keras' own float64
gradients.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.data.dataset import Batches
from ekg.errors import EkgError
from ekg.landscape.hessian import model_landscape
from ekg.landscape.subnetworks import MaskedLandscapes
from tests.helpers.comparisons import relative_difference
from tests.helpers.models import randomise_

PARTS = ((0, 7), (7, 14), (14, 22))  # the batches of 22 images, at most 8 in each
STEP = 1e-7  # so small that no ReLU turns


def make_network(after_dense=False, frozen=False, **options):
    """About a hundred parameters, with a batch norm of these options after a convolution or a
    dense layer.
    """
    inputs = keras.Input((8, 8, 3))
    norm = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-3, name="norm", trainable=not frozen, **options
    )
    x = layers.Conv2D(3, 3, strides=2, use_bias=False, name="conv")(inputs)
    if after_dense:
        x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
        x = layers.ReLU(name="relu2")(norm(layers.Dense(4, name="hidden")(x)))
    else:
        x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(norm(x)))
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="small"), seed=3)


VARIANTS = {
    "whole": {},
    "no_scale": {"scale": False},
    "no_centre": {"center": False},
    "bare": {"scale": False, "center": False},
    "after_dense": {"after_dense": True},
    "after_dense_bare": {"after_dense": True, "scale": False, "center": False},
    "frozen": {"frozen": True},
}


def dense_hessian(make, data, parameters, batch_statistics):
    """Column by column the central differences of the float64 gradient, mean over all images."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = make()
    finally:
        keras.config.set_dtype_policy(policy)
    for variable, value in zip(model.weights, make().get_weights()):
        variable.assign(value.astype(np.float64))
    variables = [v for v in model.trainable_variables if parameters == "all" or len(v.shape) > 1]
    edges = np.cumsum([0, *(int(np.prod(v.shape)) for v in variables)])
    parts = [
        (tf.cast(data.normalise(data.test.images[i:j]), tf.float64), data.test.labels[i:j])
        for i, j in PARTS
    ]

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            losses = [
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels, model(images, training=batch_statistics)
                )
                for images, labels in parts
            ]
            loss = tf.add_n([tf.reduce_sum(values) for values in losses])
        return tf.concat(
            [tf.reshape(g, [-1]) for g in tape.gradient(loss, [v.value for v in variables])], 0
        )

    def gradient_at(point):
        for v, start, stop in zip(variables, edges, edges[1:]):
            v.assign(point[start:stop].reshape(v.shape))
        return gradient().numpy()

    point = np.concatenate([v.numpy().ravel() for v in variables])
    return np.stack(
        [
            (gradient_at(point + move) - gradient_at(point - move)) / (2 * STEP)
            for move in STEP * np.eye(len(point))
        ],
        axis=1,
    ) / len(data.test)


@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_products_equal_those_of_the_dense_hessian(tiny_data, variant, batch_statistics):
    def make():
        return make_network(**VARIANTS[variant])

    landscape = model_landscape(
        make(),
        Batches(tiny_data.test, tiny_data.normalise, 8),
        parameters="all",
        batch_statistics=batch_statistics,
    )
    dense = dense_hessian(make, tiny_data, "all", batch_statistics)
    assert dense.shape == (landscape.dimension,) * 2
    for seed in range(2):
        vector = np.random.default_rng(seed).normal(size=landscape.dimension)
        assert relative_difference(landscape.product(vector), dense @ vector) < 1e-3


def test_layers_without_exact_second_derivatives_are_named(tiny_data):
    """Keras' own moments take the mean as a constant in the variance."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="conv")(layers.ReLU(name="relu0")(x)))
    x = layers.GroupNormalization(2, name="norm")(x)
    model = keras.Model(
        inputs,
        layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x)),
        name="own",
    )
    batches = Batches(tiny_data.test, tiny_data.normalise, 8)
    with pytest.raises(
        EkgError, match=r"of 'norm' \(GroupNormalization\) in `model` 'own' are not exact"
    ):
        model_landscape(model, batches)
    with pytest.raises(EkgError, match="'norm'"):
        MaskedLandscapes(ekg.Supernet(model), batches)
