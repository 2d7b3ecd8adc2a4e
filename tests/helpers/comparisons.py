"""Comparisons and small pieces that several tests share."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import ekg
from ekg.data.dataset import Batches
from ekg.landscape.hessian import model_landscape
from ekg.landscape.subnetworks import MaskedLandscapes
from ekg.searching.objective import Objective


def relative_difference(value, expected):
    """Returns the largest difference as a share of the largest expected value."""
    value, expected = np.asarray(value), np.asarray(expected)
    return np.abs(value - expected).max() / np.abs(expected).max()


def log_softmax(logits):
    """Returns the logarithms of the probabilities, [..., classes], by NumPy."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def random_subnetwork(supernet, seed):
    """Returns a sub-network of random order and random widths."""
    return ekg.testing.random_subnetwork(supernet, np.random.default_rng(seed))


@functools.cache  # several strategies over the same devices would take each other's collective keys
def mirrored(replicas):
    """Returns the MirroredStrategy over so many virtual CPU devices."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def evaluation_batches(data, batch_size=8):
    """Returns the Batches of a data set's test split; of 22 images in batches of at most 8 they
    hold 7, 7 and 8.
    """
    return Batches(data.test, data.normalise, batch_size)


def make_objective(model, data, teacher="ensemble", batch_size=8, **compute):
    """Returns the Objective of a model on a data set's test split, computed as these fields of
    Compute say.
    """
    return Objective(
        ekg.Supernet(model), evaluation_batches(data, batch_size), teacher, ekg.Compute(**compute)
    )


def check_masked_is_cut(supernet, subnetwork, images):
    """Masked and cut network agree: in both modes in their logits, and in the number of
    parameters.
    """
    cut = supernet.cut(subnetwork)
    for training in (
        False,
        True,
    ):  # training=True moves the cut network's statistics, so it comes last
        masked = supernet.logits(images, subnetwork, training=training)
        assert relative_difference(cut(images, training=training), masked) < 1e-4
    assert supernet.complexity(subnetwork).params == cut.count_params()


def check_landscape_is_that_of_the_cut(supernet, subnetwork, batches, parameters="kernels"):
    """The masked landscape of a sub-network is that of the network cut out: loss, parameters,
    products, and no others.

    Kernels that a batch norm follows are at the norm of before the cut.

    Returns both Landscapes.
    """
    masked = MaskedLandscapes(supernet, batches, parameters=parameters)(subnetwork)
    cut = model_landscape(
        supernet.cut(subnetwork),
        batches,
        parameters=parameters,
        batch_statistics=True,
        original=supernet.model,
    )
    assert masked.loss(masked.point) == pytest.approx(cut.loss(cut.point), rel=1e-4)
    np.testing.assert_allclose(masked.point[masked.support > 0], cut.point, rtol=1e-5, atol=1e-7)
    vector = np.random.default_rng(0).normal(size=cut.dimension)
    wide = np.zeros(masked.dimension)
    wide[masked.support > 0] = vector
    assert relative_difference(masked.product(wide)[masked.support > 0], cut.product(vector)) < 1e-3
    np.testing.assert_array_equal(masked.product(np.ones(masked.dimension))[masked.support == 0], 0)
    return masked, cut
