"""Slimming: from a sub-network to the dense network that fine-tuning starts from."""

import functools
import logging

import keras
import numpy as np

from ekg.devices.compute import Compute
from ekg.distil import repair
from ekg.graph.calls import Graph
from ekg.graph.cutting import kernel_norm
from ekg.graph.neighbours import normalised_convolutions
from ekg.graph.registry import fitted_of
from ekg.train.evaluate import Evaluation, StatisticsEstimation, estimate_statistics_

logger = logging.getLogger(__name__)

# of a batch norm's normalised output in training, which has variance 1, where its kernel is
# rescaled
MAX_CHANGE = 1e-2
NUM_STATISTICS_IMAGES = (
    10_000  # training images that the moving statistics of a cut network are estimated from
)


def slim(supernet, subnetwork, batches, compute=None, keep=None, val_batches=None):
    """Returns the network that fine-tuning starts from: cut out, with moving statistics, its
    kernels at their former norm.

    The order is cut → statistics → repair, if asked for → norms. What is kept in between, before
    the norms are restored, is the pruned network itself, whose function without a repair is that of
    the masked one.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        batches: data.Batches of the training split; the statistics are those of the first
            NUM_STATISTICS_IMAGES.
        compute: Compute under whose team's strategy the network is made; None stands for the
            default device.
        keep: function from a function that makes the pruned network to that network, which it may
            store, or have stored earlier; None makes it every time.
        val_batches: data.Batches of D_val. With them the network is repaired, see
            ekg.distil.repair, unless that raises its loss on these; None leaves it as it was cut.
    """
    compute = compute or Compute()

    def make():
        with compute.team.strategy.scope():
            model = supernet.cut(subnetwork)
        estimate = functools.partial(
            StatisticsEstimation(model, compute.use_xla), batches.head(NUM_STATISTICS_IMAGES)
        )
        estimate()
        if val_batches is not None:
            evaluation = Evaluation(model, val_batches, compute)
            repair.repair_if_better_(
                model,
                supernet,
                subnetwork,
                _inputs(batches, supernet),
                estimate,
                lambda: evaluation().loss,
            )
        return model

    model = make() if keep is None else keep(make)
    restore_norms_(model, supernet.graph)
    return model


def _inputs(batches, supernet):
    """Returns the examples that a repair takes, as the network takes them."""
    chosen = batches.head(repair.num_examples(supernet.graph))
    parts = [batches.normalise(images) for images in chosen.images()]
    return keras.tree.map_structure(lambda *arrays: keras.ops.concatenate(arrays), *parts)


def fit_statistics_(model, batches, use_xla=False):
    """Sets the moving statistics to those that fit the weights, whatever the momentum and however
    long was trained.

    With a momentum of .999 the moving statistics of a short training are still those of before it.

    Args:
        model: functional keras.Model, changed in place.
        batches: data.Batches of the training split.
        use_xla: whether to compile with XLA.
    """
    estimate_statistics_(model, batches.head(NUM_STATISTICS_IMAGES), use_xla)


def restore_norms_(model, original):
    """Rescales, in place, every convolution of a cut model to the norm that its kernel had in the
    original.

    The batch norm behind cancels the factor f: with a moving mean of f·μ and a moving variance of
    f²·(σ² + ε) − ε it gives what it gave, exactly, and the effective learning rate is the
    original's. With the statistics of a batch σ/√(σ² + ε) becomes fσ/√(f²σ² + ε); a convolution
    stays as it is where that differs by more than MAX_CHANGE. So does one without a batch norm
    behind it.

    Args:
        model: the cut keras.Model.
        original: calls.Graph of the network it was cut from; layers match by their names in it.
    """
    wholes = original.layers
    for call, norm_call in normalised_convolutions(Graph(model)).items():
        key, layer, norm = call.key, call.layer, norm_call.layer
        size = kernel_norm(fitted_of(layer)[0].numpy())
        if size == 0:
            continue
        factor = kernel_norm(fitted_of(wholes[key])[0].numpy()) / size
        variance = norm.moving_variance.numpy()
        before, after = (
            scale * np.sqrt(variance) / np.sqrt(scale**2 * variance + norm.epsilon)
            for scale in (1, factor)
        )
        if np.abs(after - before).max() > MAX_CHANGE:
            logger.info(
                "the kernel of %r keeps its smaller norm: a variance behind it is near epsilon.",
                key,
            )
            continue
        for weight in layer.weights:
            weight.assign(weight * factor)
        norm.moving_mean.assign(norm.moving_mean * factor)
        norm.moving_variance.assign(factor**2 * (variance + norm.epsilon) - norm.epsilon)
