"""Repairs a cut network without training, by fitting its kernels to the unpruned network.

One sweep visits both networks, call by call, with a few hundred unlabelled images and batch
statistics. Where the input of a layer differs from that in the unpruned network, because channels
were removed or an earlier layer has changed, its kernel W becomes the minimiser of

    ‖T − P·W‖² + ρ·‖W − W₀‖²,    P and T centred.

P are the patches that the layer reads in the network repaired so far, and T is the layer's output
before the activation in the unpruned network. W₀ is the unpruned kernel with each removed channel
replaced by the best linear combination of the kept ones, the same at all positions; it is a good
prior for large kernels, which few examples do not determine. Three further measures bring the
outputs closer:

- If a batch norm follows, the fit is to the output of the batch norm, whose scale is set so that
  it does not change the fit. Least squares shrink what they cannot explain, and the batch norm
  would amplify it again.
- If the result is added to a residual stream whose other summands are computed already, the target
  includes their error. So a block corrects errors that the stream carries past it.
- The ridge ρ is the one in least_squares.RIDGES (shares of the mean diagonal) with the smallest
  error on held-out images.
"""

import functools
import logging
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.data.dataset import Batches
from ekg.data.inputs import Inputs, count_of, rows_of
from ekg.devices.compute import full_float32
from ekg.distil.repair_sweep import Sweep, first_held_out
from ekg.errors import EkgError
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet
from ekg.train.batch_norm_statistics import StatisticsEstimation

logger = logging.getLogger(__name__)

MOST_EXAMPLES = 512
LEAST_EXAMPLES = 16
ACTIVATION_BYTES = 2**30  # limit for the live activations of both networks, if LEAST_EXAMPLES fit
BATCH = 256  # examples per batch when batch norm statistics are estimated


def repair(supernet: Supernet, subnetwork: Subnetwork, images: Any) -> keras.Model:
    """Cuts out a sub-network and repairs it; returns the plain cut if the repair does not help.

        smaller = ekg.repair(supernet, subnetwork, images)

    Nothing is trained and no labels are needed. Moving statistics are estimated from the same
    examples. The repair is kept if it lowers the mean squared difference from the unpruned
    network's outputs on held-out examples.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork to cut out.
        images: inputs of the network, array [examples, ...], or a dict or tuple of arrays for
            several inputs; at least LEAST_EXAMPLES, of which the first num_examples() are used.

    Raises:
        EkgError: there are too few examples, or they are not finite.
    """
    inputs = _checked(images, supernet.graph)
    held_out = rows_of(inputs, slice(first_held_out(count_of(inputs)), None))
    model = supernet.cut(subnetwork)
    estimate = StatisticsEstimation(model)
    batches = Batches(_Unlabelled(inputs), lambda images: images, BATCH)
    targets = keras.tree.flatten(supernet.model(held_out, training=False))

    def distance():
        outputs = keras.tree.flatten(model(held_out, training=False))
        pairs = zip(outputs, targets, strict=True)
        return float(sum(tf.reduce_mean((output - target) ** 2) for output, target in pairs))

    estimate(batches)
    repair_if_better_(
        model, supernet, subnetwork, inputs, functools.partial(estimate, batches), distance
    )
    return model


def repair_if_better_(model, supernet, subnetwork, inputs, estimate, loss):
    """Repairs a network that was cut out, in place, and undoes the repair unless the loss falls.

    Args:
        model: keras.Model from supernet.cut(subnetwork), with moving statistics that fit.
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: inputs of the network.
        estimate: function without arguments that re-estimates the model's moving statistics.
        loss: function without arguments that returns a loss of the model.

    Returns:
        Whether the repair was kept.
    """
    weights = model.get_weights()
    before = loss()
    repair_(model, supernet, subnetwork, inputs)
    estimate()
    after = loss()
    if after <= before:
        logger.info("repair: loss %.4g of the plain cut, %.4g repaired", before, after)
        return True
    model.set_weights(weights)
    logger.warning(
        "the repair is discarded: the plain cut has a loss of %.4g, the repaired network %.4g.",
        before,
        after,
    )
    return False


def num_examples(graph):
    """Returns how many examples a repair uses, so that both networks' activations fit in memory."""
    last_use = {
        number: position for position, call in enumerate(graph.calls) for number in call.inputs
    }
    sizes = {  # bytes per example
        number: 4 * math.prod(size or 1 for size in shape[1:])
        for number, shape in graph.shapes.items()
    }
    live = set(graph.inputs)
    largest = 0
    for position, call in enumerate(graph.calls):
        live |= set(call.outputs)
        largest = max(largest, sum(sizes[number] for number in live))
        dead = {number for number in live if last_use.get(number, -1) <= position}
        live -= dead - set(graph.outputs)
    return min(max(ACTIVATION_BYTES // (2 * largest), LEAST_EXAMPLES), MOST_EXAMPLES)


def _checked(inputs, graph):
    """Returns the inputs as arrays, cut to the number of examples that a repair uses.

    Raises:
        EkgError: there are too few, or not as many in every input, or a number is not finite.
    """
    count, taken = num_examples(graph), Inputs.of(graph)
    arrays = list(map(np.asarray, taken.listed(inputs, "images")))
    sizes = [len(array) for array in arrays]
    if len(set(sizes)) > 1:
        raise EkgError(
            f"`images` has {sizes} examples in the inputs {list(taken.names)}; give as many in "
            "every input."
        )
    arrays = [array[:count] for array in arrays]
    for array in arrays:
        if len(array) < LEAST_EXAMPLES:
            raise EkgError(
                f"`images`: a repair needs at least {LEAST_EXAMPLES} examples; received "
                f"{len(array)}."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EkgError("`images` must be finite numbers; some are NaN or infinite.")
    return taken.packed(arrays)


class _Unlabelled:
    """A split of examples without labels."""

    def __init__(self, inputs):
        self._inputs = inputs

    def __len__(self):
        return count_of(self._inputs)

    def stream(self, index_batches):
        for indices in index_batches:
            yield rows_of(self._inputs, indices)


def repair_(model, supernet, subnetwork, inputs):
    """Repairs a network that was cut out, in place.

    The moving statistics of batch norms no longer fit afterwards: estimate them again. Layers that
    are called several times, and layers whose record has no `patches`, keep their weights.

    Args:
        model: keras.Model from supernet.cut(subnetwork).
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: inputs of the network, at least 16 examples; no labels are needed.

    Returns:
        {layer: residual share of the variance of its output}.
    """
    with full_float32():
        return Sweep(model, supernet, subnetwork, inputs).run()
