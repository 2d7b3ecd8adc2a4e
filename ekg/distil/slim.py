"""Slims: makes of a sub-network the dense network that fine-tuning starts from."""

import logging

import keras
import numpy as np

from ekg.devices.compute import Compute
from ekg.distil import repair
from ekg.graph.calls import Graph
from ekg.graph.cutting import kernel_norm
from ekg.graph.neighbours import normalised_convolutions
from ekg.graph.registry import fitted_of
from ekg.train import batch_norm_statistics as statistics
from ekg.train.batch_norm_statistics import StatisticsEstimation
from ekg.train.evaluate import Evaluation

logger = logging.getLogger(__name__)

# The most that a rescaled kernel may change the normalised output, of variance 1, of its batch norm
# in training.
MAX_CHANGE = 1e-2


def cut_with_statistics(supernet, subnetwork, batches, compute=None, val_batches=None):
    """Returns a sub-network cut out, with moving statistics of its own and repaired if asked.

    Without a repair it computes what the masked network computes. Its kernels keep the smaller
    norms; see restore_norms_().

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        batches: data.Batches of the training split; the statistics are those of the first
            NUM_STATISTICS_IMAGES.
        compute: Compute under whose team's strategy the network is made; None means the default
            device.
        val_batches: data.Batches of D_val. With them the network is repaired, see
            ekg.distil.repair, unless that raises its loss on them; None leaves it as it was cut.
    """
    compute = compute or Compute()
    with compute.team.strategy.scope():
        model = supernet.cut(subnetwork)
    estimation = StatisticsEstimation(model, compute.use_xla)
    statistics_batches = batches.head(statistics.NUM_STATISTICS_IMAGES)
    estimation(statistics_batches)
    if val_batches is not None:
        evaluation = Evaluation(model, val_batches, compute)
        repair.repair_if_better_(
            model,
            supernet,
            subnetwork,
            _inputs(batches, supernet),
            lambda: estimation(statistics_batches),
            lambda: evaluation().loss,
        )
    return model


def _inputs(batches, supernet):
    """Returns the examples that a repair takes, as the network takes them."""
    chosen = batches.head(repair.num_examples(supernet.graph))
    parts = [batches.normalise(images) for images in chosen.images()]
    return keras.tree.map_structure(lambda *arrays: keras.ops.concatenate(arrays), *parts)


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
