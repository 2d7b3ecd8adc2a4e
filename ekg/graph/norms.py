"""Batch norms as pure functions, in the forms that training, the search and second derivatives need."""

import functools

import keras
import tensorflow as tf


def batch_norm(layer, weights, x, training, options):
    """Returns (output, new moving statistics) of a Keras BatchNormalization as one fused operation.

    Equals the layer's own call, whose separate moments and scaling take about three times as long. Returns None where
    the fused operation does not apply (other ranks or axes, no scale or offset, statistics shared by replicas).

    Args:
        layer: the keras.layers.BatchNormalization.
        weights: [gamma, beta, moving mean, moving variance], each [channels], float32.
        x: [batch, height, width, channels], float32 or of half the width.
        training: True normalises with the statistics of the batch and moves the moving ones towards them.
        options: execute.ExecutionOptions.
    """
    if len(x.shape) != 4 or layer.axis not in (-1, 3) or not (layer.scale and layer.center):
        return None
    if layer.synchronized or getattr(layer, "renorm", False):
        return None
    gamma, beta, mean, variance = weights
    if not (training and layer.trainable):
        if not options.fuse_norms:
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, layer.epsilon), [mean, variance]
        y = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=layer.epsilon, is_training=False)[0]
        return y, [mean, variance]
    if options.sync_norms:
        normalise = _synchronised
    elif not options.fuse_norms:
        normalise = _from_parts
    else:
        normalise = _fused
    y, batch_mean, batch_variance = normalise(x, gamma, beta, layer.epsilon)
    keep = layer.momentum
    return y, [mean * keep + batch_mean * (1 - keep), variance * keep + batch_variance * (1 - keep)]


def _synchronised(x, gamma, beta, epsilon):
    """Returns (output, mean, variance) with the statistics of all replicas' parts of the batch together."""
    all_replicas = functools.partial(tf.distribute.get_replica_context().all_reduce, tf.distribute.ReduceOp.MEAN)
    mean = all_replicas(tf.reduce_mean(tf.cast(x, tf.float32), axis=(0, 1, 2)))
    variance = all_replicas(tf.reduce_mean((tf.cast(x, tf.float32) - mean) ** 2, axis=(0, 1, 2)))
    y = tf.nn.batch_normalization(tf.cast(x, tf.float32), mean, variance, beta, gamma, epsilon)
    return tf.cast(y, x.dtype), mean, variance


def _from_parts(x, gamma, beta, epsilon):
    """Returns (output, mean, variance) by single operations, whose second derivatives are exact and fast.

    Not by tf.nn.moments: it takes the mean as a constant in the variance, so its second derivatives are wrong.
    """
    mean = tf.reduce_mean(x, axis=(0, 1, 2))
    centred = x - mean
    variance = tf.reduce_mean(centred**2, axis=(0, 1, 2))
    return centred * (tf.math.rsqrt(variance + epsilon) * gamma) + beta, mean, variance


def _fused(x, gamma, beta, epsilon):
    """Returns (output, mean, variance) by TensorFlow's fused operation."""
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)
    # The fused operation reports the unbiased variance; Keras moves towards the biased one that normalises.
    count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
    return y, mean, variance * ((count - 1) / count)


def uses_batch_statistics(layer):
    """Returns whether a layer normalises with the statistics of a batch when it is trained."""
    return isinstance(layer, keras.layers.BatchNormalization)
