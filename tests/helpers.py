"""Comparisons that several tests make."""

import functools

import numpy as np
import tensorflow as tf


def relative_difference(found, expected):
    """Returns the largest difference as a share of the largest expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / np.abs(expected).max()


def random_subnetwork(supernet, seed):
    """Returns a sub-network of random order and random widths."""
    rng = np.random.default_rng(seed)
    order = supernet.whole().ranked([rng.normal(size=group.size) for group in supernet.groups])
    return order.with_widths({group.name: rng.uniform() for group in supernet.groups})


@functools.cache  # several strategies over the same devices would take each other's collective keys
def mirrored(replicas):
    """Returns the MirroredStrategy over so many virtual CPU devices."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
