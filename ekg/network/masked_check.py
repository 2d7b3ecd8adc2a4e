"""Checks on real examples that a cut network computes what the masked supernet computes."""

import logging
import math

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.compute import full_float32
from ekg.errors import EkgError, first_line
from ekg.graph.checks import middling

logger = logging.getLogger(__name__)

# Shares of the largest output. Rounding stays far below these, and a network that computes
# something else far above.
TOLERANCE, HALF_TOLERANCE = 1e-2, 0.25
MOST_EXAMPLES, BUDGET = 4, 2**28  # and bytes of all activations together


def num_examples(graph):
    """Returns the number of examples for check_promise(): the network's fixed batch, or a few;
    fewer large ones.
    """
    one = 4 * sum(math.prod(size or 1 for size in shape[1:]) for shape in graph.shapes.values())
    return graph.shapes[graph.inputs[0]][0] or min(max(BUDGET // one, 1), MOST_EXAMPLES)


def computes_in_half(graph):
    """Returns whether a layer of a graph computes in another dtype than float32."""
    return any(
        getattr(layer, "compute_dtype", "float32") != "float32" for layer in graph.layers.values()
    )


def check_promise(supernet, inputs):
    """Checks the unpruned network, and one cut out of it, against the masked one, with moving
    statistics.

    A user's layers may do what no graph shows. A random network is not compared, nor one that does
    not run here as it is, as in float16 on a CPU; a warning reports it.

    Args:
        supernet: Supernet.
        inputs: a few examples as the model takes them.

    Raises:
        EkgError: the outputs differ.
    """
    tolerance = HALF_TOLERANCE if computes_in_half(supernet.graph) else TOLERANCE
    tried = middling(supernet)
    with full_float32():
        for model, subnetwork, what in (
            (supernet.model, supernet.whole(), "the unpruned network"),
            (supernet.cut(tried), tried, "a network cut out of it"),
        ):
            try:
                value = model(inputs, training=False)
                masked = supernet.forward(
                    supernet.weights(),
                    tf.constant(supernet.mask(subnetwork)),
                    inputs,
                    training=False,
                )
                difference = _difference(masked, value)
                is_random = (
                    difference > tolerance
                    and _difference(value, model(inputs, training=False)) > tolerance
                )
            except tf.errors.OpError as error:
                logger.warning(
                    "%s is not compared with the masked one: %s", what, first_line(error)
                )
                return
            if difference > tolerance and not is_random:
                raise EkgError(
                    f"`model` {supernet.model.name!r} cannot be pruned correctly: on these data "
                    f"{what} and the masked one differ by {difference:.2g} of the largest output; "
                    "a layer does something that the graph does not show; "
                    "ekg.testing.check_prunable names it."
                )


def _difference(first, second):
    """Returns the largest difference of outputs, as a share of their largest value; infinite if
    only one is not finite.
    """
    worst = 0.0
    for a, b in zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if (np.isfinite(a) != np.isfinite(b)).any():
            return math.inf
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        largest = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
        worst = max(worst, np.abs(a - b).max(initial=0) / largest if largest else 0.0)
    return worst
