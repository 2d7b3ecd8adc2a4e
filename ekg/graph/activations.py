"""Which activation functions treat every channel by itself."""

import keras
import tensorflow as tf

# Each channel of the output depends on the same channel of the input alone.
_ELEMENTWISE = (
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "swish",
    "hard_silu",
    "hard_swish",
    "mish",
    "sigmoid",
    "hard_sigmoid",
    "log_sigmoid",
    "tanh",
    "hard_tanh",
    "softplus",
    "softsign",
    "exponential",
    "linear",
    "squareplus",
    "soft_shrink",
    "hard_shrink",
    "tanh_shrink",
    "threshold",
    "sparse_plus",
    "sparse_sigmoid",
)
ELEMENTWISE_ACTIVATIONS = frozenset(
    getattr(module, name)
    for name in _ELEMENTWISE
    for module in (keras.activations, keras.ops, tf.nn)
    if hasattr(module, name)
)


def is_elementwise(activation):
    """Returns whether an activation, a function or a layer without weights, treats every channel by
    itself.
    """
    if isinstance(activation, keras.layers.Layer):
        return type(activation) in (
            keras.layers.ReLU,
            keras.layers.LeakyReLU,
            keras.layers.ELU,
        ) or (type(activation) is keras.layers.Activation and is_elementwise(activation.activation))
    return activation is None or any(activation is known for known in ELEMENTWISE_ACTIVATIONS)


def is_linear(operation):
    """Returns whether an operation is an Activation layer that returns what it reads."""
    return (
        type(operation) is keras.layers.Activation
        and operation.activation is keras.activations.linear
    )
