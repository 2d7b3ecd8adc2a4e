"""One step of the greedy search without any evaluation: which sub-networks it tries."""

import numpy as np

from ekg.network.subnetwork import count_kept

TRIM = 0.2  # share of the sums that is left out at either end before the threshold is taken
WIDTH_DIGITS = 9  # decimal places of a width


def propose(supernet, present, scores, target_rate, search_step):
    """Returns (present sub-network in its new order, candidates as list of (group, Subnetwork)) of one search step.

    Args:
        supernet: the Supernet.
        present: the present Subnetwork.
        scores: importance of every channel, array [num_channels].
        target_rate: no candidate falls below it by more than one channel.
        search_step: r; a group of C channels and n writers loses δ = max(1/C, r/n) of its width.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError("the importance of some channels is not finite; are the weights those of a trained "
                                 "network?")
    by_group = supernet.layout.by_group(scores)
    present = present.ranked(by_group)
    narrowed, sums = {}, {}
    for i, group in enumerate(supernet.groups):
        num_kept = present.num_kept(i)
        if num_kept == 1:
            continue  # closed: its last channel stays
        width = present.width[i] - max(1 / group.size, search_step / len(group.writers))
        width = max(round(width, WIDTH_DIGITS), 0.0)  # 1 - 5 * 0.2 is nothing, not 6e-17
        removed = present.order[i][count_kept(width, group.size):num_kept]
        narrowed[i], sums[i] = width, float(by_group[i][list(removed)].sum())
    return present, [(i, _narrow(supernet, present, i, narrowed[i], target_rate)) for i in pick_groups(sums)]


def pick_groups(sums):
    """Returns the groups to try: those whose removed importance is at or below the Otsu threshold.

    The lowest and the highest 20 % are trimmed before the threshold is taken; where fewer than three are left all groups
    are tried.

    Args:
        sums: {group: sum of the importance that the step would remove}.
    """
    ordered = np.sort(np.array(list(sums.values())))
    trim = int(TRIM * len(ordered))
    kept = ordered[trim:len(ordered) - trim]
    if len(kept) < 3:
        return list(sums)
    threshold = otsu_threshold(kept)
    return [group for group, value in sums.items() if value <= threshold]


def otsu_threshold(values):
    """Returns the threshold between two neighbours of sorted values that maximises w₀·w₁·(μ₀ − μ₁)² (Otsu 1979)."""
    counts = np.arange(1, len(values))
    below = np.cumsum(values)[:-1]
    mean_below, mean_above = below / counts, (values.sum() - below) / (len(values) - counts)
    split = int(np.argmax(counts * (len(values) - counts) * (mean_below - mean_above) ** 2))
    return (values[split] + values[split + 1]) / 2


def _narrow(supernet, present, group, width, target_rate):
    """Returns the present sub-network with this width, or with the widest one, in whole channels, at the target."""
    candidate = present.with_width(group, width)
    if supernet.rate(candidate) >= target_rate:
        return candidate
    size = supernet.groups[group].size
    low, high = count_kept(width, size), present.num_kept(group) - 1  # the rate rises with the channels
    while low < high:
        middle = (low + high + 1) // 2
        if supernet.rate(present.with_width(group, middle / size)) <= target_rate:
            low = middle
        else:
            high = middle - 1
    return present.with_width(group, low / size)
