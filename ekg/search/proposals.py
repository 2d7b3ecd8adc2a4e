"""One step of the greedy search without any evaluation: which sub-networks it tries."""

import bisect
from fractions import Fraction

import numpy as np

from ekg.network.subnetwork import count_kept

HALVINGS = 8  # of a step that saves too little with every group
TRIM = 0.2  # share of the sums that is left out at either end before the threshold is taken


def propose(supernet, present, scores, target, search_step, narrowed=None):
    """Returns (present sub-network in its new order, candidates as list of (group, Subnetwork)) of one search step.

    Args:
        supernet: the Supernet.
        present: the present Subnetwork.
        scores: importance of every channel, finite, array [num_channels].
        target: targets.Target; no candidate falls below it by more than one channel.
        search_step: r; a group of C channels and n writers loses δ = max(1/C, r/n) of its width.
        narrowed: {group name: how often it was narrowed by such steps}: fractions of a channel add up over steps. None
            stands for a present sub-network whose widths are those of whole channels.
    """
    by_group = supernet.layout.by_group(scores)
    present = present.ranked(by_group)
    by_width = {}
    for i, group in enumerate(supernet.groups):
        num_kept = present.num_kept(i)
        if num_kept <= group.counts[0]:
            continue  # closed: its last channel stays, or as many as must
        width = Fraction(num_kept, group.size) if narrowed is None else 1 - narrowed.get(group.name, 0) * step_of(
            group, search_step)
        by_width[i] = next_kept(width, group, search_step)
    next_counts = _next_counts(supernet, present, by_width, target, search_step)
    sums = {i: float(by_group[i][list(present.order[i][count:present.num_kept(i)])].sum())
            for i, count in next_counts.items()}
    return present, [(i, _narrow(supernet, present, i, next_counts[i], target)) for i in pick_groups(sums)]


def _next_counts(supernet, present, by_width, target, search_step):
    """Returns {group: how many channels it keeps behind one more step}; see Target.next_count."""
    for halvings in range(HALVINGS):
        counts = {i: target.next_count(supernet, present, i, count, search_step / 2**halvings)
                  for i, count in by_width.items()}
        if any(count is not None for count in counts.values()):
            return {i: count for i, count in counts.items() if count is not None}
    return by_width


def step_of(group, search_step):
    """Returns δ = max(1/C, r/n) of a ChannelGroup as a Fraction, with r as it is written: 0.2 is a fifth.

    Where only multiples of m channels may stay, δ = max(m/C, r/n).
    """
    return max(Fraction(group.multiple, group.size), Fraction(str(search_step)) / len(group.writers))


def next_kept(width, group, search_step):
    """Returns how many channels a group keeps behind one more step from this width, a Fraction: at least one fewer."""
    kept = count_kept(max(width - step_of(group, search_step), 0), group.size)
    return group.counts[bisect.bisect_left(group.counts, kept)]


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


def combine(supernet, candidates, target):
    """Returns (groups, Subnetwork) of several candidates of one step narrowed together, or of as many as may be.

    They are added in their order, until one would bring the whole below the target by a channel or more. Nothing is
    added to what is at the target or below it, so the first is taken alone where it gets there.

    Args:
        supernet: the Supernet.
        candidates: list of (group, Subnetwork) of different groups, the best first.
        target: as of propose().
    """
    (first, together), *others = candidates
    groups = [first]
    for group, candidate in others:
        if target.is_reached(supernet, together):
            break
        num_kept = candidate.num_kept(group)
        narrowed = _narrow(supernet, together, group, num_kept, target)
        if narrowed.num_kept(group) != num_kept:
            break
        groups.append(group)
        together = narrowed
    return groups, together


def _narrow(supernet, present, group, num_kept, target):
    """Returns the present sub-network with so many channels of a group, or with the most at which it is at the target."""
    candidate = present.with_kept(group, num_kept)
    if not target.is_passed(supernet, candidate):
        return candidate
    counts = [count for count in supernet.groups[group].counts if num_kept <= count < present.num_kept(group)]
    if target.may_rise:
        return next(narrowed for narrowed in (present.with_kept(group, count) for count in reversed(counts))
                    if target.is_reached(supernet, narrowed))
    # The cost rises with the channels; the narrowest of these is below the target.
    reached = bisect.bisect_left(
        counts, True, key=lambda count: not target.is_reached(supernet, present.with_kept(group, count)))
    return present.with_kept(group, counts[max(reached, 1) - 1])
