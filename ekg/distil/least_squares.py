"""Ridge regression towards a prior, with the ridge chosen on held-out positions."""

import dataclasses

import tensorflow as tf

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)  # as shares of the mean diagonal of P'P
TINY = 1e-12  # least ridge, as a share of the mean diagonal, for channels that are constant


@dataclasses.dataclass(eq=False)
class Moments:
    """Sums over positions of patches P and targets T and of their products, float64.

    Attributes:
        count: number of positions.
        sums: ΣP, ΣT, ΣP'P, ΣP'T and ΣT², per block of a layer that works in groups.
    """

    count: int = 0
    sums: tuple = (0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, p, t):
        """Adds positions.

        Args:
            p: patches, [positions, blocks, rows].
            t: targets, [positions, blocks, columns].
        """
        p = tf.cast(p, tf.float64)
        t = tf.cast(t, tf.float64)
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
        """Returns the means (P, T, P'P, P'T, T²); products are centred if there is an intercept."""
        p, t, pp, pt, tt = (value / self.count for value in self.sums)
        if has_intercept:
            pp = pp - p[:, :, None] * p[:, None]
            pt = pt - p[:, :, None] * t[:, None]
            tt = tt - t**2
        return p, t, pp, pt, tt


def fit(fitting, held_out, prior, has_intercept=True):
    """Minimises ‖T − P·W − b‖² + ρ·‖W − W₀‖² over the kernel W and the intercept b.

    Args:
        fitting: Moments of the positions that are fitted.
        held_out: Moments of the positions that choose the ridge ρ and measure the residual.
        prior: kernel W₀, float64 [blocks, rows, columns].
        has_intercept: whether to fit an intercept; otherwise it is zero.

    Returns:
        (kernel [blocks, rows, columns], intercept [blocks, columns], residual share of the variance
        of the held-out targets).
    """
    p, t, pp, pt, _ = fitting.means(has_intercept)
    _, _, held_pp, held_pt, held_tt = held_out.means(has_intercept)
    mean_diagonal = tf.linalg.trace(pp) / pp.shape[-1]
    identity = tf.eye(pp.shape[-1], dtype=pp.dtype)
    best = None
    for ridge in RIDGES:
        added = (ridge * mean_diagonal + TINY * (mean_diagonal + 1))[:, None, None] * identity
        # The normal equations of W − W₀: (P'P + ρI)·(W − W₀) = P'T − P'P·W₀
        kernel = prior + tf.linalg.cholesky_solve(tf.linalg.cholesky(pp + added), pt - pp @ prior)
        cross = tf.reduce_sum(kernel * held_pt, 1)
        square = tf.reduce_sum(kernel * (held_pp @ kernel), 1)
        error = tf.reduce_sum(held_tt - 2 * cross + square)
        if best is None or error < best[0]:
            best = error, kernel
    error, kernel = best
    intercept = tf.zeros_like(t)
    if has_intercept:
        intercept = t - tf.reduce_sum(p[:, :, None] * kernel, 1)
    residual = float(error / tf.maximum(tf.reduce_sum(held_tt), TINY))
    return kernel.numpy(), intercept.numpy(), residual
