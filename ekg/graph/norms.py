"""Batch norms as pure functions, for training, the search and second derivatives."""

import keras
import tensorflow as tf

from ekg.devices import kind
from ekg.graph import narrow_norms


def batch_norm(layer, weights, x, training, options):
    """Returns (output, new moving statistics) of a Keras BatchNormalization.

    Equals the layer's own call, whose separate moments and scaling take about three times as long
    as the fused operation, and whose second derivatives are wrong. Returns None for a layer that
    supports() does not admit.

    Args:
        layer: the keras.layers.BatchNormalization.
        weights: [gamma, beta, moving mean, moving variance], each [channels], float32; without
            gamma if the layer has no scale, without beta if it is not centred.
        x: [batch, ..., channels], float32 or of half the width.
        training: True normalises with the statistics of the batch and moves the moving ones towards
            them.
        options: execute.ExecutionOptions.
    """
    if not supports(layer):
        return None
    named = dict(
        zip(
            [name for name, has in (("gamma", layer.scale), ("beta", layer.center)) if has], weights
        )
    )
    gamma, beta, (mean, variance) = named.get("gamma"), named.get("beta"), weights[-2:]
    axis = layer.axis % len(x.shape)
    can_fuse = options.fuse_norms and len(x.shape) == 4 and axis == 3
    if can_fuse:
        gamma = tf.ones_like(mean) if gamma is None else gamma
        beta = tf.zeros_like(mean) if beta is None else beta
        k = narrow_norms.tiles(x) if options.tile_norms else 1
    if not (training and layer.trainable):
        if can_fuse and (kind.has_all_gradients() or not training):
            y = narrow_norms.normalise_by(x, k, gamma, beta, mean, variance, layer.epsilon)
        else:
            y = _normalise(x, axis, (mean, variance, gamma, beta), layer.epsilon)
        return y, [mean, variance]
    if can_fuse and not options.sync_norms:
        y, batch_mean, batch_variance = _fused(x, k, gamma, beta, layer.epsilon)
    else:
        batch_mean, batch_variance = _moments(x, axis, options.sync_norms)
        y = _normalise(x, axis, (batch_mean, batch_variance, gamma, beta), layer.epsilon)
    if options.collect_moments:
        return y, [batch_mean, batch_variance]
    keep = layer.momentum
    return y, [mean * keep + batch_mean * (1 - keep), variance * keep + batch_variance * (1 - keep)]


def supports(layer):
    """Returns whether batch_norm() computes a layer: no subclass, one axis, and no statistics
    shared between replicas.
    """
    is_plain = type(layer) is keras.layers.BatchNormalization and isinstance(layer.axis, int)
    return is_plain and not layer.synchronized and not getattr(layer, "renorm", False)


def _moments(x, axis, sync):
    """Returns (mean, variance) of a batch, float32 [channels]; with `sync` over the parts of all
    replicas.

    tf.nn.moments treats the mean as constant in the variance, so its second derivatives are wrong.
    """
    x, axes = tf.cast(x, tf.float32), [i for i in range(len(x.shape)) if i != axis]
    whole = _mean_over_replicas if sync else tf.identity
    mean = whole(tf.reduce_mean(x, axes))
    return mean, whole(tf.reduce_mean((x - _along(mean, axis, x)) ** 2, axes))


def _mean_over_replicas(value):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def _along(values, axis, x):
    """Returns values [channels] in the shape that goes along this axis of x."""
    rank = len(x.shape)
    return (
        values
        if axis == rank - 1
        else tf.reshape(values, [-1 if i == axis else 1 for i in range(rank)])
    )


def _normalise(x, axis, parameters, epsilon):
    """Returns γ·(x − μ)/√(σ² + ε) + β in the format of x, for (μ, σ², γ, β) of which γ and β may be
    None.
    """
    mean, variance, gamma, beta = parameters
    scale = tf.math.rsqrt(variance + epsilon)
    scale = scale if gamma is None else scale * gamma
    y = (tf.cast(x, tf.float32) - _along(mean, axis, x)) * _along(scale, axis, x)
    return tf.cast(y if beta is None else y + _along(beta, axis, x), x.dtype)


def _fused(x, k, gamma, beta, epsilon):
    """Returns (output, mean, variance) by TensorFlow's fused operation, over k positions at
    once.
    """
    if k > 1:
        return narrow_norms.normalise(x, k, gamma, beta, epsilon)
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)
    # The fused operation reports the unbiased variance; Keras moves towards the biased one that
    # normalises.
    count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
    return y, mean, variance * ((count - 1) / count)


def uses_batch_statistics(layer):
    """Returns whether a layer normalises with the statistics of a batch when it is trained."""
    return isinstance(layer, keras.layers.BatchNormalization)


# ---------------------------------------------------------------- norms over the channels


def masked_layer_norm(layer, variables, args, context):
    """Returns a LayerNormalization of the kept channels alone, (output, []), as a layer of these
    channels gives it.

    Args:
        layer: the keras.layers.LayerNormalization over the axis of the channels.
        variables: [gamma, beta] as far as the layer has them.
        args: the call's arguments.
        context: records.Context; None for its mask leaves the call to Keras.
    """
    if context.kept is None:
        return None
    x, axis, mask, count = _masked(layer, args, context)
    mean = tf.reduce_sum(x * mask, axis, keepdims=True) / count
    variance = tf.reduce_sum((x - mean) ** 2 * mask, axis, keepdims=True) / count
    y = (x - mean) * tf.math.rsqrt(variance + layer.epsilon)
    named = dict(
        zip([name for name in ("gamma", "beta") if getattr(layer, name) is not None], variables)
    )
    y = y * _along(named["gamma"], axis, x) if "gamma" in named else y
    y = y + _along(named["beta"], axis, x) if "beta" in named else y
    return tf.cast(y, layer.compute_dtype), []


def masked_rms_norm(layer, variables, args, context):
    """Returns an RMSNormalization of the kept channels alone, (output, []); see
    masked_layer_norm().
    """
    if context.kept is None:
        return None
    x, axis, mask, count = _masked(layer, args, context)
    y = x * tf.math.rsqrt(tf.reduce_sum(x**2 * mask, axis, keepdims=True) / count + layer.epsilon)
    return tf.cast(y * _along(variables[0], axis, x), layer.compute_dtype), []


def masked_unit_norm(layer, _variables, args, context):
    """Returns a UnitNormalization of the kept channels alone, (output, []); see
    masked_layer_norm().
    """
    if context.kept is None:
        return None
    x, _, mask, _ = _masked(layer, args, context)
    return tf.cast(layer(x * mask), layer.compute_dtype), []


def _masked(layer, args, context):
    """Returns (x in float32, the axis of the channels, their mask along it, number of kept
    channels).
    """
    x = tf.cast(args[0], tf.float32)
    axis = (layer.axis if isinstance(layer.axis, int) else layer.axis[0]) % len(x.shape)
    # Without any channel the result is read by nobody, and must still be a number.
    count = tf.maximum(tf.reduce_sum(context.kept), 1)
    return x, axis, _along(context.kept, axis, x), count
