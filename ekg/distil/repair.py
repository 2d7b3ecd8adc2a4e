"""Repair of a cut network without training: its kernels are fitted to what the unpruned network
computes.

One sweep over both networks, call by call, on a few hundred images without labels and with batch
statistics. Where the input of a layer differs from the unpruned network's, because channels are
gone or something before it has changed, its kernel becomes the one that minimises

    ‖T − P·W‖² + ρ·‖W − W₀‖²,    P and T centred,

with P the patches that the layer reads in the network repaired so far, and T what it computes in
the unpruned network before its activation. W₀ is what the unpruned kernel becomes where each
channel that is gone is replaced by the best linear combination of the kept ones, the same at all
positions: so few examples already know something of large kernels. Three things besides bring the
outputs closer:

- Where a batch norm follows, the fit is that of the batch norm's output, and the norm's scale is
  set so that it passes the fit on as it is. Least squares shrink what they cannot explain, and the
  norm would blow it up again.
- Where the result is added to a residual stream whose other part is there already, the target holds
  that part's error, too. So a block corrects what the stream carries past it.
- The ridge ρ is the one of least_squares.RIDGES, as a share of the mean diagonal, with the least
  error on images left out of the fit.
"""

import functools
import logging
import math

import keras
import numpy as np
import tensorflow as tf

from ekg.data.dataset import Batches
from ekg.devices.compute import full_float32
from ekg.distil.repair_sweep import Sweep, first_held_out
from ekg.errors import EkgError
from ekg.train.evaluate import StatisticsEstimation

logger = logging.getLogger(__name__)

MOST_EXAMPLES, LEAST_EXAMPLES = 512, 16
ACTIVATION_BYTES = (
    2**30
)  # of the activations that both networks hold at a time, unless LEAST_EXAMPLES take more
BATCH = 256  # examples that share statistics where these are estimated


def repair(supernet, subnetwork, images):
    """Returns a sub-network cut out and repaired, or the plain cut where that comes closer to the
    unpruned network.

        smaller = ekg.repair(supernet, subnetwork, images)

    Nothing is trained and no labels are needed. Moving statistics are estimated from the same
    examples. What decides is the mean squared difference from the unpruned network's outputs on the
    examples that were left out of the fit.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        images: examples as the network takes them, array [examples, ...], or a structure of arrays
            for several inputs; at least LEAST_EXAMPLES, and of more than num_examples() the first
            ones.

    Raises:
        EkgError: there are too few examples, or their numbers are not finite.
    """
    inputs = _checked(images, supernet.graph)
    held_out = keras.tree.map_structure(lambda array: array[first_held_out(len(array)) :], inputs)
    model = supernet.cut(subnetwork)
    estimate = StatisticsEstimation(model)
    batches = Batches(_Unlabelled(inputs), lambda images: images, BATCH)
    wanted = keras.tree.flatten(supernet.model(held_out, training=False))

    def distance():
        found = keras.tree.flatten(model(held_out, training=False))
        return float(sum(tf.reduce_mean((a - b) ** 2) for a, b in zip(found, wanted, strict=True)))

    estimate(batches)
    repair_if_better_(
        model, supernet, subnetwork, inputs, functools.partial(estimate, batches), distance
    )
    return model


def repair_if_better_(model, supernet, subnetwork, inputs, estimate, loss):
    """Repairs, in place, a network that was cut out; it gets its weights back where that does not
    lower its loss.

    Args:
        model: keras.Model, as supernet.cut(subnetwork) gives, with moving statistics that fit.
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: examples as the network takes them.
        estimate: function without arguments that lets the moving statistics of the model fit its
            weights.
        loss: function without arguments that returns what is to be low of the model.

    Returns:
        Whether the network is repaired.
    """
    weights, before = model.get_weights(), loss()
    repair_(model, supernet, subnetwork, inputs)
    estimate()
    after = loss()
    if after <= before:
        logger.info("repair: %.4g with the plain cut, %.4g repaired", before, after)
        return True
    model.set_weights(weights)
    logger.warning(
        "the repair is left out: the plain cut has a loss of %.4g, the repaired network %.4g.",
        before,
        after,
    )
    return False


def num_examples(graph):
    """Returns how many examples a repair takes at most: as many as keep the activations of both
    networks in memory.
    """
    last = {number: position for position, call in enumerate(graph.calls) for number in call.inputs}
    sizes = {
        number: 4 * math.prod(size or 1 for size in shape[1:])
        for number, shape in graph.shapes.items()
    }
    live, most = set(graph.inputs), 0
    for position, call in enumerate(graph.calls):
        live |= set(call.outputs)
        most = max(most, sum(sizes[number] for number in live))
        live -= {
            number
            for number in live
            if last.get(number, -1) <= position and number not in graph.outputs
        }
    return min(max(ACTIVATION_BYTES // (2 * most), LEAST_EXAMPLES), MOST_EXAMPLES)


def _checked(inputs, graph):
    """Returns the examples as float arrays, not more than are of use.

    Raises:
        EkgError: there are too few, or a number is not finite.
    """
    most = num_examples(graph)
    inputs = keras.tree.map_structure(lambda array: np.asarray(array)[:most], inputs)
    for array in keras.tree.flatten(inputs):
        if len(array) < LEAST_EXAMPLES:
            raise EkgError(
                f"`images`: a repair needs at least {LEAST_EXAMPLES} examples; received "
                f"{len(array)}."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EkgError("`images` must be finite numbers; there are NaN or infinite ones.")
    return inputs


class _Unlabelled:
    """Examples without labels as a split that is read in batches."""

    def __init__(self, inputs):
        self._inputs = inputs

    def __len__(self):
        return len(keras.tree.flatten(self._inputs)[0])

    def stream(self, index_batches):
        for indices in index_batches:
            yield keras.tree.map_structure(
                lambda array, chosen=indices: array[chosen], self._inputs
            )


def repair_(model, supernet, subnetwork, inputs):
    """Repairs, in place, a network that was cut out; returns {layer: share of its output's variance
    that the fit leaves}.

    Batch norms keep moving statistics that fit nothing: estimate them afterwards. A layer that is
    called several times, and one whose record has no `patches`, keep the weights that they were cut
    out with.

    Args:
        model: keras.Model, as supernet.cut(subnetwork) gives.
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: examples as the network takes them, at least 16; no labels are needed.
    """
    with full_float32():
        return Sweep(model, supernet, subnetwork, inputs).run()
