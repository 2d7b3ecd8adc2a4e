"""Sub-networks of given or random widths, all scaled to one rate."""

WIDTHS = (
    0.2,
    1.0,
)  # from which to which the random widths are drawn, before all are scaled to the rate
MAX_FACTOR, BISECTIONS = 5.0, 40  # of the factor that scales them


def random_subnetwork(supernet, scores, rate, rng):
    """Returns a sub-network of random widths; see scaled_subnetwork().

    Args:
        supernet: the Supernet.
        scores: importance of every channel, float array [num_channels]; the most important ones
            stay.
        rate: share of the FLOPs.
        rng: numpy Generator.
    """
    return scaled_subnetwork(supernet, scores, rate, rng.uniform(*WIDTHS, len(supernet.groups)))


def scaled_subnetwork(supernet, scores, rate, widths):
    """Returns the sub-network whose rate is as close below `rate` as one factor on given widths
    gets it.

    Args:
        supernet: the Supernet.
        scores: importance of every channel, float array [num_channels]; the most important ones
            stay.
        rate: share of the FLOPs.
        widths: share of each group's channels, before the factor.
    """
    ranked = supernet.whole().ranked(
        [scores[supernet.layout.channels(i)] for i in range(len(supernet.groups))]
    )

    def scaled(factor):
        return ranked.with_widths(
            {group.name: min(factor * width, 1.0) for group, width in zip(supernet.groups, widths)}
        )

    low, high = 0.0, MAX_FACTOR
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if supernet.rate(scaled(middle)) <= rate else (low, middle)
    return scaled(low)
