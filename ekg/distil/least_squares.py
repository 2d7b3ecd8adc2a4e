"""Least squares over many positions, with a ridge that draws towards a prior and is chosen by
positions left out.
"""

import dataclasses

import tensorflow as tf

RIDGES = (
    1e-8,
    1e-6,
    1e-4,
    1e-3,
    1e-2,
    1e-1,
)  # shares of the mean diagonal of the patches' products
TINY = 1e-12  # of the mean diagonal: a channel that never moves has none


@dataclasses.dataclass(eq=False)
class Moments:
    """Sums over positions of patches P [positions, blocks, rows] and targets T [positions, blocks,
    columns], float64.
    """

    count: int = 0
    sums: tuple = (0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, p, t):
        p, t = tf.cast(p, tf.float64), tf.cast(t, tf.float64)
        by_block = tf.transpose(p, (1, 2, 0))
        new = (
            tf.reduce_sum(p, 0),
            tf.reduce_sum(t, 0),
            by_block @ tf.transpose(p, (1, 0, 2)),
            by_block @ tf.transpose(t, (1, 0, 2)),
            tf.reduce_sum(t**2, 0),
        )
        self.count += p.shape[0]
        self.sums = tuple(old + value for old, value in zip(self.sums, new))

    def means(self, has_intercept):
        """Returns (mean of P, mean of T, P'P, P'T, T'T) per position; the products are centred if
        there is an intercept.
        """
        p, t, pp, pt, tt = (value / self.count for value in self.sums)
        if has_intercept:
            pp, pt, tt = pp - p[:, :, None] * p[:, None], pt - p[:, :, None] * t[:, None], tt - t**2
        return p, t, pp, pt, tt


def fit(fitting, held_out, prior, has_intercept=True):
    """Returns (kernel [blocks, rows, columns], intercept [blocks, columns], share of the variance
    that is left).

    Args:
        fitting: Moments of the positions that are fitted.
        held_out: Moments of the positions that choose the ridge and measure what is left.
        prior: kernel that the ridge draws towards, float64 [blocks, rows, columns].
        has_intercept: whether a constant is added to each column; else the intercept is zero.
    """
    p, t, pp, pt, _ = fitting.means(has_intercept)
    _, _, held_pp, held_pt, held_tt = held_out.means(has_intercept)
    mean_diagonal = tf.linalg.trace(pp) / pp.shape[-1]
    identity = tf.eye(pp.shape[-1], dtype=pp.dtype)
    best = None
    for ridge in RIDGES:
        added = (ridge * mean_diagonal + TINY * (mean_diagonal + 1))[:, None, None] * identity
        kernel = prior + tf.linalg.cholesky_solve(tf.linalg.cholesky(pp + added), pt - pp @ prior)
        error = tf.reduce_sum(
            held_tt
            - 2 * tf.reduce_sum(kernel * held_pt, 1)
            + tf.reduce_sum(kernel * (held_pp @ kernel), 1)
        )
        if best is None or error < best[0]:
            best = error, kernel
    error, kernel = best
    intercept = t - tf.reduce_sum(p[:, :, None] * kernel, 1) if has_intercept else tf.zeros_like(t)
    return (
        kernel.numpy(),
        intercept.numpy(),
        float(error / tf.maximum(tf.reduce_sum(held_tt), TINY)),
    )
