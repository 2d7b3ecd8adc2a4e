"""Importance of channels: the criteria that rank them.

A criterion is a function (objective, subnetwork) -> float64 array [num_channels], one score for every channel of all
groups; channels that the sub-network does not keep score 0. Further criteria are added here and in CRITERIA.
"""

import numpy as np


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


CRITERIA = {"ekg": ekg}
