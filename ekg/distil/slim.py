"""Slimming: from a sub-network to the dense network that fine-tuning starts from."""

import keras
import numpy as np

from ekg.devices.compute import Compute
from ekg.graph.calls import Graph
from ekg.train.evaluate import estimate_statistics_

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
        estimate_statistics_(model, batches.head(NUM_STATISTICS_IMAGES), compute.use_xla)
        return model

    model = make() if keep is None else keep(make)
    restore_norms_(model, supernet.model)
    return model


def restore_norms_(model, original):
    """Rescales, in place, every convolution of a cut model to the norm it had in the original.

    The batch norm behind cancels the factor f, if its moving mean is multiplied by f and its moving variance by f², so
    the function stays and the effective learning rate is the original's. Convolutions without a batch norm
    behind them stay as they are.

    Args:
        model: the cut keras.Model.
        original: the keras.Model it was cut from; layers match by name.
    """
    graph = Graph(model)
    readers = {}
    names = [call.layer.name for call in graph.calls]
    for call in graph.calls:
        for tensor in call.inputs:
            readers.setdefault(tensor, []).append(call)
    for call in graph.calls:
        behind = readers.get(call.output, [])
        if type(call.layer) is not keras.layers.Conv2D or len(behind) != 1 or names.count(call.layer.name) != 1:
            continue
        norm = behind[0].layer
        if type(norm) is not keras.layers.BatchNormalization or call.layer.activation is not keras.activations.linear:
            continue
        size = np.linalg.norm(call.layer.kernel.numpy())
        if size == 0:
            continue
        factor = np.linalg.norm(original.get_layer(call.layer.name).kernel.numpy()) / size
        for weight in call.layer.weights:
            weight.assign(weight * factor)
        norm.moving_mean.assign(norm.moving_mean * factor)
        norm.moving_variance.assign(norm.moving_variance * factor**2)
