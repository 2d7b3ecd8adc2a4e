"""Slimming: from a sub-network to the dense network that fine-tuning starts from."""

import logging

import keras
import numpy as np

from ekg.devices.compute import Compute
from ekg.graph.calls import Graph
from ekg.graph.readers import sole_readers
from ekg.train.evaluate import estimate_statistics_

logger = logging.getLogger(__name__)

MAX_CHANGE = 1e-2  # of a batch norm's normalised output in training, which has variance 1, where its kernel is rescaled
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.DepthwiseConv1D,
                 keras.layers.DepthwiseConv2D, keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose,
                 keras.layers.Conv3DTranspose)  # of one kernel each
NUM_STATISTICS_IMAGES = 10_000  # training images that the moving statistics of a cut network are estimated from


def slim(supernet, subnetwork, batches, compute=None, keep=None):
    """Returns the network that fine-tuning starts from: cut out, with moving statistics, its kernels at their former norm.

    The order is cut → statistics → norms. What is kept in between, before the norms are restored, is the pruned network
    itself, whose function is that of the masked one.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        batches: data.Batches of the training split; the statistics are those of the first NUM_STATISTICS_IMAGES.
        compute: Compute under whose team's strategy the network is made; None stands for the default device.
        keep: function from a function that makes the pruned network to that network, which it may store, or have stored
            earlier; None makes it every time.
    """
    compute = compute or Compute()

    def make():
        with compute.team.strategy.scope():
            model = supernet.cut(subnetwork)
        fit_statistics_(model, batches, compute.use_xla)
        return model

    model = make() if keep is None else keep(make)
    restore_norms_(model, supernet.graph)
    return model


def fit_statistics_(model, batches, use_xla=False):
    """Sets the moving statistics to those that fit the weights, whatever the momentum and however long was trained.

    With a momentum of .999 the moving statistics of a short training are still those of before it.

    Args:
        model: functional keras.Model, changed in place.
        batches: data.Batches of the training split.
        use_xla: whether to compile with XLA.
    """
    estimate_statistics_(model, batches.head(NUM_STATISTICS_IMAGES), use_xla)


def restore_norms_(model, original):
    """Rescales, in place, every convolution of a cut model to the norm that its kernel had in the original.

    The batch norm behind cancels the factor f: with a moving mean of f·μ and a moving variance of f²·(σ² + ε) − ε it gives
    what it gave, exactly, and the effective learning rate is the original's. With the statistics of a batch σ/√(σ² + ε)
    becomes fσ/√(f²σ² + ε); a convolution stays as it is where that differs by more than MAX_CHANGE. So does one without a
    batch norm behind it.

    Args:
        model: the cut keras.Model.
        original: calls.Graph of the network it was cut from; layers match by their names in it.
    """
    wholes = original.layers
    for key, layer, norm in _normalised_convolutions(Graph(model)):
        size = np.linalg.norm(layer.kernel.numpy())
        if size == 0:
            continue
        factor = np.linalg.norm(wholes[key].kernel.numpy()) / size
        variance = norm.moving_variance.numpy()
        before, after = (scale * np.sqrt(variance) / np.sqrt(scale**2 * variance + norm.epsilon) for scale in (1, factor))
        if np.abs(after - before).max() > MAX_CHANGE:
            logger.info("the kernel of %r keeps its smaller norm: a variance behind it is near epsilon.", key)
            continue
        for weight in layer.weights:
            weight.assign(weight * factor)
        norm.moving_mean.assign(norm.moving_mean * factor)
        norm.moving_variance.assign(factor**2 * (variance + norm.epsilon) - norm.epsilon)


def _normalised_convolutions(graph):
    """Yields (key, convolution, batch norm) where the output of the one is read by the other alone, both called once."""
    for call, norm in sole_readers(graph).items():
        if type(call.layer) in _CONVOLUTIONS and call.layer.activation is keras.activations.linear and (
                type(norm.layer) is keras.layers.BatchNormalization):
            yield call.key, call.layer, norm.layer
