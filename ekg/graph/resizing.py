"""Resizing to the nearest pixel with a gradient that has a deterministic kernel on every device."""

import keras
import tensorflow as tf

from ekg.devices import kind


def needs_own_gradient(layer, args):
    """Returns whether a call resizes images to the nearest pixel where the plain gradient has no
    deterministic kernel.

    Args:
        layer: keras.layers.Resizing, or the operation of keras.ops.image.resize; others do not
            resize so.
        args: the call's arguments.
    """
    if kind.has_all_gradients() or getattr(layer, "interpolation", None) != "nearest":
        return False
    is_resizing = isinstance(layer, keras.layers.Resizing) or type(layer).__name__ == "Resize"
    return (
        is_resizing
        and layer.data_format == "channels_last"
        and len(args[0].shape) == 4
        and not layer.fill_value
    )


def resize(call, x):
    """Returns call(x), with the gradient of choosing rows and columns: two matrix products.

    Args:
        call: function that resizes images to the nearest pixel, [batch, height, width, channels];
            around them it may put zeros.
        x: the images.
    """

    @tf.custom_gradient
    def run(x):
        def gradient(dy):
            rows, columns = (_chosen(call, tf.shape(x)[axis], axis, x) for axis in (1, 2))
            wide = tf.einsum("nhwc,hi->niwc", tf.cast(dy, tf.float32), rows)
            return tf.cast(tf.einsum("niwc,wj->nijc", wide, columns), x.dtype)

        return call(x), gradient

    return run(x)


def _chosen(call, size, axis, x):
    """Returns which of the rows (axis 1) or columns (axis 2) of x each one of call(x) shows, 0 or
    1: [target, size].

    The call itself shows it, on images whose pixels hold the numbers of their rows or columns, from
    1 on.
    """
    numbers = tf.range(1, size + 1)
    numbers = tf.reshape(numbers, [1, -1, 1, 1] if axis == 1 else [1, 1, -1, 1])
    shape = [1, tf.shape(x)[1], tf.shape(x)[2], 1]
    ramp = tf.ensure_shape(
        tf.broadcast_to(tf.cast(numbers, tf.float32), shape), [1, *x.shape[1:3], 1]
    )
    shown = tf.reduce_max(call(ramp), axis=[0, 3 - axis, 3])  # 0 where there is no pixel of x
    return tf.one_hot(tf.cast(shown, tf.int32) - 1, size)
