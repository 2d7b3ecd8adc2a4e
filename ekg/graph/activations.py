"""Which activation functions treat every channel by itself."""

import keras
import numpy as np
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


# Operations of keras.ops of which each number of the result depends on one of each tensor read.
ELEMENTWISE_OPERATIONS = frozenset(
    """InputLayer Add Subtract Multiply Divide TrueDivide Maximum Minimum Power Relu Relu6 LeakyRelu
    Elu Selu Celu Gelu Silu HardSilu Sigmoid HardSigmoid LogSigmoid Tanh HardTanh Softplus Softsign
    Squareplus SoftShrink HardShrink TanhShrink Threshold SparsePlus SparseSigmoid Exp Expm1 Log
    Log1p Sqrt Rsqrt Square Abs Absolute Negative Sin Cos Erf Clip Cast""".split()
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
    if activation is None or any(activation is known for known in ELEMENTWISE_ACTIVATIONS):
        return True
    return callable(activation) and _is_made_of_elementwise(activation)


def _is_made_of_elementwise(function):
    """Returns whether a function of the user's own computes by operations alone that treat every
    number by itself.
    """
    symbol = keras.KerasTensor((None, 3, 5))
    try:
        with keras.StatelessScope():
            result = function(symbol)
            model = keras.Function(symbol, result)
    except Exception:  # anything that a user's function raises
        return False
    return tuple(result.shape) == (None, 3, 5) and all(
        type(operation).__name__ in ELEMENTWISE_OPERATIONS
        and not any(np.ndim(value) for value in _constants(operation))
        for operation in model.operations
    )


def is_saved(activation):
    """Returns whether Keras can write and read an activation function."""
    try:
        written = keras.activations.serialize(activation)
        return keras.activations.deserialize(written) is activation
    except Exception:  # what a function of the user's own may raise
        return False


def _constants(operation):
    """Returns the arguments of an operation's calls that are not tensors of a graph."""
    return [
        leaf
        for node in operation._inbound_nodes
        for leaf in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if not isinstance(leaf, (keras.KerasTensor, str))
    ]


def keeps_zero(activation):
    """Returns whether an activation is known to return zero for zero."""
    return activation in (None, keras.activations.linear, keras.activations.relu)


def is_linear(operation):
    """Returns whether an operation is an Activation layer that returns what it reads."""
    return (
        type(operation) is keras.layers.Activation
        and operation.activation is keras.activations.linear
    )
