"""Importance of channels: the criteria that rank them.

A criterion is a function (objective, subnetwork) -> float64 array [num_channels], one score for every channel of all
groups; channels that the sub-network does not keep score 0. Further criteria are added here and in CRITERIA.
"""

import numpy as np

from ekg.graph import records

MEDIAN_STEPS, MEDIAN_TOLERANCE = 200, 1e-9  # of Weiszfeld's iteration


def ekg(objective, subnetwork):
    """Returns S(c) = Σ over batches of D_val Σ over sites |Σ over batch, height, width of (∂L/∂y)·y|.

    L = −reward and y the activation behind a gate (Lee and Song 2022).
    """
    layout = objective.supernet.layout
    scores = np.zeros(layout.num_channels + 1)
    for products in objective.gate_products(subnetwork):
        for site, product in products.items():
            np.add.at(scores, layout.index[site], product)
    return scores[:-1]


def l1(objective, subnetwork):
    """Returns the L1 norm of each channel's filters, summed over the layers that write its group (Li et al. 2017)."""
    return _over_filters(objective.supernet, subnetwork, lambda filters: np.abs(filters).sum(axis=1))


def fpgm(objective, subnetwork):
    """Returns each filter's distance to the geometric median of its layer's kept filters (He et al. 2019).

    Summed over the layers that write the group.
    """
    return _over_filters(objective.supernet, subnetwork,
                         lambda filters: np.linalg.norm(filters - geometric_median(filters), axis=1))


def gbn(objective, subnetwork):
    """Returns Σ over the images of D_val |∂CE/∂m · m| with a gate m on every channel (You et al. 2019)."""
    return objective.image_sensitivities(subnetwork)


def geometric_median(points):
    """Returns the point whose distances to the points have the smallest sum, by Weiszfeld's iteration.

    Args:
        points: [number, dimension].
    """
    median = points.mean(axis=0)
    for _ in range(MEDIAN_STEPS):
        distances = np.maximum(np.linalg.norm(points - median, axis=1), np.finfo(np.float64).eps)
        moved = (points / distances[:, None]).sum(axis=0) / (1 / distances).sum()
        if np.linalg.norm(moved - median) <= MEDIAN_TOLERANCE * np.linalg.norm(moved):
            return moved
        median = moved
    return median


def _over_filters(supernet, subnetwork, score):
    """Returns the sums over all kernels of the scores of their kept filters, which score() gets as [number, weights]."""
    layout, mask = supernet.layout, supernet.mask(subnetwork) > 0
    scores, scored = np.zeros(layout.num_channels + 1), set()
    for call in supernet.graph.calls:
        if not records.is_mixing(call.layer) or call.key in scored:
            continue
        scored.add(call.key)
        index = layout.index[call.output]
        kept = mask[index] & (index < layout.num_channels)
        if kept.any():
            np.add.at(scores, index[kept], score(_filters(call.layer, mask[layout.index[call.inputs[0]]])[kept]))
    return scores[:-1]


def _filters(layer, is_read):
    """Returns the filters of a mixing layer, float64 [number of filters, weights of each that the sub-network has].

    Args:
        layer: the Keras layer.
        is_read: which of its input channels the sub-network keeps, bool [channels].
    """
    record, kernel = records.record_of(layer), records.kernel_of(layer).numpy().astype(np.float64)
    axes = record.weights[record.kernel].axes
    read, written = axes.index(records.IN), axes.index(records.OUT)
    kernel = np.take(kernel, records.kept_indices(np.flatnonzero(is_read), len(is_read), kernel.shape[read]), read)
    return np.moveaxis(kernel, written, -1).reshape(-1, kernel.shape[written]).T


CRITERIA = {criterion.__name__: criterion for criterion in (ekg, l1, fpgm, gbn)}
