"""Loss surfaces along random filter-normalised directions (Li et al. 2018)."""

import numpy as np

from ekg.graph import records, registry
from ekg.process import stopping


def normalise_filters(direction, weights, axes):
    """Returns a direction whose filters have the norms of the weights' filters; zeros where there
    are no filters.

    Biases and batch norms stay where they are (Li et al. 2018, section 4).

    Args:
        direction: array.
        weights: array of the same shape.
        axes: the axes whose indices together name a filter, as filter_axes() gives.
    """
    if not axes:
        return np.zeros_like(weights)
    within = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    norms = np.sqrt((weights**2).sum(axis=within, keepdims=True))
    lengths = np.sqrt((direction**2).sum(axis=within, keepdims=True))
    return direction * norms / np.maximum(lengths, np.finfo(np.float64).tiny)


def filter_axes(layer, variable):
    """Returns the axes of a layer's variable whose indices together name a filter; () if it is no
    kernel.

    In a layer without a record, an array of rank above one counts as a kernel with its filters on
    the last axis.
    """
    record = registry.record_of(layer)
    described = {} if record is None else records.weights_of(layer, record)
    if id(variable) in described:
        return described[id(variable)].filter_axes
    return (len(variable.shape) - 1,) if len(variable.shape) > 1 else ()


def surface(landscape, directions, steps, on_point=None):
    """Returns the losses on a grid around the landscape's point, float64 [len(steps), len(steps)].

    Entry [i, j] is at steps[i] along the first direction and steps[j] along the second.

    Args:
        landscape: hessian.Landscape.
        directions: two vectors, as landscape.directions() gives.
        steps: multiples of the directions.
        on_point: function called after every loss, or None.
    """
    losses = np.zeros((len(steps), len(steps)))
    for i, first in enumerate(steps):
        for j, second in enumerate(steps):
            stopping.check()
            point = landscape.point + first * directions[0] + second * directions[1]
            losses[i, j] = landscape.loss(point.astype(np.float32))
            if on_point is not None:
                on_point()
    return losses
