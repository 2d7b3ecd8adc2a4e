"""Sub-networks with given or random widths that are scaled to one rate."""

WIDTHS = (0.2, 1.0)  # range of random widths, before they are scaled to the rate
MAX_FACTOR = 5.0  # largest factor of the widths
BISECTIONS = 40  # steps of the search for the factor


def random_subnetwork(supernet, scores, rate, rng):
    """Returns a sub-network with random widths; see scaled_subnetwork().

    Args:
        supernet: the Supernet.
        scores: importance of every channel, float [num_channels]; the most important are kept.
        rate: share of the FLOPs to keep.
        rng: NumPy Generator.
    """
    return scaled_subnetwork(supernet, scores, rate, rng.uniform(*WIDTHS, len(supernet.groups)))


def scaled_subnetwork(supernet, scores, rate, widths):
    """Returns the sub-network with widths times the largest factor at which its rate is <= `rate`.

    Args:
        supernet: the Supernet.
        scores: importance of every channel, float [num_channels]; the most important are kept.
        rate: share of the FLOPs to keep.
        widths: share of each group's channels, before the factor.
    """
    scores_by_group = [scores[supernet.layout.channels(i)] for i in range(len(supernet.groups))]
    ranked = supernet.whole().ranked(scores_by_group)

    def scaled(factor):
        pairs = zip(supernet.groups, widths)
        return ranked.with_widths({group.name: min(factor * width, 1.0) for group, width in pairs})

    low, high = 0.0, MAX_FACTOR
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if supernet.rate(scaled(middle)) <= rate:
            low = middle
        else:
            high = middle
    return scaled(low)
