"""Proposes the candidates of one search step, without evaluating any."""

import bisect
import math
from fractions import Fraction

import numpy as np

from ekg.network.subnetwork import count_kept

HALVINGS = 8  # of a step, where no group can make it
TRIM = Fraction(1, 5)  # of the sums, left out at either end before the threshold is taken

GROUP_CHOICES = ("intended", "published")


def propose(supernet, present, scores, target, search_step, narrowed=None, group_choice="intended"):
    """Returns (present sub-network in its new order, candidates as list of (group, Subnetwork)) of
    one search step.

    Args:
        supernet: the Supernet.
        present: the present Subnetwork.
        scores: importance of every channel, finite, array [num_channels].
        target: targets.Target; no candidate falls below it by more than one channel.
        search_step: r; a group of C channels and n writers loses δ = max(1/C, r/n) of its width.
        narrowed: {group name: number of times that it was narrowed by such steps}: fractions of a
            channel add up over steps. None means that the present widths are whole channels.
        group_choice: one of GROUP_CHOICES; see sum_scores() and pick_groups().
    """
    by_group = supernet.layout.by_group(scores)
    present = present.ranked(by_group)
    by_width = counts_by_width(supernet, present, search_step, narrowed)
    next_counts = _next_counts(supernet, present, by_width, target, search_step)
    sums = sum_scores(present, by_group, next_counts, group_choice)
    picked = pick_groups(sums, group_choice)
    return present, [(i, _narrow(supernet, present, i, next_counts[i], target)) for i in picked]


def counts_by_width(supernet, present, search_step, narrowed=None):
    """Returns {position of a group: channels that one step of its width leaves}.

    A group that is closed, already at the least that must stay, or idle since others have vanished,
    is left out. It takes the arguments of propose().
    """
    counts, idle = {}, supernet.idle_groups(present)
    for i, group in enumerate(supernet.groups):
        num_kept = present.num_kept(i)
        if num_kept <= group.counts[0] or i in idle:
            continue
        if narrowed is None:
            width = Fraction(num_kept, group.size)
        else:
            width = 1 - narrowed.get(group.name, 0) * step_of(group, search_step)
        counts[i] = next_kept(width, group, search_step)
    return counts


def _next_counts(supernet, present, by_width, target, search_step):
    """Returns {group: channel count after one more step}; see Target.next_count."""
    for halvings in range(HALVINGS):
        counts = {
            i: target.next_count(supernet, present, i, count, search_step / 2**halvings)
            for i, count in by_width.items()
        }
        if any(count is not None for count in counts.values()):
            return {i: count for i, count in counts.items() if count is not None}
    return by_width


def step_of(group, search_step):
    """Returns δ = max(1/C, r/n) of a ChannelGroup as a Fraction, with r as it is written: 0.2 is a
    fifth.

    Where only multiples of m channels may stay, δ = max(m/C, r/n).
    """
    return max(
        Fraction(group.multiple, group.size), Fraction(str(search_step)) / len(group.writers)
    )


def next_kept(width, group, search_step):
    """Returns the number of channels that a group keeps after one more step from this width, a
    Fraction: at least one fewer.
    """
    width = max(width - step_of(group, search_step), 0)
    kept = count_kept(width, group.size, min(group.least, 1))
    return group.counts[bisect.bisect_left(group.counts, kept)]


def most_step(group, search_step):
    """Returns an upper limit of the number of channels that one step takes from a group."""
    counts = group.counts
    gaps = [after - before for before, after in zip(counts, counts[1:])]
    return math.ceil(step_of(group, search_step) * group.size) + max(gaps, default=0)


def sum_scores(present, by_group, next_counts, group_choice="intended"):
    """Returns {group: importance}, by which groups are chosen to be tried.

    The intended rule sums the channels that the step would remove. The published program sums all
    channels of a group that is still whole, and counts a group that was narrowed before as 0: it
    narrows the groups whose whole importance is low, and those again and again.

    Args:
        present: the present Subnetwork, ranked by the scores.
        by_group: list of the scores of each group's channels, float array [channels].
        next_counts: {group: number of channels that the step would leave}.
        group_choice: one of GROUP_CHOICES.
    """
    if group_choice == "published":
        return {
            i: float(by_group[i].sum()) if present.num_kept(i) == len(by_group[i]) else 0.0
            for i in next_counts
        }
    removed = {
        i: list(present.order[i][count : present.num_kept(i)]) for i, count in next_counts.items()
    }
    return {i: float(by_group[i][channels].sum()) for i, channels in removed.items()}


def pick_groups(sums, group_choice="intended"):
    """Returns the groups to try: those whose sum is at or below the Otsu threshold.

    The lowest and the highest 20 % are trimmed before the threshold is taken; where fewer than
    three are left all groups are tried. The published program rounds the trimmed number up and
    never looks at the last split, which leaves the highest sum alone.

    Args:
        sums: {group: importance}, as sum_scores() gives.
        group_choice: one of GROUP_CHOICES.
    """
    is_published = group_choice == "published"
    ordered = np.sort(np.array(list(sums.values())))
    trim = (math.ceil if is_published else math.floor)(TRIM * len(ordered))
    kept = ordered[trim : len(ordered) - trim]
    if len(kept) < 3:
        return list(sums)
    threshold = otsu_threshold(kept, len(kept) - 2 if is_published else len(kept) - 1)
    return [group for group, value in sums.items() if value <= threshold]


def otsu_threshold(values, num_splits=None):
    """Returns the threshold between two neighbours of sorted values that maximises w₀·w₁·(μ₀ − μ₁)²
    (Otsu 1979).

    Args:
        values: ascending array of two or more.
        num_splits: number of splits to compare, from the one after the lowest value on; None
            compares all.
    """
    counts = np.arange(1, len(values))[:num_splits]
    below = np.cumsum(values)[: len(counts)]
    mean_below, mean_above = below / counts, (values.sum() - below) / (len(values) - counts)
    split = int(np.argmax(counts * (len(values) - counts) * (mean_below - mean_above) ** 2))
    return (values[split] + values[split + 1]) / 2


def combine(supernet, candidates, target):
    """Returns (groups, Subnetwork) of as many candidates of one step as can be narrowed together.

    They are added in their order, until one would bring the whole below the target by a channel or
    more. Nothing is added to what is at the target or below it, so the first is taken alone where
    it gets there.

    Args:
        supernet: the Supernet.
        candidates: list of (group, Subnetwork) of different groups, the best first.
        target: as in propose().
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
    """Returns the present sub-network with this number of channels of a group, or the most that
    reach the target.
    """
    candidate = present.with_kept(group, num_kept)
    if not target.is_passed(supernet, candidate):
        return candidate
    counts = [
        count
        for count in supernet.groups[group].counts
        if num_kept <= count < present.num_kept(group)
    ]
    if target.may_rise:
        return next(
            narrowed
            for narrowed in (present.with_kept(group, count) for count in reversed(counts))
            if target.is_reached(supernet, narrowed)
        )
    # The cost rises with the channels; the narrowest of these is below the target.
    reached = bisect.bisect_left(
        counts,
        True,
        key=lambda count: not target.is_reached(supernet, present.with_kept(group, count)),
    )
    return present.with_kept(group, counts[max(reached, 1) - 1])
