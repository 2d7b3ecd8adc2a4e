"""The promise, kept on a job's own data: what is masked is what is cut out, or the job is refused before it begins."""

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.compute import full_float32
from ekg.errors import EkgError
from ekg.graph.checks import middling

# Shares of the largest output. Rounding stays far below these, and a network that computes something else far above.
TOLERANCE, HALF_TOLERANCE = 1e-2, 0.25


def check_promise(supernet, inputs):
    """Checks the unpruned network, and one cut out of it, against the masked one, with moving statistics.

    Layers of one's own may do what no graph shows. A network whose outputs are not finite, or random, is not compared.

    Args:
        supernet: Supernet.
        inputs: a few examples as the model takes them.

    Raises:
        EkgError: the outputs differ.
    """
    is_half = any(getattr(layer, "compute_dtype", "float32") != "float32" for layer in supernet.graph.layers.values())
    tolerance, tried = HALF_TOLERANCE if is_half else TOLERANCE, middling(supernet)
    with full_float32():
        for model, subnetwork, what in ((supernet.model, supernet.whole(), "the unpruned network"),
                                        (supernet.cut(tried), tried, "a network cut out of it")):
            masked = supernet.forward(supernet.weights(), tf.constant(supernet.mask(subnetwork)), inputs, training=False)
            value = model(inputs, training=False)
            difference = _difference(masked, value)
            if difference > tolerance and _difference(value, model(inputs, training=False)) == 0:
                raise EkgError(f"`model` {supernet.model.name!r} cannot be pruned rightly: on these data {what} and the "
                               f"masked one differ by {difference:.2g} of the largest output; a layer does something that "
                               "the graph does not show, and ekg.testing.check_prunable names the first.")


def _difference(first, second):
    """Returns the largest difference of outputs, as a share of the largest value of the first; 0 if that is not finite."""
    worst = 0.0
    for a, b in zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = np.abs(a).max(initial=0)
        if np.isfinite(largest) and largest > 0:
            worst = max(worst, np.abs(a - b).max() / largest)
    return worst
