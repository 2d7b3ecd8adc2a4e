"""Batch norms over a number of channels that a CPU's kernels are slow for.

On CPUs TensorFlow's fused batch norm is fast for a multiple of LANES channels, and about ten times
slower for any other number, which a pruned network has nearly everywhere. Here k neighbouring
positions of C channels count as one position of k·C channels, a multiple of LANES: a change of
shape that moves nothing. Every sum over positions then comes in k parts.
"""

import math

import tensorflow as tf

from ekg.devices import kind

LANES = 16  # float32 numbers of a CPU's widest register


def tiles(x):
    """Returns k, the number of positions of x [..., channels] that count as one: 1 if tiling does
    not help or k does not divide the number of positions.

    k fits where it divides the number of positions, as far as that is known when the graph is made.
    """
    if not kind.tiles_norms() or x.shape[-1] is None:
        return 1
    k = LANES // math.gcd(x.shape[-1], LANES)
    return k if math.prod(size for size in x.shape[:-1] if size is not None) % k == 0 else 1


def normalise_by(x, k, gamma, beta, mean, variance, epsilon):
    """Returns γ·(x − μ)/√(σ² + ε) + β of given statistics, [..., channels] in the format of x.

    Args:
        x: [..., channels].
        k: positions that count as one, as tiles() gives.
        gamma, beta, mean, variance: float32 [channels] each.
        epsilon: ε.
    """
    tiled = [tf.tile(value, [k]) if k > 1 else value for value in (gamma, beta, mean, variance)]
    wide = tf.reshape(x, [-1, 1, 1, k * x.shape[-1]]) if k > 1 else x
    y = tf.compat.v1.nn.fused_batch_norm(wide, *tiled, epsilon=epsilon, is_training=False)[0]
    return tf.reshape(y, tf.shape(x)) if k > 1 else y


def normalise(x, k, gamma, beta, epsilon):
    """Returns (γ·(x − μ)/√(σ² + ε) + β, μ, σ²) with the statistics of the batch, σ² the biased
    variance.

    Has a first derivative alone, by x, gamma and beta; none goes through the statistics that it
    returns.

    Args:
        x: [..., channels].
        k: positions that count as one, as tiles() gives.
        gamma, beta: float32 [channels].
        epsilon: ε.
    """

    @tf.custom_gradient
    def run(x, gamma, beta):
        count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        mean, variance = _moments(x, k, count / k)
        y = normalise_by(x, k, gamma, beta, mean, variance, epsilon)

        def gradients(dy, *_):
            dx, dgamma, dbeta = _gradients_of_given(x, dy, k, gamma, mean, variance, epsilon)
            # What goes through the statistics: −γ/σ·(mean of dy + x̂·mean of dy·x̂), for σ as above
            factor = gamma * tf.math.rsqrt(variance + epsilon) / count
            return (
                dx - normalise_by(x, k, factor * dgamma, factor * dbeta, mean, variance, epsilon),
                dgamma,
                dbeta,
            )

        return (y, mean, variance), gradients

    return run(x, gamma, beta)


def _moments(x, k, count):
    """Returns (mean, biased variance) of x [..., channels], float32 [channels]; `count` positions
    are in each of k parts.
    """
    size = k * x.shape[-1]
    _, means, variances = tf.compat.v1.nn.fused_batch_norm(
        tf.reshape(x, [-1, 1, 1, size]), tf.ones([size]), tf.zeros([size]), epsilon=1e-3
    )
    means, variances = (tf.reshape(value, [k, -1]) for value in (means, variances))
    mean = tf.reduce_mean(means, axis=0)
    # The operation returns the unbiased variance.
    within = tf.reduce_mean(variances, axis=0) * ((count - 1) / count)
    return mean, within + tf.reduce_mean((means - mean) ** 2, axis=0)


def _gradients_of_given(x, dy, k, gamma, mean, variance, epsilon):
    """Returns the gradients of normalise_by() by x, gamma and beta."""
    wide = [tf.reshape(value, [-1, 1, 1, k * x.shape[-1]]) for value in (dy, x)]
    tiled = [tf.tile(value, [k]) for value in (gamma, mean, variance)]
    dx, dgamma, dbeta, _, _ = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=wide[0],
        x=wide[1],
        scale=tiled[0],
        reserve_space_1=tiled[1],
        reserve_space_2=tiled[2],
        reserve_space_3=tf.zeros([0]),
        epsilon=epsilon,
        is_training=False,
    )
    return tf.reshape(dx, tf.shape(x)), *(
        tf.reduce_sum(tf.reshape(value, [k, -1]), axis=0) for value in (dgamma, dbeta)
    )
