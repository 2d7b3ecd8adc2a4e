import numpy as np
import pytest

import ekg
from ekg.searching import proposals
from ekg.searching.targets import Flops


def otsu_by_trial(values):
    best = max(
        range(1, len(values)),
        key=lambda k: k * (len(values) - k) * (np.mean(values[:k]) - np.mean(values[k:])) ** 2,
    )
    return (values[best - 1] + values[best]) / 2


def test_otsu_threshold_equals_trial_of_all_splits():
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 20):
        values = np.sort(rng.exponential(size=size))
        assert proposals.otsu_threshold(values) == pytest.approx(otsu_by_trial(values))
    assert proposals.otsu_threshold(np.array([1.0, 2.0, 9.0, 10.0])) == 5.5


def test_groups_at_or_below_the_threshold_are_tried():
    sums = dict(enumerate([5.0, 1.0, 1.1, 1.2, 100.0, 0.0, 5.1, 5.2, 1.3, 5.3]))
    # Trimmed of two at either end: 1.1 1.2 1.3 5.0 5.1 5.2, so the threshold is (1.3 + 5.0) / 2.
    assert proposals.pick_groups(sums) == [1, 2, 3, 5, 8]


def test_few_groups_are_all_tried():
    assert proposals.pick_groups({0: 1.0, 3: 50.0}) == [0, 3]


def all_groups(sums, _):
    return list(sums)


def propose(supernet, present, target_rate, scores=None, search_step=0.2):
    scores = np.arange(supernet.layout.num_channels, dtype=float) if scores is None else scores
    return proposals.propose(supernet, present, scores, Flops(target_rate), search_step)


def test_a_step_takes_the_larger_of_one_channel_and_the_search_step_over_the_writers(
    tiny_resnet, monkeypatch
):
    supernet = ekg.Supernet(tiny_resnet)
    monkeypatch.setattr(proposals, "pick_groups", all_groups)
    present, candidates = propose(supernet, supernet.whole(), 0.01, search_step=0.5)
    kept = {
        supernet.groups[group].name: subnetwork.num_kept(group) for group, subnetwork in candidates
    }
    # stem: 2 writers, 1/6 < 0.25, and 0.75 * 6 = 4.5 keeps five; a1 and b1: one writer; b2: 2
    # writers, 1/8 < 0.25
    assert kept == {"stem": 5, "a1": 2, "b1": 3, "b2": 6}
    _, candidates = propose(supernet, present, 0.01, search_step=0.01)
    assert [subnetwork.num_kept(group) for group, subnetwork in candidates] == [5, 3, 4, 7]


def test_the_least_important_channels_are_removed_and_closed_groups_kept(tiny_resnet, monkeypatch):
    supernet = ekg.Supernet(tiny_resnet)
    monkeypatch.setattr(proposals, "pick_groups", all_groups)
    present = supernet.whole().with_widths({"a1": 0.0})
    scores = np.zeros(supernet.layout.num_channels)
    scores[supernet.layout.channels(0)] = [3, 1, 4, 1, 5, 9]
    _, candidates = propose(supernet, present, 0.01, scores, search_step=0.6)
    assert [group for group, _ in candidates] == [0, 2, 3]
    assert candidates[0][1].kept(0).tolist() == [
        0,
        1,
        2,
        4,
        5,
    ]  # 0.7 * 6 = 4.2 keeps five; of the ties the later goes


def test_sums_include_the_channels_that_the_step_would_remove(tiny_resnet, monkeypatch):
    supernet = ekg.Supernet(tiny_resnet)
    seen = {}
    monkeypatch.setattr(proposals, "pick_groups", lambda sums, _: seen.update(sums) or list(sums))
    scores = np.concatenate(
        [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8], [2, 8, 1, 8, 2], [8, 4, 5, 9, 0, 4, 5, 2]]
    ).astype(float)
    propose(supernet, supernet.whole(), 0.01, scores, search_step=0.5)
    assert seen == {0: 1.0, 1: 3.0, 2: 3.0, 3: 2.0}


def test_a_candidate_below_the_target_is_widened_to_it(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    whole = supernet.whole()
    target = (
        supernet.rate(whole.with_width(0, 4 / 6)) + supernet.rate(whole.with_width(0, 5 / 6))
    ) / 2
    _, candidates = propose(supernet, whole, target, search_step=1.0)
    for group, subnetwork in candidates:
        if supernet.rate(subnetwork) < target:
            assert (
                supernet.rate(subnetwork.with_kept(group, subnetwork.num_kept(group) + 1)) > target
            )
    assert dict(candidates)[0].num_kept(0) == 4 and dict(candidates)[0].width[0] == 4 / 6


def test_parts_of_a_channel_add_up_over_steps(tiny_resnet, monkeypatch):
    """b1 of 5 channels loses 1.5 of them a step: 3.5, 2 and 0.5 are left, which keep 4, 2 and 1."""
    supernet = ekg.Supernet(tiny_resnet)
    monkeypatch.setattr(proposals, "pick_groups", all_groups)
    present, kept, scores = supernet.whole(), [], np.zeros(supernet.layout.num_channels)
    for times in range(3):
        _, candidates = proposals.propose(
            supernet, present, scores, Flops(0.001), 0.3, {"b1": times}
        )
        present = dict(candidates)[2]
        kept.append(present.num_kept(2))
    assert kept == [4, 2, 1]


def test_candidates_are_combined_in_their_order_down_to_the_target_and_not_below(tiny_resnet):
    """Whatever the target: as many as leave the whole above it, and one more if that misses it by
    less than a channel.
    """
    supernet, order = ekg.Supernet(tiny_resnet), (3, 1, 0, 2)
    whole, seen = supernet.whole(), set()
    for target in np.linspace(0.2, 0.99, 60):
        candidates = dict(propose_all(supernet, whole, target))
        groups, together = proposals.combine(
            supernet, [(i, candidates[i]) for i in order], Flops(target)
        )
        assert groups == list(order[: len(groups)])
        assert all(
            together.num_kept(i) == (candidates[i] if i in groups else whole).num_kept(i)
            for i in order
        )
        without_last = together.with_kept(groups[-1], supernet.groups[groups[-1]].size)
        assert len(groups) == 1 or supernet.rate(without_last) > target
        wider = together.with_kept(groups[-1], together.num_kept(groups[-1]) + 1)
        assert supernet.rate(together) >= target or supernet.rate(wider) > target
        if len(groups) < 4 and supernet.rate(together) > target:
            i = order[len(groups)]
            assert supernet.rate(together.with_kept(i, candidates[i].num_kept(i) + 1)) <= target
        seen.add(len(groups))
    assert seen == {1, 2, 3, 4}


def propose_all(supernet, present, target):
    """Returns the candidates of all groups, which lose half of their width a writer."""
    return [
        (
            i,
            proposals._narrow(
                supernet, present, i, proposals.next_kept(1, group, 0.5), Flops(target)
            ),
        )
        for i, group in enumerate(supernet.groups)
    ]


# ---------------------------------------------------------------- as the published program chooses


def test_published_sums_are_of_whole_groups_and_nothing_of_narrowed_ones(tiny_resnet, monkeypatch):
    """Groups of 6, 4, 5 and 8 channels; a1 has three of four left, so it counts as 0."""
    supernet, seen = ekg.Supernet(tiny_resnet), {}
    pick = proposals.pick_groups
    monkeypatch.setattr(
        proposals, "pick_groups", lambda sums, choice: seen.update(sums) or pick(sums, choice)
    )
    by_group = [
        np.array(values, float)
        for values in ([3, 1, 4, 1, 5, 9], [2, 7, 1, 8], [2, 8, 1, 8, 2], [8, 4, 5, 9, 0, 4, 5, 2])
    ]
    scores, present = np.concatenate(by_group), supernet.whole().ranked(by_group).with_kept(1, 3)
    _, candidates = proposals.propose(
        supernet, present, scores, Flops(0.01), 0.5, group_choice="published"
    )
    assert seen == {0: 23.0, 1: 0.0, 2: 21.0, 3: 37.0}
    # one of four is trimmed at either end: two are left
    assert [group for group, _ in candidates] == [0, 1, 2, 3]
    _, candidates = proposals.propose(supernet, present, scores, Flops(0.01), 0.5)
    assert seen == {0: 1.0, 1: 9.0, 2: 3.0, 3: 2.0}  # intended: what the step would remove


def test_published_trimming_rounds_up():
    sums = dict(enumerate([5.0, 1.0, 1.1, 1.2, 100.0, 0.0, 5.1, 5.2, 1.3, 5.3, 6.0]))
    # Of eleven three are trimmed at either end, in place of two: 1.2 1.3 5.0 5.1 5.2, so the
    # threshold is (1.3 + 5) / 2.
    assert proposals.pick_groups(sums, "published") == [1, 2, 3, 5, 8]
    ten = dict(enumerate(range(10)))  # 2 to 7 are left of either, not 3 to 6
    assert proposals.pick_groups(ten, "published") == proposals.pick_groups(ten) == [0, 1, 2, 3, 4]
    six = dict(enumerate([0.0, 1.0, 2.0, 10.0, 11.0, 12.0]))  # two are trimmed in place of one
    assert proposals.pick_groups(six, "published") == list(six)
    assert proposals.pick_groups(six) == [0, 1, 2]
    thirty_five = np.arange(35.0)  # 20 % of it, in floats, is a little more than seven
    # Of eight trimmed one of these would be left, after the split that is not looked at.
    thirty_five[26:] = 1000.0
    assert proposals.pick_groups(dict(enumerate(thirty_five)), "published") == list(range(26))


def test_the_published_program_does_not_look_at_the_last_split():
    # 1 2 3 | 100 would be the best split; of the others 1 2 | 3 100 with 2 · 2 · (1.5 − 51.5)² =
    # 10 000 beats 1 | 2 3 100 with 1 · 3 · (1 − 35)² = 3 468.
    values = np.array([1.0, 2.0, 3.0, 100.0])
    assert proposals.otsu_threshold(values) == 51.5 and proposals.otsu_threshold(values, 2) == 2.5
    # two of eight are trimmed at either end
    sums = dict(enumerate([0.0, -1.0, *values, 101.0, 102.0]))
    assert proposals.pick_groups(sums, "published") == [0, 1, 2, 3]
    assert proposals.pick_groups(dict(enumerate([0.0, *values, 101.0]))) == [0, 1, 2, 3]
